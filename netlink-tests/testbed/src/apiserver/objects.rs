//! The objects, their versions and their history.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::encoding::Encoding;
use super::protobuf;

/// The objects that the double serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` services.
    Services,
    /// `discovery.k8s.io/v1` endpointslices.
    EndpointSlices,
    /// `v1` nodes.
    Nodes,
    /// `networking.k8s.io/v1` servicecidrs.
    ServiceCidrs,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Services, Self::EndpointSlices, Self::Nodes, Self::ServiceCidrs];

    /// The kind of its objects.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::Nodes => "Node",
            Self::ServiceCidrs => "ServiceCIDR",
        }
    }

    /// The `apiVersion` of its objects.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Services | Self::Nodes => "v1",
            Self::EndpointSlices => "discovery.k8s.io/v1",
            Self::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// The path of its collection over all namespaces.
    pub fn path(self) -> &'static str {
        match self {
            Self::Services => "/api/v1/services",
            Self::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Self::Nodes => "/api/v1/nodes",
            Self::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    /// One that is not this one.
    pub(super) fn other(self) -> Self {
        if self == Self::Nodes { Self::Services } else { Self::Nodes }
    }

    pub(super) fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// `namespace/name`, as lists are ordered by it.
pub(super) type Key = (String, String);

/// An object as it is sent, and what selectors look at.
#[derive(Debug)]
pub(super) struct Stored {
    resource: Resource,
    pub(super) text: String,
    /// Encoded, without wrapper.
    pub(super) protobuf: Bytes,
    labels: Vec<String>,
    name: String,
    cluster_ip: String,
}

impl Stored {
    fn new(resource: Resource, object: &Value) -> Self {
        let field = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let labels = object.pointer("/metadata/labels").and_then(Value::as_object);
        Self {
            resource,
            text: object.to_string(),
            protobuf: protobuf::object(resource, object).into(),
            labels: labels.map(|labels| labels.keys().cloned().collect()).unwrap_or_default(),
            name: field("/metadata/name"),
            cluster_ip: field("/spec/clusterIP"),
        }
    }

    /// An object that is not stored; `None` if the double does not know its kind.
    pub(super) fn of_any_kind(object: &Value) -> Option<Self> {
        Some(Self::new(Resource::of_kind(object["kind"].as_str()?)?, object))
    }

    /// An event of a watch about it.
    pub(super) fn event(&self, encoding: Encoding, event_type: &str) -> Vec<u8> {
        match encoding {
            Encoding::Json => json_event(event_type, &self.text),
            Encoding::Protobuf => protobuf::frame(event_type, self.wrapped()),
        }
    }

    /// It alone, as the answer to a request for it.
    pub(super) fn alone(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Json => self.text.clone().into_bytes(),
            Encoding::Protobuf => self.wrapped(),
        }
    }

    fn wrapped(&self) -> Vec<u8> {
        protobuf::wrapped(self.resource.api_version(), self.resource.kind(), self.protobuf.to_vec())
    }

    /// The last state of a deleted object carries the version of the deletion.
    fn with_version(&self, version: u64) -> Self {
        let mut object: Value = serde_json::from_str(&self.text).unwrap_or_default();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        Self::new(self.resource, &object)
    }
}

/// The selectors that a proxy uses; others are refused.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    without_label: Option<String>,
    name: Option<String>,
    not_cluster_ip: Option<String>,
}

impl Selector {
    /// Reads `labelSelector` and `fieldSelector`.
    pub(super) fn parse(label: Option<&str>, field: Option<&str>) -> Result<Self, String> {
        let mut selector = Self::default();
        match label {
            None | Some("") => {}
            Some(label) => match label.strip_prefix('!') {
                Some(label) => selector.without_label = Some(label.to_owned()),
                None => return Err(format!("the double has no label selector {label:?}")),
            },
        }
        match field {
            None | Some("") => {}
            Some(field) => match (field.strip_prefix("metadata.name="), field.strip_prefix("spec.clusterIP!=")) {
                (Some(name), _) => selector.name = Some(name.to_owned()),
                (_, Some(ip)) => selector.not_cluster_ip = Some(ip.to_owned()),
                _ => return Err(format!("the double has no field selector {field:?}")),
            },
        }
        Ok(selector)
    }

    pub(super) fn matches(&self, object: &Stored) -> bool {
        !self.without_label.as_ref().is_some_and(|label| object.labels.contains(label))
            && self.name.as_ref().is_none_or(|name| *name == object.name)
            && self.not_cluster_ip.as_ref().is_none_or(|ip| *ip != object.cluster_ip)
    }
}

/// One change, for watches.
struct Change {
    version: u64,
    resource: Resource,
    before: Option<Arc<Stored>>,
    after: Option<Arc<Stored>>,
}

/// Everything that is stored.
#[derive(Default)]
pub(super) struct Objects {
    version: u64,
    /// A watch or a page from before this version gets 410.
    compacted: u64,
    current: BTreeMap<Resource, BTreeMap<Key, Arc<Stored>>>,
    history: Vec<Change>,
}

impl Objects {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Creates or replaces an object and returns its version.
    pub(super) fn apply(&mut self, mut object: Value) -> u64 {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let resource = Resource::of_kind(&kind).unwrap_or_else(|| panic!("the double serves no {kind:?}: {object}"));
        self.version += 1;
        let version = self.version;
        let metadata = &mut object["metadata"];
        let is_namespaced = matches!(resource, Resource::Services | Resource::EndpointSlices);
        if is_namespaced && metadata["namespace"].is_null() {
            metadata["namespace"] = json!("default");
        }
        metadata["resourceVersion"] = json!(version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("00000000-0000-0000-0000-{version:012}"));
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (text(&metadata["namespace"]), text(&metadata["name"]));
        object["apiVersion"] = json!(resource.api_version());
        let after = Arc::new(Stored::new(resource, &object));
        let before = self.current.entry(resource).or_default().insert(key, after.clone());
        self.history.push(Change { version, resource, before, after: Some(after) });
        version
    }

    /// Deletes an object, if it is there.
    pub(super) fn delete(&mut self, resource: Resource, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let Some(before) = self.current.entry(resource).or_default().remove(&key) else { return };
        self.version += 1;
        self.history.push(Change { version: self.version, resource, before: Some(before), after: None });
    }

    /// Serves no history from before now any more, as etcd does every few
    /// minutes; running watches go on. The version moves on, so that even an
    /// idle watch would be too old.
    pub(super) fn compact(&mut self) {
        self.version += 1;
        self.compacted = self.version;
    }

    pub(super) fn is_compacted(&self, version: u64) -> bool {
        version < self.compacted
    }

    pub(super) fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<Arc<Stored>> {
        self.current.get(&resource)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// At most `limit` objects behind `after`, and whether there are more.
    pub(super) fn list(
        &self,
        resource: Resource,
        selector: &Selector,
        after: Option<&Key>,
        limit: usize,
    ) -> (Vec<Arc<Stored>>, Option<Key>) {
        let Some(objects) = self.current.get(&resource) else { return (Vec::new(), None) };
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut matching =
            objects.range::<Key, _>((start, Bound::Unbounded)).filter(|(_, object)| selector.matches(object));
        let mut page = Vec::new();
        let mut last = None;
        for (key, object) in matching.by_ref().take(limit) {
            page.push(object.clone());
            last = Some(key.clone());
        }
        (page, last.filter(|_| matching.next().is_some()))
    }

    /// The events for a watch that has come as far as `version`; it then has
    /// come as far as [`version`](Self::version).
    pub(super) fn since(&self, version: u64, resource: Resource, selector: &Selector, encoding: Encoding) -> Vec<u8> {
        let start = self.history.partition_point(|change| change.version <= version);
        let mut events = Vec::new();
        for change in self.history[start..].iter().filter(|change| change.resource == resource) {
            let before = change.before.as_ref().filter(|object| selector.matches(object));
            let after = change.after.as_ref().filter(|object| selector.matches(object));
            match (before, after) {
                (None, Some(object)) => events.extend(object.event(encoding, "ADDED")),
                (Some(_), Some(object)) => events.extend(object.event(encoding, "MODIFIED")),
                (Some(object), None) => {
                    events.extend(object.with_version(change.version).event(encoding, "DELETED"));
                }
                (None, None) => {}
            }
        }
        events
    }
}

/// One line of a watch.
fn json_event(event_type: &str, object: &str) -> Vec<u8> {
    format!("{{\"type\":\"{event_type}\",\"object\":{object}}}\n").into_bytes()
}

/// A bookmark; `ends_list` marks the end of a streaming list.
pub(super) fn bookmark(encoding: Encoding, resource: Resource, version: u64, ends_list: bool) -> Vec<u8> {
    if encoding == Encoding::Protobuf {
        return protobuf::frame("BOOKMARK", protobuf::bookmark(resource, version, ends_list));
    }
    let annotations = if ends_list { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
    let object = json!({
        "kind": resource.kind(),
        "apiVersion": resource.api_version(),
        "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null, "annotations": annotations},
    });
    json_event("BOOKMARK", &object.to_string())
}

/// An ERROR event of a watch, which ends it.
pub(super) fn error_event(encoding: Encoding, code: u16, reason: &str, message: &str) -> Vec<u8> {
    match encoding {
        Encoding::Json => json_event("ERROR", &String::from_utf8_lossy(&status(encoding, code, reason, message, None))),
        Encoding::Protobuf => protobuf::frame("ERROR", protobuf::status(code, reason, message, None)),
    }
}

/// A `metav1.Status`, as the server answers failures. `retry_after` is in
/// seconds.
pub(super) fn status(encoding: Encoding, code: u16, reason: &str, message: &str, retry_after: Option<u32>) -> Vec<u8> {
    if encoding == Encoding::Protobuf {
        return protobuf::status(code, reason, message, retry_after);
    }
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
    }
    status.to_string().into_bytes()
}

/// A list.
pub(super) fn list(
    encoding: Encoding,
    resource: Resource,
    version: u64,
    token: &str,
    objects: &[Arc<Stored>],
) -> Vec<u8> {
    if encoding == Encoding::Protobuf {
        let items = objects.iter().map(|object| object.protobuf.clone()).collect();
        return protobuf::list(resource, version, token, items);
    }
    let items: Vec<&str> = objects.iter().map(|object| object.text.as_str()).collect();
    format!(
        "{{\"kind\":\"{resource}List\",\"apiVersion\":\"{}\",\"metadata\":{{\"resourceVersion\":\"{version}\",\"continue\":\"{token}\"}},\"items\":[{}]}}\n",
        resource.api_version(),
        items.join(","),
    )
    .into_bytes()
}
