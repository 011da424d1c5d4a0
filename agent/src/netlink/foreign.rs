//! What somebody else put into our tables, and its removal.
//!
//! It goes in two steps. What can drop or divert a packet by itself goes
//! first: base chains, and the rules of all foreign chains. The rest may be
//! referred to by our own chains and elements until these are put right, so it
//! goes last: sets, then chains, then objects and flowtables.

use std::fmt;

use nlink::netlink::nftables::*;
use vmap_proxy_compiler::ruleset::TABLE;

use super::wire::Writer;

/// Something in one of our tables that is none of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignObject {
    /// What it is.
    pub kind: ForeignKind,
    /// Its name as the kernel lists it: any bytes, and a terminating zero.
    pub name: Vec<u8>,
}

/// What a [`ForeignObject`] is.
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
    /// The name is somebody else's: what in it is not printable is escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = String::from_utf8_lossy(&self.name);
        write!(f, "{} {:?}", self.kind, name.trim_end_matches('\0'))
    }
}

/// A message that is no operation of a transaction: its kind, `NFT_MSG_*`, and
/// its attributes.
pub(super) type RawMessage = (u8, Vec<u8>);

/// The batch of the first step.
pub(super) fn disarm(foreign: &[ForeignObject]) -> Vec<RawMessage> {
    let is_chain = |object: &&ForeignObject| matches!(object.kind, ForeignKind::BaseChain | ForeignKind::Chain);
    let flushes = foreign.iter().filter(is_chain).map(|chain| named(NFT_MSG_DELRULE, NFTA_RULE_CHAIN, chain));
    flushes.chain(deletions(foreign, |kind| kind == ForeignKind::BaseChain)).collect()
}

/// The batches of the second step, in order. A kernel before 6.2 does not let a
/// chain go in the same batch as what pointed to it.
pub(super) fn removal(foreign: &[ForeignObject]) -> [Vec<RawMessage>; 3] {
    [
        deletions(foreign, |kind| kind == ForeignKind::Set).collect(),
        deletions(foreign, |kind| kind == ForeignKind::Chain).collect(),
        deletions(foreign, |kind| matches!(kind, ForeignKind::Object(_) | ForeignKind::Flowtable)).collect(),
    ]
}

fn deletions(foreign: &[ForeignObject], chosen: impl Fn(ForeignKind) -> bool) -> impl Iterator<Item = RawMessage> {
    foreign.iter().filter(move |object| chosen(object.kind)).map(|object| match object.kind {
        ForeignKind::BaseChain | ForeignKind::Chain => named(NFT_MSG_DELCHAIN, NFTA_CHAIN_NAME, object),
        ForeignKind::Set => named(NFT_MSG_DELSET, NFTA_SET_NAME, object),
        ForeignKind::Object(_) => named(NFT_MSG_DELOBJ, NFTA_OBJ_NAME, object),
        ForeignKind::Flowtable => named(NFT_MSG_DELFLOWTABLE, NFTA_FLOWTABLE_NAME, object),
    })
}

fn named(message: u8, name: u16, object: &ForeignObject) -> RawMessage {
    /// The table's name is attribute 1 of every object.
    const TABLE_NAME: u16 = NFTA_RULE_TABLE;
    let mut writer = Writer::default();
    writer.string(TABLE_NAME, TABLE);
    writer.attribute(name, &object.name);
    if let ForeignKind::Object(kind) = object.kind {
        writer.be32(NFTA_OBJ_TYPE, kind);
    }
    (message, writer.bytes().to_vec())
}
