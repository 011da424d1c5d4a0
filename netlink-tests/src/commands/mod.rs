//! The subcommands of the `netlink-tests` binary.

pub mod vectors;
