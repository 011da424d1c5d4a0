//! A change of one object in checked types. A source creates it once, where it
//! reads the object, and the store takes it.

use std::net::IpAddr;

use ipnet::IpNet;
use thin_vec::ThinVec;

use super::config::NodeInfo;
use super::convert::{self, Problem, parse_address};
use super::family::PerFamily;
use super::objects::{
    Change, EndpointSliceObject, Kind, LABEL_HEADLESS, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, Object, ObjectRef,
    ServiceObject,
};
use super::slice::Slice;
use super::types::{NotProxied, Service, ServiceName, Unserved};

/// A checked change of one object, which makes the object itself unnecessary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedChange {
    /// The identity of the object.
    pub object: ObjectRef,
    /// The change.
    pub content: Content,
    /// The unused parts of the object, with reasons.
    pub left_out: LeftOut,
}

/// The unused parts of an object. The store keeps them, to answer why something
/// is not served; nothing else depends on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The reason why a Service has no rules at all.
    pub unserved: Option<Box<Unserved>>,
    /// Its first unusable fields, at most [`MAX_PROBLEMS`].
    pub problems: ThinVec<Problem>,
}

/// Maximum number of addresses of a Service without rules that are kept.
const MAX_ADDRESSES: usize = 64;

/// Maximum number of unusable fields of one object that are kept.
pub const MAX_PROBLEMS: usize = 8;

impl LeftOut {
    fn of(unserved: Option<Unserved>, problems: &[Problem]) -> Self {
        Self { unserved: unserved.map(Box::new), problems: problems.iter().take(MAX_PROBLEMS).cloned().collect() }
    }
}

/// The change of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// The Service in each family. It exists also if it has no rules in either:
    /// headless, `ExternalName`, another proxy's, or unusable.
    Service(PerFamily<Option<Service>>),
    /// The slice and the Service that it belongs to; `None` if no Service here
    /// can use it.
    EndpointSlice(Option<(ServiceName, Slice)>),
    /// The state from the Node. Its `interface_addresses` are empty, because they
    /// come from the kernel.
    Node(NodeInfo),
    /// The ranges of a ServiceCIDR.
    ServiceCidr(Vec<IpNet>),
    /// The object is gone.
    Gone,
    /// The object exists but cannot be read. Its known state stays, also while a
    /// complete list is applied.
    Kept,
}

impl CheckedChange {
    /// Checks a change for the node of this name, and lists its unusable parts.
    /// The rest is used.
    pub fn new(change: &Change, node_name: &str) -> (Self, Vec<Problem>) {
        match change {
            Change::Apply(object) => {
                let (content, problems) = Content::of(object, node_name);
                let left_out = LeftOut::of(unserved(object, &content), &problems);
                (Self { object: object.reference(), content, left_out }, problems)
            }
            Change::Delete(object) => (Self::of(object.clone(), Content::Gone), Vec::new()),
            Change::Keep(object) => (Self::of(object.clone(), Content::Kept), Vec::new()),
        }
    }

    /// A change without unusable parts.
    pub fn of(object: ObjectRef, content: Content) -> Self {
        Self { object, content, left_out: LeftOut::default() }
    }
}

impl Content {
    fn of(object: &Object, node_name: &str) -> (Self, Vec<Problem>) {
        match object {
            Object::Service(object) => service(object),
            Object::EndpointSlice(object) => slice(object, node_name),
            Object::Node(object) => {
                let (node, problems) = convert::node(object, Vec::new());
                (Self::Node(node), problems)
            }
            Object::ServiceCidr(object) => {
                let (ranges, problems) = convert::service_cidr(object);
                (Self::ServiceCidr(ranges), problems)
            }
        }
    }
}

/// The reason why a Service has no rules, and its addresses; `None` if it has rules.
fn unserved(object: &Object, content: &Content) -> Option<Unserved> {
    let (Object::Service(object), Content::Service(services)) = (object, content) else { return None };
    if services.values().any(Option::is_some) {
        return None;
    }
    let reason = if let Some(proxy) = object.metadata.labels.get(LABEL_SERVICE_PROXY_NAME) {
        NotProxied::OtherProxy(proxy.clone())
    } else if object.spec.service_type == "ExternalName" {
        NotProxied::ExternalName
    } else if object.spec.cluster_ip == "None" {
        NotProxied::Headless
    } else {
        NotProxied::NoClusterIp
    };
    Some(Unserved { reason, addresses: addresses_of(object) })
}

/// The addresses that are written in a Service, each with its field.
fn addresses_of(object: &ServiceObject) -> Vec<(IpAddr, &'static str)> {
    let spec = &object.spec;
    let ingress = object.status.load_balancer.ingress.iter().map(|ingress| &ingress.ip);
    let texts = [&spec.cluster_ip].into_iter().chain(&spec.cluster_ips).map(|text| (text, "spec.clusterIPs"));
    let texts = texts.chain(spec.external_ips.iter().map(|text| (text, "spec.externalIPs")));
    let texts = texts.chain(ingress.map(|text| (text, "status.loadBalancer.ingress")));
    let mut addresses: Vec<_> = texts.filter_map(|(text, field)| Some((parse_address(text)?, field))).collect();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

fn service(object: &ServiceObject) -> (Content, Vec<Problem>) {
    // Another proxy's: it exists, and has no rules here.
    if object.metadata.labels.contains_key(LABEL_SERVICE_PROXY_NAME) {
        return (Content::Service(PerFamily::default()), Vec::new());
    }
    let (service, problems) = convert::service(object);
    (Content::Service(service), problems)
}

fn slice(object: &EndpointSliceObject, node_name: &str) -> (Content, Vec<Problem>) {
    let metadata = &object.metadata;
    if metadata.labels.contains_key(LABEL_HEADLESS) {
        return (Content::EndpointSlice(None), Vec::new());
    }
    let Some(owner) = convert::owner(object) else {
        let object =
            ObjectRef { kind: Kind::EndpointSlice, namespace: metadata.namespace.clone(), name: metadata.name.clone() };
        let problem = Problem {
            object,
            field: format!("metadata.labels[{LABEL_SERVICE_NAME}]"),
            reason: "it is absent, so the slice belongs to no Service; the slice is skipped".to_owned(),
        };
        return (Content::EndpointSlice(None), vec![problem]);
    };
    let owner = ServiceName::new(&metadata.namespace, owner);
    let (slice, problems) = convert::slice(object, node_name);
    (Content::EndpointSlice(slice.map(|slice| (owner, slice))), problems)
}
