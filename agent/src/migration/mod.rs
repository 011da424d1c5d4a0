//! What a running kube-proxy has programmed, as verdicts: its rules are followed
//! for one packet. Changes nothing.
//!
//! Only what kube-proxy writes is understood; of anything else the answer is
//! that it is not known.
//!
//! * [`nftables`]: its nftables mode, from the kernel;
//! * [`iptables`]: its iptables mode, from the output of `iptables-save`.

pub mod iptables;
pub mod nftables;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use vmap_proxy_compiler::model::Protocol;

/// A frontend of kube-proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Frontend {
    /// The address; `None` for a NodePort.
    pub address: Option<IpAddr>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// A packet to a frontend.
#[derive(Debug, Clone)]
pub struct Packet {
    /// The source.
    pub source: IpAddr,
    /// Whether the source is an address of this node.
    pub is_own: bool,
    /// The interface on which it arrives; `None` if this node sends it.
    pub interface: Option<String>,
    /// The destination.
    pub destination: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
}

/// What kube-proxy does with a packet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// The endpoints that it may reach, and whether each sees an address of this
    /// node.
    pub endpoints: BTreeMap<SocketAddr, bool>,
    /// The chance of each of them, where the rules give it one of its own.
    pub chances: BTreeMap<SocketAddr, f64>,
    /// Whether it may be dropped.
    pub drops: bool,
    /// Whether it may be rejected.
    pub rejects: bool,
    /// A part of the rules that was not understood.
    pub unknown: Option<String>,
}

/// The rules of a running kube-proxy of one family.
#[derive(Debug)]
pub enum KubeProxy {
    /// Its nftables mode.
    Nftables(nftables::KubeProxyTable),
    /// Its iptables mode.
    Iptables(Box<iptables::KubeProxyChains>),
}

impl KubeProxy {
    /// All frontends, with endpoints or without.
    pub fn all(&self) -> BTreeSet<Frontend> {
        match self {
            Self::Nftables(table) => table.all(),
            Self::Iptables(chains) => chains.all(),
        }
    }

    /// Returns whether source ranges restrict a frontend in a way that is not
    /// compared.
    pub fn has_source_ranges(&self, frontend: &Frontend) -> bool {
        match self {
            Self::Nftables(table) => table.has_source_ranges(frontend),
            Self::Iptables(_) => false,
        }
    }

    /// Follows a packet to a frontend.
    pub fn outcome(&self, frontend: &Frontend, packet: &Packet) -> Outcome {
        match self {
            Self::Nftables(table) => table.outcome(frontend, packet),
            Self::Iptables(chains) => chains.outcome(packet),
        }
    }
}
