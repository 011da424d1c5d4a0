//! The node agent of vmap-proxy: everything with side effects.
//!
//! `source` reads Services and EndpointSlices, the pure `compiler` crate turns
//! them into elements of nftables maps, and `netlink` submits the difference.
//! `lab` is a cluster of network namespaces to try it all in.

pub mod lab;
pub mod source;
