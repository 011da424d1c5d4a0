//! How the compiler's work grows with the number of Services: a full compile
//! grows with it, one change must not.
//!
//! `cargo bench -p vmap-proxy-compiler`; `-- diff-endpoint` for one of them.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark of sound input")]

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use serde_json::json;
use vmap_proxy_compiler::evaluate::{Evaluator, Host, Packet, Verdict};
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::{Change, Object, PerFamily, Protocol, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::render;

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

/// The slice of a Service with this number of endpoints. `version` distinguishes the one
/// endpoint that is replaced.
fn slice(service: u32, version: u32, endpoints: u32) -> Change {
    let endpoint = |slot: u32| {
        let pod = service * ENDPOINTS + slot % ENDPOINTS;
        // Pods that no Service begins with.
        let pod = pod + if slot == 2 || slot >= ENDPOINTS { (version + slot / ENDPOINTS) * 1_000_000 } else { 0 };
        json!({"addresses": [address([10, 128, 0, 1], pod)], "nodeName": format!("node-{}", pod % 100)})
    };
    apply(json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("backend-{service:06}-0"), "namespace": format!("team-{:03}", service % 200),
            "labels": {"kubernetes.io/service-name": format!("backend-{service:06}")}},
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080}]}))
}

fn store(services: u32) -> Store {
    let mut store = Store::new("node-0");
    for number in 0..services {
        store.apply(service(number));
        store.apply(slice(number, 0, ENDPOINTS));
    }
    store
}

/// Everything that a first sync sends to an empty kernel.
fn compile(store: &mut Store) -> Planner {
    let mut planner = Planner::new(config(), store.node());
    for transaction in planner.resync(store, PerFamily::default()) {
        black_box(transaction);
    }
    planner
}

/// Runs of up to a second: few samples, of equally many runs each.
fn few(group: &mut BenchmarkGroup<'_, WallTime>) {
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
}

/// Goes through all Services in long strides, so that the next is in no cache
/// of the processor. Counts the rounds too.
struct Strides {
    services: u32,
    step: u32,
}

impl Strides {
    fn new(services: u32) -> Self {
        Self { services, step: 0 }
    }

    /// The next Service, and how often it was there before.
    fn next(&mut self) -> (u32, u32) {
        let step = self.step;
        self.step += 1;
        // A prime that divides no size: every round meets every Service once.
        ((u64::from(step) * 7_919 % u64::from(self.services)) as u32, step / self.services)
    }
}

fn full_compile(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    few(&mut group);
    for services in SIZES {
        let mut store = store(services);
        group.throughput(Throughput::Elements(services.into()));
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            // Not many planners in memory at once, and dropped off the clock.
            bencher.iter_batched(|| (), |()| compile(&mut store), BatchSize::PerIteration);
        });
    }
}

/// One change, from the object to the operations. `change` makes the change of
/// a Service from how often it was changed before.
fn one_change(criterion: &mut Criterion, name: &str, change: fn(u32, u32) -> Change) {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for services in SIZES {
        let mut store = store(services);
        let mut planner = compile(&mut store);
        let mut strides = Strides::new(services);
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter_batched(
                || {
                    let (service, round) = strides.next();
                    change(service, round)
                },
                |change| {
                    store.apply(change);
                    let plan = planner.update(&mut store);
                    // A change without effect would look fast.
                    assert!(plan.as_ref().is_some_and(|plan| !plan.transactions.is_empty()));
                    plan
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// A pod is replaced: endpoints, no verdict.
fn endpoint_replaced(criterion: &mut Criterion) {
    one_change(criterion, "diff-endpoint", |service, round| slice(service, 1 + round % 2, ENDPOINTS));
}

/// One endpoint more, and in the next round one less: a new verdict.
fn endpoint_count(criterion: &mut Criterion) {
    one_change(criterion, "diff-count", |service, round| slice(service, 0, ENDPOINTS + 1 - round % 2));
}

fn render_text(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("render");
    few(&mut group);
    for services in SIZES {
        let ruleset = compile(&mut store(services)).ruleset();
        group.throughput(Throughput::Elements(services.into()));
        group.bench_with_input(BenchmarkId::from_parameter(services), &ruleset, |bencher, ruleset| {
            bencher.iter_batched(|| (), |()| render::ruleset(ruleset), BatchSize::PerIteration);
        });
    }
}

/// One packet through the rules, each to another Service; the elements are
/// indexed before.
fn evaluate_packet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("evaluate");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for services in SIZES {
        let ruleset = compile(&mut store(services)).ruleset();
        let evaluator = Evaluator::new(&ruleset, Host::default());
        let mut strides = Strides::new(services);
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter_batched(
                || Packet {
                    source: [10, 200, 0, 9].into(),
                    destination: address([10, 0, 1, 0], strides.next().0).parse().unwrap(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    input_interface: Some("eth0".to_owned()),
                },
                |packet| {
                    let outcome = evaluator.evaluate(&packet);
                    // A packet that no Service takes would look fast.
                    assert!(matches!(outcome.verdict, Verdict::Dnat { .. }));
                    outcome
                },
                BatchSize::SmallInput,
            );
        });
    }
}

criterion_group!(benches, full_compile, endpoint_replaced, endpoint_count, render_text, evaluate_packet);
criterion_main!(benches);
