//! Behaviour that the conformance vectors leave out.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use super::*;

const NODE: &str = "kestrel";
const POD: &str = "10.244.1.77";
const OUTSIDE: &str = "198.51.100.23";
const NODE_IP: &str = "192.0.2.11";

fn model(config: Value, objects: &[Value]) -> ReferenceModel {
    let node = Node {
        name: NODE.into(),
        zone: Some("z-east".into()),
        primary_ips: vec![NODE_IP.parse().unwrap(), "2001:db8:1::11".parse().unwrap()],
        local_addresses: ["192.0.2.211".parse().unwrap()].into(),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
    };
    let mut model = ReferenceModel::new(node, config);
    model.apply(json!({
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "z-east"}},
        "spec": {"podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": NODE_IP}, {"type": "InternalIP", "address": "2001:db8:1::11"},
        ]},
    }));
    objects.iter().cloned().for_each(|object| model.apply(object));
    model
}

fn cluster_cidr() -> Value {
    json!({"clusterCIDR": "10.244.0.0/16,fd00:10:244::/56"})
}

/// A ClusterIP service `web` at 10.96.0.1:80 with whatever `spec` adds.
fn service(name: &str, created: &str, spec: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.1",
            "clusterIPs": ["10.96.0.1"],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "w", "port": 80, "protocol": "TCP"}],
        },
    });
    for (key, value) in spec.as_object().unwrap() {
        service["spec"][key] = value.clone();
    }
    service
}

fn slice(name: &str, of: &str, created: &str, endpoints: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "creationTimestamp": created,
            "labels": {"kubernetes.io/service-name": of},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "w", "port": 8080, "protocol": "TCP"}],
    })
}

fn send(model: &ReferenceModel, from: &str, to: &str) -> Outcome {
    let to: SocketAddr = to.parse().unwrap();
    let packet =
        Packet { from: from.parse().unwrap(), iif: None, to: to.ip(), port: to.port(), protocol: Protocol::Tcp };
    model.outcome(&packet)
}

fn dnat<const N: usize>(endpoints: [&str; N], masquerade: bool) -> Outcome {
    let endpoints = endpoints.iter().map(|text| text.parse().unwrap()).collect();
    Outcome::Dnat { endpoints, masquerade, hairpin: BTreeSet::new() }
}

#[test]
fn addresses_are_read_sloppily() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (text, expected) in [
        ("010.1.2.3", Some(ip("10.1.2.3"))),
        ("10.180.00.001", Some(ip("10.180.0.1"))),
        ("::ffff:10.0.0.1", Some(ip("10.0.0.1"))),
        ("::ffff:010.0.0.1", Some(ip("10.0.0.1"))),
        ("2001:0db8:00001::0", Some(ip("2001:db8:1::"))),
        ("::", Some(ip("::"))),
        (" 10.0.0.1", None),
        ("10.0.0", None),
        ("10.0.0.256", None),
        ("10.0.0.+1", None),
        ("fe80::1%eth0", None),
        ("", None),
    ] {
        assert_eq!(address::parse(text), expected, "{text:?}");
    }
    for (text, expected) in [
        ("203.0.113.000/025", Some("203.0.113.0/25")),
        ("10.1.2.3/8", Some("10.0.0.0/8")),
        ("2001:db8::1/64", Some("2001:db8::/64")),
        ("10.0.0.0/33", None),
        ("10.0.0.0", None),
        ("10.0.0.0/-1", None),
    ] {
        let expected = expected.map(|text| text.parse().unwrap());
        assert_eq!(address::parse_prefix(text), expected, "{text:?}");
    }
}

#[test]
fn frontends_and_endpoints_are_read_sloppily() {
    let web =
        service("web", "", json!({"clusterIPs": ["010.096.00.1"], "externalIPs": ["203.0.113.010", " 203.0.113.11"]}));
    let pods = slice("web-a", "web", "", json!([{"addresses": ["010.244.1.005", "10.244.1.6"]}]));
    let model = model(cluster_cidr(), &[web, pods]);
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.5:8080"], false));
    assert_eq!(send(&model, OUTSIDE, "203.0.113.10:80"), dnat(["10.244.1.5:8080"], true));
    // External IPs are not trimmed.
    assert_eq!(send(&model, OUTSIDE, "203.0.113.11:80"), Outcome::Pass);
}

#[test]
fn empty_ip_families_fall_back_to_the_single_cluster_ip() {
    let web = service("web", "", json!({"ipFamilies": [], "clusterIPs": ["10.96.0.9"]}));
    let pods = slice("web-a", "web", "", json!([{"addresses": ["10.244.1.5"]}]));
    let model = model(cluster_cidr(), &[web, pods]);
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.5:8080"], false));
    assert_eq!(send(&model, POD, "10.96.0.9:80"), Outcome::Pass);
}

#[test]
fn oldest_service_gets_a_shared_external_ip() {
    let with = |ip: &str| json!({"clusterIPs": [ip], "externalIPs": ["203.0.113.10"]});
    let newer = service("a", "2025-01-02T00:00:00Z", with("10.96.0.1"));
    let older = service("b", "2025-01-01T00:00:00Z", with("10.96.0.2"));
    let of_newer = slice("a-a", "a", "", json!([{"addresses": ["10.244.2.1"]}]));
    let of_older = slice("b-a", "b", "", json!([{"addresses": ["10.244.2.2"]}]));
    let mut model = model(cluster_cidr(), &[newer, older, of_newer, of_older]);
    assert_eq!(send(&model, OUTSIDE, "203.0.113.10:80"), dnat(["10.244.2.2:8080"], true));
    // A Service without endpoints has no entry in the map of targets.
    model.delete(&ObjectKey { kind: "EndpointSlice".into(), namespace: "shop".into(), name: "b-a".into() });
    assert_eq!(send(&model, OUTSIDE, "203.0.113.10:80"), dnat(["10.244.2.1:8080"], true));
}

#[test]
fn name_decides_between_services_of_one_age() {
    let with = |ip: &str| json!({"clusterIPs": [ip], "externalIPs": ["203.0.113.10"]});
    let objects = [
        service("b", "", with("10.96.0.1")),
        service("a", "", with("10.96.0.2")),
        slice("a-a", "a", "", json!([{"addresses": ["10.244.2.1"]}])),
        slice("b-a", "b", "", json!([{"addresses": ["10.244.2.2"]}])),
    ];
    let model = model(cluster_cidr(), &objects);
    assert_eq!(send(&model, OUTSIDE, "203.0.113.10:80"), dnat(["10.244.2.1:8080"], true));
}

#[test]
fn of_two_entries_for_one_endpoint_the_best_counts() {
    let old = "2025-01-01T00:00:00Z";
    let new = "2025-01-02T00:00:00Z";
    let live = json!({"addresses": ["10.244.1.5"], "nodeName": NODE});
    let draining = json!({"addresses": ["10.244.1.5"], "nodeName": NODE,
        "conditions": {"ready": false, "serving": true, "terminating": true}});
    let unready = json!({"addresses": ["10.244.1.5"], "conditions": {"ready": false}});
    let elsewhere = json!({"addresses": ["10.244.1.5"], "nodeName": "heron"});
    let local_only = json!({"internalTrafficPolicy": "Local"});
    let chosen = dnat(["10.244.1.5:8080"], false);
    for (older, newer, expected) in [
        (&live, &draining, chosen.clone()),
        (&draining, &live, chosen.clone()),
        (&live, &unready, chosen.clone()),
        (&unready, &live, chosen.clone()),
        // Not terminating beats terminating even if it serves nothing.
        (&draining, &unready, Outcome::Reject),
        (&live, &elsewhere, Outcome::Drop),
        (&elsewhere, &live, chosen.clone()),
    ] {
        let objects = [
            service("web", "", local_only.clone()),
            slice("web-a", "web", old, json!([older])),
            slice("web-b", "web", new, json!([newer])),
        ];
        let model = model(cluster_cidr(), &objects);
        assert_eq!(send(&model, POD, "10.96.0.1:80"), expected, "{older} then {newer}");
    }
}

#[test]
fn local_traffic_is_told_by_the_configured_means() {
    let objects = [
        service("web", "", json!({})),
        slice("web-a", "web", "", json!([{"addresses": ["10.244.1.5"]}])),
        json!({"kind": "Node", "metadata": {"name": NODE}, "spec": {"podCIDRs": ["fd00::/64", "10.244.1.0/24"]}}),
    ];
    let masqueraded = |config: Value, from: &str, iif: Option<&str>| {
        let packet = Packet {
            from: from.parse().unwrap(),
            iif: iif.map(str::to_owned),
            to: "10.96.0.1".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        };
        !model(config, &objects).outcome(&packet).masqueraded().is_empty()
    };
    let node_cidr = json!({"detectLocalMode": "NodeCIDR"});
    assert!(!masqueraded(node_cidr.clone(), POD, None));
    assert!(masqueraded(node_cidr, "10.244.2.88", None));
    let bridge = json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}});
    assert!(!masqueraded(bridge.clone(), POD, Some("cni0")));
    assert!(masqueraded(bridge.clone(), POD, Some("cni01")));
    // The node's own packets have no arriving interface.
    assert!(masqueraded(bridge, NODE_IP, Some("cni0")));
    let prefix = json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cni"}});
    assert!(!masqueraded(prefix.clone(), POD, Some("cni01")));
    assert!(masqueraded(prefix, POD, Some("eth0")));
    assert!(!masqueraded(json!({}), OUTSIDE, None));
    assert!(masqueraded(json!({"nftables": {"masqueradeAll": true}}), POD, None));
}

#[test]
fn node_ports_need_an_address_that_serves_them() {
    let node_port = json!({"type": "NodePort", "ports": [{"name": "w", "port": 80, "nodePort": 30080}]});
    let objects = [service("web", "", node_port), slice("web-a", "web", "", json!([{"addresses": ["10.244.1.5"]}]))];
    let served = |config: Value, ip: &str| {
        let model = model(config, &objects);
        send(&model, OUTSIDE, &format!("{ip}:30080")) != Outcome::Pass
    };
    assert!(served(json!({}), NODE_IP));
    assert!(!served(json!({}), "192.0.2.211"));
    // A specific bind address is the primary one.
    assert!(served(json!({"bindAddress": "192.0.2.211"}), "192.0.2.211"));
    assert!(!served(json!({"bindAddress": "192.0.2.211"}), NODE_IP));
    for all in [json!(["0.0.0.0/0"]), json!(["2001:db8::/32"])] {
        let config = json!({"nodePortAddresses": all});
        assert!(served(config.clone(), "192.0.2.211"));
        assert!(!served(config.clone(), "127.0.0.1"));
        assert!(!served(config.clone(), "127.8.8.8"));
        assert!(!served(config, "192.0.2.12"));
    }
}

#[test]
fn a_service_address_comes_before_a_node_port() {
    let objects = [
        service(
            "vip",
            "",
            json!({
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "externalIPs": [NODE_IP],
                "ports": [{"name": "w", "port": 30080}],
            }),
        ),
        slice("vip-a", "vip", "", json!([{"addresses": ["10.244.2.5"], "nodeName": "heron"}])),
        service(
            "web",
            "",
            json!({
                "type": "NodePort", "clusterIPs": ["10.96.0.2"],
                "ports": [{"name": "w", "port": 80, "nodePort": 30080}],
            }),
        ),
        slice("web-a", "web", "", json!([{"addresses": ["10.244.2.6"]}])),
    ];
    let model = model(cluster_cidr(), &objects);
    // Not the node port, although this Service has no endpoint here.
    assert_eq!(send(&model, OUTSIDE, &format!("{NODE_IP}:30080")), Outcome::Drop);
    assert_eq!(send(&model, POD, &format!("{NODE_IP}:30080")), dnat(["10.244.2.5:8080"], false));
}

#[test]
fn an_undefined_port_of_a_cluster_ip_on_the_node_is_not_refused() {
    let mut model = model(cluster_cidr(), &[service("web", "", json!({}))]);
    assert_eq!(send(&model, OUTSIDE, "10.96.0.1:81"), Outcome::Reject);
    model.node.local_addresses.insert("10.96.0.1".parse().unwrap());
    // The input hook does not look at cluster IPs; output does.
    assert_eq!(send(&model, OUTSIDE, "10.96.0.1:81"), Outcome::Pass);
    assert_eq!(send(&model, NODE_IP, "10.96.0.1:81"), Outcome::Reject);
}

#[test]
fn deleting_the_own_node_keeps_its_labels() {
    let node = json!({"kind": "Node", "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": "z-west"}}});
    let hinted = |address: &str, zone: &str| json!({"addresses": [address], "hints": {"forZones": [{"name": zone}]}});
    let pods = slice("web-a", "web", "", json!([hinted("10.244.1.5", "z-east"), hinted("10.244.1.6", "z-west")]));
    let mut model = model(cluster_cidr(), &[service("web", "", json!({})), pods]);
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.5:8080"], false));
    let key = ObjectKey::of(&node).unwrap();
    model.apply(node);
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.6:8080"], false));
    model.delete(&key);
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.6:8080"], false));
}

#[test]
fn hairpin_is_known_to_all_services_of_an_endpoint() {
    let objects = [
        service("web", "", json!({})),
        slice("web-a", "web", "", json!([{"addresses": [POD], "nodeName": NODE}, {"addresses": ["10.244.1.5"]}])),
    ];
    let model = model(cluster_cidr(), &objects);
    let outcome = send(&model, POD, "10.96.0.1:80");
    let hairpin = BTreeSet::from([format!("{POD}:8080").parse::<SocketAddr>().unwrap()]);
    assert_eq!(outcome.masqueraded(), hairpin);
    assert!(matches!(outcome, Outcome::Dnat { endpoints, masquerade: false, .. } if endpoints.len() == 2));
}

#[test]
fn bad_manifests_are_ignored() {
    let web = service("web", "", json!({}));
    let pods = slice("web-a", "web", "", json!([{"addresses": ["10.244.1.5"]}]));
    let mut model = model(cluster_cidr(), &[web, pods]);
    model.apply(json!("no mapping"));
    model.apply(json!({"kind": "Service"}));
    model.apply(json!({"kind": "Service", "metadata": {"name": "x"}, "spec": 1}));
    model.apply(json!({"kind": "Service", "metadata": {"name": "y"}, "spec": {"clusterIP": "a.b.c.d", "ports": [{}]}}));
    assert_eq!(send(&model, POD, "10.96.0.1:80"), dnat(["10.244.1.5:8080"], false));
}
