//! The part of an object that names need, checked where the object is read.

use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::convert::{self, Problem};
use vmap_proxy_compiler::model::objects::{
    Change, EndpointObject, EndpointPortObject, EndpointSliceObject, Kind, Object, ObjectRef, ServiceObject,
};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Family, Protocol};

use crate::label::{is_domain_name, is_label};

/// The change of one object, as far as names are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameContent {
    /// A Service; `None` if its own name is no label, so that it has no records.
    Service(Option<ServiceNames>),
    /// A slice and its Service; `None` if it belongs to no Service that can have
    /// names, or holds no addresses.
    Slice(Option<(ServiceName, SliceNames)>),
    /// The ranges of a ServiceCIDR.
    ServiceCidr(Vec<IpNet>),
    /// The pod ranges of this node.
    Node(Vec<IpNet>),
    /// The object is gone.
    Gone,
    /// The object exists but cannot be read. Its known state stays, also while a
    /// complete list is applied.
    Kept,
}

/// The names of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceNames {
    /// A Service with cluster IPs. Without any (a manifest that passed no API
    /// server), the name exists and has no records.
    ClusterIp {
        /// The cluster IPs of both families, each once.
        addresses: Vec<IpAddr>,
        /// The ports with names.
        ports: Vec<PortName>,
    },
    /// `clusterIP: None`: the names of its endpoints.
    Headless {
        /// `publishNotReadyAddresses`: all endpoints count as ready.
        publish_not_ready: bool,
    },
    /// `type: ExternalName`: another name, without the final dot.
    External(Box<str>),
}

/// A port with a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortName {
    /// The name; a valid label.
    pub name: Box<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number, never 0.
    pub port: u16,
}

/// The names of one EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceNames {
    /// The endpoints.
    pub endpoints: Vec<EndpointNames>,
    /// The ports with names.
    pub ports: Vec<PortName>,
}

/// One address of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointNames {
    /// The address.
    pub address: IpAddr,
    /// The host name; a valid label.
    pub hostname: Option<Box<str>>,
    /// Condition `ready`; absent counts as true.
    pub ready: bool,
}

impl NameContent {
    /// Reads the names of an object, and lists the parts that can have none. A
    /// part that concerns more than names is not listed: the compiler's
    /// conversion reports it.
    pub fn read(change: &Change) -> (Self, Vec<Problem>) {
        match change {
            Change::Apply(Object::Service(object)) => service(object),
            Change::Apply(Object::EndpointSlice(object)) => slice(object),
            Change::Apply(Object::ServiceCidr(object)) => {
                (Self::ServiceCidr(convert::service_cidr(object).0), Vec::new())
            }
            Change::Apply(Object::Node(object)) => {
                (Self::Node(convert::node(object, Vec::new()).0.pod_cidrs), Vec::new())
            }
            Change::Delete(_) => (Self::Gone, Vec::new()),
            Change::Keep(_) => (Self::Kept, Vec::new()),
        }
    }
}

/// The problems of one object.
struct Problems {
    object: ObjectRef,
    found: Vec<Problem>,
}

impl Problems {
    fn of(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { object: ObjectRef { kind, namespace: namespace.to_owned(), name: name.to_owned() }, found: Vec::new() }
    }

    fn add(&mut self, field: String, reason: String) {
        self.found.push(Problem { object: self.object.clone(), field, reason });
    }
}

fn service(object: &ServiceObject) -> (NameContent, Vec<Problem>) {
    let metadata = &object.metadata;
    let mut problems = Problems::of(Kind::Service, &metadata.namespace, &metadata.name);
    for (field, text) in [("metadata.namespace", &metadata.namespace), ("metadata.name", &metadata.name)] {
        if !is_label(text) {
            problems.add(field.to_owned(), format!("{text:?} is not a DNS label; the Service has no name in DNS"));
        }
    }
    if !problems.found.is_empty() {
        return (NameContent::Service(None), problems.found);
    }
    let names = service_names(object, &mut problems);
    (NameContent::Service(Some(names)), problems.found)
}

fn service_names(object: &ServiceObject, problems: &mut Problems) -> ServiceNames {
    let spec = &object.spec;
    if spec.service_type == "ExternalName" {
        if is_domain_name(&spec.external_name) {
            let name = spec.external_name.trim_end_matches('.');
            return ServiceNames::External(name.into());
        }
        let text = &spec.external_name;
        problems.add(
            "spec.externalName".to_owned(),
            format!("{text:?} is not a domain name; the Service's name has no records"),
        );
        return ServiceNames::ClusterIp { addresses: Vec::new(), ports: Vec::new() };
    }
    if spec.cluster_ip == "None" {
        return ServiceNames::Headless { publish_not_ready: spec.publish_not_ready_addresses };
    }
    let one = std::slice::from_ref(&spec.cluster_ip);
    let texts = if spec.cluster_ips.is_empty() { one } else { spec.cluster_ips.as_slice() };
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(texts.len());
    for address in texts.iter().filter_map(|text| convert::parse_address(text)) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    let ports = spec.ports.iter().enumerate().filter_map(|(position, port)| {
        let field = || format!("spec.ports[{position}].name");
        port_name(&port.name, port.protocol.as_deref(), port.port, field, problems)
    });
    ServiceNames::ClusterIp { addresses, ports: ports.collect() }
}

/// A port with a usable name. A number or protocol that cannot be used is
/// reported by the compiler.
fn port_name(
    name: &str,
    protocol: Option<&str>,
    port: i64,
    field: impl Fn() -> String,
    problems: &mut Problems,
) -> Option<PortName> {
    if name.is_empty() {
        return None;
    }
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let protocol = match protocol {
        None => Protocol::Tcp,
        Some(text) => Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == text)?,
    };
    if !is_label(name) {
        problems.add(field(), format!("{name:?} is not a DNS label; the port has no SRV record"));
        return None;
    }
    Some(PortName { name: name.into(), protocol, port })
}

fn slice(object: &EndpointSliceObject) -> (NameContent, Vec<Problem>) {
    let metadata = &object.metadata;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        _ => return (NameContent::Slice(None), Vec::new()),
    };
    let Some(owner) = convert::owner(object) else { return (NameContent::Slice(None), Vec::new()) };
    let mut problems = Problems::of(Kind::EndpointSlice, &metadata.namespace, &metadata.name);
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    for (position, endpoint) in object.endpoints.iter().enumerate() {
        let hostname = hostname(endpoint, position, &mut problems);
        let addresses = endpoint.addresses.iter().filter_map(|text| convert::parse_address(text));
        endpoints.extend(addresses.filter(|address| Family::of(*address) == family).map(|address| EndpointNames {
            address,
            hostname: hostname.map(Into::into),
            ready: endpoint.conditions.ready.unwrap_or(true),
        }));
    }
    let ports = object.ports.iter().enumerate().filter_map(|(position, port)| {
        let EndpointPortObject { name, protocol, port } = port;
        let field = || format!("ports[{position}].name");
        port_name(name.as_deref()?, protocol.as_deref(), port.unwrap_or(0), field, &mut problems)
    });
    let names = SliceNames { ports: ports.collect(), endpoints };
    let owner = ServiceName::new(&metadata.namespace, owner);
    (NameContent::Slice(Some((owner, names))), problems.found)
}

/// The host name of an endpoint, if it can be one label. Slices that people
/// write may hold more (coredns #6607); the endpoint keeps its address then.
fn hostname<'o>(endpoint: &'o EndpointObject, position: usize, problems: &mut Problems) -> Option<&'o str> {
    let text = endpoint.hostname.as_deref().filter(|text| !text.is_empty())?;
    if is_label(text) {
        return Some(text);
    }
    problems.add(
        format!("endpoints[{position}].hostname"),
        format!("{text:?} is not a DNS label; the endpoint has a name made of its address instead"),
    );
    None
}
