//! What the proxy is configured to do, and what is known of its node.

use std::net::IpAddr;

use ipnet::IpNet;

use super::types::Family;

/// The part of `KubeProxyConfiguration` that decides the fate of packets, read
/// and checked by the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The name of the node the proxy runs on; endpoints with this `nodeName`
    /// are local. Empty: nothing is local.
    pub node_name: String,
    /// `nftables.masqueradeAll`
    pub masquerade_all: bool,
    /// How local pods are told.
    pub detect_local: DetectLocal,
    /// `nodePortAddresses`
    pub node_port_addresses: NodePortAddresses,
    /// `bindAddress`, if it is a specific address: overrides the Node's.
    pub bind_address: Option<IpAddr>,
}

/// `detectLocalMode` and what belongs to it.
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

/// How to tell that a packet comes from a pod of this node (or of the cluster:
/// kube-proxy's `detectLocalMode` decides what "local" means).
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
    /// Absent, or `["primary"]`: the node's primary address of each family.
    Primary,
    /// Local addresses within these ranges; a family without a range, or with
    /// a range of length 0, serves NodePorts on all of its local addresses.
    Ranges(Vec<IpNet>),
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

/// What is known of the node: from its Node object, and from the kernel.
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

impl ProxyConfig {
    /// The node's primary address of a family: `bindAddress` if it is of this
    /// family, else the first address of the Node object; `None` if unknown
    /// (kube-proxy then takes the loopback address).
    pub fn primary_address(&self, node: &NodeInfo, family: Family) -> Option<IpAddr> {
        self.bind_address
            .filter(|address| Family::of(*address) == family)
            .or_else(|| node.addresses.iter().copied().find(|address| Family::of(*address) == family))
    }

    /// How local pods of a family are told; `None`: they can't be.
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

    /// The ranges NodePorts are served in; `None`: on every local address.
    ///
    /// As kube-proxy has it: no range of this family, an unknown primary
    /// address or a range of length 0 all mean every address.
    pub fn node_port_ranges(&self, node: &NodeInfo, family: Family) -> Option<Vec<IpNet>> {
        let ranges: Vec<IpNet> = match &self.node_port_addresses {
            NodePortAddresses::Primary => self
                .primary_address(node, family)
                .filter(|address| !address.is_loopback())
                .map(IpNet::from)
                .into_iter()
                .collect(),
            NodePortAddresses::Ranges(ranges) => {
                ranges.iter().copied().filter(|range| Family::of(range.addr()) == family).collect()
            }
        };
        if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) { None } else { Some(ranges) }
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
}
