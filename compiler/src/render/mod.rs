//! nft text of the rule set, as `nft list ruleset` (1.0.6) prints it, and JSON.
//!
//! The text is what an operator compares with the node, and it can be loaded
//! with `nft -f`. `netlink-tests` loads it, lists it, and compares the two line
//! by line. Two things in a listing are not reproduced: the order of elements
//! (nft's own depends on its version, ours is by key) and counters, which are
//! printed as zero.

mod json;
mod table;
mod text;

pub use json::json;
pub(crate) use table::base;
pub use table::{declaration, element, kind, properties, ruleset, table};
pub use text::rule;
