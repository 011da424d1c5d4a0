//! Tests of the kernel's state: netlink messages compared with nft's for the same text, listings and reloads,
//! restarts, repairs, and foreign changes. No packets, except where a file states it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod background;
mod fill;
mod independent_readers;
mod kernel;
mod listing;
mod readback;
mod restart;
mod sync;
mod watching;

vmap_proxy_testbed::in_own_namespaces!();
