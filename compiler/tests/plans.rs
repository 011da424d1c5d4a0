//! Any sequence of changes, applied as the planner says, leaves the kernel as
//! a full compile of the end state would, is consistent after every single
//! transaction, and a restart then sends nothing.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use support::FakeKernel;
use support::changes::{busy_service, busy_slice, cases, change, config, start};
use vmap_proxy_compiler::evaluate::{Evaluator, Host, Packet, Verdict};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Change, Endpoint, Object, PerFamily, Protocol, Store};
use vmap_proxy_compiler::plan::{Action, PIECE, Planner};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::ListNumber;
use vmap_proxy_compiler::ruleset::maps::{DataKind, Map};
use vmap_proxy_compiler::ruleset::skeleton::rules;
use vmap_proxy_compiler::ruleset::spread::Spread;

fn resync(planner: &mut Planner, store: &mut Store, kernel: &mut FakeKernel) -> usize {
    let mut sent = 0;
    for transaction in planner.resync(store, kernel.state()) {
        sent += transaction.operations.len();
        kernel.commit(&transaction);
        kernel.assert_consistent();
    }
    sent
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(512)))]

    #[test]
    fn incremental_equals_full(
        batches in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..12),
        piece in prop_oneof![Just(1), Just(PIECE)],
        operations in prop_oneof![Just(2), Just(usize::MAX)],
        sweep_each_plan in any::<bool>()
    ) {
        let (mut store, mut planner) = start();
        planner.limit_plans_to(piece);
        planner.limit_transactions_to(operations);
        let mut kernel = FakeKernel::default();
        let mut clients = Clients::default();
        resync(&mut planner, &mut store, &mut kernel);
        for batch in batches {
            for change in batch {
                store.apply(change);
            }
            let mut unlearn = PerFamily::<bool>::default();
            while let Some(plan) = planner.update(&mut store) {
                for transaction in &plan.transactions {
                    kernel.commit(transaction);
                    kernel.assert_consistent();
                    clients.assert_served_by_own_service(&kernel);
                }
                Family::ALL.into_iter().for_each(|family| unlearn[family] |= plan.unlearn[family]);
                if sweep_each_plan {
                    clients.sweep(&mut planner, std::mem::take(&mut unlearn));
                }
                clients.connect(&kernel);
            }
            // The agent sweeps once, behind all plans of a sync.
            clients.sweep(&mut planner, unlearn);
            if let Some(transaction) = planner.collect_idle_chains() {
                kernel.commit(&transaction);
            }
        }
        // A full compile of the end state.
        let mut fresh = FakeKernel::default();
        let mut other = Planner::new(config(), store.node());
        resync(&mut other, &mut store, &mut fresh);
        for family in Family::ALL {
            prop_assert_eq!(kernel.normalised(family), fresh.normalised(family));
        }
        // Balancing chains stay once they were in use, and those that let connections be learned; nothing else does.
        for (ours, full) in kernel.0.values().zip(fresh.0.values()) {
            for (chain, rules) in &ours.chains {
                let stays = !matches!(chain, Chain::LearnFor { .. });
                prop_assert!(full.chains.get(chain).map_or(stays, |full| full == rules), "{}", chain);
            }
            prop_assert!(full.chains.keys().all(|chain| ours.chains.contains_key(chain)));
        }
        // A restart adopts what is there, slots included.
        let mut restarted = Planner::new(config(), store.node());
        let before = kernel.clone();
        prop_assert_eq!(resync(&mut restarted, &mut store, &mut kernel), 0);
        prop_assert_eq!(kernel, before);
        // And what it believes is what it would print.
        for (table, fresh) in restarted.ruleset().tables.iter().zip(fresh.0.values()) {
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
        resync(&mut planner, &mut store, &mut kernel);
        let whole = kernel.clone();
        let mut position = 0u32;
        for table in kernel.0.values_mut() {
            table.elements.retain(|_, _| { position += 1; keep.rotate_left(position) & 1 == 0 });
        }
        for transaction in planner.resync(&mut store, kernel.state()) {
            kernel.commit(&transaction);
        }
        prop_assert_eq!(kernel, whole);
    }
}

/// The learned entries of every list, as packets would write them into the
/// kernel: for each family and number, the owner of the list and an endpoint.
#[derive(Default)]
struct Clients(BTreeMap<(Family, ListNumber, Endpoint), String>);

impl Clients {
    /// Connects to every endpoint of every list that clients stick to.
    fn connect(&mut self, kernel: &FakeKernel) {
        for family in Family::ALL {
            let owners = kernel.list_owners(family);
            let mut lists: BTreeMap<ListNumber, BTreeSet<Endpoint>> = BTreeMap::new();
            for (number, endpoints) in kernel.numbered_lists(family) {
                let first = lists.entry(number).or_insert_with(|| endpoints.clone());
                assert_eq!(*first, endpoints, "frontends of list {number:?} have different endpoints");
                let learned =
                    endpoints.into_iter().map(|endpoint| ((family, number, endpoint), owners[&number].clone()));
                self.0.extend(learned);
            }
        }
    }

    /// No list has a number under which something of another list is learned.
    fn assert_served_by_own_service(&self, kernel: &FakeKernel) {
        for family in Family::ALL {
            let owners = kernel.list_owners(family);
            for ((_, number, endpoint), owner) in self.0.iter().filter(|((of, ..), _)| *of == family) {
                let now = owners.get(number);
                assert!(now.is_none_or(|now| now == owner), "{endpoint:?} of {owner} under {number:?} of {now:?}");
            }
        }
    }

    /// Forgets what no list holds any more, as the agent does when it is idle.
    fn sweep(&mut self, planner: &mut Planner, unlearn: PerFamily<bool>) {
        self.0.retain(|(family, number, endpoint), _| {
            let stays = planner.list(*family, *number).is_some_and(|list| list.contains(*endpoint));
            assert!(stays || unlearn[*family], "a stale entry of {family} stays");
            stays
        });
        if unlearn.values().any(|unlearn| *unlearn) {
            planner.forgotten();
        }
    }
}

fn apply(store: &mut Store, value: Value) {
    let problems = store.apply(Change::Apply(serde_json::from_value(value).unwrap()));
    assert!(problems.is_empty(), "{problems:?}");
}

/// Plans what changed and commits it; every transaction leaves a consistent
/// kernel. Returns the number of operations that are not about endpoints and
/// hairpins: chains, rules and verdicts.
fn commit_changes(store: &mut Store, planner: &mut Planner, kernel: &mut FakeKernel) -> usize {
    let mut others = 0;
    for transaction in std::iter::from_fn(|| planner.update(store)).flat_map(|plan| plan.transactions) {
        kernel.commit(&transaction);
        kernel.assert_consistent();
        let is_other = |action: &Action| match action {
            Action::AddElement(element) | Action::DeleteElement(element) => {
                element.map.data() != DataKind::Endpoint && element.map != Map::HairpinConnections
            }
            _ => true,
        };
        others += transaction.operations.iter().filter(|operation| is_other(&operation.action)).count();
    }
    others
}

/// Returns the number of endpoints that a packet may go to.
fn reached(evaluator: &Evaluator<'_>, to: &str, port: u16, from: &str) -> usize {
    let packet = Packet {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: Protocol::Tcp,
        port,
        input_interface: Some("eth0".to_owned()),
    };
    match evaluator.evaluate(&packet).verdict {
        Verdict::Dnat { endpoints } => endpoints.len(),
        other => panic!("{from} to {to}:{port}: {other:?}"),
    }
}

/// From 60 to 140 endpoints and back, one by one: from exact counts into the
/// shared ones and over one power of two. Pods leave in another order than
/// they came, so that slots move.
#[test]
fn a_service_grows_and_shrinks_through_the_shared_counts() {
    for (sticky, etp_local) in [(false, false), (true, false), (false, true), (true, true)] {
        let (mut store, mut planner) = start();
        let mut kernel = FakeKernel::default();
        resync(&mut planner, &mut store, &mut kernel);
        apply(&mut store, busy_service(sticky, etp_local));
        let mut pods: Vec<u32> = (0..59).collect();
        let mut before = [0, 0];
        for count in (60..=140).chain((60..140).rev()) {
            if pods.len() < count {
                pods.push(count as u32);
            } else {
                pods.swap_remove(pods.len() * 2 / 3);
            }
            let local = pods.iter().filter(|pod| !pod.is_multiple_of(4)).count();
            apply(&mut store, busy_slice(pods.iter().copied()));
            let others = commit_changes(&mut store, &mut planner, &mut kernel);

            let ruleset = planner.ruleset();
            let host = Host { local_addresses: vec!["192.0.2.11".parse().unwrap()], ..Host::default() };
            let evaluator = Evaluator::new(&ruleset, host);
            let outside = if etp_local { local } else { count };
            assert_eq!(reached(&evaluator, "10.96.0.10", 80, "10.244.0.9"), count);
            assert_eq!(reached(&evaluator, "192.0.2.11", 30080, "198.51.100.7"), outside, "{count}");
            assert_eq!(reached(&evaluator, "203.0.113.9", 80, "198.51.100.7"), outside, "{count}");

            let after = [count, outside].map(|count| count as u32);
            // If no list leaves its class, the change concerns only elements of endpoints.
            if before.into_iter().zip(after).all(|(before, after)| Spread::of(before) == Spread::of(after)) {
                assert_eq!(others, 0, "{before:?} to {after:?}");
            }
            before = after;
        }
        let before = kernel.clone();
        let (_, mut restarted) = start();
        assert_eq!(resync(&mut restarted, &mut store, &mut kernel), 0);
        assert_eq!(kernel, before);
    }
}

/// An agent that ended before it could remove what clients had learned: the next one finds it, and gives the number to
/// another list only when it has been removed.
#[test]
fn a_restart_gives_no_list_a_number_that_clients_are_remembered_under() {
    let (mut store, mut planner) = start();
    let mut kernel = FakeKernel::default();
    resync(&mut planner, &mut store, &mut kernel);
    apply(&mut store, busy_service(true, false));
    apply(&mut store, busy_slice(0..3));
    commit_changes(&mut store, &mut planner, &mut kernel);
    let learned: Vec<ListNumber> = kernel.list_owners(Family::Ipv4).into_keys().collect();
    assert_eq!(learned.len(), 1);
    let service: Object = serde_json::from_value(busy_service(true, false)).unwrap();
    store.apply(Change::Delete(service.reference()));
    commit_changes(&mut store, &mut planner, &mut kernel);
    assert!(kernel.list_owners(Family::Ipv4).is_empty());

    let (mut store, mut restarted) = start();
    apply(&mut store, busy_service(true, false));
    apply(&mut store, busy_slice(0..3));
    let mut state = kernel.state();
    state.ipv4.learned = learned.iter().copied().collect();
    for transaction in restarted.resync(&mut store, state) {
        kernel.commit(&transaction);
    }
    let owners = kernel.list_owners(Family::Ipv4);
    assert!(owners.len() == 1 && !owners.contains_key(&learned[0]), "{owners:?} while {learned:?} is learned");
    // Once it is removed, the number is free.
    restarted.forgotten();
    apply(&mut store, busy_service(true, true));
    commit_changes(&mut store, &mut restarted, &mut kernel);
    let owners = kernel.list_owners(Family::Ipv4);
    assert!(owners.len() == 2 && owners.contains_key(&learned[0]), "{owners:?}");
}

/// Every packet passes the base chains in front of DNAT, so they are there only for Services with source ranges.
/// Earlier versions always had them.
#[test]
fn the_firewall_has_base_chains_only_for_source_ranges() {
    let present = |kernel: &FakeKernel| {
        Chain::FIREWALL.map(|chain| kernel.0.ipv4.chains.get(&chain).is_some_and(|rules| !rules.is_empty()))
    };
    let (mut store, mut planner) = start();
    let mut kernel = FakeKernel::default();
    resync(&mut planner, &mut store, &mut kernel);
    assert_eq!(present(&kernel), [false; 2]);

    for chain in Chain::FIREWALL {
        kernel.0.ipv4.chains.insert(chain, rules(&planner.skeleton(store.node(), Family::Ipv4), chain));
    }
    assert_eq!(present(&kernel), [true; 2]);
    let (mut store, mut upgraded) = start();
    resync(&mut upgraded, &mut store, &mut kernel);
    assert!(Chain::FIREWALL.iter().all(|chain| !kernel.0.ipv4.chains.contains_key(chain)));
    let (mut store, mut restarted) = start();
    assert_eq!(resync(&mut restarted, &mut store, &mut kernel), 0);

    apply(
        &mut store,
        json!({"kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10", "ports": [{"port": 80}],
                "loadBalancerSourceRanges": ["198.51.100.0/24"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}),
    );
    commit_changes(&mut store, &mut restarted, &mut kernel);
    assert_eq!(present(&kernel), [true; 2]);
    let (_, mut restarted) = start();
    assert_eq!(resync(&mut restarted, &mut store, &mut kernel), 0);
    // Somebody else deletes one.
    kernel.0.ipv4.chains.remove(&Chain::FIREWALL[0]);
    let names = kernel.0.ipv4.chains.keys().copied().collect();
    assert_eq!(Chain::missing(&names), [Chain::FIREWALL[0]].into());
    let (_, mut restarted) = start();
    resync(&mut restarted, &mut store, &mut kernel);
    assert_eq!(present(&kernel), [true; 2]);
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
        resync(&mut planner, &mut store, &mut kernel);
        let elements = kernel.0.values().map(|table| table.elements.len()).sum::<usize>();
        assert!(elements > 5 * services as usize / 2);
        object_counts(&kernel)
    };
    assert_eq!(objects(15), objects(10_000));
}

/// Chains, rules and maps.
fn object_counts(kernel: &FakeKernel) -> (usize, usize, usize) {
    let rules = kernel.0.values().flat_map(|table| table.chains.values()).map(Vec::len).sum();
    let chains = kernel.0.values().map(|table| table.chains.len()).sum();
    let maps = kernel.0.values().map(|table| table.maps.len()).sum();
    (chains, rules, maps)
}

/// Nor on the number of endpoints: one more of ten thousand is one element more
/// in each list, and whoever passed through many counts left no more chains
/// behind than there are counts of their own and powers of two.
#[test]
fn many_endpoints_need_no_more_objects() {
    for sticky in [false, true] {
        let (mut store, mut planner) = start();
        let mut kernel = FakeKernel::default();
        resync(&mut planner, &mut store, &mut kernel);
        apply(&mut store, busy_service(sticky, false));
        let mut counts = Vec::new();
        for count in [8_193, 9_999, 10_000] {
            apply(&mut store, busy_slice(0..count));
            let others = commit_changes(&mut store, &mut planner, &mut kernel);
            counts.push(object_counts(&kernel));
            assert!(count == 8_193 || others == 0, "{others} to {count}");
        }
        assert_eq!(counts[1], counts[0]);
        assert_eq!(counts[2], counts[0]);

        for count in (1..=200).chain([300, 500, 700, 900, 1_000, 1_020]) {
            apply(&mut store, busy_slice(0..count));
            commit_changes(&mut store, &mut planner, &mut kernel);
        }
        let is_balancing = |chain: &&Chain| matches!(chain, Chain::Draw { .. } | Chain::Balance { .. });
        let chains = kernel.0.ipv4.chains.keys().filter(is_balancing).count();
        // 1 to 3, and up to 7, 15, 31, 63, 127, 255, 511, 1023 and 16383; for addresses and for NodePorts. Clients that
        // stick go on to the chains of those that don't.
        let draws = 9;
        let kinds = if sticky { 2 } else { 1 };
        assert_eq!(chains, 2 * (kinds * (3 + 9) + draws));
    }
}

/// A table gets the chains for up to 1,023 endpoints while it is empty. A table
/// without them, as an earlier version made it, gets each when it is needed.
#[test]
fn a_new_table_has_the_chains_for_most_numbers_of_endpoints() {
    let apply_of = |store: &mut Store, count: u32| {
        let endpoints: Vec<Value> =
            (0..count).map(|pod| json!({"addresses": [format!("10.244.{}.{}", pod >> 8, pod & 255)]})).collect();
        let meta = json!({"name": "web", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}});
        let spec = json!({"clusterIP": "10.96.0.10", "externalIPs": ["203.0.113.9"], "ports": [{"port": 80}]});
        apply(store, json!({"kind": "Service", "metadata": meta, "spec": spec}));
        apply(
            store,
            json!({"kind": "EndpointSlice", "metadata": meta, "addressType": "IPv4", "endpoints": endpoints,
                "ports": [{"name": "", "port": 8080}]}),
        );
    };
    let (mut store, mut planner) = start();
    let mut kernel = FakeKernel::default();
    resync(&mut planner, &mut store, &mut kernel);
    let new = kernel.0.ipv4.chains.clone();
    assert!(Chain::AHEAD.iter().all(|chain| new.get(chain).is_some_and(|rules| !rules.is_empty())));
    for count in [1, 2, 3, 4, 15, 16, 100, 255, 256, 512, 1023] {
        apply_of(&mut store, count);
        commit_changes(&mut store, &mut planner, &mut kernel);
        assert_eq!(kernel.0.ipv4.chains, new, "{count} endpoints");
    }

    kernel.0.values_mut().for_each(|table| table.chains.retain(|chain, _| !Chain::AHEAD.contains(chain)));
    let (mut store, mut upgraded) = start();
    resync(&mut upgraded, &mut store, &mut kernel);
    let ahead = |kernel: &FakeKernel| kernel.0.ipv4.chains.keys().filter(|chain| Chain::AHEAD.contains(chain)).count();
    assert_eq!(ahead(&kernel), 0);
    apply_of(&mut store, 5);
    commit_changes(&mut store, &mut upgraded, &mut kernel);
    assert_eq!(ahead(&kernel), 2);
}

/// A Service that was made again, and refused, may be older in one family than
/// in the other. Its frontends go to whom they belong, with the next update.
#[test]
fn a_service_that_would_overtake_another_waits_for_the_next_update() {
    let dual_stack = |name: &str, id: u8, created: &str| {
        json!({"kind": "Service",
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
            "spec": {"clusterIP": format!("10.96.0.{id}"),
                "clusterIPs": [format!("10.96.0.{id}"), format!("fd00:96::{id}")],
                "ipFamilies": ["IPv4", "IPv6"], "externalIPs": ["203.0.113.1", "fd00:203::1"],
                "ports": [{"name": "p0", "port": 80}]}})
    };
    let (young, middle, old) = ("2026-01-03T00:00:00Z", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z");
    let program = |created: &str| {
        let (mut store, mut planner) = start();
        let mut kernel = FakeKernel::default();
        for (name, id, created) in [("moved", 1, created), ("other", 2, middle)] {
            apply(&mut store, dual_stack(name, id, created));
            for (family, address) in [("IPv4", format!("10.244.0.{id}")), ("IPv6", format!("fd00:244::{id}"))] {
                apply(
                    &mut store,
                    json!({"kind": "EndpointSlice", "addressType": family,
                    "metadata": {"name": format!("{name}-{family}"), "namespace": "shop",
                        "labels": {"kubernetes.io/service-name": name}},
                    "endpoints": [{"addresses": [address]}], "ports": [{"name": "p0", "port": 8080}]}),
                );
            }
        }
        resync(&mut planner, &mut store, &mut kernel);
        (store, planner, kernel)
    };
    let name = ServiceName::new("shop", "moved");
    let compiled = |planner: &Planner, family| planner.compiled(&name, family).cloned();
    let (_, before, _) = program(old);
    let (mut store, mut planner, mut kernel) = program(young);
    let mixed = PerFamily { ipv4: compiled(&planner, Family::Ipv4), ipv6: compiled(&before, Family::Ipv6) };
    let full = kernel.clone();
    planner.quarantine(&name, mixed);

    let mut comparison = planner.resync(&mut store, kernel.state());
    for transaction in comparison.by_ref() {
        kernel.commit(&transaction);
        kernel.assert_consistent();
    }
    let left_out = comparison.take_left_out();
    assert_eq!(left_out, [name]);
    store.mark_dirty(left_out);
    commit_changes(&mut store, &mut planner, &mut kernel);
    for family in Family::ALL {
        assert_eq!(kernel.normalised(family), full.normalised(family));
    }
}
