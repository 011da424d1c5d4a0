//! An agent that starts over what another one left: only differences are sent,
//! whether the kernel's maps are listed or looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::task::{Context, Waker};

use serde_json::{Value, json};
use vmap_proxy_agent::sync::Syncer;
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::holdings::Holdings;
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::random::Random;

fn service(id: u8, endpoints: &[u8]) -> Vec<Value> {
    service_at(id, id, endpoints)
}

/// With the address and the port of another one.
fn service_at(id: u8, place: u8, endpoints: &[u8]) -> Vec<Value> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|host| json!({"addresses": [format!("10.244.1.{host}")], "nodeName": "kestrel"}))
        .collect();
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{id}"), "namespace": "shop"},
            "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{place}"),
                "ports": [{"port": 80, "nodePort": 30000 + u16::from(place)}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{id}-a"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": format!("s{id}")}},
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080}]}),
    ]
}

/// Starts an agent over whatever the namespace holds.
fn start(namespace: &NetNs, manifests: &[Value], list_at_most: u32) -> (Proxy, SyncReport) {
    let config = ProxyConfig { node_name: "kestrel".to_owned(), ..ProxyConfig::default() };
    let (proxy, report) = Proxy::start_listing(list_at_most, namespace, config, manifests);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    (proxy, report)
}

/// The kernel has what it would have if these were the first manifests ever.
#[track_caller]
fn assert_complete(namespace: &NetNs, manifests: &[Value]) {
    let other = NetNs::new("complete").unwrap();
    let _proxy = start(&other, manifests, u32::MAX);
    for (now, wanted) in Holdings::read(namespace).into_iter().zip(Holdings::read(&other)) {
        let (mut now, mut wanted) = (now, wanted);
        now.forget_unused_chains();
        wanted.forget_unused_chains();
        assert_eq!(now.differences(&wanted), [] as [String; 0]);
    }
}

/// Random Services in few places, so that they take each other's.
#[derive(Default)]
struct World(BTreeMap<u8, Vec<Value>>);

impl World {
    /// Changes a Service or two; returns the changes as deletions and manifests.
    fn change(&mut self, random: &mut Random) -> (Vec<String>, Vec<Value>) {
        let mut changed = BTreeSet::new();
        for _ in 0..=random.below(2) {
            let id = 1 + random.below(12) as u8;
            changed.insert(id);
            if random.one_in(3) && self.0.remove(&id).is_some() {
                continue;
            }
            let hosts: Vec<u8> = (5..10).filter(|_| random.one_in(2)).collect();
            let mut objects = service_at(id, 1 + random.below(8) as u8, &hosts);
            if random.one_in(3) {
                objects[0]["spec"]["sessionAffinity"] = json!("ClientIP");
            }
            if random.one_in(4) {
                objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
            }
            self.0.insert(id, objects);
        }
        let deleted = changed.iter().filter(|id| !self.0.contains_key(id));
        let deleted = deleted.flat_map(|id| [format!("Service shop/s{id}"), format!("EndpointSlice shop/s{id}-a")]);
        (deleted.collect(), changed.iter().filter_map(|id| self.0.get(id)).flatten().cloned().collect())
    }

    fn manifests(&self) -> Vec<Value> {
        self.0.values().flatten().cloned().collect()
    }
}

/// Twenty Services with three endpoints, and a namespace in which an agent has programmed them and is gone.
fn programmed() -> (NetNs, Vec<Value>) {
    let namespace = NetNs::new("restart").unwrap();
    let manifests: Vec<Value> = (1..=20).flat_map(|id| service(id, &[5, 6, 7])).collect();
    let _proxy = start(&namespace, &manifests, u32::MAX);
    (namespace, manifests)
}

#[test]
fn a_restart_sends_only_differences() {
    for list_at_most in [u32::MAX, 0] {
        let namespace = NetNs::new("restart").unwrap();
        let mut manifests: Vec<Value> = (1..20).flat_map(|id| service(id, &[5, 6, 7][..1 + id as usize % 3])).collect();
        assert!(start(&namespace, &manifests, list_at_most).1.added > 100);
        let (proxy, again) = start(&namespace, &manifests, list_at_most);
        assert!(again.is_empty(), "with at most {list_at_most} listed: {again:?}");
        assert_eq!(proxy.settle().removed, 0);
        drop(proxy);

        // While no agent ran: one Service lost an endpoint, one went, one came.
        manifests.drain(..4);
        manifests.extend(service(1, &[]));
        manifests.extend(service(33, &[9]));
        let (proxy, changed) = start(&namespace, &manifests, list_at_most);
        assert!(changed.added > 0 && changed.added < 20, "{changed:?}");
        assert_eq!(proxy.with(|syncer| syncer.seeks_leftovers()), list_at_most == 0);
        let left_over = proxy.settle().removed;
        assert_eq!(left_over > 0, list_at_most == 0, "{left_over}");
        assert!(changed.removed + left_over > 0, "{changed:?}");
        assert_complete(&namespace, &manifests);
        proxy.assert_nothing_differs();
        drop(proxy);
        let again = start(&namespace, &manifests, list_at_most).1;
        assert!(again.is_empty(), "with at most {list_at_most} listed: {again:?}");
    }
}

/// A chain that leads to itself gets its rules back, wherever the element is that closes the loop.
#[test]
fn a_foreign_loop_is_taken_out() {
    let elements = [
        // Foreign, where an element of ours was.
        ("delete element ip vmap-proxy services { 10.96.0.1 . tcp . 80 };", "10.96.0.1 . tcp . 80 : jump services"),
        // One that could be ours, but for its chain.
        ("delete element ip vmap-proxy services { 10.96.0.1 . tcp . 80 };", "10.96.0.1 . tcp . 80 : goto services"),
        // Where nothing is expected.
        ("", "10.96.7.1 . tcp . 80 : jump services"),
    ];
    for ((before, element), list_at_most) in
        elements.into_iter().flat_map(|element| [(element, u32::MAX), (element, 0)])
    {
        let (namespace, manifests) = programmed();
        let text =
            format!("flush chain ip vmap-proxy services; {before} add element ip vmap-proxy services {{ {element} }}");
        load_nft(&namespace, &text).unwrap();
        let (proxy, report) = start(&namespace, &manifests, list_at_most);
        assert!(report.objects > 0, "{element}: {report:?}");
        assert!(!report.cleaned.is_empty(), "{element}: {report:?}");
        proxy.settle();
        assert_complete(&namespace, &manifests);
        proxy.assert_nothing_differs();
    }
}

/// A Service gets the endpoint back that was left over, another one gets more, and a third takes the addresses of one
/// that is gone: nothing waits, and all of it stays.
#[test]
fn changes_go_on_while_leftovers_are_sought() {
    let (namespace, mut manifests) = programmed();
    // While no agent ran, the fifth went, and the third lost an endpoint.
    manifests.drain(8..10);
    manifests.splice(4..6, service(3, &[5, 6]));
    let (proxy, _) = start(&namespace, &manifests, 0);
    assert!(proxy.with(|syncer| syncer.seeks_leftovers()));

    let changes = [service(3, &[5, 6, 7]), service(7, &[5, 6, 7, 8]), service_at(50, 5, &[5, 9])].concat();
    let report = proxy.apply(&changes);
    assert!(!report.repaired && report.added > 0, "{report:?}");
    assert!(proxy.with(|syncer| syncer.seeks_leftovers()));
    manifests.extend(changes);
    proxy.settle();
    assert_complete(&namespace, &manifests);
    proxy.assert_nothing_differs();
}

/// A removal in small parts, with changes between them that need again what is to go.
#[test]
fn what_is_wanted_again_is_not_removed() {
    let (namespace, mut manifests) = programmed();
    manifests.splice(4..6, service(3, &[5]));
    let (proxy, _) = start(&namespace, &manifests, 0);
    // Listed, but not removed.
    proxy.with(|syncer| tokio::runtime::Handle::current().block_on(syncer.leftovers_found()));
    let back = service(3, &[5, 6, 7]);
    assert!(!proxy.apply(&back).repaired);
    manifests.extend(back);
    assert_eq!(proxy.settle().removed, 0);
    assert_complete(&namespace, &manifests);
    proxy.assert_nothing_differs();
}

/// Somebody who makes us repair again and again does not keep elements in our maps.
#[test]
fn repairs_that_follow_one_another_remove_what_is_left_over() {
    let (namespace, mut manifests) = programmed();
    manifests.drain(8..10);
    let (proxy, _) = start(&namespace, &manifests, 0);
    let repair =
        || proxy.with(|syncer| syncer.resync().map(|report| (report.removed, syncer.seeks_leftovers()))).unwrap();
    assert_eq!([repair(), repair()], [(0, true), (0, true)]);
    let (removed, seeks) = repair();
    assert!(removed > 0 && !seeks, "{removed}");
    assert_complete(&namespace, &manifests);
    // Without counts (before Linux 6.16) it looks again.
    assert_eq!(repair().0, 0);
    assert_eq!(proxy.settle().removed, 0);
}

/// Services go so fast that listings miss elements: still none stays, and none that is wanted goes.
#[test]
fn changes_during_a_listing_hide_nothing() {
    let manifests: Vec<Value> = (0..6_000).flat_map(plain_service).collect();
    let namespace = NetNs::new("restart").unwrap();
    drop(start(&namespace, &manifests, u32::MAX));
    // While no agent ran, a third went. Another third goes while the rest is listed.
    let kept: Vec<Value> = (0..6_000).filter(|id| id % 3 > 0).flat_map(plain_service).collect();
    let (proxy, _) = start(&namespace, &kept, 0);
    let mut next = (0..6_000).filter(|id| id % 3 == 1);
    let is_found = |syncer: &mut Syncer| {
        let found = std::pin::pin!(syncer.leftovers_found());
        found.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    while !proxy.with(is_found) {
        let gone =
            next.by_ref().take(20).flat_map(|id| [format!("Service shop/p{id}"), format!("EndpointSlice shop/p{id}")]);
        let gone: Vec<String> = gone.collect();
        let report = proxy.change(&gone.iter().map(String::as_str).collect::<Vec<_>>(), &[]);
        assert!(!report.repaired, "{report:?}");
    }
    let stayed: Vec<usize> = next.collect();
    assert!(stayed.len() < 2_000);
    let removed = proxy.settle().removed;
    eprintln!("{} Services went meanwhile, {removed} elements were left over", 2_000 - stayed.len());
    proxy.assert_nothing_differs();
    drop(proxy);
    let wanted: Vec<Value> = (2..6_000).step_by(3).chain(stayed).flat_map(plain_service).collect();
    let again = start(&namespace, &wanted, u32::MAX).1;
    assert!(again.is_empty(), "{again:?}");
}

fn plain_service(id: usize) -> Vec<Value> {
    let mut objects = service_at(0, 0, &[5, 6]);
    let [service, slice] = &mut objects[..] else { panic!("two objects") };
    service["metadata"]["name"] = json!(format!("p{id}"));
    service["spec"] = json!({"clusterIP": format!("10.97.{}.{}", id / 250, 1 + id % 250), "ports": [{"port": 80}]});
    slice["metadata"]["name"] = json!(format!("p{id}"));
    slice["metadata"]["labels"] = json!({"kubernetes.io/service-name": format!("p{id}")});
    objects
}

/// Agents that end at any moment, with anything left over, changed or sought.
#[test]
fn after_any_restarts_the_kernel_has_what_is_wanted_and_nothing_else() {
    let mut random = Random::seeded_by("VMAP_PROXY_RESTART_SEED", 1);
    let (mut removed, mut sought) = (0, 0);
    for history in 0..40 {
        let namespace = NetNs::new("restart").unwrap();
        let mut world = World::default();
        for _ in 0..3 {
            // While no agent runs.
            (0..6).for_each(|_| _ = world.change(&mut random));
            let (proxy, _) = start(&namespace, &world.manifests(), random.pick(&[0, 10, u32::MAX]));
            for _ in 0..random.below(6) {
                match random.below(8) {
                    0 => proxy.with(|syncer| syncer.resync().map(drop)).unwrap(),
                    1 => removed += proxy.settle().removed,
                    2 if proxy.with(|syncer| syncer.seeks_leftovers()) => {
                        sought += 1;
                        proxy.with(|syncer| tokio::runtime::Handle::current().block_on(syncer.leftovers_found()));
                    }
                    _ => {
                        let (deleted, applied) = world.change(&mut random);
                        let deleted: Vec<&str> = deleted.iter().map(String::as_str).collect();
                        let report = proxy.change(&deleted, &applied);
                        assert!(report.refused.is_empty(), "history {history}: {:?}", report.refused);
                    }
                }
            }
        }
        let (proxy, _) = start(&namespace, &world.manifests(), 0);
        removed += proxy.settle().removed;
        let (_, difference) = proxy.compare_in_pieces();
        assert_eq!(difference, None, "history {history}");
        drop(proxy);
        let (_, again) = start(&namespace, &world.manifests(), u32::MAX);
        assert!(again.is_empty(), "history {history}: {again:?}");
    }
    eprintln!("{removed} elements were removed later, and {sought} searches waited for");
    assert!(removed > 100 && sought > 5, "{removed} {sought}");
}
