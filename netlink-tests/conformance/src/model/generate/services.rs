//! Random Services.

use std::ops::Range;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

use super::{SERVICE_PLACES, rarely, service_name};
use crate::model::{ObjectKey, Protocol};

/// A port that a Service may have.
pub(super) struct PortChoice {
    pub(super) name: &'static str,
    pub(super) protocol: Protocol,
    number: u16,
    /// Offset of its node port. TCP and UDP of one number share it, as the API
    /// server allows.
    node_port: u16,
}

/// The ports a Service chooses from. The last has the number of another
/// Service's node port.
pub(super) const PORT_CHOICES: [PortChoice; 5] = [
    PortChoice { name: "w", protocol: Protocol::Tcp, number: 80, node_port: 0 },
    PortChoice { name: "u", protocol: Protocol::Udp, number: 80, node_port: 0 },
    PortChoice { name: "d", protocol: Protocol::Tcp, number: 53, node_port: 1 },
    PortChoice { name: "s", protocol: Protocol::Sctp, number: 53, node_port: 1 },
    PortChoice { name: "n", protocol: Protocol::Tcp, number: 30000, node_port: 2 },
];

/// External IPs and load balancer addresses of all Services. Two are addresses
/// of the node; one is written with leading zeros.
pub(super) const EXTERNAL_ADDRESSES: [&str; 7] = [
    "203.0.113.10",
    "203.0.113.11",
    "203.0.113.012",
    "192.0.2.11",
    "2001:db8:3::10",
    "2001:db8:3::11",
    "2001:db8:1::11",
];

const SOURCE_RANGES: [&str; 11] = [
    "198.51.100.0/28",
    "198.51.100.0/25",
    " 198.51.100.48/28 ",
    "198.051.100.000/27",
    "10.244.0.0/16",
    "192.0.2.11/32",
    "0.0.0.0/0",
    "2001:db8:2::/124",
    "fd00:10:244:1::/64",
    "2001:db8:1::/64",
    "::/0",
];

/// Ages of the places: not in the order of names, some equal, one unknown.
const CREATED: [Option<&str>; SERVICE_PLACES] = [
    Some("2025-01-03T00:00:00Z"),
    Some("2025-01-01T10:00:00Z"),
    Some("2025-01-03T00:00:00Z"),
    Some("2025-01-03T00:00:00Z"),
    None,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    Headless,
    ExternalName,
}

/// Fields that follow from neither place nor kind.
#[derive(Debug, Clone)]
struct Options {
    families: &'static [&'static str],
    ports: Vec<usize>,
    unnamed_port: bool,
    external_ips: Vec<&'static str>,
    ingress: Vec<(&'static str, Option<&'static str>)>,
    no_node_ports: bool,
    source_ranges: Vec<&'static str>,
    external_local: bool,
    internal_policy: Option<&'static str>,
    affinity: Option<u32>,
    other_proxy: bool,
}

/// A Service in one of these places.
pub(super) fn service(places: Range<usize>) -> impl Strategy<Value = Value> {
    (places, kind(), options()).prop_map(|(place, kind, options)| manifest(place, kind, &options))
}

/// The key of a random place.
pub(super) fn key() -> impl Strategy<Value = ObjectKey> {
    (0..SERVICE_PLACES).prop_map(|place| {
        let (namespace, name) = service_name(place);
        ObjectKey { kind: "Service".into(), namespace: namespace.into(), name: name.into() }
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        8 => Just(Kind::ClusterIp),
        7 => Just(Kind::NodePort),
        10 => Just(Kind::LoadBalancer),
        1 => Just(Kind::Headless),
        1 => Just(Kind::ExternalName),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    let families = select(vec![&["IPv4"][..], &["IPv6"][..], &["IPv4", "IPv6"][..], &["IPv6", "IPv4"][..]]);
    let ports = subsequence((0..PORT_CHOICES.len()).collect::<Vec<_>>(), 1..=3);
    let external_ips = prop_oneof![
        3 => Just(Vec::new()),
        2 => subsequence(EXTERNAL_ADDRESSES.to_vec(), 1..=3),
    ];
    let mode = prop_oneof![3 => Just(None), 3 => Just(Some("VIP")), 1 => Just(Some("Proxy"))];
    let ingress = subsequence(EXTERNAL_ADDRESSES.to_vec(), 0..=4).prop_flat_map(move |ips| {
        let modes = proptest::collection::vec(mode.clone(), ips.len());
        modes.prop_map(move |modes| ips.iter().copied().zip(modes).collect())
    });
    let source_ranges = prop_oneof![
        2 => Just(Vec::new()),
        3 => subsequence(SOURCE_RANGES.to_vec(), 1..=3),
    ];
    let internal_policy = prop_oneof![
        1 => Just(None),
        3 => Just(Some("Cluster")),
        3 => Just(Some("Local")),
    ];
    let affinity = prop_oneof![3 => Just(None), 1 => Just(Some(60)), 1 => Just(Some(10800))];
    let flags = (rarely(30), rarely(20), any::<bool>(), rarely(4));
    let addresses = (external_ips, ingress, source_ranges);
    (families, ports, addresses, internal_policy, affinity, flags).prop_map(
        |(families, ports, addresses, internal_policy, affinity, flags)| Options {
            families,
            ports,
            unnamed_port: flags.0,
            external_ips: addresses.0,
            ingress: addresses.1,
            no_node_ports: flags.1,
            source_ranges: addresses.2,
            external_local: flags.2,
            internal_policy,
            affinity,
            other_proxy: flags.3,
        },
    )
}

fn manifest(place: usize, kind: Kind, options: &Options) -> Value {
    let (namespace, name) = service_name(place);
    let mut metadata = json!({"namespace": namespace, "name": name});
    if let Some(created) = CREATED[place] {
        metadata["creationTimestamp"] = json!(created);
    }
    if options.other_proxy {
        metadata["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    }
    let status = match kind {
        Kind::LoadBalancer => json!({"loadBalancer": {"ingress": ingress(options)}}),
        _ => json!({"loadBalancer": {}}),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": spec(place, kind, options),
        "status": status,
    })
}

fn spec(place: usize, kind: Kind, options: &Options) -> Value {
    let mut spec = Map::new();
    let mut set = |key: &str, value: Value| spec.insert(key.to_owned(), value);
    set("ports", ports(place, kind, options));
    set("sessionAffinity", json!("None"));
    match kind {
        Kind::ExternalName => {
            set("type", json!("ExternalName"));
            set("externalName", json!("elsewhere.example"));
            // Left over from an earlier type.
            let ip = cluster_ip(place, options.families[0]);
            set("clusterIP", json!(ip));
            set("clusterIPs", json!([ip]));
            set("ipFamilies", json!([options.families[0]]));
            return Value::Object(spec);
        }
        Kind::Headless => {
            set("type", json!("ClusterIP"));
            set("clusterIP", json!("None"));
            set("clusterIPs", json!(["None"]));
            set("ipFamilies", json!(options.families));
            return Value::Object(spec);
        }
        Kind::ClusterIp => set("type", json!("ClusterIP")),
        Kind::NodePort => set("type", json!("NodePort")),
        Kind::LoadBalancer => set("type", json!("LoadBalancer")),
    };
    let cluster_ips: Vec<String> = options.families.iter().map(|family| cluster_ip(place, family)).collect();
    set("clusterIP", json!(cluster_ips[0]));
    set("clusterIPs", json!(cluster_ips));
    set("ipFamilies", json!(options.families));
    if let Some(policy) = options.internal_policy {
        set("internalTrafficPolicy", json!(policy));
    }
    if let Some(seconds) = options.affinity {
        set("sessionAffinity", json!("ClientIP"));
        set("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}));
    }
    if !options.external_ips.is_empty() {
        set("externalIPs", json!(options.external_ips));
    }
    // The API server refuses the field on other Services.
    let external = kind != Kind::ClusterIp || !options.external_ips.is_empty();
    if external && options.external_local {
        set("externalTrafficPolicy", json!("Local"));
    }
    if kind == Kind::LoadBalancer {
        if options.external_local {
            set("healthCheckNodePort", json!(32000 + place));
        }
        if !options.source_ranges.is_empty() {
            set("loadBalancerSourceRanges", json!(options.source_ranges));
        }
        set("allocateLoadBalancerNodePorts", json!(!options.no_node_ports));
    }
    Value::Object(spec)
}

fn ports(place: usize, kind: Kind, options: &Options) -> Value {
    let has_node_ports = match kind {
        Kind::NodePort => true,
        Kind::LoadBalancer => !options.no_node_ports,
        Kind::ClusterIp | Kind::Headless | Kind::ExternalName => false,
    };
    let port = |choice: &PortChoice| {
        let mut port = json!({"port": choice.number, "protocol": choice.protocol.name()});
        // A name is optional only if there is one port.
        if !(options.unnamed_port && options.ports.len() == 1) {
            port["name"] = json!(choice.name);
        }
        if has_node_ports {
            port["nodePort"] = json!(30000 + 10 * place + usize::from(choice.node_port));
        }
        port
    };
    options.ports.iter().map(|index| port(&PORT_CHOICES[*index])).collect()
}

fn ingress(options: &Options) -> Value {
    let entry = |(ip, mode): &(&str, Option<&str>)| match mode {
        Some(mode) => json!({"ip": ip, "ipMode": mode}),
        None => json!({"ip": ip}),
    };
    options.ingress.iter().map(entry).chain([json!({"hostname": "lb.example"})]).collect()
}

/// The cluster IP of a place; `10.96.0.1N`, or its like in IPv6.
fn cluster_ip(place: usize, family: &str) -> String {
    match family {
        "IPv4" => format!("10.96.0.1{place}"),
        _ => format!("fd00:10:96::1{place}"),
    }
}
