//! A change of one object in checked types. A source creates it once, where it
//! reads the object, and the store takes it.

use ipnet::IpNet;

use super::config::NodeInfo;
use super::convert::{self, Problem, Slice};
use super::family::PerFamily;
use super::objects::{
    Change, EndpointSliceObject, Kind, LABEL_HEADLESS, LABEL_SERVICE_NAME, LABEL_SERVICE_PROXY_NAME, Object, ObjectRef,
    ServiceObject,
};
use super::types::{Service, ServiceName};

/// A checked change of one object, which makes the object itself unnecessary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedChange {
    /// The identity of the object.
    pub object: ObjectRef,
    /// The change.
    pub content: Content,
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
                (Self { object: object.reference(), content }, problems)
            }
            Change::Delete(object) => (Self { object: object.clone(), content: Content::Gone }, Vec::new()),
            Change::Keep(object) => (Self { object: object.clone(), content: Content::Kept }, Vec::new()),
        }
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
