//! Measurements of vmap-proxy. The commands are in [`commands`], what they report in `docs/performance.md`.
//!
//! * [`scale`]: first sync, changes, restart and memory at one size of cluster, beside the lower bound of the kernel;
//! * [`packets`]: what new connections pay, against the number of Services;
//! * [`localhost`]: what the relay for NodePorts on localhost costs;
//! * [`compare`]: what got slower since an earlier run;
//! * [`plot`] draws the pictures.
//!
//! Benchmarks beside other libraries (nftnl, rustables) and programs are in `benches/`.

pub mod commands;
pub mod compare;
pub mod localhost;
pub mod packets;
pub mod plot;
pub mod scale;
