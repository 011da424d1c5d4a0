//! kube-proxy's own table (nftables mode), read tolerantly to compare its
//! verdicts with ours. Expressions that it does not use are [`Expression::Other`].

use vmap_proxy_compiler::ruleset::Family;

use super::{message_type, request};
use crate::message::{Attributes, Message, Request};
use crate::uapi::*;

/// The name of kube-proxy's table.
pub const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// A part of a header goes into a register.
    Payload {
        /// The register.
        register: u32,
        /// `NFT_PAYLOAD_*`
        base: u32,
        /// Bytes from the start of the header.
        offset: u32,
        /// Bytes.
        length: u32,
    },
    /// The protocol goes into a register.
    Protocol {
        /// The register.
        register: u32,
    },
    /// The type of an address (`RTN_*`) goes into a register.
    AddressType {
        /// The register.
        register: u32,
        /// Whether it is the source's; else the destination's.
        is_source: bool,
    },
    /// A random number goes into a register.
    Random {
        /// The register.
        register: u32,
    },
    /// Bits of a register are taken: `(value & mask) ^ xor`.
    Bits {
        /// The register that is read.
        from: u32,
        /// The register that is written.
        to: u32,
        /// The mask.
        mask: Vec<u8>,
        /// The bits that are turned.
        xor: Vec<u8>,
    },
    /// The rule goes on if a register is equal to the data, or different.
    Compare {
        /// The register.
        register: u32,
        /// Whether it has to be equal.
        is_equal: bool,
        /// The data.
        data: Vec<u8>,
    },
    /// A register is looked up in a map of verdicts.
    VerdictMap {
        /// The register.
        register: u32,
        /// The map.
        map: String,
    },
    /// A register is looked up in a set: the rule goes on if it is there.
    Set,
    /// A verdict: the kernel's code, and the chain of a jump or goto.
    Verdict(i32, Option<String>),
    /// The destination is translated.
    Translate,
    /// The packet is rejected.
    Reject,
    /// It changes nothing about the way of the packet.
    Neutral,
    /// None of these.
    Other,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeProxyRule {
    /// Its chain.
    pub chain: String,
    /// Its parts, in order.
    pub expressions: Vec<Expression>,
}

/// An element of a map of verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubeProxyElement {
    /// The key as the kernel has it: each part fills whole words.
    pub key: Vec<u8>,
    /// The kernel's code of the verdict.
    pub code: i32,
    /// The chain of a jump or goto.
    pub chain: Option<String>,
}

/// Lists the rules of the table; [`rule`] reads the answers.
pub fn list_rules(family: Family) -> Request {
    request(NFT_MSG_GETRULE, family, |w| w.string(NFTA_RULE_TABLE, KUBE_PROXY_TABLE))
}

/// Lists the elements of a map; [`elements`] reads the answers.
pub fn list_elements(family: Family, map: &str) -> Request {
    request(NFT_MSG_GETSETELEM, family, |w| {
        w.string(NFTA_SET_ELEM_LIST_TABLE, KUBE_PROXY_TABLE);
        w.string(NFTA_SET_ELEM_LIST_SET, map);
    })
}

/// Reads a rule; `None` if the message is something else, or about another
/// table.
pub fn rule(message: &Message<'_>) -> Option<KubeProxyRule> {
    if message.kind != message_type(NFT_MSG_NEWRULE) {
        return None;
    }
    let (_, attributes) = message.body()?;
    if attributes.string(NFTA_RULE_TABLE)? != KUBE_PROXY_TABLE {
        return None;
    }
    let expressions = attributes.get(NFTA_RULE_EXPRESSIONS)?.nested().map(|part| expression(part.nested()));
    Some(KubeProxyRule { chain: attributes.string(NFTA_RULE_CHAIN)?.to_owned(), expressions: expressions.collect() })
}

/// Reads elements; those without a verdict are left out.
pub fn elements(message: &Message<'_>) -> Vec<KubeProxyElement> {
    let list = message.body().and_then(|(_, attributes)| attributes.get(NFTA_SET_ELEM_LIST_ELEMENTS));
    list.map(|list| list.nested().filter_map(|part| element(part.nested())).collect()).unwrap_or_default()
}

fn element(attributes: Attributes<'_>) -> Option<KubeProxyElement> {
    let key = attributes.get(NFTA_SET_ELEM_KEY)?.nested().get(NFTA_DATA_VALUE)?.payload.to_vec();
    let verdict = attributes.get(NFTA_SET_ELEM_DATA)?.nested().get(NFTA_DATA_VERDICT)?.nested();
    let (code, chain) = verdict_of(verdict)?;
    Some(KubeProxyElement { key, code, chain })
}

fn verdict_of(attributes: Attributes<'_>) -> Option<(i32, Option<String>)> {
    let code = attributes.be32(NFTA_VERDICT_CODE)?.cast_signed();
    Some((code, attributes.string(NFTA_VERDICT_CHAIN).map(str::to_owned)))
}

fn expression(attributes: Attributes<'_>) -> Expression {
    let data = attributes.get(NFTA_EXPR_DATA).map(|data| data.nested()).unwrap_or_default();
    let known = match attributes.string(NFTA_EXPR_NAME).unwrap_or_default() {
        "payload" => payload(data),
        "meta" => meta(data),
        "fib" => address_type(data),
        "numgen" => data.be32(NFTA_NG_DREG).map(|register| Expression::Random { register }),
        "bitwise" => bits(data),
        "cmp" => compare(data),
        "lookup" => lookup(data),
        "immediate" => immediate(data),
        "nat" => Some(Expression::Translate),
        "reject" => Some(Expression::Reject),
        "counter" | "dynset" => Some(Expression::Neutral),
        _ => None,
    };
    known.unwrap_or(Expression::Other)
}

fn payload(data: Attributes<'_>) -> Option<Expression> {
    Some(Expression::Payload {
        register: data.be32(NFTA_PAYLOAD_DREG)?,
        base: data.be32(NFTA_PAYLOAD_BASE)?,
        offset: data.be32(NFTA_PAYLOAD_OFFSET)?,
        length: data.be32(NFTA_PAYLOAD_LEN)?,
    })
}

fn meta(data: Attributes<'_>) -> Option<Expression> {
    match (data.be32(NFTA_META_KEY)?, data.be32(NFTA_META_DREG)) {
        (NFT_META_L4PROTO, Some(register)) => Some(Expression::Protocol { register }),
        _ => None,
    }
}

fn address_type(data: Attributes<'_>) -> Option<Expression> {
    if data.be32(NFTA_FIB_RESULT)? != NFT_FIB_RESULT_ADDRTYPE {
        return None;
    }
    let is_source = data.be32(NFTA_FIB_FLAGS)? & NFTA_FIB_F_SADDR != 0;
    Some(Expression::AddressType { register: data.be32(NFTA_FIB_DREG)?, is_source })
}

fn value(data: Attributes<'_>, kind: u16) -> Option<Vec<u8>> {
    Some(data.get(kind)?.nested().get(NFTA_DATA_VALUE)?.payload.to_vec())
}

fn bits(data: Attributes<'_>) -> Option<Expression> {
    // Shifts have no mask.
    Some(Expression::Bits {
        from: data.be32(NFTA_BITWISE_SREG)?,
        to: data.be32(NFTA_BITWISE_DREG)?,
        mask: value(data, NFTA_BITWISE_MASK)?,
        xor: value(data, NFTA_BITWISE_XOR)?,
    })
}

fn compare(data: Attributes<'_>) -> Option<Expression> {
    let is_equal = match data.be32(NFTA_CMP_OP)? {
        NFT_CMP_EQ => true,
        NFT_CMP_NEQ => false,
        _ => return None,
    };
    Some(Expression::Compare { register: data.be32(NFTA_CMP_SREG)?, is_equal, data: value(data, NFTA_CMP_DATA)? })
}

fn lookup(data: Attributes<'_>) -> Option<Expression> {
    let (map, register) = (data.string(NFTA_LOOKUP_SET)?.to_owned(), data.be32(NFTA_LOOKUP_SREG)?);
    match data.be32(NFTA_LOOKUP_DREG) {
        Some(NFT_REG_VERDICT) => Some(Expression::VerdictMap { register, map }),
        None if data.be32(NFTA_LOOKUP_FLAGS).unwrap_or(0) == 0 => Some(Expression::Set),
        _ => None,
    }
}

fn immediate(data: Attributes<'_>) -> Option<Expression> {
    if data.be32(NFTA_IMMEDIATE_DREG)? != NFT_REG_VERDICT {
        // A constant, for the translation.
        return Some(Expression::Neutral);
    }
    let verdict = data.get(NFTA_IMMEDIATE_DATA)?.nested().get(NFTA_DATA_VERDICT)?.nested();
    let (code, chain) = verdict_of(verdict)?;
    Some(Expression::Verdict(code, chain))
}
