//! The node, its configuration, Node objects and ServiceCIDRs.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use crate::model::{Node, ObjectKey};

/// The node that the proxy runs on.
pub(super) const NODE_NAME: &str = "kestrel";

/// Further addresses that the node's interfaces may have; the last two are
/// load balancer addresses.
const EXTRA_ADDRESSES: [&str; 4] = ["192.0.2.211", "2001:db8:1::211", "203.0.113.11", "2001:db8:3::11"];

const POD_CIDRS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// ServiceCIDR objects. Two list the same range, so deleting one leaves it.
const SERVICE_CIDRS: [(&str, &[&str]); 3] =
    [("kubernetes", &["10.96.0.0/16", "fd00:10:96::/112"]), ("twin", &["10.96.0.0/16"]), ("more", &["10.97.0.0/24"])];

/// The node that the proxy runs on; always of the same name and addresses.
pub(super) fn node() -> impl Strategy<Value = Node> {
    (zone(), subsequence(EXTRA_ADDRESSES.to_vec(), 0..=EXTRA_ADDRESSES.len())).prop_map(|(zone, extra)| Node {
        name: NODE_NAME.into(),
        zone: zone.map(str::to_owned),
        primary_ips: addresses(&["192.0.2.11", "2001:db8:1::11"]),
        local_addresses: addresses(&extra).into_iter().collect(),
        pod_cidrs: POD_CIDRS.iter().filter_map(|text| text.parse().ok()).collect(),
    })
}

/// KubeProxyConfiguration fields.
pub(super) fn config() -> impl Strategy<Value = Value> {
    let detection = select(vec![
        json!({"clusterCIDR": "10.244.0.0/16,fd00:10:244::/56"}),
        json!({"detectLocalMode": "ClusterCIDR", "clusterCIDR": "fd00:10:244::/56,10.244.0.0/16"}),
        json!({"clusterCIDR": "10.244.0.0/16"}),
        json!({}),
        json!({"detectLocalMode": "NodeCIDR"}),
        json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}}),
        json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cni"}}),
    ]);
    let node_port_addresses = prop_oneof![
        2 => Just(json!(null)),
        1 => Just(json!(["primary"])),
        2 => Just(json!(["0.0.0.0/0", "::/0"])),
        1 => Just(json!(["192.0.2.192/26", "2001:db8:1::/64"])),
        1 => Just(json!(["2001:db8:1::11/128"])),
        1 => Just(json!(["127.0.0.0/8", "192.0.2.0/25", "203.0.113.0/24"])),
    ];
    (detection, node_port_addresses, super::rarely(20)).prop_map(|(mut config, node_port_addresses, masquerade_all)| {
        if !node_port_addresses.is_null() {
            config["nodePortAddresses"] = node_port_addresses;
        }
        if masquerade_all {
            config["nftables"] = json!({"masqueradeAll": true});
        }
        config
    })
}

/// The Node object of `node`, with this zone label.
pub(super) fn node_object(node: &Node, zone: Option<&str>) -> Value {
    let mut labels = json!({"kubernetes.io/hostname": node.name});
    if let Some(zone) = zone {
        labels["topology.kubernetes.io/zone"] = json!(zone);
    }
    let internal = |ip: &IpAddr| json!({"type": "InternalIP", "address": ip});
    let mut addresses: Vec<Value> = node.primary_ips.iter().map(internal).collect();
    addresses.push(json!({"type": "Hostname", "address": node.name}));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {"podCIDR": POD_CIDRS[0], "podCIDRs": POD_CIDRS},
        "status": {"addresses": addresses},
    })
}

/// The Node object with another zone label.
pub(super) fn changed_node_object() -> impl Strategy<Value = Value> {
    (node(), zone()).prop_map(|(node, zone)| node_object(&node, zone))
}

/// The key of this node's Node object.
pub(super) fn node_key() -> ObjectKey {
    ObjectKey { kind: "Node".into(), namespace: String::new(), name: NODE_NAME.into() }
}

/// Some ServiceCIDRs.
pub(super) fn service_cidrs() -> impl Strategy<Value = Vec<Value>> {
    subsequence(SERVICE_CIDRS.to_vec(), 0..=SERVICE_CIDRS.len())
        .prop_map(|chosen| chosen.into_iter().map(service_cidr_object).collect())
}

/// One ServiceCIDR.
pub(super) fn service_cidr() -> impl Strategy<Value = Value> {
    select(SERVICE_CIDRS.to_vec()).prop_map(service_cidr_object)
}

/// The key of a ServiceCIDR.
pub(super) fn service_cidr_key() -> impl Strategy<Value = ObjectKey> {
    select(SERVICE_CIDRS.to_vec()).prop_map(|(name, _)| ObjectKey {
        kind: "ServiceCIDR".into(),
        namespace: String::new(),
        name: name.into(),
    })
}

fn service_cidr_object((name, cidrs): (&str, &[&str])) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    })
}

fn zone() -> impl Strategy<Value = Option<&'static str>> {
    prop_oneof![3 => Just(Some("z-east")), 1 => Just(Some("z-west")), 1 => Just(None)]
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}
