//! Any sequence of changes, applied as the planner says, leaves the kernel as
//! a full compile of the end state would, is consistent after every single
//! transaction, and a restart then sends nothing.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use compiler::diff::{Planner, Resync};
use compiler::model::config::{DetectLocal, NodePortAddresses};
use compiler::model::{Change, Object, ProxyConfig, Store};
use compiler::ruleset::Family;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::FakeKernel;

fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "kestrel".to_owned(),
        detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        node_port_addresses: NodePortAddresses::Primary,
        ..ProxyConfig::default()
    }
}

fn node() -> Value {
    json!({"kind": "Node", "metadata": {"name": "kestrel", "labels": {"topology.kubernetes.io/zone": "a"}},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}})
}

/// One of a few Services, in one of many shapes.
fn service() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![Just("ClusterIP"), Just("NodePort"), Just("LoadBalancer"), Just("ExternalName")];
    let ranges =
        prop_oneof![Just(json!([])), Just(json!(["198.51.100.0/24"])), Just(json!(["198.51.0.0/16", "192.0.2.0/24"])),];
    let shape = (kind, any::<bool>(), any::<bool>(), any::<bool>(), ranges);
    (0u8..4, shape, 0u8..3, any::<bool>(), 1usize..3, 0u8..2).prop_map(
        |(id, (kind, etp, itp, sticky, ranges), shared, udp, ports, age)| {
            let policy = |local| if local { "Local" } else { "Cluster" };
            let ports: Vec<Value> = (0..ports)
                .map(|port| {
                    let node_port = if kind == "ClusterIP" { 0 } else { 30000 + 10 * u32::from(id) + port as u32 };
                    json!({"name": format!("p{port}"), "port": 80 + port, "nodePort": node_port,
                           "protocol": if udp { "UDP" } else { "TCP" }})
                })
                .collect();
            json!({"kind": "Service",
                "metadata": {"name": format!("s{id}"), "namespace": "shop",
                    "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1)},
                "spec": {"type": kind, "clusterIP": format!("10.96.0.{id}"), "ports": ports,
                    "externalIPs": [format!("203.0.113.{shared}")],
                    "externalTrafficPolicy": policy(etp), "internalTrafficPolicy": policy(itp),
                    "sessionAffinity": if sticky { "ClientIP" } else { "None" },
                    "loadBalancerSourceRanges": ranges},
                "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}})
        },
    )
}

fn slice() -> impl Strategy<Value = Value> {
    let endpoint = (1u8..9, any::<bool>(), 0u8..8, any::<bool>()).prop_map(|(host, local, state, hinted)| {
        json!({"addresses": [format!("10.244.0.{host}")], "nodeName": if local { "kestrel" } else { "heron" },
               "conditions": {"ready": state < 5, "serving": state < 7, "terminating": state >= 5},
               "hints": if hinted { json!({"forZones": [{"name": "a"}]}) } else { Value::Null }})
    });
    (0u8..4, 0u8..2, proptest::collection::vec(endpoint, 0..6), any::<bool>()).prop_map(|(id, part, endpoints, udp)| {
        json!({"kind": "EndpointSlice",
            "metadata": {"name": format!("s{id}-{part}"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": format!("s{id}")}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "p0", "port": 8080, "protocol": if udp { "UDP" } else { "TCP" }},
                      {"name": "p1", "port": 8081, "protocol": "TCP"}]})
    })
}

fn change() -> impl Strategy<Value = Change> {
    let object = prop_oneof![service(), slice()];
    (object, 0u8..5).prop_map(|(value, fate)| {
        let object: Object = serde_json::from_value(value).unwrap();
        if fate == 0 { Change::Delete(object.reference()) } else { Change::Apply(object) }
    })
}

fn start() -> (Store, Planner) {
    let mut store = Store::new("kestrel");
    store.apply(Change::Apply(serde_json::from_value(node()).unwrap()));
    store.set_interface_addresses(vec!["127.0.0.1".parse().unwrap(), "192.0.2.11".parse().unwrap()]);
    let planner = Planner::new(config(), store.node());
    (store, planner)
}

fn resync(planner: &mut Planner, store: &Store, kernel: &mut FakeKernel) -> usize {
    let mut sent = 0;
    let mut resync = Resync::begin(planner, store, kernel.state());
    while let Some(transaction) = resync.next(planner) {
        sent += transaction.operations.len();
        kernel.commit(&transaction);
        kernel.assert_consistent();
    }
    sent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(512)))]

    #[test]
    fn incremental_equals_full(batches in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..12)) {
        let (mut store, mut planner) = start();
        let mut kernel = FakeKernel::default();
        resync(&mut planner, &store, &mut kernel);
        for batch in batches {
            for change in batch {
                store.apply(change);
            }
            let dirty = store_dirty(&mut store);
            let plan = planner.plan(&store, dirty);
            for transaction in &plan.transactions {
                kernel.commit(transaction);
                kernel.assert_consistent();
            }
            if let Some(transaction) = planner.collect_idle_chains(0) {
                kernel.commit(&transaction);
            }
        }
        // A full compile of the end state.
        let mut fresh = FakeKernel::default();
        let mut other = Planner::new(config(), store.node());
        resync(&mut other, &store, &mut fresh);
        for family in Family::ALL {
            prop_assert_eq!(kernel.normalised(family), fresh.normalised(family));
        }
        for (ours, full) in kernel.0.iter().zip(&fresh.0) {
            prop_assert_eq!(&ours.chains, &full.chains);
        }
        // A restart adopts what is there, slots included.
        let mut restarted = Planner::new(config(), store.node());
        let before = kernel.clone();
        prop_assert_eq!(resync(&mut restarted, &store, &mut kernel), 0);
        prop_assert_eq!(kernel, before);
        // And what it believes is what it would print.
        for (table, fresh) in restarted.ruleset().tables.iter().zip(&fresh.0) {
            prop_assert_eq!(table.elements.len(), fresh.elements.len());
        }
    }

    #[test]
    fn a_damaged_kernel_is_repaired(
        changes in proptest::collection::vec(change(), 1..24), keep in any::<u64>()
    ) {
        let (mut store, mut planner) = start();
        for change in changes {
            store.apply(change);
        }
        let mut kernel = FakeKernel::default();
        resync(&mut planner, &store, &mut kernel);
        let whole = kernel.clone();
        let mut position = 0u32;
        for table in &mut kernel.0 {
            table.elements.retain(|_, _| { position += 1; keep.rotate_left(position) & 1 == 0 });
        }
        let mut resync = Resync::begin(&mut planner, &store, kernel.state());
        while let Some(transaction) = resync.next(&mut planner) {
            kernel.commit(&transaction);
        }
        prop_assert_eq!(kernel, whole);
    }
}

fn store_dirty(store: &mut Store) -> Vec<compiler::model::types::ServiceName> {
    let mut names = store.take_dirty();
    names.sort_unstable();
    names
}

/// The law: objects do not depend on the number of Services.
#[test]
fn the_number_of_objects_is_constant() {
    let objects = |services: u32| {
        let (mut store, mut planner) = start();
        for id in 0..services {
            let address = format!("10.{}.{}.{}", 96 + (id >> 16), (id >> 8) & 255, id & 255);
            let service = json!({"kind": "Service", "metadata": {"name": format!("s{id}"), "namespace": "shop"},
                "spec": {"clusterIP": address, "ports": [{"port": 80}],
                    "sessionAffinity": if id % 3 == 0 { "ClientIP" } else { "None" }}});
            let endpoints: Vec<Value> =
                (0..=(id % 5)).map(|host| json!({"addresses": [format!("10.244.0.{host}")]})).collect();
            let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
                "metadata": {"name": format!("s{id}-a"), "namespace": "shop",
                    "labels": {"kubernetes.io/service-name": format!("s{id}")}},
                "ports": [{"name": "", "port": 8080}]});
            for object in [service, slice] {
                let problems = store.apply(Change::Apply(serde_json::from_value(object).unwrap()));
                assert!(problems.is_empty(), "{problems:?}");
            }
        }
        let mut kernel = FakeKernel::default();
        resync(&mut planner, &store, &mut kernel);
        let rules = kernel.0.iter().flat_map(|table| table.chains.values()).map(Vec::len).sum::<usize>();
        let chains = kernel.0.iter().map(|table| table.chains.len()).sum::<usize>();
        let maps = kernel.0.iter().map(|table| table.maps.len()).sum::<usize>();
        let elements = kernel.0.iter().map(|table| table.elements.len()).sum::<usize>();
        assert!(elements > 5 * services as usize / 2);
        (chains, rules, maps)
    };
    assert_eq!(objects(15), objects(10_000));
}
