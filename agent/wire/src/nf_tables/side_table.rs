//! Tables of ours beside the main one, for a limited time: those of `trace` and
//! of the reset of connections. They have the flag `owner`, so that the kernel
//! deletes them when the socket that made them closes, however its process ends.
//!
//! Their rules are few and fixed, and are put together here from the expressions
//! of the main table's rules.

use std::net::IpAddr;

use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_compiler::ruleset::rule::{Op, Side, Statement};

use super::expressions::{Expressions, Octets};
use super::{POLICY_ACCEPT, request};
use crate::message::{Request, Writer};
use crate::uapi::*;

/// A side table of one family.
#[derive(Debug, Clone, Copy)]
pub struct SideTable<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its family.
    pub family: Family,
}

/// The verdict at the end of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SideVerdict<'a> {
    /// Jump to a chain.
    Jump(&'a str),
    /// Reject with a TCP reset.
    ResetTcp,
    /// Trace the packet, at most so many in a second.
    Trace {
        /// Packets a second.
        per_second: u64,
    },
}

impl SideTable<'_> {
    /// The request to make the table.
    pub fn make(&self) -> Request {
        self.request(NFT_MSG_NEWTABLE, |w| {
            w.string(NFTA_TABLE_NAME, self.name);
            w.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
        })
    }

    /// The request to delete the table.
    pub fn delete(&self) -> Request {
        self.request(NFT_MSG_DELTABLE, |w| w.string(NFTA_TABLE_NAME, self.name))
    }

    /// The request for a chain; a base chain of type filter if it has a hook and
    /// a priority.
    pub fn chain(&self, name: &str, hook: Option<(Hook, i32)>) -> Request {
        self.request(NFT_MSG_NEWCHAIN, |w| {
            w.string(NFTA_CHAIN_TABLE, self.name);
            w.string(NFTA_CHAIN_NAME, name);
            let Some((hook, priority)) = hook else { return };
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, hook.number());
                w.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            w.be32(NFTA_CHAIN_POLICY, POLICY_ACCEPT);
            w.string(NFTA_CHAIN_TYPE, "filter");
        })
    }

    /// The request for a set of connections: client, its port, endpoint, its
    /// port. `number` is unique in the transaction.
    pub fn connections(&self, set: &str, number: u32) -> Request {
        let address = self.family.address_bytes() as u32;
        self.request(NFT_MSG_NEWSET, |w| {
            w.string(NFTA_SET_TABLE, self.name);
            w.string(NFTA_SET_NAME, set);
            w.be32(NFTA_SET_FLAGS, NFT_SET_CONCAT);
            // The kernel keeps the type for nft, which prints the elements by it.
            w.be32(NFTA_SET_KEY_TYPE, connection_type(self.family));
            w.be32(NFTA_SET_KEY_LEN, 2 * (address + 4));
            w.be32(NFTA_SET_ID, number);
            w.nest(NFTA_SET_DESC, |w| {
                w.nest(NFTA_SET_DESC_CONCAT, |w| {
                    for length in [address, 2, address, 2] {
                        w.nest(NFTA_LIST_ELEM, |w| w.be32(NFTA_SET_FIELD_LEN, length));
                    }
                });
            });
        })
    }

    /// The request to add connections, client and endpoint each, to a set; a few
    /// hundred at a time, because an attribute is bounded.
    pub fn add_connections(&self, set: &str, pairs: &[[(IpAddr, u16); 2]]) -> Request {
        self.request(NFT_MSG_NEWSETELEM, |w| {
            w.string(NFTA_SET_ELEM_LIST_TABLE, self.name);
            w.string(NFTA_SET_ELEM_LIST_SET, set);
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                for pair in pairs {
                    w.nest(NFTA_LIST_ELEM, |w| {
                        w.nest(NFTA_SET_ELEM_KEY, |w| w.attribute(NFTA_DATA_VALUE, &connection_key(pair)));
                    });
                }
            });
        })
    }

    /// The request for a rule: its matches, and its verdict.
    pub fn rule(&self, chain: &str, matches: impl FnOnce(&mut SideRule<'_>), verdict: SideVerdict<'_>) -> Request {
        self.request(NFT_MSG_NEWRULE, |w| {
            w.string(NFTA_RULE_TABLE, self.name);
            w.string(NFTA_RULE_CHAIN, chain);
            w.nest(NFTA_RULE_EXPRESSIONS, |writer| {
                let mut rule = SideRule(Expressions { writer, family: self.family });
                matches(&mut rule);
                rule.verdict(verdict);
            });
        })
    }

    fn request(&self, kind: u8, content: impl FnOnce(&mut Writer)) -> Request {
        request(kind, self.family, content)
    }
}

/// nft's number of the type `ipv4_addr . inet_service . ipv4_addr .
/// inet_service`: six bits for each (`TYPE_IPADDR` 7, `TYPE_IP6ADDR` 8,
/// `TYPE_INET_SERVICE` 13 of nft's `datatype.h`).
fn connection_type(family: Family) -> u32 {
    let address = if family == Family::Ipv4 { 7 } else { 8 };
    [address, 13, address, 13].into_iter().fold(0, |sum, part| sum << 6 | part)
}

/// The bytes of a connection in its set: each part fills whole words.
fn connection_key(pair: &[(IpAddr, u16); 2]) -> Vec<u8> {
    let mut key = Vec::with_capacity(40);
    for (address, port) in pair {
        key.extend(Octets::of(*address).bytes());
        key.extend(port.to_be_bytes());
        key.extend([0, 0]);
    }
    key
}

/// The matches of a rule.
#[derive(Debug)]
pub struct SideRule<'a>(Expressions<'a>);

impl SideRule<'_> {
    /// `ip saddr` or `ip daddr` is this address. One of the other family never
    /// matches; callers leave it out.
    pub fn address(&mut self, is_source: bool, address: IpAddr) {
        let side = if is_source { Side::Source } else { Side::Destination };
        self.0.match_prefix(side, Op::Is, &address.into());
    }

    /// The destination port of a protocol.
    pub fn port(&mut self, protocol: Protocol, port: u16) {
        self.protocol(protocol);
        self.0.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, 0);
        self.0.compare(Op::Is, &port.to_be_bytes());
    }

    /// The protocol.
    pub fn protocol(&mut self, protocol: Protocol) {
        self.0.match_protocol(protocol.number());
    }

    /// Any protocol but this one.
    pub fn other_protocol(&mut self, protocol: Protocol) {
        self.0.match_other_protocol(protocol.number());
    }

    /// A packet of TCP that begins a connection (SYN alone), or one that does not. Known
    /// before conntrack.
    pub fn begins_tcp(&mut self, begins: bool) {
        self.0.match_syn(if begins { Op::Is } else { Op::IsNot });
    }

    /// `ct state new`
    pub fn is_new(&mut self) {
        self.0.statement(&Statement::CtStateNew(Op::Is));
    }

    /// The connection of the packet, in whichever direction it goes, is in a set
    /// of [connections](SideTable::connections).
    pub fn is_among(&mut self, set: &str) {
        let address = match self.0.family {
            Family::Ipv4 => NFT_CT_SRC_IP,
            Family::Ipv6 => NFT_CT_SRC_IP6,
        };
        let mut word = 0;
        for direction in [IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY] {
            self.0.conntrack(address, Some(direction), word);
            word += self.0.address_words();
            self.0.conntrack(NFT_CT_PROTO_SRC, Some(direction), word);
            word += 1;
        }
        self.0.lookup(set, Op::Is, None);
    }

    fn verdict(&mut self, verdict: SideVerdict<'_>) {
        match verdict {
            SideVerdict::Jump(chain) => self.0.verdict(NFT_JUMP, Some(chain)),
            SideVerdict::ResetTcp => self.0.expression("reject", |w| w.be32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST)),
            SideVerdict::Trace { per_second } => {
                self.0.expression("limit", |w| {
                    w.be64(NFTA_LIMIT_RATE, per_second);
                    w.be64(NFTA_LIMIT_UNIT, 1);
                    w.be32(NFTA_LIMIT_BURST, u32::try_from(per_second).unwrap_or(u32::MAX));
                    w.be32(NFTA_LIMIT_TYPE, 0);
                });
                self.0.value(&[1]);
                self.0.set_meta(NFT_META_NFTRACE);
                // The hook is done with the packet, so that it is marked once.
                self.0.statement(&Statement::Accept);
            }
        }
    }
}
