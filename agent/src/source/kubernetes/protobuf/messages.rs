//! The used fields of Kubernetes' messages. The decoder skips all others, and
//! they cost no memory.
//!
//! The numbers are those of `generated.proto` in `k8s.io/api` and
//! `k8s.io/apimachinery`; they never change. A field that is `optional` here is a
//! pointer in Kubernetes: it distinguishes absent from empty. All others are
//! always sent, and empty ones mean absent.

use std::collections::BTreeMap;

use prost::Message;

/// `meta.v1.ObjectMeta`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectMeta {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(string, tag = "5")]
    pub(super) uid: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
    #[prost(message, optional, tag = "8")]
    pub(super) creation_timestamp: Option<Time>,
    #[prost(message, optional, tag = "9")]
    pub(super) deletion_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(btree_map = "string, string", tag = "12")]
    pub(super) annotations: BTreeMap<String, String>,
}

/// `meta.v1.Time`; without seconds it is the zero time, which JSON calls `null`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct Time {
    #[prost(int64, optional, tag = "1")]
    pub(super) seconds: Option<i64>,
}

/// The first field of every object.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Meta {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
}

/// `meta.v1.ListMeta`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ListMeta {
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
    #[prost(string, tag = "3")]
    pub(super) continue_token: String,
}

/// `meta.v1.Status`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(string, tag = "3")]
    pub(super) message: String,
    #[prost(string, tag = "4")]
    pub(super) reason: String,
    #[prost(message, optional, tag = "5")]
    pub(super) details: Option<StatusDetails>,
    #[prost(int32, tag = "6")]
    pub(super) code: i32,
}

/// `meta.v1.StatusDetails`
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct StatusDetails {
    #[prost(int32, tag = "5")]
    pub(super) retry_after_seconds: i32,
}

/// `core.v1.Service`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Service {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<ServiceStatus>,
}

/// `core.v1.ServiceSpec`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    pub(super) ports: Vec<ServicePort>,
    #[prost(string, tag = "3")]
    pub(super) cluster_ip: String,
    #[prost(string, tag = "4")]
    pub(super) service_type: String,
    #[prost(string, repeated, tag = "5")]
    pub(super) external_ips: Vec<String>,
    #[prost(string, tag = "7")]
    pub(super) session_affinity: String,
    #[prost(string, repeated, tag = "9")]
    pub(super) load_balancer_source_ranges: Vec<String>,
    #[prost(string, tag = "10")]
    pub(super) external_name: String,
    #[prost(string, tag = "11")]
    pub(super) external_traffic_policy: String,
    #[prost(int32, tag = "12")]
    pub(super) health_check_node_port: i32,
    #[prost(bool, tag = "13")]
    pub(super) publish_not_ready_addresses: bool,
    #[prost(message, optional, tag = "14")]
    pub(super) session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    pub(super) cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    pub(super) ip_families: Vec<String>,
    #[prost(string, tag = "22")]
    pub(super) internal_traffic_policy: String,
}

/// `core.v1.ServicePort`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServicePort {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) protocol: String,
    #[prost(int32, tag = "3")]
    pub(super) port: i32,
    #[prost(int32, tag = "5")]
    pub(super) node_port: i32,
}

/// `core.v1.SessionAffinityConfig`
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    pub(super) client_ip: Option<ClientIpConfig>,
}

/// `core.v1.ClientIPConfig`
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    pub(super) timeout_seconds: Option<i32>,
}

/// `core.v1.ServiceStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    pub(super) load_balancer: Option<LoadBalancerStatus>,
}

/// `core.v1.LoadBalancerStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    pub(super) ingress: Vec<LoadBalancerIngress>,
}

/// `core.v1.LoadBalancerIngress`
#[derive(Clone, PartialEq, Message)]
pub(super) struct LoadBalancerIngress {
    #[prost(string, tag = "1")]
    pub(super) ip: String,
    #[prost(string, optional, tag = "3")]
    pub(super) ip_mode: Option<String>,
}

/// `discovery.v1.EndpointSlice`
#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, repeated, tag = "2")]
    pub(super) endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    pub(super) ports: Vec<EndpointPort>,
    #[prost(string, tag = "4")]
    pub(super) address_type: String,
}

/// `discovery.v1.Endpoint`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    pub(super) addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    pub(super) conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "3")]
    pub(super) hostname: Option<String>,
    #[prost(message, optional, tag = "4")]
    pub(super) target_ref: Option<ObjectReference>,
    #[prost(string, optional, tag = "6")]
    pub(super) node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    pub(super) hints: Option<EndpointHints>,
}

/// `core.v1.ObjectReference`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ObjectReference {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

/// `discovery.v1.EndpointConditions`
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    pub(super) ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    pub(super) serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    pub(super) terminating: Option<bool>,
}

/// `discovery.v1.EndpointHints`
#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    pub(super) for_zones: Vec<Named>,
    #[prost(message, repeated, tag = "2")]
    pub(super) for_nodes: Vec<Named>,
}

/// `discovery.v1.ForZone` and `discovery.v1.ForNode`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// `discovery.v1.EndpointPort`
#[derive(Clone, PartialEq, Message)]
pub(super) struct EndpointPort {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "2")]
    pub(super) protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    pub(super) port: Option<i32>,
}

/// `core.v1.Node`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    pub(super) status: Option<NodeStatus>,
}

/// `core.v1.NodeSpec`
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeSpec {
    #[prost(message, repeated, tag = "5")]
    pub(super) taints: Vec<Taint>,
    #[prost(string, repeated, tag = "7")]
    pub(super) pod_cidrs: Vec<String>,
}

/// `core.v1.Taint`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Taint {
    #[prost(string, tag = "1")]
    pub(super) key: String,
}

/// `core.v1.NodeStatus`
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    pub(super) addresses: Vec<NodeAddress>,
}

/// `core.v1.NodeAddress`
#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeAddress {
    #[prost(string, tag = "1")]
    pub(super) address_type: String,
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

/// `networking.v1.ServiceCIDR`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<ObjectMeta>,
    #[prost(message, optional, tag = "2")]
    pub(super) spec: Option<ServiceCidrSpec>,
}

/// `networking.v1.ServiceCIDRSpec`
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceCidrSpec {
    #[prost(string, repeated, tag = "1")]
    pub(super) cidrs: Vec<String>,
}
