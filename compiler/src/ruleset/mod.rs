//! The typed rule set: a fixed skeleton of chains, rules, sets and maps, and
//! per Service the elements that fill them.
//!
//! Everything here can be said in nft's own language (1.0.6 and newer): the
//! [`crate::render`] room prints it, and the agent writes the same thing over
//! netlink.
//!
//! * [`chains`]: the names, hooks and priorities of all chains;
//! * [`spread`]: which numbers of endpoints share a chain;
//! * [`maps`]: the sets and maps, their keys, values and flags;
//! * [`rule`]: the closed vocabulary that rules are made of;
//! * [`skeleton`]: which rules stand in which chain;
//! * [`element`]: typed elements of the sets and maps;
//! * [`service`]: the elements that one Service contributes;
//! * [`table`]: all of it as one value.

pub mod chains;
pub mod element;
pub mod maps;
pub mod rule;
pub mod service;
pub mod skeleton;
pub mod spread;
pub mod table;

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

/// The name of our table in each family. Nothing else is ever touched.
pub const TABLE: &str = "vmap-proxy";

/// The two address families; each has a table of its own, as kube-proxy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// `table ip vmap-proxy`
    #[serde(rename = "ip")]
    Ipv4,
    /// `table ip6 vmap-proxy`
    #[serde(rename = "ip6")]
    Ipv6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The family an address belongs to.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }
    }

    /// nft's word for the family and for its header expressions: `ip` or `ip6`.
    pub fn keyword(self) -> &'static str {
        match self {
            Family::Ipv4 => "ip",
            Family::Ipv6 => "ip6",
        }
    }

    /// The length of an address in bytes.
    pub fn address_bytes(self) -> usize {
        match self {
            Family::Ipv4 => 4,
            Family::Ipv6 => 16,
        }
    }
}

impl fmt::Display for Family {
    /// Kubernetes' spelling, as kube-proxy's `ip_family` label has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}
