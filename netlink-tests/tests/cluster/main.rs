//! End to end: the real agent as a process on a node of namespaces, driven by
//! nothing but the API, while packets flow.
//!
//! With `VMAP_PROXY_TEST_API_SOCKET` and `KUBECONFIG` set they run against a
//! real API server: docs/real-cluster.md.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod changes;
mod clock;
mod confined;
mod connection;
mod events;
mod node;
mod server_names;
mod servers;
mod start;
mod trouble;

use std::net::SocketAddr;

use serde_json::Value;
use vmap_proxy_lab::ProbeResult;
use vmap_proxy_testbed::api_objects::Endpoint;
use vmap_proxy_testbed::api_objects::{cluster_ip, service, slice};
use vmap_proxy_testbed::end_to_end::EndToEnd;

vmap_proxy_testbed::in_own_namespaces!();

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// A cluster without Services; the agent does not run yet.
fn cluster() -> EndToEnd {
    EndToEnd::start(PROGRAM).unwrap()
}

/// Applies all, in this order.
fn apply(cluster: &EndToEnd, objects: &[Value]) {
    for object in objects {
        cluster.api.apply(object).unwrap();
    }
}

/// A Service of the n-th cluster IP and its endpoints.
fn apply_service(cluster: &EndToEnd, name: &str, number: u8, endpoints: &[Endpoint]) -> SocketAddr {
    apply(cluster, &[service(name, &cluster_ip(number), |_| {}), slice(name, endpoints)]);
    frontend(&cluster_ip(number), 80)
}

fn frontend(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

fn is_answered(result: &ProbeResult) -> bool {
    matches!(result, ProbeResult::Answered { .. })
}

fn is_refused(result: &ProbeResult) -> bool {
    matches!(result, ProbeResult::Reset) || result.is_port_unreachable()
}

fn is_silent(result: &ProbeResult) -> bool {
    *result == ProbeResult::Silence
}

/// Whether a pod answered that saw this source address.
fn seen_as(source: &str) -> impl Fn(&ProbeResult) -> bool {
    let source: std::net::IpAddr = source.parse().unwrap();
    move |result| matches!(result, ProbeResult::Answered { seen_source, .. } if *seen_source == source)
}
