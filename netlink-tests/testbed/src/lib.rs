//! Shared code of the tests of vmap-proxy.
//!
//! * [`namespaces`]: permission to make namespaces, had before any thread exists;
//! * [`cluster`]: a cluster of network namespaces around one node, and questions to ask it;
//! * [`end_to_end`]: the same with an API server ([`api`]: the double in [`apiserver`], or a real one);
//! * [`agent_process`]: the agent as a process of its own, on manifests or an API server, and its log;
//! * [`syncer_thread`] and [`proxy`]: the agent's syncer in a namespace, step by step;
//! * [`manifests`], [`shop`] and [`api_objects`]: objects in a few words;
//! * [`calls`]: the agent's calls to the kernel, watched; [`crash`] kills it at one of them, [`faults`] makes them fail;
//! * [`confined`]: a program under a seccomp profile;
//! * [`relay`]: connections of a namespace to a server outside of it;
//! * [`random`]: random numbers that are the same in every run;
//! * [`manifest_directory`]: a directory of manifests that goes with the test;
//! * [`holdings`]: what a node's kernel holds, ready for comparison; [`generation`]: how often it was changed;
//! * [`nft`]: the `nft` program; [`other_layout`]: the tables of another version;
//! * [`traffic`] and [`continuous`]: connections all the while; [`skip`]: a test that cannot run here.

pub mod agent_process;
pub mod api;
pub mod api_objects;
pub mod apiserver;
pub mod calls;
pub mod cluster;
pub mod confined;
pub mod continuous;
pub mod crash;
pub mod end_to_end;
pub mod faults;
pub mod generation;
pub mod holdings;
pub mod manifest_directory;
pub mod manifests;
pub mod namespaces;
pub mod nft;
pub mod other_layout;
pub mod proxy;
pub mod random;
mod real_api;
pub mod relay;
pub mod shop;
pub mod skip;
pub mod syncer_thread;
pub mod traffic;

use std::time::Duration;

/// Any error of a test's own machinery.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Nothing in these tests takes this long, not even in an emulated machine; what never comes ends a test.
pub const PATIENCE: Duration = Duration::from_secs(180);
