//! Encoding: what a first sync of N Services sends, cut into transactions as
//! the agent cuts it. One Service alone is about what one change sends.
//!
//! `cargo bench -p vmap-proxy`. Commits, and other encoders beside ours,
//! are in `netlink-tests/bench` (`cargo bench -p vmap-proxy-bench --bench peers`).
#![allow(missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use vmap_proxy_agent::netlink::encode;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::plan::{Action, MAX_OPERATIONS, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, Verdict};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::spread::Spread;
use vmap_proxy_compiler::ruleset::target::{Domain, FrontendKey, Pool, Target};

const ENDPOINTS: u32 = 5;

fn address(base: [u8; 4], number: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + number).into()
}

/// The elements of Services with one port: their endpoints, the verdict, the
/// cluster IP.
fn transactions(services: u32) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    let mut operations = Vec::new();
    for service in 0..services {
        let frontend = FrontendKey { address: address([10, 0, 1, 0], service), protocol: Protocol::Tcp, port: 80 };
        let mut push = |map, key, data, comment: Option<String>| {
            let element = Element { map, key, data, comment: comment.map(Into::into) };
            operations.push(Operation { family: Family::Ipv4, action: Action::AddElement(element), owner: None });
        };
        for slot in 0..ENDPOINTS {
            let pod = address([10, 128, 0, 1], service * ENDPOINTS + slot);
            let endpoint = Data::Endpoint(Endpoint { address: pod, port: 8080 });
            push(
                Map::Endpoints(Domain::Frontend, Pool::Main),
                Key::Slot(Target::Frontend(frontend), slot),
                endpoint,
                None,
            );
        }
        let spread = Spread::of(ENDPOINTS);
        let chain = Chain::Balance { domain: Domain::Frontend, pool: Pool::Main, sticky: false, spread };
        let comment = format!("team-{:03}/backend-{service:06}:http", service % 200);
        push(
            Map::Frontends(Domain::Frontend),
            Key::Target(Target::Frontend(frontend)),
            Data::Verdict(Verdict::Goto(chain)),
            Some(comment),
        );
        push(Map::ClusterIps, Key::Address(frontend.address), Data::Nothing, None);
        if operations.len() >= MAX_OPERATIONS || service + 1 == services {
            transactions.push(Transaction { operations: std::mem::take(&mut operations) });
        }
    }
    transactions
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for services in [1, 100, 1_000, 10_000, 100_000] {
        let transactions = transactions(services);
        let operations: usize = transactions.iter().map(|transaction| transaction.operations.len()).sum();
        group.throughput(Throughput::Elements(operations as u64));
        if services >= 10_000 {
            group.sampling_mode(SamplingMode::Flat);
        }
        group.bench_with_input(BenchmarkId::from_parameter(services), &transactions, |bencher, transactions| {
            bencher.iter(|| {
                for transaction in transactions {
                    black_box(encode(black_box(transaction)));
                }
            });
        });
    }
}

criterion_group!(benches, encoding);
criterion_main!(benches);
