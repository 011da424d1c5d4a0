//! What the kernel holds: what we write over netlink beside what nft makes of the same text, listings and reloads,
//! restarts, repairs, and what others change. No packets but where a file says so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod kernel;
mod listing;
mod readback;
mod restart;
mod sync;
mod watching;
mod witnesses;

vmap_proxy_testbed::in_own_namespaces!();
