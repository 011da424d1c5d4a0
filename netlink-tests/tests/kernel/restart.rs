//! An agent that starts over what another one left: only differences are sent,
//! whether the kernel's maps are listed or looked up.

use serde_json::{Value, json};
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_conformance::under_test;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::syncer_thread::SyncerThread;

fn service(id: u8, endpoints: &[u8]) -> Vec<Value> {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|host| json!({"addresses": [format!("10.244.1.{host}")], "nodeName": "kestrel"}))
        .collect();
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("s{id}"), "namespace": "shop"},
            "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{id}"),
                "ports": [{"port": 80, "nodePort": 30000 + u16::from(id)}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{id}-a"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": format!("s{id}")}},
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080}]}),
    ]
}

/// Starts an agent over whatever the namespace holds.
fn start(namespace: &NetNs, manifests: &[Value], list_at_most: u32) -> SyncReport {
    let config = ProxyConfig { node_name: "kestrel".to_owned(), ..ProxyConfig::default() };
    let syncer = SyncerThread::start(namespace, config).unwrap();
    syncer.with(move |syncer| syncer.list_at_most(list_at_most)).unwrap();
    let changes: Vec<Change> = under_test::changes(&[], manifests).unwrap();
    syncer.apply(changes).unwrap()
}

#[test]
fn a_restart_sends_only_differences() {
    for list_at_most in [u32::MAX, 0] {
        let namespace = NetNs::new("restart").unwrap();
        let mut manifests: Vec<Value> = (1..20).flat_map(|id| service(id, &[5, 6, 7][..1 + id as usize % 3])).collect();
        assert!(start(&namespace, &manifests, list_at_most).added > 100);
        let again = start(&namespace, &manifests, list_at_most);
        assert!(again.is_empty(), "with at most {list_at_most} listed: {again:?}");

        // While no agent ran: one Service lost an endpoint, one went, one came.
        manifests.drain(..4);
        manifests.extend(service(1, &[]));
        manifests.extend(service(33, &[9]));
        let changed = start(&namespace, &manifests, list_at_most);
        assert!(changed.added > 0 && changed.removed > 0 && changed.added < 20, "{changed:?}");
        let again = start(&namespace, &manifests, list_at_most);
        assert!(again.is_empty(), "with at most {list_at_most} listed: {again:?}");
    }
}
