//! Tests of vmap-proxy that need more than the compiler alone: a reference
//! model of kube-proxy, conformance vectors, a real kernel.

pub mod apiserver;
pub mod cluster;
pub mod commands;
pub mod compare;
pub mod fixtures;
pub mod harness;
pub mod model;
pub mod packets;
pub mod plot;
pub mod readback;
pub mod scale;
pub mod vectors;
