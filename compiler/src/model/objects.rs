//! The parts of Kubernetes objects that a proxy reads, and nothing else. All
//! other fields are skipped while parsing and cost no memory. Fields that a
//! newer Kubernetes adds are therefore no error.
//!
//! Numbers are wide and strings unchecked on purpose: an impossible value is
//! reported with the object's name by [`super::convert`], not by the parser.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::slice::NameDigest;

/// Label on a Service that hands it to another proxy; any value counts.
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label on an EndpointSlice that takes it from the proxy; any value counts.
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// Label on an EndpointSlice that names its Service.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label on a Node that names its zone.
pub const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Annotation on an EndpointSlice: when the change that led to it happened
/// (RFC 3339), for the network programming latency.
pub const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// `null` counts as absent, as the API server has it.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The metadata that the proxy reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// The name, unique in its namespace.
    pub name: String,
    /// The namespace; empty for Nodes and ServiceCIDRs.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
    /// Identity across deletion and re-creation.
    #[serde(deserialize_with = "or_default")]
    pub uid: String,
    /// RFC 3339; absent in most manifests.
    pub creation_timestamp: Option<String>,
    /// Present while the object is being deleted.
    pub deletion_timestamp: Option<String>,
    /// The server's version of the object, opaque.
    #[serde(deserialize_with = "or_default")]
    pub resource_version: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// `v1` Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceObject {
    /// Name, labels.
    pub metadata: ObjectMeta,
    /// The desired state.
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    /// The state that the load balancer reports.
    #[serde(deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// `ServiceSpec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub service_type: String,
    /// The first cluster IP, `None` or empty.
    #[serde(rename = "clusterIP", deserialize_with = "or_default")]
    pub cluster_ip: String,
    /// One cluster IP a family.
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// `IPv4`, `IPv6`, in the order of `clusterIPs`.
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
    /// The ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePortObject>,
    /// The name that a Service of type `ExternalName` stands for, for DNS; the
    /// proxy ignores it.
    #[serde(deserialize_with = "or_default")]
    pub external_name: String,
    /// Whether endpoints that are not ready have names in DNS; the proxy ignores
    /// it.
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
    /// Addresses that other systems route to the nodes.
    #[serde(rename = "externalIPs", deserialize_with = "or_default")]
    pub external_ips: Vec<String>,
    /// `None` or `ClientIP`.
    #[serde(deserialize_with = "or_default")]
    pub session_affinity: String,
    /// The timeout of `ClientIP`.
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "or_default")]
    pub external_traffic_policy: String,
    /// `Cluster` or `Local`.
    #[serde(deserialize_with = "or_default")]
    pub internal_traffic_policy: String,
    /// Clients that may use the load balancer.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer_source_ranges: Vec<String>,
    /// The port at which a load balancer checks whether this node has
    /// endpoints.
    #[serde(deserialize_with = "or_default")]
    pub health_check_node_port: i64,
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePortObject {
    /// May be empty if it is the only port.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// `TCP` (also when absent), `UDP`, `SCTP`.
    pub protocol: Option<String>,
    /// The port of the Service.
    #[serde(deserialize_with = "or_default")]
    pub port: i64,
    /// 0: none.
    #[serde(deserialize_with = "or_default")]
    pub node_port: i64,
}

/// `SessionAffinityConfig`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionAffinityConfig {
    /// The settings of `ClientIP`.
    #[serde(rename = "clientIP")]
    pub client_ip: Option<ClientIpConfig>,
}

/// `ClientIPConfig`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientIpConfig {
    /// Seconds; 10800 when absent.
    pub timeout_seconds: Option<i64>,
}

/// `ServiceStatus`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// The state that the load balancer reports.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancerStatus,
}

/// `LoadBalancerStatus`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerStatus {
    /// Addresses and host names of the load balancer.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// `LoadBalancerIngress`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// Empty for one that only has a host name.
    #[serde(deserialize_with = "or_default")]
    pub ip: String,
    /// `VIP` (also when absent) or `Proxy`.
    pub ip_mode: Option<String>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSliceObject {
    /// Name, labels, trigger time.
    pub metadata: ObjectMeta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(deserialize_with = "or_default")]
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<EndpointObject>,
    /// The ports that every one of them has.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<EndpointPortObject>,
}

/// One entry of `endpoints`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointObject {
    /// Only the first one counts.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Readiness.
    #[serde(deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
    /// The node it runs on.
    pub node_name: Option<String>,
    /// Its host name, for DNS; the proxy only shows it.
    pub hostname: Option<String>,
    /// The clients it is meant for.
    pub hints: Option<EndpointHints>,
    /// The Pod that it belongs to, to be found by its name. Digests can't be written
    /// back.
    #[serde(deserialize_with = "or_default", skip_serializing)]
    pub target_ref: TargetRef,
}

/// `ObjectReference` to a Pod, as digests: a file may list half a million endpoints, and
/// names would take many times the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TargetRef {
    /// Its namespace; none: that of the slice.
    pub namespace: NameDigest,
    /// Its name; none: the endpoint belongs to no Pod.
    pub pod: NameDigest,
}

impl TargetRef {
    /// The digests of the Pod of a reference; none if it is to another kind of object.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        if kind == "Pod" {
            Self { namespace: NameDigest::of(namespace), pod: NameDigest::of(name) }
        } else {
            Self::default()
        }
    }

    /// The Pod, if it is in the namespace of its slice.
    pub fn pod_in(&self, namespace: &str) -> NameDigest {
        let is_same = self.namespace == NameDigest::NONE || self.namespace == NameDigest::of(namespace);
        if is_same { self.pod } else { NameDigest::NONE }
    }
}

impl<'de> Deserialize<'de> for TargetRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// A text that is borrowed where that is possible.
        #[derive(Default, Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Named<'a> {
            #[serde(borrow, deserialize_with = "or_default")]
            kind: Text<'a>,
            #[serde(borrow, deserialize_with = "or_default")]
            namespace: Text<'a>,
            #[serde(borrow, deserialize_with = "or_default")]
            name: Text<'a>,
        }

        let Named { kind, namespace, name } = Named::deserialize(deserializer)?;
        Ok(Self::new(&kind.0, &namespace.0, &name.0))
    }
}

/// `EndpointConditions`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// Absent: true.
    pub ready: Option<bool>,
    /// Absent: true.
    pub serving: Option<bool>,
    /// Absent: false.
    pub terminating: Option<bool>,
}

/// `EndpointHints`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointHints {
    /// Zones that should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<Named>,
    /// Nodes that should use it.
    #[serde(deserialize_with = "or_default")]
    pub for_nodes: Vec<Named>,
}

/// An object with nothing but a name (`ForZone`, `ForNode`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Named {
    /// The name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
}

/// One entry of a slice's `ports`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointPortObject {
    /// Absent is not the same as empty: such a port is skipped.
    pub name: Option<String>,
    /// `TCP` when absent.
    pub protocol: Option<String>,
    /// Absent or 0: the port is skipped.
    pub port: Option<i64>,
}

/// `v1` Node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeObject {
    /// Name, zone label, deletion.
    pub metadata: ObjectMeta,
    /// Pod ranges and taints.
    #[serde(deserialize_with = "or_default")]
    pub spec: NodeSpec,
    /// Addresses.
    #[serde(deserialize_with = "or_default")]
    pub status: NodeStatus,
}

/// `NodeSpec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The pod ranges of this node, for `detectLocalMode: NodeCIDR`.
    #[serde(rename = "podCIDRs", deserialize_with = "or_default")]
    pub pod_cidrs: Vec<String>,
    /// Taints, for `/healthz`.
    #[serde(deserialize_with = "or_default")]
    pub taints: Vec<Taint>,
}

/// `Taint`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taint {
    /// The key.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
}

/// `NodeStatus`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Addresses, the most wanted first of each type.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<NodeAddress>,
}

/// `NodeAddress`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`, …
    #[serde(rename = "type")]
    pub address_type: String,
    /// The address.
    pub address: String,
}

/// `networking.k8s.io/v1` ServiceCIDR.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceCidrObject {
    /// Name.
    pub metadata: ObjectMeta,
    /// The ranges.
    #[serde(deserialize_with = "or_default")]
    pub spec: ServiceCidrSpec,
}

/// `ServiceCIDRSpec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceCidrSpec {
    /// One range a family.
    #[serde(deserialize_with = "or_default")]
    pub cidrs: Vec<String>,
}

/// An object of one of the kinds a proxy follows. In JSON and YAML, `kind` (and
/// `apiVersion`, which the sources check) selects the kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
#[expect(clippy::large_enum_variant, reason = "objects pass through by the thousand: no allocation for each")]
pub enum Object {
    /// `v1` Service.
    Service(ServiceObject),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(EndpointSliceObject),
    /// `v1` Node.
    Node(NodeObject),
    /// `networking.k8s.io/v1` ServiceCIDR.
    #[serde(rename = "ServiceCIDR")]
    ServiceCidr(ServiceCidrObject),
}

/// The kinds of [`Object`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR.
    ServiceCidr,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// The identity of an object: enough to delete it, and to name it in a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, empty for Nodes and ServiceCIDRs.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    /// `Service shop/cart`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

impl Object {
    /// Returns the identity of this object.
    pub fn reference(&self) -> ObjectRef {
        let kind = match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Node(_) => Kind::Node,
            Object::ServiceCidr(_) => Kind::ServiceCidr,
        };
        let metadata = self.metadata();
        ObjectRef { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }

    /// Returns the metadata of this object.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
            Object::ServiceCidr(object) => &object.metadata,
        }
    }
}

/// A report of a source: the current state of an object, or its deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all changes are the large variant")]
pub enum Change {
    /// The object was added or changed.
    Apply(Object),
    /// The object is gone.
    Delete(ObjectRef),
    /// The object exists but cannot be read. Its known state stays, also while
    /// a complete list is applied.
    Keep(ObjectRef),
}
