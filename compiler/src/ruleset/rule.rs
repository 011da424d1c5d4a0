//! The closed vocabulary of our rules. Each item documents its nft syntax, and
//! all three readers understand it: `render` (text), `evaluate` (meaning) and
//! the agent's netlink module (bytes).

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

/// The interface of a packet that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// `iifname`: empty for the node's own packets, and behind forwarding for those that a bridge forwards.
    In,
    /// `oifname`: known from forwarding and output on; a bridge, not its port.
    Out,
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
    /// writes the match for the protocol itself; so does the netlink module.
    TcpPort,
    /// `ip saddr & 255.255.255.0`: the first address of the client's prefix of
    /// this length.
    SourceNetwork(u8),
    /// `ip saddr | 0.0.0.255`: the last address of it.
    SourceBroadcast(u8),
    /// `ct original ip daddr`
    OriginalDestination,
    /// `ct original proto-dst`. The rule must match the protocol before it.
    OriginalPort,
    /// `numgen random mod N`
    Random(u32),
    /// `meta priority`: the number of the endpoint list, once it is set.
    Priority,
}

/// One statement of a rule: a match or an action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// `ct state new`, `ct state != new`
    CtStateNew(Op),
    /// `ct status dnat`
    CtStatusDnat,
    /// `meta l4proto tcp`
    Protocol(Protocol),
    /// `ip saddr 10.244.0.0/16`, `ip daddr != 127.0.0.0/8`
    Address(Side, Op, IpNet),
    /// `iifname "cbr0"`
    Interface(Way, Op, String),
    /// `iifname "veth*"`: every interface whose name begins so.
    InterfacePrefix(Way, Op, String),
    /// `iif 0`: the kernel names no input interface. `iifname ""` would mean
    /// the same, but nft refuses to read it.
    NoInputInterface(Op),
    /// `fib saddr type local`: an address of this node.
    FibLocal(Side),
    /// `ip daddr . meta l4proto . th dport @firewall-ips`
    Lookup(Vec<KeyPart>, Op, Map),
    /// `ip daddr . meta l4proto . th dport vmap @services`
    Vmap(Vec<KeyPart>, Map),
    /// `dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints`
    Dnat(Vec<KeyPart>, Map),
    /// `meta priority set ip daddr . meta l4proto . th dport map @affinity-lists`
    SetPriority(Vec<KeyPart>, Map),
    /// `meta priority set none`: back to 0.
    ClearPriority,
    /// `update @affinity { ip saddr . meta priority timeout 3h : ip daddr . th dport }`, behind DNAT
    LearnAffinity {
        /// The lifetime of the entry after the last new connection.
        seconds: u32,
    },
    /// `jump services`
    Jump(Chain),
    /// `goto reject-chain`
    Goto(Chain),
    /// `return`
    Return,
    /// `accept`: ends this base chain.
    Accept,
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
