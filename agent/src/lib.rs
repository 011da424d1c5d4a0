//! The node agent of vmap-proxy: everything with side effects.
//!
//! [`source`] reads Services and EndpointSlices, the pure `compiler` crate turns
//! them into elements of nftables maps, and [`netlink`] submits the difference.
//!
//! * [`program`]: one command line: [`cli`] parses it, [`config`] reads the
//!   configuration, [`run`] is the agent, [`commands`] the other subcommands;
//! * [`sync_loop`] decides when to sync, [`sync`] does it, and [`after_sync`]
//!   has its consequences: [`metrics`], [`health`], [`k8s_events`] and stale
//!   flows ([`conntrack`]);
//! * [`localhost_node_ports`] relays connections from localhost to NodePorts;
//! * [`query`] answers questions over a Unix socket, [`status_page`] in a browser;
//!   [`doctor`] checks the node;
//! * [`takeover`] removes what kube-proxy left, [`migration`] compares with one
//!   that runs, [`sysctl`] sets its sysctls, and [`instance`] keeps a second
//!   agent away;
//! * [`files`], [`lists`], [`logging`], [`process`], [`terminal`], [`version`] and [`yaml`]
//!   serve all.

pub mod after_sync;
pub mod cli;
pub mod commands;
pub mod config;
pub mod conntrack;
pub mod doctor;
pub mod files;
pub mod health;
pub mod instance;
pub mod k8s_events;
pub mod lists;
pub mod localhost_node_ports;
pub mod logging;
pub mod metrics;
pub mod migration;
pub mod netlink;
pub mod process;
pub mod program;
pub mod query;
pub mod run;
pub mod source;
pub mod status_page;
pub mod sync;
pub mod sync_loop;
pub mod sysctl;
pub mod takeover;
pub mod terminal;
pub mod version;
pub mod yaml;
