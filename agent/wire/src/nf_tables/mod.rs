//! Our tables as messages of nf_tables.
//!
//! The messages are encoded here, byte by byte: a change to one Service is a
//! handful of elements, but the first sync of a large cluster is a million.
//! Elements of one map share messages of up to 64 KiB, and a whole transaction
//! is one batch (decision 1 in `docs/decisions`).
//!
//! * [`expressions`]: rules; [`sets`]: declarations of sets and maps;
//!   [`elements`]: their elements, written and read;
//! * [`batch`]: a transaction as one batch;
//! * [`table_state`]: the kernel's listing, compared with the desired state;
//!   [`foreign`]: foreign objects in it, and their removal;
//! * [`side_table`]: tables for a limited time beside the main one, for traces
//!   and resets; [`trace_event`]: what the kernel reports about traced packets;
//! * [`flow_table`]: the table with the flow table of established connections;
//! * [`kube_proxy_table`]: kube-proxy's table, to compare its verdicts with ours;
//! * [`all_chains`]: name, hook, priority and policy of the chains of every
//!   table, for checks of the node; [`all_rules`]: the verdicts in their rules.
//!
//! Otherwise rules, sets and elements of other programs' tables are never decoded
//! here, because such content has crashed readers before.

pub mod all_chains;
pub mod all_rules;
pub mod batch;
pub mod elements;
pub mod expressions;
pub mod flow_table;
pub mod foreign;
pub mod kube_proxy_table;
pub mod sets;
pub mod side_table;
pub mod table_state;
pub mod trace_event;

use vmap_proxy_compiler::ruleset::{Family, STAND_IN, TABLE};

use crate::message::{Request, Writer};
use crate::uapi::*;

pub use batch::{Batch, encode};

/// One of the two tables that we may have in each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OwnTable {
    /// The table that serves.
    #[default]
    Main,
    /// The one that serves while the main table is replaced.
    StandIn,
}

impl OwnTable {
    /// Both of them.
    pub const ALL: [OwnTable; 2] = [OwnTable::Main, OwnTable::StandIn];

    /// Its name in the kernel.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => TABLE,
            Self::StandIn => STAND_IN,
        }
    }

    /// The table of this name, if it is one of ours.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }
}

/// The policy of our base chains.
const POLICY_ACCEPT: u32 = NF_ACCEPT as u32;

/// The name of the table that an object is in: the same attribute in messages
/// about every kind of object.
pub const TABLE_NAME: u16 = NFTA_TABLE_NAME;

const _: () = {
    assert!(TABLE_NAME == NFTA_CHAIN_TABLE && TABLE_NAME == NFTA_RULE_TABLE && TABLE_NAME == NFTA_SET_TABLE);
    assert!(TABLE_NAME == NFTA_SET_ELEM_LIST_TABLE);
};

/// The type of an nf_tables message: the subsystem and one of `NFT_MSG_*`.
pub const fn message_type(message: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message as u16
}

/// A message of nf_tables.
pub fn request(message: u8, family: Family, content: impl FnOnce(&mut Writer)) -> Request {
    Request::new(message_type(message), family_number(family), content)
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` (`include/uapi/linux/netfilter.h`), which
/// are `AF_INET` and `AF_INET6`.
pub const fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

/// The family of a message, if it is one of ours.
pub fn message_family(number: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family_number(*family) == number)
}

/// Writes a constant: `NFTA_DATA_VALUE` inside `kind`.
fn write_value(writer: &mut Writer, kind: u16, bytes: &[u8]) {
    writer.nest(kind, |w| w.attribute(NFTA_DATA_VALUE, bytes));
}
