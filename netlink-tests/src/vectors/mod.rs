//! Conformance vectors: cluster states, changes to them, packets, and what has
//! to happen to each packet. The files are in `netlink-tests/vectors`, their
//! format is described in `docs/vectors.md`.
//!
//! * [`schema`]: the format, and a strict loader;
//! * [`run_model`]: a vector against the reference model;
//! * [`run_compiled`]: a vector against the compiled rules, evaluated;
//! * [`run_packets`]: a vector against a running proxy, with real packets;
//! * [`record`]: a generated scenario as a vector.

pub mod library_proxy;
pub mod record;
pub mod run_compiled;
pub mod run_model;
pub mod run_packets;
pub mod schema;
pub mod under_test;

use std::path::PathBuf;

/// The folder of the vectors in this repository.
pub fn repository_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}
