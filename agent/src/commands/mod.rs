//! The subcommands, one module each. `cli` has their flags; `run` is the agent.
//! [`asked`] is shared: who answers; [`read_back`] looks elements up in the kernel.

pub mod asked;
pub mod check_migration;
pub mod cleanup;
pub mod compile;
pub mod completion;
pub mod connections;
pub mod doctor;
pub mod explain;
pub mod get;
pub mod journal;
pub mod plan;
mod read_back;
pub mod status;
pub mod trace;
pub mod verify;
pub mod version;
