//! Tables of ours beside the main one, for a limited time: those of `trace` and
//! of the reset of connections. They have the flag `owner`, so that the kernel
//! deletes them when the socket that made them closes, however its process ends.
//!
//! Their rules are few and fixed, and are written here expression by expression.

use std::net::IpAddr;

use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;

use super::{POLICY_ACCEPT, request};
use crate::message::{Request, Writer};
use crate::uapi::*;

/// nft's bit of `ct state new`: `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;

/// The first word of the register machine (`NFT_REG32_00`).
const FIRST_WORD: u32 = 8;

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

    /// The request for a chain; a base chain of type filter if it has a hook
    /// (`NF_INET_*`) and a priority.
    pub fn chain(&self, name: &str, hook: Option<(u32, i32)>) -> Request {
        self.request(NFT_MSG_NEWCHAIN, |w| {
            w.string(NFTA_CHAIN_TABLE, self.name);
            w.string(NFTA_CHAIN_NAME, name);
            let Some((hook, priority)) = hook else { return };
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, hook);
                w.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
            });
            w.be32(NFTA_CHAIN_POLICY, POLICY_ACCEPT);
            w.string(NFTA_CHAIN_TYPE, "filter");
        })
    }

    /// The request for a set of connections: client, its port, endpoint, its
    /// port. `number` is unique in the transaction.
    pub fn connections(&self, set: &str, number: u32) -> Request {
        let address = if self.family == Family::Ipv4 { 4 } else { 16 };
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
                let mut rule = SideRule { writer, family: self.family };
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
        match address {
            IpAddr::V4(address) => key.extend(address.octets()),
            IpAddr::V6(address) => key.extend(address.octets()),
        }
        key.extend(port.to_be_bytes());
        key.extend([0, 0]);
    }
    key
}

/// The matches of a rule.
#[derive(Debug)]
pub struct SideRule<'a> {
    writer: &'a mut Writer,
    family: Family,
}

impl SideRule<'_> {
    /// `ip saddr` or `ip daddr` is this address. One of the other family never
    /// matches; callers leave it out.
    pub fn address(&mut self, is_source: bool, address: IpAddr) {
        let (offset, length) = match (self.family, is_source) {
            (Family::Ipv4, true) => (12, 4),
            (Family::Ipv4, false) => (16, 4),
            (Family::Ipv6, true) => (8, 16),
            (Family::Ipv6, false) => (24, 16),
        };
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, offset, length);
        match address {
            IpAddr::V4(address) => self.equals(&address.octets()),
            IpAddr::V6(address) => self.equals(&address.octets()),
        }
    }

    /// The destination port of a protocol.
    pub fn port(&mut self, protocol: Protocol, port: u16) {
        self.protocol(protocol);
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
        self.equals(&port.to_be_bytes());
    }

    /// The protocol.
    pub fn protocol(&mut self, protocol: Protocol) {
        self.expression("meta", |w| {
            w.be32(NFTA_META_KEY, NFT_META_L4PROTO);
            w.be32(NFTA_META_DREG, FIRST_WORD);
        });
        self.equals(&[protocol.number()]);
    }

    /// `ct state new`
    pub fn is_new(&mut self) {
        self.conntrack(NFT_CT_STATE, None, FIRST_WORD);
        self.expression("bitwise", |w| {
            w.be32(NFTA_BITWISE_SREG, FIRST_WORD);
            w.be32(NFTA_BITWISE_DREG, FIRST_WORD);
            w.be32(NFTA_BITWISE_LEN, 4);
            w.nest(NFTA_BITWISE_MASK, |w| w.attribute(NFTA_DATA_VALUE, &CT_STATE_NEW.to_ne_bytes()));
            w.nest(NFTA_BITWISE_XOR, |w| w.attribute(NFTA_DATA_VALUE, &[0; 4]));
        });
        self.expression("cmp", |w| {
            w.be32(NFTA_CMP_SREG, FIRST_WORD);
            w.be32(NFTA_CMP_OP, NFT_CMP_NEQ);
            w.nest(NFTA_CMP_DATA, |w| w.attribute(NFTA_DATA_VALUE, &[0; 4]));
        });
    }

    /// The connection of the packet, in whichever direction it goes, is in a set
    /// of [connections](SideTable::connections).
    pub fn is_among(&mut self, set: &str) {
        let (address, words) = match self.family {
            Family::Ipv4 => (NFT_CT_SRC_IP, 1),
            Family::Ipv6 => (NFT_CT_SRC_IP6, 4),
        };
        let mut word = FIRST_WORD;
        for direction in [IP_CT_DIR_ORIGINAL, IP_CT_DIR_REPLY] {
            self.conntrack(address, Some(direction), word);
            self.conntrack(NFT_CT_PROTO_SRC, Some(direction), word + words);
            word += words + 1;
        }
        self.expression("lookup", |w| {
            w.string(NFTA_LOOKUP_SET, set);
            w.be32(NFTA_LOOKUP_SREG, FIRST_WORD);
        });
    }

    fn verdict(&mut self, verdict: SideVerdict<'_>) {
        match verdict {
            SideVerdict::Jump(chain) => self.expression("immediate", |w| {
                w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                w.nest(NFTA_IMMEDIATE_DATA, |w| {
                    w.nest(NFTA_DATA_VERDICT, |w| {
                        w.be32(NFTA_VERDICT_CODE, NFT_JUMP.cast_unsigned());
                        w.string(NFTA_VERDICT_CHAIN, chain);
                    });
                });
            }),
            SideVerdict::ResetTcp => {
                self.expression("reject", |w| w.be32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST));
            }
            SideVerdict::Trace { per_second } => {
                self.expression("limit", |w| {
                    w.be64(NFTA_LIMIT_RATE, per_second);
                    w.be64(NFTA_LIMIT_UNIT, 1);
                    w.be32(NFTA_LIMIT_BURST, u32::try_from(per_second).unwrap_or(u32::MAX));
                    w.be32(NFTA_LIMIT_TYPE, 0);
                });
                self.expression("immediate", |w| {
                    w.be32(NFTA_IMMEDIATE_DREG, FIRST_WORD);
                    w.nest(NFTA_IMMEDIATE_DATA, |w| w.attribute(NFTA_DATA_VALUE, &[1]));
                });
                self.expression("meta", |w| {
                    w.be32(NFTA_META_KEY, NFT_META_NFTRACE);
                    w.be32(NFTA_META_SREG, FIRST_WORD);
                });
                // The hook is done with the packet, so that it is marked once.
                self.expression("immediate", |w| {
                    w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
                    w.nest(NFTA_IMMEDIATE_DATA, |w| {
                        w.nest(NFTA_DATA_VERDICT, |w| w.be32(NFTA_VERDICT_CODE, NF_ACCEPT.cast_unsigned()));
                    });
                });
            }
        }
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32) {
        self.expression("payload", |w| {
            w.be32(NFTA_PAYLOAD_DREG, FIRST_WORD);
            w.be32(NFTA_PAYLOAD_BASE, base);
            w.be32(NFTA_PAYLOAD_OFFSET, offset);
            w.be32(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn conntrack(&mut self, key: u32, direction: Option<u8>, word: u32) {
        self.expression("ct", |w| {
            w.be32(NFTA_CT_KEY, key);
            w.be32(NFTA_CT_DREG, word);
            if let Some(direction) = direction {
                w.u8(NFTA_CT_DIRECTION, direction);
            }
        });
    }

    fn equals(&mut self, bytes: &[u8]) {
        self.expression("cmp", |w| {
            w.be32(NFTA_CMP_SREG, FIRST_WORD);
            w.be32(NFTA_CMP_OP, NFT_CMP_EQ);
            w.nest(NFTA_CMP_DATA, |w| w.attribute(NFTA_DATA_VALUE, bytes));
        });
    }

    fn expression(&mut self, name: &str, content: impl FnOnce(&mut Writer)) {
        self.writer.nest(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, name);
            w.nest(NFTA_EXPR_DATA, content);
        });
    }
}
