//! How the compiler's work grows with the number of Services: a full compile
//! grows with it, one change must not.
//!
//! `cargo bench -p vmap-proxy-compiler`; `-- diff/100000` for one of them.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark of sound input")]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use compiler::diff::{KernelState, Planner, Resync};
use compiler::evaluate::{Evaluator, Host, Packet};
use compiler::model::config::DetectLocal;
use compiler::model::{Change, Object, Protocol, ProxyConfig, Store};
use compiler::render;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;

const SIZES: [u32; 4] = [100, 1_000, 10_000, 100_000];
const ENDPOINTS: u32 = 5;

fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "node-0".to_owned(),
        detect_local: DetectLocal::ClusterCidr(vec!["10.128.0.0/9".parse().unwrap()]),
        ..ProxyConfig::default()
    }
}

fn address(base: [u8; 4], number: u32) -> String {
    Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + number).to_string()
}

fn apply(value: serde_json::Value) -> Change {
    Change::Apply(serde_json::from_value::<Object>(value).unwrap())
}

fn service(service: u32) -> Change {
    apply(json!({"kind": "Service",
        "metadata": {"name": format!("backend-{service:06}"), "namespace": format!("team-{:03}", service % 200)},
        "spec": {"type": "ClusterIP", "clusterIP": address([10, 0, 1, 0], service),
            "ports": [{"name": "http", "port": 80}]}}))
}

/// The slice of a Service; `version` tells the one endpoint that is replaced.
fn slice(service: u32, version: u32) -> Change {
    let endpoint = |slot: u32| {
        let pod = service * ENDPOINTS + slot + if slot == 2 { version * 1_000_000 } else { 0 };
        json!({"addresses": [address([10, 128, 0, 1], pod)], "nodeName": format!("node-{}", pod % 100)})
    };
    apply(json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("backend-{service:06}-0"), "namespace": format!("team-{:03}", service % 200),
            "labels": {"kubernetes.io/service-name": format!("backend-{service:06}")}},
        "endpoints": (0..ENDPOINTS).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080}]}))
}

fn store(services: u32) -> Store {
    let mut store = Store::new("node-0");
    for number in 0..services {
        store.apply(service(number));
        store.apply(slice(number, 0));
    }
    store.take_dirty();
    store
}

/// Everything that a first sync sends to an empty kernel.
fn compile(store: &Store) -> Planner {
    let mut planner = Planner::new(config(), store.node());
    let mut resync = Resync::begin(&mut planner, store, [KernelState::default(), KernelState::default()]);
    while let Some(transaction) = resync.next(&mut planner) {
        black_box(transaction);
    }
    planner
}

fn full_compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for services in SIZES {
        let store = store(services);
        group.throughput(Throughput::Elements(services.into()));
        group.bench_with_input(BenchmarkId::from_parameter(services), &store, |bencher, store| {
            bencher.iter_with_large_drop(|| compile(store));
        });
    }
}

/// One endpoint is replaced: from the object to the operations.
fn one_change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("diff");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for services in SIZES {
        let mut store = store(services);
        let mut planner = compile(&store);
        let (mut nth, mut version) = (0, 1);
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            let next = || {
                // Strides through all Services, so that none is in the cache.
                nth = (nth + 7_919) % services;
                version = 3 - version;
                slice(nth, version)
            };
            bencher.iter_batched(
                next,
                |change| {
                    store.apply(change);
                    let names = store.take_dirty();
                    black_box(planner.plan(&store, names))
                },
                BatchSize::SmallInput,
            );
        });
    }
}

fn render_text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("render");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for services in SIZES {
        let ruleset = compile(&store(services)).ruleset();
        group.throughput(Throughput::Elements(services.into()));
        group.bench_with_input(BenchmarkId::from_parameter(services), &ruleset, |bencher, ruleset| {
            bencher.iter_with_large_drop(|| render::ruleset(ruleset));
        });
    }
}

/// One packet through the rules, the index of the elements being there.
fn evaluate_packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("evaluate");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for services in SIZES {
        let ruleset = compile(&store(services)).ruleset();
        let evaluator = Evaluator::new(&ruleset, Host::default());
        let packet = Packet {
            source: [10, 200, 0, 9].into(),
            destination: address([10, 0, 1, 0], services / 2).parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 80,
            input_interface: Some("eth0".to_owned()),
        };
        group.bench_with_input(BenchmarkId::from_parameter(services), &packet, |bencher, packet| {
            bencher.iter(|| evaluator.evaluate(packet));
        });
    }
}

criterion_group!(benches, full_compile, one_change, render_text, evaluate_packet);
criterion_main!(benches);
