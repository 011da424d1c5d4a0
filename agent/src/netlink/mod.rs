//! The kernel: our tables, submitted and read back, and the news from it.
//!
//! [`vmap_proxy_wire`] encodes and decodes the messages. This module has the
//! sockets:
//!
//! * [`socket`]: the one socket for questions and orders, which blocks. Besides
//!   our tables, [`crate::conntrack`], [`crate::takeover`] and
//!   [`crate::doctor`] use it;
//! * [`kernel`]: our tables: submits transactions and reads back;
//! * [`monitor`]: other programs' changes to our tables; [`addresses`]: this
//!   node's addresses. These wait for news, on sockets of `nlink`'s;
//! * [`links`]: this node's interfaces; [`families()`]: its families of addresses;
//! * [`flow_table`]: the flow table of established connections;
//! * [`name_take_over`]: table and routes that lead the cluster's DNS Service to
//!   our DNS server;
//! * [`packets`]: the wait for packets in the kernel's hooks;
//! * [`side_table`]: tables for a limited time, and trace events;
//! * [`error`]: the errors; [`lacking`]: the modules and options that a kernel lacks.

use vmap_proxy_compiler::ruleset::TABLE;

mod addresses;
mod error;
mod families;
mod flow_table;
mod kernel;
mod lacking;
mod links;
mod monitor;
mod name_take_over;
mod packets;
mod side_table;
pub(crate) mod socket;

pub use addresses::{AddressWatcher, default_addresses, local_addresses};
pub use error::{CommitError, NetlinkError, Refusal, SocketError};
pub use families::{families, without_ipv6};
pub use flow_table::{FlowRelease, FlowTable, FlowTableError, Followed, InterfaceNames};
pub use kernel::{CommitReport, Kernel, Moment};
pub use lacking::Lacking;
pub use links::{Interface, LinkWatcher, interface_names, interfaces};
#[cfg(fuzzing)]
pub use monitor::follow_datagrams;
pub use monitor::{ForeignChange, Monitor, Observed};
pub use name_take_over::{NameTakeOver, remove_name_routes};
pub use packets::await_packets;
pub use side_table::{SideTables, TraceEvents};
pub use socket::StopFlag;
pub use vmap_proxy_wire::nf_tables::elements::{Contents, Counter, ElementState, ForeignElement};
pub use vmap_proxy_wire::nf_tables::foreign::{ForeignKind, ForeignObject};
pub use vmap_proxy_wire::nf_tables::table_state::{ChainState, MapState, TableState};
pub use vmap_proxy_wire::nf_tables::{OwnTable, encode};

/// Whether a table is ours by its name: that of Services, or one of the side
/// tables (`vmap-proxy-dns`, `vmap-proxy-resets`).
pub(crate) fn is_own_table(name: &str) -> bool {
    name.strip_prefix(TABLE).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}
