//! From Kubernetes objects to validated types.
//!
//! The rules are kube-proxy's (`pkg/proxy/serviceport.go`,
//! `pkg/proxy/endpointslicecache.go`, 1.36). What cannot be programmed becomes
//! a [`Problem`] that names object and field; the rest of the object, and every
//! other object, goes on.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use thin_vec::ThinVec;

use super::config::NodeInfo;
use super::family::{Family, PerFamily};
use super::objects::{
    EndpointObject, EndpointSliceObject, Kind, LABEL_SERVICE_NAME, LABEL_ZONE, NodeObject, ObjectMeta, ObjectRef,
    ServiceCidrObject, ServiceObject, ServicePortObject,
};
use super::slice::{Hints, Slice, SliceEndpoint, SliceEndpoints, SlicePort};
use super::types::{Protocol, Service, ServicePort, index};

/// The affinity timeout that the API server would have filled in, in seconds.
pub const DEFAULT_AFFINITY_SECONDS: u32 = 10800;

/// An unusable part of an object. Only the named part is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The object.
    pub object: ObjectRef,
    /// The field, as a path within the object.
    pub field: String,
    /// The defect, and its consequence.
    pub reason: String,
}

impl fmt::Display for Problem {
    /// `Service shop/cart: spec.ports[1].port: 70000 is not a port; the port is skipped`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.reason)
    }
}

/// Collects the problems of one object.
struct Problems {
    object: ObjectRef,
    found: Vec<Problem>,
}

impl Problems {
    fn of(kind: Kind, metadata: &ObjectMeta) -> Self {
        let object = ObjectRef { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() };
        Self { object, found: Vec::new() }
    }

    fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.found.push(Problem { object: self.object.clone(), field: field.into(), reason: reason.into() });
    }
}

/// Reads an address as kube-proxy does (`netutils.ParseIPSloppy`): leading
/// zeros are decimal, blanks are an error, and an IPv4-mapped IPv6 address is
/// an IPv4 address.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let address: Ipv6Addr = match text.rsplit_once(':') {
            Some((head, tail)) if tail.contains('.') => format!("{head}:{}", parse_ipv4(tail)?).parse().ok()?,
            _ => text.parse().ok()?,
        };
        return Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4));
    }
    parse_ipv4(text).map(IpAddr::V4)
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Reads a prefix as kube-proxy does (`netutils.ParseCIDRSloppy`); host bits
/// are masked off.
pub fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut length: u8 = length.parse().ok()?;
    let parsed = parse_address(address)?;
    if parsed.is_ipv4() && address.contains(':') {
        // ::ffff:a.b.c.d/n counts its length from the front of 128 bits.
        length = length.checked_sub(96)?;
    }
    IpNet::new(parsed, length).ok().map(|net| net.trunc())
}

/// `2026-11-23T12:00:00Z` as the number 20261123120000: an order of time for
/// the one format that the API server writes, and 0 for anything else.
fn timestamp_order(text: Option<&str>) -> i64 {
    let digits: String = text.unwrap_or_default().chars().filter(char::is_ascii_digit).take(14).collect();
    if digits.len() == 14 { digits.parse().unwrap_or(0) } else { 0 }
}

/// A Service in the families it has a cluster IP in; `None` where the proxy
/// makes no rules for it: headless, `ExternalName`, no address of the family.
pub fn service(object: &ServiceObject) -> (PerFamily<Option<Service>>, Vec<Problem>) {
    let mut problems = Problems::of(Kind::Service, &object.metadata);
    let spec = &object.spec;
    if spec.cluster_ip == "None" || spec.service_type == "ExternalName" {
        return (PerFamily::default(), problems.found);
    }
    if spec.cluster_ip.is_empty() {
        // Only manifests that did not pass an API server have none.
        problems.add(
            "spec.clusterIP",
            "it is absent, so nothing of the Service is served; an API server would have chosen one: write a free \
             address of the service range, or None for a headless Service",
        );
        return (PerFamily::default(), problems.found);
    }
    let cluster_ips = PerFamily::from_fn(|family| cluster_ip(object, family, &mut problems));
    if cluster_ips == PerFamily::default() {
        return (PerFamily::default(), problems.found);
    }
    let ports = service_ports(&spec.ports, &mut problems);
    let external_ips = addresses(&spec.external_ips, "spec.externalIPs", &mut problems);
    let load_balancer_ips = load_balancer_ips(object, &mut problems);
    let source_ranges = source_ranges(&spec.load_balancer_source_ranges, &mut problems);
    let affinity = affinity(object, &mut problems);
    let external_policy_local = spec.external_traffic_policy == "Local"
        && match spec.service_type.as_str() {
            "LoadBalancer" | "NodePort" => true,
            _ => !spec.external_ips.is_empty(),
        };
    let health_check_node_port = health_check_node_port(object, external_policy_local, &mut problems);

    let services = PerFamily::from_fn(|family| {
        let of_family = |list: &[IpAddr]| -> ThinVec<IpAddr> {
            let mut list: ThinVec<IpAddr> =
                list.iter().copied().filter(|address| Family::of(*address) == family).collect();
            let mut seen = HashSet::new();
            list.retain(|address| seen.insert(*address));
            list
        };
        Some(Service {
            created: timestamp_order(object.metadata.creation_timestamp.as_deref()),
            cluster_ip: cluster_ips[family]?,
            external_ips: of_family(&external_ips),
            load_balancer_ips: of_family(&load_balancer_ips),
            source_ranges: ranges_of(&source_ranges, family),
            external_policy_local,
            internal_policy_local: spec.internal_traffic_policy == "Local",
            affinity,
            health_check_node_port,
            ports: ports.clone(),
        })
    });
    (services, problems.found)
}

/// The cluster IP of a family: the *label* of the family decides, and an older
/// API server without `ipFamilies` leaves it to the address.
fn cluster_ip(object: &ServiceObject, family: Family, problems: &mut Problems) -> Option<IpAddr> {
    let spec = &object.spec;
    if spec.ip_families.is_empty() {
        let address = parse_address(&spec.cluster_ip);
        if address.is_none() && family == Family::Ipv4 {
            problems.add("spec.clusterIP", format!("{:?} is not an address; the Service is skipped", spec.cluster_ip));
        }
        return address.filter(|address| Family::of(*address) == family);
    }
    let position = spec.ip_families.iter().position(|name| *name == family.to_string())?;
    let text = match spec.cluster_ips.get(position) {
        Some(text) => text.as_str(),
        // Hand-written manifests often have the singular field alone.
        None if position == 0 && spec.cluster_ips.is_empty() => spec.cluster_ip.as_str(),
        None => return None,
    };
    if text.is_empty() || text == "None" {
        return None;
    }
    let address = parse_address(text).filter(|address| Family::of(*address) == family);
    if address.is_none() {
        problems.add(
            format!("spec.clusterIPs[{position}]"),
            format!("{text:?} is not an {family} address; the Service is skipped for {family}"),
        );
    }
    address
}

fn port_number(value: i64) -> Option<u16> {
    u16::try_from(value).ok().filter(|port| *port != 0)
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None => Some(Protocol::Tcp),
        Some(text) => Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == text),
    }
}

fn service_ports(objects: &[ServicePortObject], problems: &mut Problems) -> Box<[ServicePort]> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(objects.len());
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for (position, object) in objects.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{position}].{name}");
        let Some(protocol) = protocol(object.protocol.as_deref()) else {
            let text = object.protocol.as_deref().unwrap_or_default();
            problems.add(field("protocol"), format!("{text:?} is not TCP, UDP or SCTP; the port is skipped"));
            continue;
        };
        let Some(port) = port_number(object.port) else {
            problems.add(field("port"), format!("{} is not a port; the port is skipped", object.port));
            continue;
        };
        let node_port = match object.node_port {
            0 => None,
            number => {
                let node_port = port_number(number);
                if node_port.is_none() {
                    problems.add(field("nodePort"), format!("{number} is not a port; no NodePort is served"));
                }
                node_port
            }
        };
        if numbers.contains(&(protocol, port)) || names.contains(&(protocol, object.name.as_str())) {
            problems.add(field("port"), format!("{port}/{protocol} repeats an earlier port; it is skipped"));
            continue;
        }
        numbers.insert((protocol, port));
        names.insert((protocol, object.name.as_str()));
        ports.push(ServicePort {
            name: object.name.as_str().into(),
            protocol,
            port,
            node_port,
            index: index(position),
        });
    }
    ports.into()
}

fn addresses(texts: &[String], field: &str, problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::with_capacity(texts.len());
    for (position, text) in texts.iter().enumerate() {
        match parse_address(text) {
            Some(address) => addresses.push(address),
            None if text.trim().is_empty() => {}
            None => problems.add(format!("{field}[{position}]"), format!("{text:?} is not an address; it is skipped")),
        }
    }
    addresses
}

fn load_balancer_ips(object: &ServiceObject, problems: &mut Problems) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (position, ingress) in object.status.load_balancer.ingress.iter().enumerate() {
        let is_vip = ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        if ingress.ip.is_empty() || !is_vip {
            continue;
        }
        match parse_address(&ingress.ip) {
            Some(address) => addresses.push(address),
            None => problems.add(
                format!("status.loadBalancer.ingress[{position}].ip"),
                format!("{:?} is not an address; it is skipped", ingress.ip),
            ),
        }
    }
    addresses
}

fn source_ranges(texts: &[String], problems: &mut Problems) -> Vec<IpNet> {
    let mut ranges = Vec::with_capacity(texts.len());
    for (position, text) in texts.iter().enumerate() {
        let text = text.trim();
        match parse_prefix(text) {
            Some(range) => ranges.push(range),
            None if text.is_empty() => {}
            None => problems.add(
                format!("spec.loadBalancerSourceRanges[{position}]"),
                format!("{text:?} is not a range; it is ignored"),
            ),
        }
    }
    ranges
}

/// The ranges of one family, merged; none at all if one of them is everything.
fn ranges_of(ranges: &[IpNet], family: Family) -> ThinVec<IpNet> {
    let ranges: Vec<IpNet> = ranges.iter().copied().filter(|range| Family::of(range.addr()) == family).collect();
    if ranges.iter().any(|range| range.prefix_len() == 0) {
        return ThinVec::new();
    }
    IpNet::aggregate(&ranges).into()
}

fn affinity(object: &ServiceObject, problems: &mut Problems) -> Option<u32> {
    if object.spec.session_affinity != "ClientIP" {
        return None;
    }
    let config = object.spec.session_affinity_config.as_ref();
    let seconds = config.and_then(|config| config.client_ip.as_ref()).and_then(|client_ip| client_ip.timeout_seconds);
    let Some(seconds) = seconds else {
        return Some(DEFAULT_AFFINITY_SECONDS);
    };
    // The API server's own bounds.
    if let Some(seconds) = u32::try_from(seconds).ok().filter(|seconds| (1..=86400).contains(seconds)) {
        return Some(seconds);
    }
    problems.add(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        format!("{seconds} is not between 1 and 86400; {DEFAULT_AFFINITY_SECONDS} is used"),
    );
    Some(DEFAULT_AFFINITY_SECONDS)
}

fn health_check_node_port(object: &ServiceObject, local: bool, problems: &mut Problems) -> Option<u16> {
    if object.spec.service_type != "LoadBalancer" || !local {
        return None;
    }
    let port = port_number(object.spec.health_check_node_port);
    if port.is_none() && object.spec.health_check_node_port != 0 {
        let number = object.spec.health_check_node_port;
        problems.add("spec.healthCheckNodePort", format!("{number} is not a port; no health check is served"));
    }
    port
}

/// The name of the Service a slice belongs to, from its label.
pub fn owner(object: &EndpointSliceObject) -> Option<&str> {
    object.metadata.labels.get(LABEL_SERVICE_NAME).map(String::as_str).filter(|name| !name.is_empty())
}

/// A slice; `None` if it is of no use as a whole (another address type).
pub fn slice(object: &EndpointSliceObject, node_name: &str) -> (Option<Slice>, Vec<Problem>) {
    let mut problems = Problems::of(Kind::EndpointSlice, &object.metadata);
    let family = match object.address_type.as_str() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        other => {
            problems.add("addressType", format!("{other:?} is neither IPv4 nor IPv6; the slice is skipped"));
            return (None, problems.found);
        }
    };
    let mut ports = Vec::with_capacity(object.ports.len());
    for (position, port) in object.ports.iter().enumerate() {
        let field = |name: &str| format!("ports[{position}].{name}");
        let Some(name) = &port.name else {
            problems.add(field("name"), "it is absent; the port is skipped");
            continue;
        };
        let Some(number) = port_number(port.port.unwrap_or(0)) else {
            problems.add(field("port"), format!("{} is not a port; the port is skipped", port.port.unwrap_or(0)));
            continue;
        };
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let text = port.protocol.as_deref().unwrap_or_default();
            problems.add(field("protocol"), format!("{text:?} is not TCP, UDP or SCTP; the port is skipped"));
            continue;
        };
        ports.push(SlicePort { name: name.as_str().into(), protocol, port: number, index: index(position) });
    }
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    let hints: Vec<Option<Hints>> = object.endpoints.iter().map(hints).collect();
    for ((position, endpoint), hints) in object.endpoints.iter().enumerate().zip(&hints) {
        let Some(text) = endpoint.addresses.first() else { continue };
        match parse_address(text).filter(|address| Family::of(*address) == family) {
            Some(address) => endpoints.push(SliceEndpoint {
                address,
                ready: endpoint.conditions.ready.unwrap_or(true),
                serving: endpoint.conditions.serving.unwrap_or(true),
                terminating: endpoint.conditions.terminating.unwrap_or(false),
                local: !node_name.is_empty() && endpoint.node_name.as_deref() == Some(node_name),
                index: index(position),
                hints: hints.as_ref(),
                pod: endpoint.target_ref.pod_in(&object.metadata.namespace),
            }),
            None => problems.add(
                format!("endpoints[{position}].addresses[0]"),
                format!("{text:?} is not an {family} address; the endpoint is skipped"),
            ),
        }
    }
    let created = timestamp_order(object.metadata.creation_timestamp.as_deref());
    let endpoints = SliceEndpoints::new(family, &endpoints);
    (Some(Slice { created, ports: ports.into(), endpoints }), problems.found)
}

fn hints(object: &EndpointObject) -> Option<Hints> {
    let hints = object.hints.as_ref()?;
    let hints = Hints {
        zones: hints.for_zones.iter().map(|zone| zone.name.clone()).collect(),
        nodes: hints.for_nodes.iter().map(|node| node.name.clone()).collect(),
    };
    (!hints.zones.is_empty() || !hints.nodes.is_empty()).then_some(hints)
}

/// The state from a Node object; the interface addresses come from the kernel.
pub fn node(object: &NodeObject, interface_addresses: Vec<IpAddr>) -> (NodeInfo, Vec<Problem>) {
    let mut problems = Problems::of(Kind::Node, &object.metadata);
    let mut found = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (position, address) in object.status.addresses.iter().enumerate() {
            if address.address_type != wanted {
                continue;
            }
            match parse_address(&address.address) {
                Some(address) => found.push(address),
                None => problems.add(
                    format!("status.addresses[{position}].address"),
                    format!("{:?} is not an address; it is skipped", address.address),
                ),
            }
        }
    }
    let pod_cidrs = prefixes(&object.spec.pod_cidrs, "spec.podCIDRs", &mut problems);
    let info = NodeInfo {
        zone: object.metadata.labels.get(LABEL_ZONE).filter(|zone| !zone.is_empty()).cloned(),
        addresses: found,
        pod_cidrs,
        interface_addresses,
    };
    (info, problems.found)
}

/// The ranges of a ServiceCIDR.
pub fn service_cidr(object: &ServiceCidrObject) -> (Vec<IpNet>, Vec<Problem>) {
    let mut problems = Problems::of(Kind::ServiceCidr, &object.metadata);
    let ranges = prefixes(&object.spec.cidrs, "spec.cidrs", &mut problems);
    (ranges, problems.found)
}

fn prefixes(texts: &[String], field: &str, problems: &mut Problems) -> Vec<IpNet> {
    let mut ranges = Vec::with_capacity(texts.len());
    for (position, text) in texts.iter().enumerate() {
        match parse_prefix(text) {
            Some(range) => ranges.push(range),
            None => problems.add(format!("{field}[{position}]"), format!("{text:?} is not a range; it is skipped")),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kube_proxy_reads_them() {
        let parsed = |text| parse_address(text).map(|address| address.to_string());
        assert_eq!(parsed("010.1.02.3").as_deref(), Some("10.1.2.3"));
        assert_eq!(parsed("::ffff:10.0.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(parsed("fd00::1").as_deref(), Some("fd00::1"));
        for bad in ["", " 10.0.0.1", "10.0.0", "10.0.0.256", "10.0.0.1.2", "10.0.0.+1", "fd00::g", "1e1.0.0.1"] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn prefixes_lose_their_host_bits() {
        let parsed = |text| parse_prefix(text).map(|prefix| prefix.to_string());
        assert_eq!(parsed("203.0.113.000/025").as_deref(), Some("203.0.113.0/25"));
        assert_eq!(parsed("10.1.2.3/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(parsed("10.0.0.0/33"), None);
        assert_eq!(parsed("10.0.0.0"), None);
    }

    #[test]
    fn an_impossible_port_costs_only_itself() {
        let object: ServiceObject = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [
                {"name": "bad", "port": 70000}, {"name": "worse", "port": 1, "protocol": "QUIC"},
                {"name": "good", "port": 80}, {"name": "twin", "port": 80}
            ]}
        }))
        .unwrap();
        let (services, problems) = service(&object);
        let service = services.ipv4.as_ref().unwrap();
        assert_eq!(service.ports.len(), 1);
        assert_eq!(service.ports[0].port, 80);
        assert_eq!(problems.len(), 3);
        assert_eq!(
            problems[0].to_string(),
            "Service shop/cart: spec.ports[0].port: 70000 is not a port; the port is skipped"
        );
    }

    #[test]
    fn one_range_of_everything_is_no_firewall() {
        let ranges = ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32"].map(|text| parse_prefix(text).unwrap());
        assert!(ranges_of(&ranges, Family::Ipv4).is_empty());
        assert_eq!(ranges_of(&ranges, Family::Ipv6).len(), 1);
    }
}
