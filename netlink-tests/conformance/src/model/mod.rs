//! A reference model of kube-proxy in nftables mode (Kubernetes 1.36).
//!
//! The model says what happens to the first packet of a connection. It is
//! written to be read beside kube-proxy's behaviour: it keeps the Kubernetes
//! objects as they came, works everything out again for each question, and
//! follows the chains in the order in which the kernel meets them. It shares no
//! code with the compiler that it judges; both have to come to the same answer
//! on their own.
//!
//! | file | question |
//! |---|---|
//! | [`address`] | which texts are addresses, and which family are they? |
//! | `json` | how is a field read from a manifest? |
//! | `settings` | what do configuration and Node object say about this node? |
//! | `services` | which service ports exist in a family, with which frontends? |
//! | `endpoints` | which endpoints may serve a service port from this node? |
//! | `datapath` | what do the hooks do with one packet? |
//! | [`deciding`] | which object and field decide about a packet? |
//! | [`affinity`] | where do clients go that come again? |
//! | [`generate`] | random cluster states, changes and packets for property tests |
//!
//! In kube-proxy some results are random; the model fixes them:
//!
//! * Several Services with one address, protocol and port: each rule map holds
//!   the entry of the oldest Service (`creationTimestamp`, then
//!   `namespace/name`) that has an entry for that map. A Service without
//!   endpoints has none in the map of targets, so it does not hide another that
//!   can serve: kube-proxy does the same, whatever its order.
//! * One endpoint address and port in several slices: an endpoint that is not
//!   terminating wins over one that is (as in kube-proxy), then one that is
//!   ready, then the one in the newest slice (`creationTimestamp`), then the
//!   one in the slice with the lesser name, then the first in the slice.
//!
//! An outcome is the set of endpoints that a client may get; where it was before
//! is a question to a [`affinity::Memory`]. Not modelled: endpoint addresses that
//! are frontends of another Service.

pub mod address;
pub mod affinity;
mod datapath;
pub mod deciding;
mod endpoints;
pub mod generate;
mod json;
mod services;
mod settings;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use address::Family;
use datapath::State;

/// Transport protocol of a service port or a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Reads the name that Kubernetes uses: `TCP`, `UDP` or `SCTP`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The name that Kubernetes uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The node that the proxy runs on, as far as the machine itself tells.
///
/// Labels and pod CIDRs of the Node object replace what stands here as soon as
/// that object is applied. Which addresses serve NodePorts is known from the
/// Node object alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    /// The node name, compared with `nodeName` of endpoints.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`; `None`: no such label.
    pub zone: Option<String>,
    /// Primary addresses, at most one of each family.
    pub primary_ips: Vec<IpAddr>,
    /// Every address on the node's interfaces. Primary and loopback addresses
    /// count as local without being listed.
    pub local_addresses: BTreeSet<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// The first packet of a connection.
///
/// Whether the node itself sends it follows from the source: an address of the
/// node, or loopback, is sent locally and passes the output hook; any other
/// packet arrives from a network interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Source address.
    pub from: IpAddr,
    /// Interface it arrives on. Local packets have none, whatever stands here.
    pub iif: Option<String>,
    /// Destination address.
    pub to: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.from)?;
        if let Some(iif) = &self.iif {
            write!(f, " (on {iif})")?;
        }
        write!(f, " -> {} {}", SocketAddr::new(self.to, self.port), self.protocol)
    }
}

/// The fate of a [`Packet`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered to one of `endpoints`, each equally likely.
    Dnat {
        /// The endpoints it may reach; never empty.
        endpoints: BTreeSet<SocketAddr>,
        /// Whether the source address is rewritten whichever is chosen.
        masquerade: bool,
        /// Endpoints for which the source is rewritten because the endpoint is
        /// the sender itself. Empty if `masquerade` is set.
        hairpin: BTreeSet<SocketAddr>,
    },
    /// Discarded without an answer.
    Drop,
    /// Answered with ICMP or ICMPv6 port unreachable.
    Reject,
    /// Not touched by the proxy.
    Pass,
}

impl Outcome {
    /// The endpoints that see a rewritten source address.
    ///
    /// `masquerade` and `hairpin` together decide what is on the wire, so two
    /// outcomes with equal endpoints and equal masqueraded endpoints cannot be
    /// distinguished.
    pub fn masqueraded(&self) -> BTreeSet<SocketAddr> {
        match self {
            Self::Dnat { endpoints, masquerade: true, .. } => endpoints.clone(),
            Self::Dnat { hairpin, .. } => hairpin.clone(),
            Self::Drop | Self::Reject | Self::Pass => BTreeSet::new(),
        }
    }

    /// Returns whether a client and a server could see no difference to
    /// `other`.
    pub fn same_on_the_wire(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dnat { endpoints: a, .. }, Self::Dnat { endpoints: b, .. }) => {
                a == b && self.masqueraded() == other.masqueraded()
            }
            (a, b) => a == b,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dnat { endpoints, masquerade, hairpin } => {
                write!(f, "dnat to {endpoints:?}")?;
                if *masquerade {
                    f.write_str(", masqueraded")?;
                }
                if !hairpin.is_empty() {
                    write!(f, ", hairpin {hairpin:?}")?;
                }
                Ok(())
            }
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Pass => f.write_str("pass"),
        }
    }
}

/// Identity of a Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// `kind`, such as `Service`.
    pub kind: String,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// Reads the identity from a manifest; `None` if kind or name is missing.
    pub fn of(manifest: &Value) -> Option<Self> {
        Some(Self {
            kind: json::text(manifest, "/kind")?.to_owned(),
            namespace: json::text(manifest, "/metadata/namespace").unwrap_or_default().to_owned(),
            name: json::text(manifest, "/metadata/name")?.to_owned(),
        })
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// The reference model: a node, a configuration and the objects of a cluster.
#[derive(Debug, Clone)]
pub struct ReferenceModel {
    node: Node,
    config: Value,
    objects: BTreeMap<ObjectKey, Value>,
    known: Known,
}

/// The last state of this node's object. A family that disappears from it keeps
/// its earlier state.
#[derive(Debug, Clone, Default)]
struct Known {
    /// The first address of each family: IPv4, IPv6.
    ips: [Option<IpAddr>; 2],
    /// The first pod range of each family.
    pod_cidrs: [Option<IpNet>; 2],
}

impl ReferenceModel {
    /// Starts with no object. `config` holds the fields of a
    /// KubeProxyConfiguration that differ from their defaults, in nftables mode.
    pub fn new(node: Node, config: Value) -> Self {
        Self { node, config, objects: BTreeMap::new(), known: Known::default() }
    }

    /// Creates an object or replaces it whole. Kinds that a service proxy does
    /// not watch, and manifests without kind or name, change nothing.
    pub fn apply(&mut self, manifest: Value) {
        if let Some(key) = ObjectKey::of(&manifest) {
            if key.kind == "Node" && key.name == self.node.name {
                self.known.learn(&manifest);
            }
            self.objects.insert(key, manifest);
        }
    }

    /// Deletes an object; an unknown one changes nothing.
    ///
    /// Deleting this node's own Node object is ignored: kube-proxy goes on with
    /// the last labels and addresses it saw.
    pub fn delete(&mut self, key: &ObjectKey) {
        if !(key.kind == "Node" && key.name == self.node.name) {
            self.objects.remove(key);
        }
    }

    /// Returns the fate of `packet` in the present state.
    pub fn outcome(&self, packet: &Packet) -> Outcome {
        State::of(self, Family::of(packet.to)).outcome(packet)
    }

    /// Returns the fate of each of `packets` in the present state; the same as
    /// [`outcome`](Self::outcome) of each, but the state is worked out once.
    pub fn outcomes(&self, packets: &[Packet]) -> Vec<Outcome> {
        let [v4, v6] = [Family::V4, Family::V6].map(|family| State::of(self, family));
        let outcome = |packet: &Packet| match Family::of(packet.to) {
            Family::V4 => v4.outcome(packet),
            Family::V6 => v6.outcome(packet),
        };
        packets.iter().map(outcome).collect()
    }

    /// Every object, in the order of kind, namespace and name.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    fn objects_of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.objects.iter().filter(move |(key, _)| key.kind == kind).map(|(_, manifest)| manifest)
    }
}
