//! Our nf_tables tables over netlink: encode, submit, read back, monitor.
//!
//! Everything goes through `nlink`'s socket ([`NetlinkSocket`]): namespaces,
//! the event loop, extended acknowledgements. The messages themselves are
//! encoded here, byte by byte: a change to one Service is a handful of
//! elements, but the first sync of a large cluster is a million, and nlink's
//! transactions copy every message several times on the way. Elements of one
//! map share messages of up to 64 KiB, and a whole transaction is one
//! `sendmsg`.
//!
//! * [`wire`]: the layout of messages and attributes;
//! * [`expressions`]: rules; [`sets`]: declarations of sets and maps;
//!   [`elements`]: their elements;
//! * [`batch`]: a transaction as one batch;
//! * [`kernel`]: submits batches and reads back;
//! * [`state`]: what was read back, compared with what we would write;
//!   [`foreign`]: what in it is not ours;
//! * [`monitor`]: other programs' changes to our tables; [`addresses`]: this
//!   node's addresses;
//! * [`error`]: what can go wrong.
//!
//! Only our own table is ever decoded: what other programs leave in theirs has
//! crashed readers before.
//!
//! [`NetlinkSocket`]: nlink::netlink::NetlinkSocket

mod addresses;
mod batch;
mod elements;
mod error;
mod expressions;
mod foreign;
mod kernel;
mod monitor;
mod sets;
mod state;
pub(crate) mod wire;

use vmap_proxy_compiler::ruleset::Family;

pub use addresses::{AddressWatcher, default_addresses, local_addresses};
pub use batch::encode;
pub use elements::{Counter, ElementState, ForeignElement};
pub use error::{CommitError, NetlinkError, Refusal};
pub use foreign::{ForeignKind, ForeignObject};
pub use kernel::{CommitReport, Kernel, Moment, StopFlag};
pub use monitor::{ForeignChange, Monitor, Observed};
pub use state::{ChainState, MapState, TableState};

/// `NF_ACCEPT`: the policy of our base chains.
const NF_ACCEPT: u32 = nlink::netlink::nftables::NF_ACCEPT as u32;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` (`include/uapi/linux/netfilter.h`).
fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

/// The family of a message, if it is one of ours.
fn message_family(number: u8) -> Option<Family> {
    Family::ALL.into_iter().find(|family| family_number(*family) == number)
}
