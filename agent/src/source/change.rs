//! One change of an object, as a source hands it on.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::convert::Problem;
use vmap_proxy_compiler::model::objects::{ANNOTATION_TRIGGER_TIME, Change, EndpointSliceObject, NodeObject, Object};
use vmap_proxy_compiler::model::{NodeInfo, ObjectRef};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_dns_zone::NameContent;

/// A checked change of one object, with all parts of the object that are read
/// for purposes other than rules. Only the source sees the object itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectChange {
    /// The change for the store.
    pub checked: CheckedChange,
    /// The place where it was read.
    pub origin: Origin,
    /// The time of its trigger (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`); slices only.
    pub triggered: Option<SystemTime>,
    /// The announced future of a Node; Nodes only.
    pub node_marks: Option<NodeMarks>,
    /// The names of the object, if the source is configured to read them.
    pub names: Option<Box<NameContent>>,
    /// `metadata.resourceVersion`, if it came from an API server.
    pub resource_version: Option<Box<str>>,
}

/// The place where an object was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// From a watch or a list of the API server.
    ApiServer,
    /// In a file.
    File {
        /// The identity.
        path: Arc<Path>,
        /// The line on which the document begins, counted from 1.
        line: usize,
    },
    /// Nowhere: the agent made it up, or no file holds the object any more.
    Agent,
}

impl fmt::Display for Origin {
    /// `the API server`, `shop.yaml:12`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiServer => f.write_str("the API server"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Agent => f.write_str("the agent"),
        }
    }
}

/// The announced future of a Node, for load balancers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeMarks {
    /// Whether it has a deletion timestamp.
    pub is_being_deleted: bool,
    /// The keys of its taints.
    pub taints: Vec<String>,
}

impl ObjectChange {
    /// Checks a change for the node of this name, and lists its unusable parts.
    /// This is the only place where an object is read.
    pub fn read(change: &Change, node_name: &str, origin: Origin) -> (Self, Vec<Problem>) {
        let (checked, problems) = CheckedChange::new(change, node_name);
        let (triggered, node_marks) = match change {
            Change::Apply(Object::EndpointSlice(slice)) => (trigger_time(slice), None),
            Change::Apply(Object::Node(node)) => (None, Some(NodeMarks::of(node))),
            Change::Apply(_) | Change::Delete(_) | Change::Keep(_) => (None, None),
        };
        let resource_version = match change {
            Change::Apply(object) => Some(object.metadata().resource_version.as_str()),
            Change::Delete(_) | Change::Keep(_) => None,
        };
        let resource_version = resource_version.filter(|version| !version.is_empty()).map(Box::from);
        (Self { checked, origin, triggered, node_marks, names: None, resource_version }, problems)
    }

    /// Like [`read`](Self::read), and reads the object's names for DNS as well.
    pub fn read_with_names(change: &Change, node_name: &str, origin: Origin) -> (Self, Vec<Problem>) {
        let (mut read, mut problems) = Self::read(change, node_name, origin);
        if let Change::Apply(_) = change {
            let (names, more) = NameContent::read(change);
            read.names = Some(Box::new(names));
            problems.extend(more);
        }
        (read, problems)
    }

    /// Takes the names of the object out: what there is for DNS to do.
    pub fn take_names(&mut self) -> Option<NameContent> {
        if self.is_gone() {
            return Some(NameContent::Gone);
        }
        if self.is_kept() {
            return Some(NameContent::Kept);
        }
        self.names.take().map(|names| *names)
    }

    /// The object is gone.
    pub fn gone(object: ObjectRef, origin: Origin) -> Self {
        let checked = CheckedChange::of(object, Content::Gone);
        Self { checked, origin, triggered: None, node_marks: None, names: None, resource_version: None }
    }

    /// The identity of the object.
    pub fn object(&self) -> &ObjectRef {
        &self.checked.object
    }

    /// Returns whether the object is gone.
    pub fn is_gone(&self) -> bool {
        self.checked.content == Content::Gone
    }

    /// Returns whether the object cannot be read, and keeps its known state.
    pub fn is_kept(&self) -> bool {
        self.checked.content == Content::Kept
    }

    /// Returns the announcement of the Node, if it is one.
    pub fn node(&self) -> Option<&NodeInfo> {
        match &self.checked.content {
            Content::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The family of a slice that has a trigger time, and that time.
    pub fn trigger(&self) -> Option<(Family, SystemTime)> {
        match &self.checked.content {
            Content::EndpointSlice(Some((_, slice))) => Some((slice.family(), self.triggered?)),
            _ => None,
        }
    }
}

fn trigger_time(slice: &EndpointSliceObject) -> Option<SystemTime> {
    let text = slice.metadata.annotations.get(ANNOTATION_TRIGGER_TIME)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

impl NodeMarks {
    fn of(node: &NodeObject) -> Self {
        Self {
            is_being_deleted: node.metadata.deletion_timestamp.is_some(),
            taints: node.spec.taints.iter().map(|taint| taint.key.clone()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, from_value, json};

    use super::*;

    fn read(object: Value) -> (ObjectChange, Vec<Problem>) {
        let object = from_value(object).unwrap();
        ObjectChange::read(&Change::Apply(object), "n1", Origin::ApiServer)
    }

    #[test]
    fn a_slice_carries_the_time_of_what_led_to_it() {
        let slice = |time: &str, address_type: &str| {
            json!({
                "kind": "EndpointSlice", "addressType": address_type,
                "metadata": {
                    "name": "cart-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"},
                    "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": time},
                },
            })
        };
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        assert_eq!(read(slice("1970-01-02T00:00:00Z", "IPv6")).0.trigger(), Some((Family::Ipv6, time)));
        assert_eq!(read(slice("yesterday", "IPv4")).0.trigger(), None);
        assert_eq!(read(slice("1970-01-02T00:00:00Z", "FQDN")).0.trigger(), None);
    }

    #[test]
    fn a_node_carries_what_it_says_of_its_future() {
        let node = json!({
            "kind": "Node", "metadata": {"name": "n1", "deletionTimestamp": "2026-11-25T00:00:00Z"},
            "spec": {"taints": [{"key": "a"}, {"key": "b"}]},
            "status": {"addresses": [{"type": "InternalIP", "address": "x"}]},
        });
        let (change, problems) = read(node);
        let marks = NodeMarks { is_being_deleted: true, taints: vec!["a".to_owned(), "b".to_owned()] };
        assert_eq!((change.node_marks, problems.len()), (Some(marks), 1));
    }
}
