//! The typed rule set: a fixed skeleton of chains, rules, sets and maps, and
//! per Service the elements that fill them.
//!
//! Everything here can be written in nft's own language (1.0.6 and newer): the
//! module `render` prints it, and the agent writes the same thing over netlink.
//!
//! * [`chains`]: the names, hooks and priorities of all chains;
//! * [`spread`]: which numbers of endpoints share a chain;
//! * [`target`]: the target of a client's connection: a frontend by address, or a NodePort;
//! * [`maps`]: the sets and maps, their keys, values and flags;
//! * [`rule`]: the closed vocabulary that rules are made of;
//! * [`skeleton`]: the rules of each chain (`source_ranges`: those that search source ranges);
//! * [`element`]: typed elements of the sets and maps;
//! * [`service`]: the elements that one Service contributes;
//! * [`table`]: all of it as one value.

pub mod chains;
pub mod element;
pub mod maps;
pub mod rule;
pub mod service;
pub mod skeleton;
pub(crate) mod source_ranges;
pub mod spread;
pub mod table;
pub mod target;

/// The name of our table in each family. The proxy writes no other
/// table, except for the [`STAND_IN`].
pub const TABLE: &str = "vmap-proxy";

/// The name of the table that serves while [`TABLE`] is replaced by one of
/// another layout. It exists for no longer than that.
pub const STAND_IN: &str = "vmap-proxy-stand-in";

/// The version of the layout, as the comment of the table names it. It changes
/// when a table of the older version must not be changed in place, although the
/// declarations of all sets, maps and base chains are the same (decision 70).
pub const LAYOUT: &str = "layout 1";

pub use crate::model::Family;
