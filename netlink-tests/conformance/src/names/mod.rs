//! Conformance vectors for names: objects, questions, and their answers. The files are in `netlink-tests/name-vectors`,
//! the format is in `docs/vectors.md`.
//!
//! * [`schema`]: the format, and a strict loader;
//! * [`run`]: a vector against the zone alone, and against a running server over UDP and TCP.

pub mod run;
pub mod schema;
