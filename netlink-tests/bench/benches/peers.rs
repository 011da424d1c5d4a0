//! Others beside us, for what they can express: a set of addresses encoded by
//! our encoder, by libnftnl (`nftnl`) and by `rustables`, each from the list of
//! addresses to the bytes; and such a set committed by the agent's netlink module,
//! over a raw socket from bytes that are there before, and by `nft -f` (the
//! start of its process included).
//!
//! `cargo bench -p vmap-proxy-bench --bench peers`, as root.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark of sound input")]

use std::ffi::CString;
use std::fmt::Write;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use nftnl::{MsgType, ProtoFamily};
use vmap_proxy_agent::netlink::{Kernel, encode};
use vmap_proxy_bench::scale::raw_socket::RawSocket;
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_testbed::nft::nft;

/// Sizes of the set that is encoded.
const ENCODED: [u32; 4] = [100, 1_000, 10_000, 100_000];
/// `rustables` writes one attribute for all, whose length is a 16 bit number.
const RUSTABLES_MOST: u32 = 1_000;
/// Sizes of the set that is committed.
const COMMITTED: [u32; 3] = [100, 1_000, 10_000];

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + number)
}

fn transaction(actions: impl Iterator<Item = Action>) -> Transaction {
    let operation = |action| Operation { family: Family::Ipv4, action, owner: None };
    Transaction { operations: actions.map(operation).collect() }
}

fn element(address: Ipv4Addr) -> Element {
    Element { map: Map::ClusterIps, key: Key::Address(address.into()), data: Data::Nothing, comment: None }
}

fn encoders(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode-addresses");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for size in ENCODED {
        let addresses: Vec<Ipv4Addr> = (0..size).map(address).collect();
        group.throughput(Throughput::Elements(size.into()));
        if size >= 10_000 {
            group.sampling_mode(SamplingMode::Flat);
        }
        let id = |name| BenchmarkId::new(name, size);
        group.bench_function(id("vmap-proxy"), |bencher| bencher.iter(|| ours(black_box(&addresses))));
        group.bench_function(id("nftnl"), |bencher| bencher.iter(|| by_nftnl(black_box(&addresses))));
        if size <= RUSTABLES_MOST {
            group.bench_function(id("rustables"), |bencher| bencher.iter(|| by_rustables(black_box(&addresses))));
        }
    }
    group.finish();
}

fn ours(addresses: &[Ipv4Addr]) -> Vec<u8> {
    encode(&transaction(addresses.iter().map(|address| Action::AddElement(element(*address)))))
}

fn by_nftnl(addresses: &[Ipv4Addr]) -> nftnl::FinalizedBatch {
    let table = nftnl::Table::new(CString::new(TABLE).unwrap(), ProtoFamily::Ipv4);
    let name = CString::new(Map::ClusterIps.name()).unwrap();
    let mut set = nftnl::set::Set::<Ipv4Addr>::new_named(&name, 1, &table, ProtoFamily::Ipv4);
    addresses.iter().for_each(|address| set.add(address));
    let mut batch = nftnl::Batch::new();
    batch.add_iter(set.elems_iter(), MsgType::Add);
    batch.finalize()
}

fn by_rustables(addresses: &[Ipv4Addr]) -> Vec<u8> {
    let table = rustables::Table::new(rustables::ProtocolFamily::Ipv4).with_name(TABLE);
    let mut set = rustables::set::SetBuilder::<Ipv4Addr>::new(Map::ClusterIps.name(), &table).unwrap();
    addresses.iter().for_each(|address| set.add(address));
    let (_, elements) = set.finish();
    let mut batch = rustables::Batch::new();
    batch.add(&elements, rustables::MsgType::Add);
    batch.finalize()
}

/// All elements in, and out again.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit-addresses");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    let mut kernel = Kernel::open().unwrap();
    let skeleton = transaction([Action::AddTable, Action::AddMap(Map::ClusterIps)].into_iter());
    kernel.commit(&skeleton).unwrap();
    let mut socket = RawSocket::open().unwrap();
    for size in COMMITTED {
        let elements = || (0..size).map(address).map(element);
        let add = transaction(elements().map(Action::AddElement));
        let remove = transaction(elements().map(Action::DeleteElement));
        group.throughput(Throughput::Elements(size.into()));
        if size >= 10_000 {
            group.sampling_mode(SamplingMode::Flat);
        }
        let id = |name| BenchmarkId::new(name, size);
        group.bench_function(id("vmap-proxy"), |bencher| {
            bencher.iter(|| {
                kernel.commit(&add).unwrap();
                kernel.commit(&remove).unwrap();
            });
        });
        let (encoded_add, encoded_remove) = (encode(&add), encode(&remove));
        group.bench_function(id("raw-socket"), |bencher| {
            bencher.iter(|| {
                socket.commit(&encoded_add).unwrap();
                socket.commit(&encoded_remove).unwrap();
            });
        });
        let (text_add, text_remove) = (text("add", size), text("delete", size));
        group.bench_function(id("nft-f"), |bencher| {
            bencher.iter(|| {
                nft(&["-f", "-"], &text_add).unwrap();
                nft(&["-f", "-"], &text_remove).unwrap();
            });
        });
    }
    group.finish();
}

fn text(verb: &str, size: u32) -> String {
    let mut text = format!("{verb} element ip {TABLE} {} {{ ", Map::ClusterIps);
    for number in 0..size {
        // Writing to a String can't fail.
        let _ = write!(text, "{}, ", address(number));
    }
    text.push('}');
    text
}

fn main() {
    // Before any thread exists.
    let permitted = vmap_proxy_lab::enter_user_namespace();
    let mut criterion = Criterion::default().configure_from_args();
    encoders(&mut criterion);
    match permitted {
        Ok(()) => commits(&mut criterion),
        Err(error) => eprintln!("commits are left out: {error}"),
    }
    criterion.final_summary();
}
