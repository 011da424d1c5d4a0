//! The pure half of vmap-proxy: no I/O, no async, no clock, no randomness.
//!
//! Data flows one way through these rooms:
//!
//! ```text
//! model ──> select ──> ruleset ──┬─> render    nft text and JSON
//!                                ├─> evaluate  one packet through the rules
//!                                └─> diff      programmed vs desired -> transactions
//! ```
//!
//! The law of the project holds here: the number of tables, chains, rules,
//! sets and maps never depends on the number of Services or endpoints; only
//! map and set *elements* grow.
#![forbid(unsafe_code)]

pub mod diff;
pub mod evaluate;
pub mod model;
pub mod render;
pub mod ruleset;
pub mod select;
