//! Foreign objects in our tables, and their removal.
//!
//! It goes in two steps. What can drop or divert a packet by itself goes
//! first: base chains, and the rules of all foreign chains. The rest may be
//! referred to by our own chains and elements until these are put right, so it
//! goes last: sets, then chains, then objects and flowtables.

use std::fmt;

use vmap_proxy_compiler::ruleset::{Family, TABLE};

use super::{TABLE_NAME, request};
use crate::message::Request;
use crate::uapi::*;

/// A foreign object in one of our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignObject {
    /// The kind.
    pub kind: ForeignKind,
    /// Its name as the kernel lists it: any bytes, and a terminating zero.
    pub name: Vec<u8>,
}

/// The kind of a [`ForeignObject`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignKind {
    /// A chain on a hook: packets go through it.
    BaseChain,
    /// A chain that others may jump to.
    Chain,
    /// A set or map.
    Set,
    /// A counter, quota, limit or the like: one of `NFT_OBJECT_*`.
    Object(u32),
    /// A flowtable.
    Flowtable,
}

impl fmt::Display for ForeignKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `NFT_OBJECT_*` of `include/uapi/linux/netfilter/nf_tables.h`.
        const OBJECTS: [&str; 10] = [
            "counter",
            "quota",
            "ct helper",
            "limit",
            "connlimit",
            "tunnel",
            "ct timeout",
            "secmark",
            "ct expectation",
            "synproxy",
        ];
        let object = |number: u32| OBJECTS.get(number.checked_sub(1)? as usize);
        f.write_str(match self {
            ForeignKind::BaseChain => "base chain",
            ForeignKind::Chain => "chain",
            ForeignKind::Set => "set or map",
            ForeignKind::Object(number) => object(*number).copied().unwrap_or("object"),
            ForeignKind::Flowtable => "flowtable",
        })
    }
}

impl fmt::Display for ForeignObject {
    /// The name is foreign, so unprintable characters are escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(&self.name);
        write!(f, "{} {:?}", self.kind, name.trim_end_matches('\0'))
    }
}

/// The batch of the first step.
pub fn disarm(family: Family, foreign: &[ForeignObject]) -> Vec<Request> {
    let is_chain = |object: &&ForeignObject| matches!(object.kind, ForeignKind::BaseChain | ForeignKind::Chain);
    let flushes = foreign.iter().filter(is_chain).map(|chain| named(NFT_MSG_DELRULE, NFTA_RULE_CHAIN, family, chain));
    flushes.chain(deletions(family, foreign, |kind| kind == ForeignKind::BaseChain)).collect()
}

/// The batches of the second step, in order. A kernel before 6.2 does not
/// delete a chain in the same batch as the elements that pointed to it.
pub fn removal(family: Family, foreign: &[ForeignObject]) -> [Vec<Request>; 3] {
    [
        deletions(family, foreign, |kind| kind == ForeignKind::Set).collect(),
        deletions(family, foreign, |kind| kind == ForeignKind::Chain).collect(),
        deletions(family, foreign, |kind| matches!(kind, ForeignKind::Object(_) | ForeignKind::Flowtable)).collect(),
    ]
}

fn deletions(
    family: Family,
    foreign: &[ForeignObject],
    chosen: impl Fn(ForeignKind) -> bool,
) -> impl Iterator<Item = Request> {
    foreign.iter().filter(move |object| chosen(object.kind)).map(move |object| match object.kind {
        ForeignKind::BaseChain | ForeignKind::Chain => named(NFT_MSG_DELCHAIN, NFTA_CHAIN_NAME, family, object),
        ForeignKind::Set => named(NFT_MSG_DELSET, NFTA_SET_NAME, family, object),
        ForeignKind::Object(_) => named(NFT_MSG_DELOBJ, NFTA_OBJ_NAME, family, object),
        ForeignKind::Flowtable => named(NFT_MSG_DELFLOWTABLE, NFTA_FLOWTABLE_NAME, family, object),
    })
}

fn named(message: u8, name: u16, family: Family, object: &ForeignObject) -> Request {
    request(message, family, |w| {
        w.string(TABLE_NAME, TABLE);
        w.attribute(name, &object.name);
        if let ForeignKind::Object(kind) = object.kind {
            w.be32(NFTA_OBJ_TYPE, kind);
        }
    })
}
