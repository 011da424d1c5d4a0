//! The settings of the server.

use std::net::SocketAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_dns_zone::ZoneConfig;

/// The port of DNS.
pub const PORT: u16 = 53;

/// The TTL of records of the cluster that CoreDNS gives them, in seconds.
pub const DEFAULT_TTL: u32 = 5;

/// The longest TTL of records of the cluster, in seconds; CoreDNS has the same
/// limit.
pub const MAX_TTL: u32 = 3600;

/// The settings of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The addresses to listen on, for UDP and TCP.
    pub addresses: Vec<SocketAddr>,
    /// The domain and its names.
    pub zone: ZoneConfig,
    /// The TTL of records of the cluster, in seconds.
    pub ttl: u32,
    /// The servers that other names are forwarded to.
    pub upstream: Upstream,
    /// The ranges of pod addresses of the cluster, as far as they are known. Pods
    /// of this node ask from them, and their reverse names belong to the zone.
    pub cluster_ranges: Vec<IpNet>,
    /// Further clients that are answered.
    pub client_ranges: Vec<IpNet>,
    /// The Service whose cluster IPs the server listens on as well, port 53. The
    /// caller leads packets there; see [`crate::DnsServer::taken_over`].
    pub take_over: Option<ServiceName>,
}

/// The servers that names outside of the cluster are forwarded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstream {
    /// Those of `/etc/resolv.conf`, without this server itself.
    ResolvConf,
    /// These; none: such names are refused.
    Servers(Vec<SocketAddr>),
}
