//! Large objects: work and memory grow with their size and not with its square,
//! and one that asks for too much costs nothing but itself.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};
use support::FakeKernel;
use vmap_proxy_compiler::limits::MAX_ELEMENTS;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{Plan, Planner, TooLarge};
use vmap_proxy_compiler::ruleset::Family;

/// A store and a planner, and what was committed.
struct Node {
    store: Store,
    planner: Planner,
    kernel: FakeKernel,
}

impl Node {
    /// A node that has programmed these objects at its start.
    fn with(objects: &[Value]) -> Self {
        let store = Store::new("kestrel");
        let mut planner = Planner::new(ProxyConfig::default(), store.node());
        // One plan for each change, however large.
        planner.limit_plans_to(u64::MAX);
        let mut node = Self { store, planner, kernel: FakeKernel::default() };
        node.apply(objects);
        node.resync();
        node
    }

    fn apply(&mut self, objects: &[Value]) {
        for object in objects {
            let object: Object = serde_json::from_value(object.clone()).unwrap();
            assert_eq!(self.store.apply(Change::Apply(object)), []);
        }
    }

    fn resync(&mut self) {
        for transaction in self.planner.resync(&mut self.store, self.kernel.state()) {
            self.kernel.commit(&transaction);
        }
    }

    /// Takes changes, and plans and commits them.
    fn change(&mut self, objects: &[Value]) -> Plan {
        self.apply(objects);
        let plan = self.planner.update(&mut self.store).unwrap_or_default();
        for transaction in &plan.transactions {
            self.kernel.commit(transaction);
        }
        plan
    }

    fn elements(&self) -> usize {
        self.kernel.0.values().map(|table| table.elements.len()).sum()
    }

    fn is_programmed(&self, name: &str) -> bool {
        self.planner.compiled(&ServiceName::new("shop", name), Family::Ipv4).is_some()
    }
}

fn addresses(first: [u8; 4], count: usize) -> Vec<String> {
    let first = u32::from_be_bytes(first);
    (first..).take(count).map(|address| Ipv4Addr::from(address).to_string()).collect()
}

/// The first of a few addresses of pods, and of external addresses.
const PODS: [u8; 4] = [10, 244, 0, 1];
const EXTERNAL: [u8; 4] = [172, 16, 0, 1];

fn ports(count: usize) -> Vec<Value> {
    (1..=count).map(|port| json!({"name": format!("port-number-{port}"), "port": port})).collect()
}

fn service(name: &str, ip: &str, ports: &[Value], external_ips: &[String]) -> Value {
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "ports": ports, "externalIPs": external_ips}})
}

fn slice(service: &str, ports: &[Value], endpoints: &[String]) -> Value {
    let endpoints: Vec<Value> = endpoints.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        "metadata": {"name": format!("{service}-a"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service}}})
}

/// A Service that comes, gains an endpoint and goes, with its plans.
fn life(ports_count: usize, external: usize, endpoints: usize) -> Vec<Plan> {
    let (ports, external) = (ports(ports_count), addresses(EXTERNAL, external));
    let mut node = Node::with(&[]);
    let endpoints = addresses(PODS, endpoints + 1);
    let (fewer, all) = (&endpoints[..endpoints.len() - 1], &endpoints[..]);
    let come = node.change(&[service("large", "10.96.0.1", &ports, &external), slice("large", &ports, fewer)]);
    assert!(node.is_programmed("large"));
    let grow = node.change(&[slice("large", &ports, all)]);
    let go = node.change(&[service("large", "None", &ports, &external)]);
    assert_eq!(node.elements(), 0);
    vec![come, grow, go]
}

/// Processor time of this thread: unlike time on the clock it does not depend
/// on what else runs on the machine (much).
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split_whitespace().next().unwrap().parse().unwrap())
}

fn least_time(work: impl Fn()) -> Duration {
    let once = |_| {
        let begun = processor_time();
        work();
        processor_time() - begun
    };
    (0..3).map(once).min().unwrap()
}

/// Four times as much may take about four times as long; the square is sixteen
/// times. Returns both times for the message.
fn assert_linear(what: &str, work: impl Fn(usize)) {
    let (small, large) = (least_time(|| work(1)), least_time(|| work(4)));
    assert!(large < 9 * small, "{what}: {small:?}, and {large:?} for four times as much");
}

#[test]
fn work_grows_with_the_size_of_the_object() {
    assert_linear("external addresses", |times| drop(life(1, 2_000 * times, 1)));
    assert_linear("ports", |times| drop(life(1_500 * times, 0, 1)));
    assert_linear("endpoints", |times| drop(life(1, 0, 3_000 * times)));
}

/// Services that all want one frontend: the heir is found without looking at
/// all who wait.
#[test]
fn work_grows_with_the_number_of_rivals() {
    let rivals = |count: usize| -> Vec<Value> {
        let ip = ["172.16.0.1".to_owned()];
        let rival =
            |nth: usize| service(&format!("s{nth:06}"), &format!("10.96.{}.{}", nth >> 8, nth & 255), &ports(1), &ip);
        (0..count).map(rival).collect()
    };
    assert_linear("rivals", |times| {
        let rivals = rivals(400 * times);
        let mut node = Node::with(&rivals);
        for rival in &rivals {
            let object: Object = serde_json::from_value(rival.clone()).unwrap();
            node.store.apply(Change::Delete(object.reference()));
            node.change(&[]);
        }
        assert_eq!(node.elements(), 0);
    });
}

/// Cutting a plan must not leave each transaction with the capacity of all that
/// follow it.
#[test]
fn transactions_hold_what_they_need() {
    for plan in life(1, 20_000, 1) {
        let used: usize = plan.transactions.iter().map(|transaction| transaction.operations.len()).sum();
        let held: usize = plan.transactions.iter().map(|transaction| transaction.operations.capacity()).sum();
        assert!(held <= 2 * used + 64, "{held} places for {used} operations");
    }
}

/// Returns object sets that are too large, each with a different reason.
fn too_large() -> Vec<(&'static str, Vec<Value>)> {
    let (many_ports, some) = (ports(1_000), addresses(EXTERNAL, 500));
    let repeated: Vec<Value> = (0..1_000).map(|_| json!({"name": "", "port": 80})).collect();
    let one_port = [json!({"name": "", "port": 80})];
    let mut filtered = service("hostile", "10.96.0.66", &many_ports, &[]);
    let ingress: Vec<Value> = some.iter().map(|ip| json!({"ip": ip})).collect();
    filtered["spec"]["type"] = json!("LoadBalancer");
    filtered["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24"]);
    filtered["status"] = json!({"loadBalancer": {"ingress": ingress}});
    vec![
        ("ports times addresses", vec![service("hostile", "10.96.0.66", &many_ports, &some)]),
        (
            "ports times endpoints",
            vec![
                service("hostile", "10.96.0.66", &many_ports, &[]),
                slice("hostile", &many_ports, &addresses(PODS, 1_000)),
            ],
        ),
        (
            "a port repeated in a slice",
            vec![
                service("hostile", "10.96.0.66", &one_port, &[]),
                slice("hostile", &repeated, &addresses(PODS, 1_000)),
            ],
        ),
        ("ports times filtered addresses", vec![filtered]),
    ]
}

#[test]
fn what_is_too_large_costs_nothing_but_itself() {
    let innocent = [
        service("innocent", "10.96.0.1", &ports(1), &["172.16.0.1".to_owned()]),
        slice("innocent", &ports(1), &addresses(PODS, 3)),
    ];
    let small = [service("hostile", "10.96.0.66", &ports(1), &[]), slice("hostile", &ports(1), &[])];
    for (what, hostile) in too_large() {
        // At the start, and at a restart.
        let all: Vec<Value> = innocent.iter().chain(&hostile).cloned().collect();
        let mut node = Node::with(&all);
        let name = ServiceName::new("shop", "hostile");
        let named = |large: &[TooLarge]| match large {
            [one] => one.name == name && one.family == Family::Ipv4 && one.elements > MAX_ELEMENTS,
            _ => false,
        };
        assert!(named(&node.planner.take_too_large()), "{what}");
        assert!(node.is_programmed("innocent") && !node.is_programmed("hostile"), "{what}");
        let alone = Node::with(&innocent);
        assert_eq!(node.kernel, alone.kernel, "{what}");
        node.resync();
        assert_eq!((node.kernel.clone(), node.planner.take_too_large()), (alone.kernel.clone(), vec![]), "{what}");

        // It becomes small, and large again.
        node.change(&small);
        assert!(node.is_programmed("hostile") && node.planner.too_large() == 0, "{what}");
        let plan = node.change(&hostile);
        assert!(named(&node.planner.take_too_large()), "{what}");
        assert!(plan.changed.iter().any(|change| change.name == name && change.after.is_none()), "{what}");
        let programmed = |node: &Node| (node.is_programmed("innocent"), node.is_programmed("hostile"));
        assert_eq!(programmed(&node), (true, false), "{what}");
        assert_eq!(node.kernel.normalised(Family::Ipv4), alone.kernel.normalised(Family::Ipv4), "{what}");

        // It stays too large: that is not worth another line.
        let mut other = hostile.clone();
        other[0]["spec"]["internalTrafficPolicy"] = json!("Local");
        node.change(&other);
        assert_eq!(node.planner.take_too_large(), [], "{what}");
    }
}

/// Large but sensible Services are not too large.
#[test]
fn large_services_are_served() {
    for (ports_count, external, endpoints) in [(5_000, 0, 40), (1, 2, 100_000), (1, 100_000, 1), (100, 20, 100)] {
        let ports = ports(ports_count);
        let objects = [
            service("large", "10.96.0.1", &ports, &addresses(EXTERNAL, external)),
            slice("large", &ports, &addresses(PODS, endpoints)),
        ];
        let mut store = Store::new("kestrel");
        for object in objects {
            store.apply(Change::Apply(serde_json::from_value(object).unwrap()));
        }
        let entry = store.get(&ServiceName::new("shop", "large")).unwrap();
        let joins = vmap_proxy_compiler::select::Joins::new(Family::Ipv4, entry.slices());
        let elements = vmap_proxy_compiler::limits::elements_at_most(entry.service.ipv4.as_ref().unwrap(), &joins);
        assert!(
            elements <= MAX_ELEMENTS,
            "{ports_count} ports, {external} addresses, {endpoints} endpoints: {elements}"
        );
    }
}

/// A load balancer with the first addresses of 100.64.0.0/10 that can't
/// be merged.
fn guarded(ranges: u32, ports_count: usize) -> Value {
    let range = |number| format!("{}/32", Ipv4Addr::from(0x6440_0000 + 2 * number));
    let ranges: Vec<String> = (0..ranges).map(range).collect();
    json!({"kind": "Service", "metadata": {"name": "guarded", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": ports(ports_count),
            "loadBalancerSourceRanges": ranges},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}})
}

/// No commit holds the kernel's lock for all ranges, whether they come, change
/// or go, or the agent starts.
#[test]
fn many_source_ranges_go_in_pieces() {
    let mut node = Node::with(&[]);
    let plans = [
        node.change(&[guarded(20_000, 1)]),
        node.change(&[guarded(10_000, 1)]),
        node.change(&[service("guarded", "None", &ports(1), &[])]),
    ];
    for plan in plans {
        assert!(plan.transactions.len() > 4, "{}", plan.transactions.len());
        let largest = plan.transactions.iter().map(|transaction| transaction.operations.len()).max();
        assert!(largest.is_some_and(|largest| largest < 3_000), "{largest:?}");
    }
    assert_eq!(node.elements(), 0);
    assert_linear("source ranges", |times| {
        let ranges = 5_000 * u32::try_from(times).unwrap();
        let node = Node::with(&[guarded(ranges, 1)]);
        // Each has a range, and 256 addresses share a marker.
        let elements = ranges + ranges.div_ceil(128) + 1;
        assert!(node.elements() >= elements as usize, "{}", node.elements());
    });
}

/// The markers count as much as the ranges, and the limit holds for both.
#[test]
fn too_many_source_ranges_are_too_large() {
    let most = u32::try_from(MAX_ELEMENTS).unwrap();
    let mut node = Node::with(&[guarded(100_000, 2)]);
    assert!(node.is_programmed("guarded"));
    assert!(node.elements() > 200_000 && node.elements() < most as usize, "{}", node.elements());
    node.change(&[guarded(100_000, 3)]);
    assert!(!node.is_programmed("guarded") && node.elements() == 0);
    let [large] = &node.planner.take_too_large()[..] else { panic!("one Service is too large") };
    // A range, and a marker of its own as if it shared none.
    assert!(large.elements > 3 * 2 * 100_000, "{}", large.elements);
}

/// A plan for very many Services is cut, and the cut follows their size.
#[test]
fn pieces_are_of_a_bounded_size() {
    let mut objects = Vec::new();
    for nth in 0..100 {
        let name = format!("s{nth:03}");
        objects.push(service(&name, &format!("10.96.1.{nth}"), &ports(1), &[]));
        objects.push(slice(&name, &ports(1), &addresses(PODS, 10)));
    }
    let mut node = Node::with(&[]);
    node.apply(&objects);
    node.planner.limit_plans_to(100);
    let (mut pieces, mut planned) = (0, 0);
    while let Some(plan) = node.planner.update(&mut node.store) {
        planned += plan.changed.len();
        pieces += 1;
        let operations: usize = plan.transactions.iter().map(|transaction| transaction.operations.len()).sum();
        assert!(operations <= 200, "{operations}");
        plan.transactions.iter().for_each(|transaction| node.kernel.commit(transaction));
    }
    assert_eq!(planned, 100);
    assert!((10..=25).contains(&pieces), "{pieces}");
    assert_eq!(node.kernel.normalised(Family::Ipv4), Node::with(&objects).kernel.normalised(Family::Ipv4));
}
