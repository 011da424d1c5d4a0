//! The HTTP servers of the proxy's state: whether it keeps up
//! ([`proxy_server`]), whether a Service has endpoints on this node
//! ([`service_servers`]), and its metrics ([`metrics_server`]).
//!
//! Paths, status codes, headers and bodies are kube-proxy's
//! (`pkg/proxy/healthcheck`); each item documents its differences. [`state`] is
//! what they answer from, [`zpages`] the pages that every Kubernetes component
//! has, [`listen`] and `connection` the sockets with their limits.

mod connection;
pub mod listen;
pub mod metrics_server;
pub mod proxy_server;
pub mod service_servers;
pub mod state;
pub mod zpages;

#[cfg(test)]
pub(crate) mod test_client;

pub(crate) use connection::Peer;
pub use listen::{Listen, ListenError};
pub use service_servers::{ServiceHealth, ServiceHealthServers};
pub use state::{Clock, HealthState, NodeEligibility};
