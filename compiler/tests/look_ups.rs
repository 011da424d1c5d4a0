//! A restart over any other state, with maps that are too large to be listed: elements are looked up while the Services
//! before are planned and committed, as the agent does.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};
use support::FakeKernel;
use support::changes::{cases, config, start};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Change, Object, PerFamily, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;

/// A Service in few places, so that several want the same.
#[derive(Debug, Clone)]
struct Shape {
    id: u8,
    is_gone: bool,
    cluster_ip: u8,
    external_ip: u8,
    age: u8,
    kind: &'static str,
    is_dual: bool,
    is_external_local: bool,
    is_internal_local: bool,
    is_sticky: bool,
    has_ranges: bool,
    /// A bit for each endpoint, and whether it is on this node.
    endpoints: u8,
    local: u8,
}

fn shape() -> impl Strategy<Value = Shape> {
    let kinds = prop::sample::select(vec!["ClusterIP", "NodePort", "LoadBalancer"]);
    let numbers = (0..10_u8, 0..5_u8, 0..4_u8, 0..4_u8, 0..64_u8, 0..64_u8);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (numbers, kinds, flags, prop::bool::weighted(0.15)).prop_map(|(numbers, kind, flags, is_gone)| {
        let (id, cluster_ip, external_ip, age, endpoints, local) = numbers;
        let (is_dual, is_external_local, is_internal_local, is_sticky, has_ranges) = flags;
        Shape {
            id,
            is_gone,
            cluster_ip,
            external_ip,
            age,
            kind,
            is_dual,
            is_external_local,
            is_internal_local,
            is_sticky,
            has_ranges,
            endpoints,
            local,
        }
    })
}

impl Shape {
    fn name(&self) -> String {
        format!("s{}", self.id)
    }

    fn apply(&self, store: &mut Store) {
        let service: Object = serde_json::from_value(self.service()).unwrap();
        if self.is_gone {
            store.apply(Change::Delete(service.reference()));
            return;
        }
        store.apply(Change::Apply(service));
        for slice in [self.slice("IPv4", "10.244.0."), self.slice("IPv6", "fd00:244::")] {
            store.apply(Change::Apply(serde_json::from_value(slice).unwrap()));
        }
    }

    fn service(&self) -> Value {
        let Self { cluster_ip, external_ip, age, kind, .. } = self;
        let policy = |is_local| if is_local { "Local" } else { "Cluster" };
        let families = if self.is_dual { vec!["IPv4", "IPv6"] } else { vec!["IPv4"] };
        let of_families = |all: [String; 2]| all[..families.len()].to_vec();
        let cluster_ips = of_families([format!("10.96.0.{cluster_ip}"), format!("fd00:96::{cluster_ip}")]);
        let node_port = if *kind == "ClusterIP" { 0 } else { 30000 + u32::from(*cluster_ip) };
        json!({"kind": "Service",
            "metadata": {"name": self.name(), "namespace": "shop", "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1)},
            "spec": {"type": kind, "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ipFamilies": families,
                "ports": [{"name": "http", "port": 80, "nodePort": node_port}],
                "externalIPs": of_families([format!("203.0.113.{external_ip}"), format!("fd00:203::{external_ip}")]),
                "externalTrafficPolicy": policy(self.is_external_local),
                "internalTrafficPolicy": policy(self.is_internal_local),
                "sessionAffinity": if self.is_sticky { "ClientIP" } else { "None" },
                "loadBalancerSourceRanges": if self.has_ranges { json!(["198.51.100.0/24"]) } else { json!([]) }},
            "status": {"loadBalancer": {"ingress": [{"ip": format!("203.0.113.1{external_ip}")}]}}})
    }

    fn slice(&self, family: &str, prefix: &str) -> Value {
        let endpoint = |bit: u8| {
            let node = if self.local >> bit & 1 == 1 { "kestrel" } else { "heron" };
            json!({"addresses": [format!("{prefix}{}", bit + 1)], "nodeName": node})
        };
        let endpoints: Vec<Value> = (0..6).filter(|bit| self.endpoints >> bit & 1 == 1).map(endpoint).collect();
        json!({"kind": "EndpointSlice", "addressType": family,
            "metadata": {"name": format!("{}-{}", self.name(), family.to_lowercase()), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": self.name()}},
            "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}]})
    }
}

fn is_large(map: Map) -> bool {
    use Map::{
        ClusterIps, Endpoints, Frontends, HairpinConnections, LocalFrontends, LocalPolicy, Masquerade, NoEndpoints,
        ShortCircuit,
    };
    matches!(map, Frontends(_) | LocalFrontends(_) | ShortCircuit(_) | Endpoints(..) | ClusterIps | HairpinConnections)
        || matches!(map, Masquerade(_) | LocalPolicy(_) | NoEndpoints(_))
}

fn program(planner: &mut Planner, store: &mut Store) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    planner.resync(store, PerFamily::default()).for_each(|transaction| kernel.commit(&transaction));
    kernel
}

type Places = BTreeSet<(Family, Map, Key)>;

/// The elements of large maps.
fn large_places(kernel: &FakeKernel) -> Places {
    let places = |family| kernel.0[family].elements.keys().map(move |(map, key)| (family, *map, *key));
    Family::ALL.into_iter().flat_map(places).filter(|(_, map, _)| is_large(*map)).collect()
}

/// Compares and commits as the agent does: this number of Services at a time, and the elements of the next are looked up
/// meanwhile. Returns what was found.
fn resync(planner: &mut Planner, store: &mut Store, kernel: &mut FakeKernel, services: usize) -> Places {
    let mut listed = kernel.clone();
    listed.0.values_mut().for_each(|table| table.elements.retain(|(map, _), _| !is_large(*map)));
    let large = PerFamily::from_fn(|_| Map::all().filter(|map| is_large(*map)).collect());
    let mut resync = planner.resync(store, listed.state());
    let (mut planned, mut asked, mut found) = (0, Places::new(), Places::new());
    while !resync.is_finished() {
        let keys = resync.keys_ahead(&large, services);
        let look_up = |kernel: &FakeKernel| -> Vec<_> {
            keys.iter().map(|(family, map, key)| kernel.0[*family].elements.get(&(*map, *key)).cloned()).collect()
        };
        let before = look_up(kernel);
        resync.next_chunk(planned).iter().for_each(|transaction| kernel.commit(transaction));
        assert_eq!(before, look_up(kernel), "a commit changed what is looked up meanwhile");
        for (place, element) in keys.into_iter().zip(before) {
            assert!(asked.insert(place), "{place:?} is looked up twice");
            if let Some(element) = element {
                found.insert(place);
                resync.supply(place.0, element);
            }
        }
        planned = services;
    }
    let left_out = resync.take_left_out();
    store.mark_dirty(left_out);
    found
}

/// The end of a restart: what was not found is removed, as the search for leftovers would, and Services that were left
/// out follow. Then the planner believes what the kernel has.
#[track_caller]
fn finish(
    planner: &mut Planner,
    store: &mut Store,
    kernel: &mut FakeKernel,
    left_over: impl Iterator<Item = (Family, Map, Key)>,
) {
    for (family, map, key) in left_over {
        kernel.0[family].elements.remove(&(map, key)).unwrap();
    }
    while let Some(plan) = planner.update(store) {
        plan.transactions.iter().for_each(|transaction| kernel.commit(transaction));
    }
    for (table, now) in planner.ruleset().tables.iter().zip(kernel.0.values()) {
        let believed: BTreeMap<_, _> =
            table.elements.iter().map(|element| ((element.map, element.key), element)).collect();
        let there: BTreeMap<_, _> = now.elements.iter().map(|(place, element)| (*place, element)).collect();
        assert_eq!(believed, there);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(512)))]

    #[test]
    fn a_restart_over_another_state_leaves_what_a_fresh_start_makes(
        then in proptest::collection::vec(shape(), 1..14),
        now in proptest::collection::vec(shape(), 0..14),
        services in 1_usize..5,
        operations in prop_oneof![Just(2), Just(20), Just(usize::MAX)],
        removed in any::<u64>(),
        are_some_removed in any::<bool>(),
    ) {
        let (mut store, mut planner) = start();
        planner.limit_transactions_to(operations);
        then.iter().for_each(|shape| shape.apply(&mut store));
        let mut kernel = program(&mut planner, &mut store);
        now.iter().for_each(|shape| shape.apply(&mut store));
        for (position, (family, map, key)) in large_places(&kernel).into_iter().enumerate() {
            if are_some_removed && removed.rotate_left(position as u32) & 7 == 0 {
                kernel.0[family].elements.remove(&(map, key));
            }
        }

        let held = large_places(&kernel);
        let mut restarted = Planner::new(config(), store.node());
        restarted.limit_transactions_to(operations);
        let found = resync(&mut restarted, &mut store, &mut kernel, services);
        let fresh = program(&mut Planner::new(config(), store.node()), &mut store);
        let wanted = large_places(&fresh);
        prop_assert_eq!(&found, &held.intersection(&wanted).copied().collect());
        finish(&mut restarted, &mut store, &mut kernel, held.difference(&found).copied());
        for family in Family::ALL {
            prop_assert_eq!(kernel.normalised(family), fresh.normalised(family));
        }
    }

    /// A repair of a running agent, with Services that the kernel refused: they keep an earlier state, or another in each
    /// family.
    #[test]
    fn a_repair_with_refused_services_knows_what_the_kernel_has(
        then in proptest::collection::vec(shape(), 1..14),
        now in proptest::collection::vec(shape(), 0..14),
        services in 1_usize..5,
        refused in proptest::collection::vec((0..10_u8, any::<bool>(), any::<bool>()), 0..4),
    ) {
        // The numbers of lists of two planners would collide.
        let [then, now] = [then, now]
            .map(|shapes| shapes.into_iter().map(|shape| Shape { is_sticky: false, ..shape }).collect::<Vec<_>>());
        let (mut store, mut planner) = start();
        then.iter().for_each(|shape| shape.apply(&mut store));
        let mut kernel = program(&mut planner, &mut store);
        now.iter().for_each(|shape| shape.apply(&mut store));
        let mut other = Planner::new(config(), store.node());
        program(&mut other, &mut store);
        for (id, is_v4_earlier, is_v6_earlier) in refused {
            let name = ServiceName::new("shop", &format!("s{id}"));
            let programmed = |is_earlier: bool, family| {
                let planner = if is_earlier { &planner } else { &other };
                planner.compiled(&name, family).cloned()
            };
            let programmed = PerFamily {
                ipv4: programmed(is_v4_earlier, Family::Ipv4),
                ipv6: programmed(is_v6_earlier, Family::Ipv6),
            };
            planner.quarantine(&name, programmed);
        }
        let held = large_places(&kernel);
        let found = resync(&mut planner, &mut store, &mut kernel, services);
        finish(&mut planner, &mut store, &mut kernel, held.difference(&found).copied());
    }
}
