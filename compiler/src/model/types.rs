//! Validated types: parse at the edge, then trust the type.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use arcstr::ArcStr;
use foldhash::fast::RandomState;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thin_vec::ThinVec;

/// A transport protocol that Services can use. TCP, UDP and SCTP are all first
/// class: one map serves the three of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// Protocol 6.
    Tcp,
    /// Protocol 17.
    Udp,
    /// Protocol 132.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// Kubernetes' spelling.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// The number in the IP header (`IPPROTO_*`).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// From the number in the IP header.
    pub fn from_number(number: u8) -> Option<Self> {
        Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// nft's word for it.
    pub fn keyword(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    /// Kubernetes' spelling.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Address and port of an endpoint: where a connection is translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The pod's (or, with host network, the node's) address.
    pub address: IpAddr,
    /// The port of the slice, never 0.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::new(self.address, self.port).fmt(f)
    }
}

/// A map by name. Its hash costs less than the standard library's, and is seeded at
/// random like that, because users choose the names.
pub(crate) type NameMap<K, V> = HashMap<K, V, RandomState>;
/// A set of names, with the hash of [`NameMap`].
pub(crate) type NameSet<K> = HashSet<K, RandomState>;

/// Namespace and name of a Service, as one interned text `namespace/name`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(ArcStr);

impl ServiceName {
    /// Joins the two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self(format!("{namespace}/{name}").into())
    }

    /// Reads `namespace/name`; `None` for a text without a namespace.
    pub fn parse(text: &str) -> Option<Self> {
        text.contains('/').then(|| Self(text.into()))
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The shared text `namespace/name`.
    pub fn text(&self) -> &ArcStr {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One Service in one family, with everything that decides its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `creationTimestamp`, in seconds since the epoch; the older of two
    /// Services that claim one address and port wins. 0: unknown.
    pub created: i64,
    /// Its cluster IP of this family.
    pub cluster_ip: IpAddr,
    /// `externalIPs` of this family. This and the next two lists are nearly always empty;
    /// such a list takes 8 bytes.
    pub external_ips: ThinVec<IpAddr>,
    /// Load balancer ingress addresses of this family with `ipMode: VIP`.
    pub load_balancer_ips: ThinVec<IpAddr>,
    /// `loadBalancerSourceRanges` of this family, merged; empty: no firewall.
    pub source_ranges: ThinVec<IpNet>,
    /// `externalTrafficPolicy: Local`, where the type lets it count.
    pub external_policy_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_policy_local: bool,
    /// Session affinity by client address, and its timeout in seconds.
    pub affinity: Option<u32>,
    /// `healthCheckNodePort`, where one has to be served.
    pub health_check_node_port: Option<u16>,
    /// The ports.
    pub ports: Box<[ServicePort]>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// The name that endpoints join by; may be empty.
    pub name: ArcStr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The port of the cluster IP, external IPs and load balancer addresses.
    pub port: u16,
    /// The NodePort, if there is one.
    pub node_port: Option<u16>,
    /// Its position in `spec.ports`, to name the field; 65,535 stands for any greater one.
    pub index: u16,
}

/// A position in a list of an object, as the types here keep it: those from
/// 65,535 on become 65,535. No API server takes a list of that length.
pub(super) fn index(position: usize) -> u16 {
    u16::try_from(position).unwrap_or(u16::MAX)
}

/// The reason why a Service that exists has no rules in any family.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotProxied {
    /// Label `service.kubernetes.io/service-proxy-name`: the proxy of this name
    /// serves it.
    OtherProxy(String),
    /// `spec.clusterIP: None`.
    Headless,
    /// `spec.type: ExternalName`: a name for DNS alone.
    ExternalName,
    /// No usable cluster IP in either family; a [problem] names the field.
    ///
    /// [problem]: super::convert::Problem
    NoClusterIp,
}

/// A Service that exists and has no rules in any family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unserved {
    /// Why.
    pub reason: NotProxied,
    /// Its addresses, each with its field: a packet to one of them may be asked about.
    pub addresses: Vec<(IpAddr, &'static str)>,
}

impl Service {
    /// Returns whether anything outside the cluster can reach this port.
    pub fn externally_accessible(&self, port: &ServicePort) -> bool {
        port.node_port.is_some() || !self.external_ips.is_empty() || !self.load_balancer_ips.is_empty()
    }

    /// Returns whether some traffic may go to endpoints anywhere in the
    /// cluster.
    pub fn uses_cluster_endpoints(&self, port: &ServicePort) -> bool {
        !self.internal_policy_local || self.externally_accessible(port)
    }

    /// Returns whether some traffic may only go to endpoints of this node.
    pub fn uses_local_endpoints(&self, port: &ServicePort) -> bool {
        self.internal_policy_local || (self.external_policy_local && self.externally_accessible(port))
    }
}
