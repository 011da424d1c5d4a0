//! The closed vocabulary of our rules. Each item carries its nft syntax, and
//! each is understood by all three readers: `render` (text), `evaluate`
//! (meaning) and the agent's netlink room (bytes).

use ipnet::IpNet;

use super::chains::Chain;
use super::maps::Map;
use crate::model::Protocol;

/// `==` or `!=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// The test holds when the operand matches.
    Is,
    /// The test holds when the operand does not match (`!=`).
    IsNot,
}

/// Source or destination, of a packet's network header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// `saddr`
    Source,
    /// `daddr`
    Destination,
}

/// One field of the key that a rule looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyPart {
    /// `ip saddr`, `ip daddr`
    Address(Side),
    /// `meta l4proto`
    Protocol,
    /// `th dport`: the port of whichever transport protocol.
    Port,
    /// `tcp dport`: the same two bytes, and the rule matches TCP only. nft
    /// writes the match for the protocol itself; so does the netlink room.
    TcpPort,
    /// `ct original ip daddr`
    OriginalDestination,
    /// `ct original proto-dst`. The rule must match the protocol before it.
    OriginalPort,
    /// `numgen random mod N`
    Random(u32),
    /// `jhash ip saddr mod N seed 0x5eed`: the same client gets the same slot.
    ClientHash {
        /// How many slots.
        slots: u32,
        /// Which try this is, from 0 on: each hashes with another seed, so
        /// that it finds another slot.
        attempt: u32,
    },
}

/// The seed of the first try of [`KeyPart::ClientHash`]. It is fixed so that
/// the frontends of one service port, and an agent that restarts, place a
/// client alike.
const CLIENT_HASH_SEED: u32 = 0x5eed;

/// The seed with which this try of [`KeyPart::ClientHash`] hashes.
pub fn client_hash_seed(attempt: u32) -> u32 {
    CLIENT_HASH_SEED + attempt
}

/// One statement of a rule: a test, or what to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `ct state new`
    CtStateNew,
    /// `ct status dnat`
    CtStatusDnat,
    /// `meta l4proto tcp`
    Protocol(Protocol),
    /// `ip saddr 10.244.0.0/16`, `ip daddr != 127.0.0.0/8`
    Address(Side, Op, IpNet),
    /// `iifname "cbr0"`
    Interface(Op, String),
    /// `iifname "veth*"`: every interface whose name begins so.
    InterfacePrefix(Op, String),
    /// `fib saddr type local`: an address of this node.
    FibLocal(Side),
    /// `ip daddr . meta l4proto . th dport @firewall-ips`
    Lookup(Vec<KeyPart>, Op, Map),
    /// `ip daddr . meta l4proto . th dport vmap @services`
    Vmap(Vec<KeyPart>, Map),
    /// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints`
    Dnat(Vec<KeyPart>, Map),
    /// `update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst
    /// timeout 3h : ct reply ip saddr . ct reply proto-src }`
    LearnAffinity {
        /// How long the entry lives after the last new connection.
        seconds: u32,
    },
    /// `jump services`
    Jump(Chain),
    /// `goto reject-chain`
    Goto(Chain),
    /// `return`
    Return,
    /// `drop`
    Drop,
    /// `reject`: ICMP port unreachable for every protocol, as kube-proxy.
    Reject,
    /// `masquerade fully-random`
    Masquerade,
}

/// One rule: its statements, in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule(pub Vec<Statement>);
