//! The node agent of vmap-proxy: everything with side effects.
//!
//! `source` reads Services and EndpointSlices, the pure `compiler` crate turns
//! them into elements of nftables maps, and `netlink` submits the difference.

pub mod source;
