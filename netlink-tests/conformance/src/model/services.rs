//! The service ports of a family, and their frontends.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::address::{self, Family};
use super::endpoints::{self, Selection};
use super::{Protocol, ReferenceModel, json};

const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// One port of one Service in one family, with the endpoints that serve it.
///
/// Endpoints join by namespace, service name, port name and protocol; port
/// numbers play no part in that.
#[derive(Debug, Clone)]
pub(super) struct ServicePort {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) port_name: String,
    pub(super) protocol: Protocol,
    /// The port of cluster IP, external IPs and load balancer addresses.
    pub(super) port: u16,
    pub(super) cluster_ip: IpAddr,
    pub(super) external_ips: Vec<IpAddr>,
    /// Load balancer addresses with `ipMode: VIP`, or without `ipMode`.
    pub(super) vips: Vec<IpAddr>,
    pub(super) node_port: Option<u16>,
    /// Empty: no firewall.
    pub(super) source_ranges: Vec<IpNet>,
    pub(super) external_policy_local: bool,
    pub(super) internal_policy_local: bool,
    /// For how many seconds clients stick, if they do.
    pub(super) affinity: Option<u64>,
    pub(super) endpoints: Selection,
}

impl ServicePort {
    /// Whether an address is an external IP or a load balancer address of it.
    pub(super) fn has_external_address(&self, address: IpAddr) -> bool {
        self.external_ips.contains(&address) || self.vips.contains(&address)
    }

    fn externally_accessible(&self) -> bool {
        self.node_port.is_some() || !self.vips.is_empty() || !self.external_ips.is_empty()
    }

    /// Also true for Local policies that are reachable from outside: pods of
    /// this node and the node itself may use all endpoints there.
    pub(super) fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_policy_local || self.externally_accessible()
    }

    pub(super) fn uses_local_endpoints(&self) -> bool {
        self.internal_policy_local || (self.external_policy_local && self.externally_accessible())
    }

    /// Whether the cluster IP has a target.
    pub(super) fn has_internal(&self) -> bool {
        self.endpoints.has_any && (!self.internal_policy_local || !self.endpoints.local.is_empty())
    }

    /// Whether external addresses have a target for traffic from outside.
    pub(super) fn has_external(&self) -> bool {
        self.endpoints.has_any && (!self.external_policy_local || !self.endpoints.local.is_empty())
    }
}

impl ReferenceModel {
    /// All service ports of a family, oldest Service first: where several claim
    /// one address and port, the first one in this order gets it.
    pub(super) fn service_ports(&self, family: Family) -> Vec<ServicePort> {
        let mut services: Vec<&Value> = self.objects_of_kind("Service").collect();
        services.sort_by_key(|service| {
            let namespace = json::text(service, "/metadata/namespace").unwrap_or_default();
            let name = json::text(service, "/metadata/name").unwrap_or_default();
            (json::created(service), format!("{namespace}/{name}"))
        });
        services.into_iter().flat_map(|service| self.ports_of(service, family)).collect()
    }

    fn ports_of(&self, service: &Value, family: Family) -> Vec<ServicePort> {
        let Some(cluster_ip) = proxied_cluster_ip(service, family) else {
            return Vec::new();
        };
        json::list(service, "/spec/ports")
            .iter()
            .filter_map(|port| {
                let mut port = service_port(service, port, cluster_ip, family)?;
                port.endpoints = endpoints::select(self, &port, family);
                Some(port)
            })
            .collect()
    }
}

/// The cluster IP of a family, if the Service is for a service proxy at all.
fn proxied_cluster_ip(service: &Value, family: Family) -> Option<IpAddr> {
    if json::label(service, PROXY_NAME_LABEL).is_some() {
        return None;
    }
    let cluster_ip = json::text(service, "/spec/clusterIP").unwrap_or_default();
    if cluster_ip.is_empty() || cluster_ip == "None" {
        return None;
    }
    // Even if it kept a cluster IP from an earlier type.
    if json::text(service, "/spec/type") == Some("ExternalName") {
        return None;
    }
    let families = json::texts(service, "/spec/ipFamilies");
    if families.is_empty() {
        return address::parse_of_family(cluster_ip, family);
    }
    let position = families.iter().position(|name| *name == family.name())?;
    let text = *json::texts(service, "/spec/clusterIPs").get(position)?;
    address::parse_of_family(text, family)
}

fn service_port(service: &Value, port: &Value, cluster_ip: IpAddr, family: Family) -> Option<ServicePort> {
    let service_type = json::text(service, "/spec/type").unwrap_or("ClusterIP");
    let raw_external_ips = json::texts(service, "/spec/externalIPs");
    let external_policy_counts = match service_type {
        "LoadBalancer" | "NodePort" => true,
        _ => !raw_external_ips.is_empty(),
    };
    let policy = |pointer| json::text(service, pointer).unwrap_or("Cluster");
    Some(ServicePort {
        namespace: json::text(service, "/metadata/namespace").unwrap_or_default().to_owned(),
        service: json::text(service, "/metadata/name").unwrap_or_default().to_owned(),
        port_name: json::text(port, "/name").unwrap_or_default().to_owned(),
        protocol: Protocol::from_name(json::text(port, "/protocol").unwrap_or("TCP"))?,
        port: json::port(port, "/port")?,
        cluster_ip,
        external_ips: raw_external_ips.iter().filter_map(|text| address::parse_of_family(text, family)).collect(),
        vips: load_balancer_ips(service, family),
        node_port: json::port(port, "/nodePort"),
        source_ranges: source_ranges(service, family),
        external_policy_local: external_policy_counts && policy("/spec/externalTrafficPolicy") == "Local",
        internal_policy_local: policy("/spec/internalTrafficPolicy") == "Local",
        affinity: affinity(service),
        endpoints: Selection::default(),
    })
}

/// `sessionAffinity: ClientIP`; the timeout is three hours if none is given.
fn affinity(service: &Value) -> Option<u64> {
    let seconds = service.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    (json::text(service, "/spec/sessionAffinity") == Some("ClientIP"))
        .then(|| seconds.and_then(Value::as_u64).unwrap_or(10_800))
}

/// The type of the Service does not matter: the status alone decides.
fn load_balancer_ips(service: &Value, family: Family) -> Vec<IpAddr> {
    json::list(service, "/status/loadBalancer/ingress")
        .iter()
        .filter(|ingress| json::text(ingress, "/ipMode").unwrap_or("VIP") == "VIP")
        .filter_map(|ingress| address::parse_of_family(json::text(ingress, "/ip")?, family))
        .collect()
}

/// A range of length 0 makes the whole list of the family void.
fn source_ranges(service: &Value, family: Family) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = json::texts(service, "/spec/loadBalancerSourceRanges")
        .into_iter()
        .filter_map(|text| address::parse_prefix(text.trim()))
        .filter(|range| Family::of(range.addr()) == family)
        .collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { ranges }
}
