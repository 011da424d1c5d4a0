//! Others beside us, for what they can express: a set of addresses encoded by
//! our encoder, by libnftnl (`nftnl`) and by `rustables`; the same elements
//! committed by the agent's kernel room, over a raw socket, and by `nft -f`.
//!
//! `cargo bench -p netlink-tests --bench peers`, as root.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark of sound input")]

use std::ffi::CString;
use std::fmt::Write;
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use agent::netlink::{Kernel, encode};
use compiler::diff::{Action, Operation, Transaction};
use compiler::ruleset::element::{Data, Element, Key};
use compiler::ruleset::maps::Map;
use compiler::ruleset::{Family, TABLE};
use criterion::{Criterion, Throughput};
use netlink_tests::readback::nft;
use netlink_tests::scale::raw_socket::RawSocket;
use nftnl::{MsgType, ProtoFamily};

/// `rustables` writes one attribute for all, which holds no more than this.
const ENCODED: u32 = 1_000;
const COMMITTED: u32 = 10_000;

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + number)
}

fn transaction(actions: impl Iterator<Item = Action>) -> Transaction {
    let operation = |action| Operation { family: Family::Ipv4, action, owner: None };
    Transaction { operations: actions.map(operation).collect() }
}

fn element(number: u32) -> Element {
    Element { map: Map::ClusterIps, key: Key::Address(address(number).into()), data: Data::Nothing, comment: None }
}

fn encoders(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode-1000-addresses");
    group.throughput(Throughput::Elements(ENCODED.into())).measurement_time(Duration::from_secs(2));
    let ours = transaction((0..ENCODED).map(|number| Action::AddElement(element(number))));
    group.bench_function("vmap-proxy", |bencher| bencher.iter(|| black_box(encode(&ours))));
    group.bench_function("nftnl", |bencher| {
        let table = nftnl::Table::new(CString::new(TABLE).unwrap(), ProtoFamily::Ipv4);
        let name = CString::new(Map::ClusterIps.name()).unwrap();
        bencher.iter(|| {
            let mut set = nftnl::set::Set::<Ipv4Addr>::new_named(&name, 1, &table, ProtoFamily::Ipv4);
            (0..ENCODED).for_each(|number| set.add(&address(number)));
            let mut batch = nftnl::Batch::new();
            batch.add_iter(set.elems_iter(), MsgType::Add);
            black_box(batch.finalize())
        });
    });
    group.bench_function("rustables", |bencher| {
        let table = rustables::Table::new(rustables::ProtocolFamily::Ipv4).with_name(TABLE);
        bencher.iter(|| {
            let mut set = rustables::set::SetBuilder::<Ipv4Addr>::new(Map::ClusterIps.name(), &table).unwrap();
            (0..ENCODED).for_each(|number| set.add(&address(number)));
            let (_, elements) = set.finish();
            let mut batch = rustables::Batch::new();
            batch.add(&elements, rustables::MsgType::Add);
            black_box(batch.finalize())
        });
    });
    group.finish();
}

/// All elements in, and out again.
fn commits(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commit-10000-addresses");
    group.sample_size(10).throughput(Throughput::Elements(COMMITTED.into())).measurement_time(Duration::from_secs(3));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut kernel = runtime.block_on(async { Kernel::open() }).unwrap();
    let skeleton = transaction([Action::AddTable, Action::AddMap(Map::ClusterIps)].into_iter());
    kernel.commit(&skeleton).unwrap();

    let add = transaction((0..COMMITTED).map(|number| Action::AddElement(element(number))));
    let remove = transaction((0..COMMITTED).map(|number| Action::DeleteElement(element(number))));
    group.bench_function("vmap-proxy", |bencher| {
        bencher.iter(|| {
            kernel.commit(&add).unwrap();
            kernel.commit(&remove).unwrap();
        });
    });
    let mut socket = RawSocket::open().unwrap();
    let (encoded_add, encoded_remove) = (encode(&add), encode(&remove));
    group.bench_function("raw-socket", |bencher| {
        bencher.iter(|| {
            socket.commit(&encoded_add).unwrap();
            socket.commit(&encoded_remove).unwrap();
        });
    });
    let (text_add, text_remove) = (text("add"), text("delete"));
    group.bench_function("nft-f", |bencher| {
        bencher.iter(|| {
            nft(&["-f", "-"], &text_add).unwrap();
            nft(&["-f", "-"], &text_remove).unwrap();
        });
    });
    group.finish();
}

fn text(verb: &str) -> String {
    let mut text = format!("{verb} element ip {TABLE} {} {{ ", Map::ClusterIps);
    for number in 0..COMMITTED {
        // Writing to a String can't fail.
        let _ = write!(text, "{}, ", address(number));
    }
    text.push('}');
    text
}

fn main() {
    // Before any thread exists.
    let permitted = agent::lab::enter_user_namespace();
    let mut criterion = Criterion::default().configure_from_args();
    encoders(&mut criterion);
    match permitted {
        Ok(()) => commits(&mut criterion),
        Err(error) => eprintln!("commits are left out: {error}"),
    }
    criterion.final_summary();
}
