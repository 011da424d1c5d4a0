//! How sync time, change time and memory grow with the cluster.
//!
//! Every measurement runs in a child process of its own, which is in a network
//! namespace of its own: its peak memory is the agent's, and nothing that an
//! earlier run left behind is in it. The parent pairs runs that are compared
//! with each other, and reports medians.
//!
//! | file | what |
//! |---|---|
//! | [`workload`] | the cluster: Services and slices, one by one, as manifests |
//! | [`agent`] | the agent's own path over it: `Syncer` and a kernel |
//! | [`floor`] | the same elements, encoded before the clock starts, over a raw socket |
//! | [`changes`] | changes of a programmed cluster: endpoints, Services, a burst |
//! | [`large_change`] | very many Services at once, on a running table |
//! | [`user_space`] | the same changes with no kernel: what is ours of them |
//! | [`second_writer`] | how long others wait while the agent commits |
//! | [`raw_socket`] | a netlink socket with nothing around it |
//! | [`memory`] | what the process and the kernel hold |
//! | [`statistics`] | medians, percentiles, spread |
//! | [`child`] | tasks as child processes |
//! | [`report`] | the figures beside their goals, as JSON, Markdown and a table |

pub mod agent;
pub mod changes;
pub mod child;
pub mod floor;
pub mod large_change;
pub mod memory;
pub mod raw_socket;
pub mod report;
pub mod second_writer;
pub mod statistics;
pub mod user_space;
pub mod workload;

/// The reason why a measurement failed; it ends the run with its text.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
