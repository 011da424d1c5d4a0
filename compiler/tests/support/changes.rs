//! Random changes of a few Services and their endpoints.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use proptest::prelude::*;
use serde_json::{Value, json};
use vmap_proxy_compiler::model::config::{DetectLocal, NodePortAddresses};
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;

pub(crate) fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "kestrel".to_owned(),
        detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        node_port_addresses: NodePortAddresses::Primary,
        ..ProxyConfig::default()
    }
}

/// The number of histories: `PROPTEST_CASES`, or the usual one of a test.
pub(crate) fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

fn node() -> Value {
    json!({"kind": "Node", "metadata": {"name": "kestrel", "labels": {"topology.kubernetes.io/zone": "a"}},
           "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}})
}

/// One of a few Services, in one of many shapes.
pub(crate) fn service() -> impl Strategy<Value = Value> {
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
    // Sometimes enough for counts to share a chain.
    let crowd = prop_oneof![12 => Just(0u32), 1 => 55u32..140];
    let endpoints = (proptest::collection::vec(endpoint, 0..6), crowd).prop_map(|(mut endpoints, crowd)| {
        endpoints.extend((0..crowd).map(|pod| {
            json!({"addresses": [format!("10.244.1.{pod}")],
                "nodeName": if pod.is_multiple_of(4) { "heron" } else { "kestrel" }})
        }));
        endpoints
    });
    (0u8..4, 0u8..2, endpoints, any::<bool>()).prop_map(|(id, part, endpoints, udp)| {
        json!({"kind": "EndpointSlice",
            "metadata": {"name": format!("s{id}-{part}"), "namespace": "shop",
                "labels": {"kubernetes.io/service-name": format!("s{id}")}},
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "p0", "port": 8080, "protocol": if udp { "UDP" } else { "TCP" }},
                      {"name": "p1", "port": 8081, "protocol": "TCP"}]})
    })
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let object = prop_oneof![service(), slice()];
    (object, 0u8..5).prop_map(|(value, fate)| {
        let object: Object = serde_json::from_value(value).unwrap();
        if fate == 0 { Change::Delete(object.reference()) } else { Change::Apply(object) }
    })
}

pub(crate) fn start() -> (Store, Planner) {
    start_with(config())
}

pub(crate) fn start_with(config: ProxyConfig) -> (Store, Planner) {
    let mut store = Store::new("kestrel");
    store.apply(Change::Apply(serde_json::from_value(node()).unwrap()));
    store.set_interface_addresses(vec!["127.0.0.1".parse().unwrap(), "192.0.2.11".parse().unwrap()]);
    let planner = Planner::new(config, store.node());
    (store, planner)
}

/// A Service on every kind of frontend.
pub(crate) fn busy_service(sticky: bool, etp_local: bool) -> Value {
    json!({"kind": "Service", "metadata": {"name": "busy", "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.10",
            "ports": [{"name": "", "port": 80, "nodePort": 30080}],
            "externalTrafficPolicy": if etp_local { "Local" } else { "Cluster" },
            "sessionAffinity": if sticky { "ClientIP" } else { "None" }},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}})
}

/// Its endpoints: numbers of pods. Three of four are on this node.
pub(crate) fn busy_slice(pods: impl IntoIterator<Item = u32>) -> Value {
    let endpoint = |pod: u32| {
        json!({"addresses": [format!("10.244.{}.{}", pod >> 8, pod & 255)],
            "nodeName": if pod.is_multiple_of(4) { "heron" } else { "kestrel" }})
    };
    json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "endpoints": pods.into_iter().map(endpoint).collect::<Vec<_>>(),
        "metadata": {"name": "busy-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "busy"}},
        "ports": [{"name": "", "port": 8080}]})
}
