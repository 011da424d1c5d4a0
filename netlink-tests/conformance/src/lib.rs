//! Conformance of a Kubernetes service proxy: cluster states, changes to them, packets, and what has to happen to each
//! packet. The files are in `netlink-tests/vectors`, their format is described in `docs/vectors.md`.
//!
//! * [`schema`]: the format, and a strict loader;
//! * [`model`]: the reference model, written from the semantics; it shares no code with the compiler;
//! * [`run_model`]: a vector against the reference model;
//! * [`run_compiled`]: a vector against the compiled rules, evaluated;
//! * [`run_explained`]: a vector against the explanations of its packets;
//! * [`run_packets`]: a vector against a running proxy, with real packets; [`library_proxy`] is ours;
//! * [`under_test`]: a vector's configuration and manifests, as the agent reads them;
//! * [`names`]: vectors for DNS, in `netlink-tests/name-vectors`;
//! * [`record`]: a generated scenario as a vector;
//! * [`command`]: the command line.

pub mod command;
pub mod library_proxy;
pub mod model;
pub mod names;
pub mod record;
pub mod run_compiled;
pub mod run_explained;
pub mod run_model;
pub mod run_packets;
pub mod schema;
pub mod under_test;

use std::path::{Path, PathBuf};

/// The folder of the vectors that were checked against kube-proxy itself.
pub fn repository_dir() -> PathBuf {
    beside("vectors")
}

/// The folder of the vectors that this project added.
pub fn own_dir() -> PathBuf {
    beside("own-vectors")
}

/// The folder of the vectors for names.
pub fn name_dir() -> PathBuf {
    beside("name-vectors")
}

fn beside(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}
