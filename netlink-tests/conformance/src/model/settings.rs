//! The settings of this node from the configuration and the Node object.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::Value;

use super::address::{self, Family};
use super::{Known, Packet, ReferenceModel, json};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// How traffic of this node's pods is recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LocalDetector {
    /// Not at all.
    None,
    /// By source address.
    Source(IpNet),
    /// By the name of the interface it arrives on.
    Interface(String),
    /// By the first letters of that name.
    InterfacePrefix(String),
}

/// The node's addresses that serve NodePorts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodePortAddresses {
    /// Every local address.
    All,
    /// These.
    Only(BTreeSet<IpAddr>),
}

impl ReferenceModel {
    /// Returns whether the node itself sends packets with this source; also
    /// "local" in the sense of the kernel's address type.
    pub(super) fn is_local_address(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self.node.local_addresses.contains(&address)
            || self.node.primary_ips.contains(&address)
    }

    /// The zone label of this node; absent or empty matches no hint.
    pub(super) fn zone(&self) -> Option<&str> {
        let zone = match self.node_object() {
            Some(node) => json::label(node, ZONE_LABEL),
            None => self.node.zone.as_deref(),
        };
        zone.filter(|zone| !zone.is_empty())
    }

    /// The node's primary address of a family: `bindAddress` if it is specific,
    /// else the Node's last known address, else loopback.
    pub(super) fn primary_ip(&self, family: Family) -> IpAddr {
        let bound = json::text(&self.config, "/bindAddress")
            .and_then(|text| address::parse_of_family(text, family))
            .filter(|address| !address.is_unspecified());
        bound.or_else(|| self.known.ips[index(family)]).unwrap_or(match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        })
    }

    /// Returns whether cluster IP traffic is masqueraded whatever its source.
    pub(super) fn masquerade_all(&self) -> bool {
        json::flag(&self.config, "/nftables/masqueradeAll").unwrap_or(false)
    }

    /// The local-traffic detector of a family.
    pub(super) fn local_detector(&self, family: Family) -> LocalDetector {
        let text = |pointer| json::text(&self.config, pointer).unwrap_or_default();
        match text("/detectLocalMode") {
            "" | "ClusterCIDR" => first_of_family(text("/clusterCIDR").split(','), family),
            "NodeCIDR" => {
                let own_cidr = || self.node.pod_cidrs.iter().copied().find(|cidr| Family::of(cidr.addr()) == family);
                let known = match self.node_object() {
                    Some(_) => self.known.pod_cidrs[index(family)],
                    None => own_cidr(),
                };
                known.map_or(LocalDetector::None, LocalDetector::Source)
            }
            "BridgeInterface" => LocalDetector::Interface(text("/detectLocal/bridgeInterface").to_owned()),
            "InterfaceNamePrefix" => {
                LocalDetector::InterfacePrefix(text("/detectLocal/interfaceNamePrefix").to_owned())
            }
            _ => LocalDetector::None,
        }
    }

    /// Returns the addresses of a family that serve NodePorts.
    ///
    /// No list means `primary` in nftables mode, and without a known primary
    /// address none serves them. There kube-proxy lets all addresses serve, and
    /// we differ on purpose. A list without any range of the family means all.
    pub(super) fn node_port_addresses(&self, family: Family) -> NodePortAddresses {
        let configured = json::texts(&self.config, "/nodePortAddresses");
        let with_primary = configured.is_empty() || configured.contains(&"primary");
        let loopback = ["127.0.0.0/8", "::1/128"];
        let everything = ["0.0.0.0/0", "::/0"];
        let mut ranges: Vec<IpNet> = configured
            .iter()
            .flat_map(|text| match *text {
                "primary" => Vec::new(),
                "localhost" => loopback.to_vec(),
                "all" => everything.to_vec(),
                range => vec![range],
            })
            .filter_map(address::parse_prefix)
            .filter(|range| Family::of(range.addr()) == family)
            .collect();
        if (ranges.is_empty() && !with_primary) || ranges.iter().any(|range| range.prefix_len() == 0) {
            return NodePortAddresses::All;
        }
        let primary = self.primary_ip(family);
        if with_primary && !primary.is_loopback() {
            ranges.push(IpNet::from(primary));
        }
        let on_interfaces = self.node.local_addresses.iter().chain(&self.node.primary_ips);
        NodePortAddresses::Only(
            on_interfaces
                .copied()
                .filter(|ip| !ip.is_loopback() && ranges.iter().any(|range| range.contains(ip)))
                .collect(),
        )
    }

    /// Returns whether an address lies in a range of any ServiceCIDR.
    pub(super) fn in_service_cidr(&self, ip: IpAddr) -> bool {
        self.objects_of_kind("ServiceCIDR")
            .flat_map(|object| json::texts(object, "/spec/cidrs"))
            .filter_map(address::parse_prefix)
            .any(|range| range.contains(&ip))
    }

    fn node_object(&self) -> Option<&Value> {
        self.objects_of_kind("Node").find(|node| json::text(node, "/metadata/name") == Some(&self.node.name))
    }
}

impl Known {
    /// Takes what a Node object tells.
    pub(super) fn learn(&mut self, node: &Value) {
        let addresses = json::list(node, "/status/addresses");
        // Internal addresses come before external ones; names do not count.
        for wanted in ["InternalIP", "ExternalIP"].into_iter().rev() {
            let of_type = addresses.iter().filter(|entry| json::text(entry, "/type") == Some(wanted));
            let ips: Vec<IpAddr> = of_type.filter_map(|entry| address::parse(json::text(entry, "/address")?)).collect();
            for ip in ips.into_iter().rev() {
                self.ips[index(Family::of(ip))] = Some(ip);
            }
        }
        for family in [Family::V4, Family::V6] {
            if let LocalDetector::Source(range) = first_of_family(json::texts(node, "/spec/podCIDRs"), family) {
                self.pod_cidrs[index(family)] = Some(range);
            }
        }
    }
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl LocalDetector {
    /// Returns whether there is any way to tell; kube-proxy leaves rules out if
    /// not.
    pub(super) fn is_implemented(&self) -> bool {
        *self != Self::None
    }

    /// Returns whether the packet comes from a pod of this node. In the output
    /// hook (`local`) the name of the arriving interface is empty.
    pub(super) fn is_from_local_pod(&self, packet: &Packet, local: bool) -> bool {
        let iif = packet.iif.as_deref().filter(|_| !local).unwrap_or_default();
        match self {
            Self::None => false,
            Self::Source(range) => range.contains(&packet.from),
            Self::Interface(name) => iif == name,
            Self::InterfacePrefix(prefix) => iif.starts_with(prefix.as_str()),
        }
    }
}

fn first_of_family<'a>(texts: impl IntoIterator<Item = &'a str>, family: Family) -> LocalDetector {
    texts
        .into_iter()
        .filter_map(|text| address::parse_prefix(text.trim()))
        .find(|range| Family::of(range.addr()) == family)
        .map_or(LocalDetector::None, LocalDetector::Source)
}
