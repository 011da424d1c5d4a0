//! From messages to the objects that the compiler reads, which are the same as
//! from JSON.

use jiff::Timestamp;
use vmap_proxy_compiler::model::objects as model;

use super::messages;

impl From<messages::ObjectMeta> for model::ObjectMeta {
    fn from(meta: messages::ObjectMeta) -> Self {
        Self {
            name: meta.name,
            namespace: meta.namespace,
            uid: meta.uid,
            creation_timestamp: meta.creation_timestamp.and_then(time),
            deletion_timestamp: meta.deletion_timestamp.and_then(time),
            resource_version: meta.resource_version,
            labels: meta.labels,
            annotations: meta.annotations,
        }
    }
}

/// Prints a time as JSON has it, RFC 3339 in seconds.
fn time(time: messages::Time) -> Option<String> {
    Timestamp::from_second(time.seconds?).ok().map(|time| time.to_string())
}

/// Kubernetes leaves an empty field without a pointer out of JSON.
fn unless_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// Converts all.
fn all<T, U: From<T>>(messages: Vec<T>) -> Vec<U> {
    messages.into_iter().map(U::from).collect()
}

/// Converts a message that may be absent; JSON then has the default.
fn or_default<T, U: From<T> + Default>(message: Option<T>) -> U {
    message.map(U::from).unwrap_or_default()
}

impl From<messages::Service> for model::ServiceObject {
    fn from(service: messages::Service) -> Self {
        Self {
            metadata: or_default(service.metadata),
            spec: or_default(service.spec),
            status: or_default(service.status),
        }
    }
}

impl From<messages::ServiceSpec> for model::ServiceSpec {
    fn from(spec: messages::ServiceSpec) -> Self {
        Self {
            service_type: spec.service_type,
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ip_families: spec.ip_families,
            ports: all(spec.ports),
            external_name: spec.external_name,
            publish_not_ready_addresses: spec.publish_not_ready_addresses,
            external_ips: spec.external_ips,
            session_affinity: spec.session_affinity,
            session_affinity_config: spec.session_affinity_config.map(Into::into),
            external_traffic_policy: spec.external_traffic_policy,
            internal_traffic_policy: spec.internal_traffic_policy,
            load_balancer_source_ranges: spec.load_balancer_source_ranges,
            health_check_node_port: spec.health_check_node_port.into(),
        }
    }
}

impl From<messages::ServicePort> for model::ServicePortObject {
    fn from(port: messages::ServicePort) -> Self {
        Self {
            name: port.name,
            protocol: unless_empty(port.protocol),
            port: port.port.into(),
            node_port: port.node_port.into(),
        }
    }
}

impl From<messages::SessionAffinityConfig> for model::SessionAffinityConfig {
    fn from(config: messages::SessionAffinityConfig) -> Self {
        let client_ip = |config: messages::ClientIpConfig| model::ClientIpConfig {
            timeout_seconds: config.timeout_seconds.map(i64::from),
        };
        Self { client_ip: config.client_ip.map(client_ip) }
    }
}

impl From<messages::ServiceStatus> for model::ServiceStatus {
    fn from(status: messages::ServiceStatus) -> Self {
        let ingress = status.load_balancer.unwrap_or_default().ingress;
        Self { load_balancer: model::LoadBalancerStatus { ingress: all(ingress) } }
    }
}

impl From<messages::LoadBalancerIngress> for model::LoadBalancerIngress {
    fn from(ingress: messages::LoadBalancerIngress) -> Self {
        Self { ip: ingress.ip, ip_mode: ingress.ip_mode }
    }
}

impl From<messages::EndpointSlice> for model::EndpointSliceObject {
    fn from(slice: messages::EndpointSlice) -> Self {
        Self {
            metadata: or_default(slice.metadata),
            address_type: slice.address_type,
            endpoints: all(slice.endpoints),
            ports: all(slice.ports),
        }
    }
}

impl From<messages::Endpoint> for model::EndpointObject {
    fn from(endpoint: messages::Endpoint) -> Self {
        let conditions = endpoint.conditions.unwrap_or_default();
        Self {
            addresses: endpoint.addresses,
            conditions: model::EndpointConditions {
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
            },
            node_name: endpoint.node_name,
            hostname: endpoint.hostname,
            hints: endpoint.hints.map(Into::into),
            target_ref: or_default(endpoint.target_ref),
        }
    }
}

impl From<messages::ObjectReference> for model::TargetRef {
    fn from(target: messages::ObjectReference) -> Self {
        Self::new(&target.kind, &target.namespace, &target.name)
    }
}

impl From<messages::EndpointHints> for model::EndpointHints {
    fn from(hints: messages::EndpointHints) -> Self {
        Self { for_zones: all(hints.for_zones), for_nodes: all(hints.for_nodes) }
    }
}

impl From<messages::Named> for model::Named {
    fn from(named: messages::Named) -> Self {
        Self { name: named.name }
    }
}

impl From<messages::EndpointPort> for model::EndpointPortObject {
    fn from(port: messages::EndpointPort) -> Self {
        Self { name: port.name, protocol: port.protocol, port: port.port.map(i64::from) }
    }
}

impl From<messages::Node> for model::NodeObject {
    fn from(node: messages::Node) -> Self {
        Self {
            metadata: or_default(node.metadata),
            spec: or_default(node.spec),
            status: model::NodeStatus { addresses: all(node.status.unwrap_or_default().addresses) },
        }
    }
}

impl From<messages::NodeSpec> for model::NodeSpec {
    fn from(spec: messages::NodeSpec) -> Self {
        Self { pod_cidrs: spec.pod_cidrs, taints: all(spec.taints) }
    }
}

impl From<messages::Taint> for model::Taint {
    fn from(taint: messages::Taint) -> Self {
        Self { key: taint.key }
    }
}

impl From<messages::NodeAddress> for model::NodeAddress {
    fn from(address: messages::NodeAddress) -> Self {
        Self { address_type: address.address_type, address: address.address }
    }
}

impl From<messages::ServiceCidr> for model::ServiceCidrObject {
    fn from(service_cidr: messages::ServiceCidr) -> Self {
        Self {
            metadata: or_default(service_cidr.metadata),
            spec: model::ServiceCidrSpec { cidrs: service_cidr.spec.unwrap_or_default().cidrs },
        }
    }
}
