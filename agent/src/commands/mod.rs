//! The subcommands, one file each. `cli` has their flags; `run` is the agent.

pub mod asked;
pub mod cleanup;
pub mod compile;
pub mod completion;
pub mod doctor;
pub mod explain;
pub mod get;
pub mod paint;
pub mod status;
pub mod verify;
