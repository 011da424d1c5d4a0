//! The followed resources: paths, selectors, and required permissions.

use std::fmt::Write;
use std::time::Duration;

use vmap_proxy_compiler::model::objects::{Kind, LABEL_HEADLESS, LABEL_SERVICE_PROXY_NAME, Object};

use super::Timing;

/// The field that identifies headless Services.
const CLUSTER_IP: &str = "spec.clusterIP";

/// One resource of the API, narrowed to what a proxy needs (the same selectors
/// as kube-proxy's).
#[derive(Debug, Clone)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    group: &'static str,
    version: &'static str,
    plural: &'static str,
    label_selector: Option<String>,
    field_selector: Option<String>,
    /// Whether it is followed for DNS as well.
    with_names: bool,
}

impl Resource {
    /// Everything a proxy on `node_name` follows. The small ones first: the
    /// Services are then compiled with the right Node from the start.
    ///
    /// `with_names`: headless Services and those of other proxies as well, since
    /// they have names.
    pub(super) fn all(node_name: &str, with_names: bool) -> [Self; 4] {
        let new = |kind, group, version, plural| Self {
            kind,
            group,
            version,
            plural,
            label_selector: None,
            field_selector: None,
            with_names,
        };
        let unless_names = |selector: String| (!with_names).then_some(selector);
        [
            Self { field_selector: Some(format!("metadata.name={node_name}")), ..new(Kind::Node, "", "v1", "nodes") },
            new(Kind::ServiceCidr, "networking.k8s.io", "v1", "servicecidrs"),
            Self {
                label_selector: unless_names(format!("!{LABEL_SERVICE_PROXY_NAME}")),
                field_selector: unless_names(format!("{CLUSTER_IP}!=None")),
                ..new(Kind::Service, "", "v1", "services")
            },
            Self {
                label_selector: unless_names(format!("!{LABEL_HEADLESS}")),
                ..new(Kind::EndpointSlice, "discovery.k8s.io", "v1", "endpointslices")
            },
        ]
    }

    /// Longest time that the first sync waits for this resource; `None` if it
    /// waits without limit, because rules without it would be wrong.
    pub(super) fn patience(&self, timing: &Timing) -> Option<Duration> {
        match self.kind {
            Kind::Service | Kind::EndpointSlice => None,
            Kind::Node => Some(timing.node_patience),
            Kind::ServiceCidr => Some(timing.service_cidr_patience),
        }
    }

    /// Returns whether there may be very many of it.
    pub(super) fn is_numerous(&self) -> bool {
        matches!(self.kind, Kind::Service | Kind::EndpointSlice)
    }

    /// Returns whether the cluster may lack it: ServiceCIDRs are served since
    /// 1.33.
    pub(super) fn is_optional(&self) -> bool {
        self.kind == Kind::ServiceCidr
    }

    /// Drops the field selector if `complaint`, the server's answer 400, is
    /// about it; whether it was.
    pub(super) fn drop_field_selector(&mut self, complaint: &str) -> bool {
        let is_meant = self.kind == Kind::Service && complaint.contains(CLUSTER_IP);
        is_meant && self.field_selector.take().is_some()
    }

    /// Returns whether the selectors of kube-proxy leave this object out.
    pub(super) fn leaves_out(&self, object: &Object) -> bool {
        !self.with_names && matches!(object, Object::Service(service) if service.spec.cluster_ip == "None")
    }

    /// A page of at most `size` objects of the list; the next one with the token of the one before.
    pub(super) fn page(&self, size: u32, token: Option<&str>) -> String {
        let mut query = self.query();
        query.add("limit", &size.to_string());
        if let Some(token) = token {
            query.add("continue", token);
        }
        query.0
    }

    /// Changes from `version` on, for `timeout`.
    pub(super) fn watch(&self, version: &str, timeout: Duration) -> String {
        let mut query = self.watching(timeout);
        query.add("resourceVersion", version);
        query.0
    }

    /// A streaming list: the objects as a watch's first events, a bookmark,
    /// then the changes. <https://kubernetes.io/docs/reference/using-api/api-concepts/#streaming-lists>
    pub(super) fn streaming_list(&self, timeout: Duration) -> String {
        let mut query = self.watching(timeout);
        query.add("sendInitialEvents", "true");
        query.add("resourceVersionMatch", "NotOlderThan");
        query.0
    }

    fn watching(&self, timeout: Duration) -> Query {
        let mut query = self.query();
        query.add("watch", "true");
        query.add("allowWatchBookmarks", "true");
        query.add("timeoutSeconds", &timeout.as_secs().to_string());
        query
    }

    fn query(&self) -> Query {
        let root = if self.group.is_empty() { "api".to_owned() } else { format!("apis/{}", self.group) };
        let mut query = Query(format!("/{root}/{}/{}?", self.version, self.plural));
        if let Some(selector) = &self.label_selector {
            query.add("labelSelector", selector);
        }
        if let Some(selector) = &self.field_selector {
            query.add("fieldSelector", selector);
        }
        query
    }

    /// The rule that a ClusterRole needs.
    pub(super) fn rbac_rule(&self) -> String {
        format!("{{apiGroups: [\"{}\"], resources: [\"{}\"], verbs: [\"list\", \"watch\"]}}", self.group, self.plural)
    }
}

/// A path with a growing query.
struct Query(String);

impl Query {
    fn add(&mut self, key: &str, value: &str) {
        if !self.0.ends_with('?') {
            self.0.push('&');
        }
        self.0.push_str(key);
        self.0.push('=');
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => self.0.push(char::from(byte)),
                // Writing to a string can't fail.
                _ => drop(write!(self.0, "%{byte:02X}")),
            }
        }
    }
}
