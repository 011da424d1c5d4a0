//! Real packets through real rules: every path, every change, and what tells their fates apart.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bridge;
mod conntrack;
mod crash;
mod disruption;
mod harness;
mod invalid_packets;
mod ipvs;
mod lacking;
mod locked;
mod packets_after_restart;
mod sctp;
mod stress;
mod takeover;
mod traffic;
mod upgrade;

vmap_proxy_testbed::in_own_namespaces!();
