//! The subcommands of the `netlink-tests` binary.

pub mod agent;
pub mod cluster;
pub mod compare;
pub mod packets;
pub mod plots;
pub mod scale;
pub mod vectors;
