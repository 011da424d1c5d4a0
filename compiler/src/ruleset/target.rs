//! The target of a client's connection: a frontend by address, or a NodePort.
//!
//! Nearly everything exists for both. A map, chain or key that does is named
//! once, with a [`Domain`] or a [`Target`] in it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::Protocol;

/// A frontend as the kernel knows it: where a client connects to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrontendKey {
    /// A cluster IP, external IP or load balancer address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The service port.
    pub port: u16,
}

/// A NodePort as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodePortKey {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node port.
    pub port: u16,
}

/// The target of a client's connection.
///
/// ```
/// use vmap_proxy_compiler::model::Protocol;
/// use vmap_proxy_compiler::ruleset::maps::Map;
/// use vmap_proxy_compiler::ruleset::target::{NodePortKey, Target};
///
/// let target = Target::NodePort(NodePortKey { protocol: Protocol::Udp, port: 30053 });
/// assert_eq!(target.to_string(), "node port 30053/UDP");
/// // The map in which it is looked up.
/// assert_eq!(Map::Frontends(target.domain()).name(), "nodeports");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Target {
    /// A frontend by address.
    Frontend(FrontendKey),
    /// A NodePort, on whichever addresses of this node serve them.
    NodePort(NodePortKey),
}

impl Target {
    /// The kind, which determines its maps and chains.
    pub fn domain(self) -> Domain {
        match self {
            Target::Frontend(_) => Domain::Frontend,
            Target::NodePort(_) => Domain::NodePort,
        }
    }

    /// TCP, UDP or SCTP.
    pub fn protocol(self) -> Protocol {
        match self {
            Target::Frontend(key) => key.protocol,
            Target::NodePort(key) => key.protocol,
        }
    }
}

impl fmt::Display for FrontendKey {
    /// For messages: `10.96.0.10 port 80/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} port {}/{}", self.address, self.port, self.protocol)
    }
}

impl fmt::Display for Target {
    /// For messages: `10.96.0.10 port 80/TCP`, `node port 30080/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Frontend(key) => key.fmt(f),
            Target::NodePort(NodePortKey { protocol, port }) => write!(f, "node port {port}/{protocol}"),
        }
    }
}

/// The two kinds of [`Target`]. Each has separate maps and chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// Cluster IPs, external IPs and load balancer addresses: named by address,
    /// protocol and port.
    Frontend,
    /// NodePorts: identified by protocol and port alone.
    NodePort,
}

/// The endpoint list of a frontend that a balancing chain reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pool {
    /// The endpoints a frontend serves to everybody: map `endpoints`.
    Main,
    /// The cluster-wide list of a frontend with `externalTrafficPolicy: Local`,
    /// for pods of this node and the node itself: map `short-circuit-endpoints`.
    ShortCircuit,
}
