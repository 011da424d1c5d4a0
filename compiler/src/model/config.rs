//! The configuration of the proxy, and the known state of its node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::family::Family;

/// The part of `KubeProxyConfiguration` that decides the fate of packets, read
/// and checked by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The name of the node the proxy runs on; endpoints with this `nodeName`
    /// are local. Empty: nothing is local.
    pub node_name: String,
    /// `nftables.masqueradeAll`
    pub masquerade_all: bool,
    /// How to recognize traffic from local pods.
    pub detect_local: DetectLocal,
    /// `nodePortAddresses`
    pub node_port_addresses: NodePortAddresses,
    /// `bindAddress`, if it is a specific address: overrides the Node's.
    pub bind_address: Option<IpAddr>,
}

/// `detectLocalMode` and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// `ClusterCIDR`: the first range of each family; none: no detection.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`: the Node's `podCIDRs`, the first of each family.
    NodeCidr,
    /// `BridgeInterface`
    BridgeInterface(String),
    /// `InterfaceNamePrefix`
    InterfaceNamePrefix(String),
}

/// How to recognize packets from pods of this node (or of the cluster:
/// kube-proxy's `detectLocalMode` defines "local").
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalDetector {
    /// `ClusterCIDR`, `NodeCIDR`: by source address.
    Source(IpNet),
    /// `BridgeInterface`: by the name of the interface it came in on.
    Interface(String),
    /// `InterfaceNamePrefix`: by how that name begins.
    InterfacePrefix(String),
}

/// `nodePortAddresses`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Absent, or `["primary"]`: the node's primary address of each family. A
    /// family whose address is not known serves none.
    Primary,
    /// Local addresses within these ranges; a family without a range, or with
    /// a range of length 0, serves NodePorts on all of its local addresses.
    Ranges(Vec<IpNet>),
    /// `primary` beside other values: both.
    PrimaryAndRanges(Vec<IpNet>),
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            masquerade_all: false,
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Primary,
            bind_address: None,
        }
    }
}

/// The known state of the node, from its Node object and from the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Label `topology.kubernetes.io/zone`; `None` when absent or empty.
    pub zone: Option<String>,
    /// The node's addresses: InternalIPs, then ExternalIPs, in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
    /// Addresses on any interface, loopback included, as the kernel has them.
    pub interface_addresses: Vec<IpAddr>,
}

impl NodeInfo {
    /// Keeps addresses and pod ranges of a family that has lost them: an object
    /// that loses them for a while (for example when a cloud controller
    /// rewrites it) changes nothing. kube-proxy keeps the known values as well
    /// (`pkg/proxy/node.go`).
    pub(super) fn keep_known(&mut self, before: &NodeInfo) {
        for family in Family::ALL {
            if !self.addresses.iter().any(|address| Family::of(*address) == family) {
                let known = before.addresses.iter().copied().filter(|address| Family::of(*address) == family);
                self.addresses.extend(known);
            }
            if !self.pod_cidrs.iter().any(|range| Family::of(range.addr()) == family) {
                let known = before.pod_cidrs.iter().copied().filter(|range| Family::of(range.addr()) == family);
                self.pod_cidrs.extend(known);
            }
        }
    }
}

impl ProxyConfig {
    /// The node's primary address of a family: `bindAddress` if it is of this
    /// family, else the first address of the Node object; `None` if unknown.
    pub fn primary_address(&self, node: &NodeInfo, family: Family) -> Option<IpAddr> {
        self.bind_address
            .filter(|address| Family::of(*address) == family)
            .or_else(|| node.addresses.iter().copied().find(|address| Family::of(*address) == family))
    }

    /// How to recognize traffic from local pods of a family, or `None` if there
    /// is no way to.
    pub fn detector(&self, node: &NodeInfo, family: Family) -> Option<LocalDetector> {
        let first = |nets: &[IpNet]| {
            nets.iter().copied().find(|net| Family::of(net.addr()) == family).map(LocalDetector::Source)
        };
        match &self.detect_local {
            DetectLocal::ClusterCidr(nets) => first(nets),
            DetectLocal::NodeCidr => first(&node.pod_cidrs),
            DetectLocal::BridgeInterface(name) => Some(LocalDetector::Interface(name.clone())),
            DetectLocal::InterfaceNamePrefix(prefix) => Some(LocalDetector::InterfacePrefix(prefix.clone())),
        }
    }

    /// The ranges NodePorts are served in; `None`: on every local address, which
    /// only the configuration can ask for: by a range of length 0, or by a list
    /// that has no range of this family.
    ///
    /// With `primary` and an unknown address there is no range, and NodePorts
    /// stay closed. kube-proxy serves them on every address then; but a Node
    /// object that is late or incomplete must not open anything.
    pub fn node_port_ranges(&self, node: &NodeInfo, family: Family) -> Option<Vec<IpNet>> {
        let (with_primary, listed) = match &self.node_port_addresses {
            NodePortAddresses::Primary => (true, &[][..]),
            NodePortAddresses::Ranges(ranges) => (false, ranges.as_slice()),
            NodePortAddresses::PrimaryAndRanges(ranges) => (true, ranges.as_slice()),
        };
        let mut ranges: Vec<IpNet> =
            listed.iter().copied().filter(|range| Family::of(range.addr()) == family).collect();
        if ranges.iter().any(|range| range.prefix_len() == 0) || (ranges.is_empty() && !with_primary) {
            return None;
        }
        if with_primary {
            let primary = self.primary_address(node, family).filter(|address| !address.is_loopback());
            ranges.extend(primary.map(IpNet::from));
        }
        Some(ranges)
    }

    /// Returns whether the Node's address of a family has to be known for its NodePorts.
    pub fn node_ports_need_primary(&self, family: Family) -> bool {
        match &self.node_port_addresses {
            NodePortAddresses::Primary => true,
            NodePortAddresses::Ranges(_) => false,
            NodePortAddresses::PrimaryAndRanges(ranges) => {
                !ranges.iter().any(|range| Family::of(range.addr()) == family && range.prefix_len() == 0)
            }
        }
    }

    /// The addresses of this node that serve NodePorts; empty where all do.
    pub fn node_port_ips(&self, node: &NodeInfo, family: Family) -> Vec<IpAddr> {
        let Some(ranges) = self.node_port_ranges(node, family) else {
            return Vec::new();
        };
        let mut addresses: Vec<IpAddr> = node
            .interface_addresses
            .iter()
            .copied()
            .filter(|address| !address.is_loopback() && ranges.iter().any(|range| range.contains(address)))
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The addresses of this node that serve NodePorts, each of them, also where
    /// all addresses do; never a loopback address.
    pub fn every_node_port_ip(&self, node: &NodeInfo, family: Family) -> Vec<IpAddr> {
        if self.node_port_ranges(node, family).is_some() {
            return self.node_port_ips(node, family);
        }
        let own = node.interface_addresses.iter().copied();
        own.filter(|address| Family::of(*address) == family && !address.is_loopback()).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Change, Object, Store};

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn node_with(store: &mut Store, addresses: &[&str], pod_cidrs: &[&str]) {
        let addresses: Vec<_> =
            addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        let node = json!({
            "metadata": {"name": "kestrel"}, "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses},
        });
        store.apply(Change::Apply(Object::Node(serde_json::from_value(node).unwrap())));
    }

    fn store() -> Store {
        let mut store = Store::new("kestrel");
        store.set_interface_addresses(addresses(&["127.0.0.1", "192.0.2.11", "192.0.2.77", "2001:db8::11"]));
        store
    }

    #[test]
    fn an_incomplete_node_opens_no_node_port() {
        let config = ProxyConfig::default();
        let mut store = store();
        let closed = |store: &Store, family| {
            config.node_port_ranges(store.node(), family).is_some_and(|ranges| ranges.is_empty())
                && config.node_port_ips(store.node(), family).is_empty()
        };
        assert!(Family::ALL.into_iter().all(|family| closed(&store, family)), "no Node object");
        node_with(&mut store, &[], &[]);
        assert!(Family::ALL.into_iter().all(|family| closed(&store, family)), "no address");
        node_with(&mut store, &["127.0.0.1"], &[]);
        assert!(Family::ALL.into_iter().all(|family| closed(&store, family)), "loopback alone");
        node_with(&mut store, &["192.0.2.11"], &[]);
        assert_eq!(config.node_port_ips(store.node(), Family::Ipv4), addresses(&["192.0.2.11"]));
        assert!(closed(&store, Family::Ipv6), "an address of the other family alone");
    }

    #[test]
    fn primary_stands_beside_ranges() {
        let mut store = store();
        let ranges = vec!["192.0.2.64/26".parse().unwrap()];
        let config =
            ProxyConfig { node_port_addresses: NodePortAddresses::PrimaryAndRanges(ranges), ..ProxyConfig::default() };
        assert_eq!(config.node_port_ips(store.node(), Family::Ipv4), addresses(&["192.0.2.77"]));
        node_with(&mut store, &["192.0.2.11", "2001:db8::11"], &[]);
        assert_eq!(config.node_port_ips(store.node(), Family::Ipv4), addresses(&["192.0.2.11", "192.0.2.77"]));
        assert_eq!(config.node_port_ips(store.node(), Family::Ipv6), addresses(&["2001:db8::11"]));
    }

    #[test]
    fn a_node_that_loses_addresses_and_pod_ranges_keeps_the_last_known() {
        let mut store = store();
        node_with(&mut store, &["192.0.2.11", "2001:db8::11"], &["10.244.1.0/24", "fd00:1::/64"]);
        let known = store.node().clone();
        store.take_node_changed();
        node_with(&mut store, &[], &[]);
        assert_eq!(*store.node(), known);
        assert!(!store.node_changed());
        // Another address of one family; the other family's stays.
        node_with(&mut store, &["192.0.2.77"], &["10.244.2.0/24"]);
        assert_eq!(store.node().addresses, addresses(&["192.0.2.77", "2001:db8::11"]));
        let ranges: Vec<IpNet> = ["10.244.2.0/24", "fd00:1::/64"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(store.node().pod_cidrs, ranges);
    }

    #[test]
    fn only_the_configuration_opens_every_address() {
        let store = store();
        let ranges =
            |texts: &[&str]| NodePortAddresses::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect());
        for (given, v4, v6) in [
            (ranges(&["0.0.0.0/0", "::/0"]), true, true),
            (ranges(&["2001:db8::/32"]), true, false),
            (ranges(&["192.0.2.0/24"]), false, true),
            (NodePortAddresses::Primary, false, false),
            (NodePortAddresses::PrimaryAndRanges(vec!["0.0.0.0/0".parse().unwrap()]), true, false),
        ] {
            let config = ProxyConfig { node_port_addresses: given.clone(), ..ProxyConfig::default() };
            let open = Family::ALL.map(|family| config.node_port_ranges(store.node(), family).is_none());
            assert_eq!(open, [v4, v6], "{given:?}");
        }
    }
}
