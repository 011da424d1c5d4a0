//! An agent that starts over what another one left: only differences are sent,
//! whether the kernel's maps are listed or looked up.

use serde_json::{Value, json};
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::holdings::Holdings;
use vmap_proxy_testbed::proxy::Proxy;

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

/// A Service gets the endpoint back that was left over, another one gets more, and a third takes the addresses of one
/// that is gone: nothing waits, and all of it stays.
#[test]
fn changes_go_on_while_leftovers_are_sought() {
    let (namespace, mut manifests) = programmed();
    // While no agent ran, the fifth went, and the third lost an endpoint.
    manifests.drain(8..10);
    manifests.splice(4..6, service(3, &[5, 6]));
    let (proxy, _) = start(&namespace, &manifests, 0);
    proxy.with(|syncer| assert!(syncer.seeks_leftovers() && syncer.idle_chains() == 0));

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
