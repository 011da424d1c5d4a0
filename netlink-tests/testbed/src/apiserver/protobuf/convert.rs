//! From manifests to the messages of `k8s-pb`.
//!
//! JSON is read with the types of `k8s-openapi`. Fields that are no pointers in
//! Kubernetes are always sent, empty ones, too, as the API server does.

use k8s_openapi::api::core::v1 as core_json;
use k8s_openapi::api::discovery::v1 as discovery_json;
use k8s_openapi::api::networking::v1 as networking_json;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta_json;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_pb::api::core::v1 as core;
use k8s_pb::api::discovery::v1 as discovery;
use k8s_pb::api::networking::v1 as networking;
use k8s_pb::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_pb::apimachinery::pkg::util::intstr;
use prost::Message;
use serde_json::{Value, from_value};

use crate::apiserver::objects::Resource;

/// Encodes an object; the error is why Kubernetes has no form for it.
pub(super) fn object(resource: Resource, object: &Value) -> Result<Vec<u8>, serde_json::Error> {
    let object = object.clone();
    Ok(match resource {
        Resource::Services => service(from_value(object)?).encode_to_vec(),
        Resource::EndpointSlices => slice(from_value(object)?).encode_to_vec(),
        Resource::Nodes => node(from_value(object)?).encode_to_vec(),
        Resource::ServiceCidrs => service_cidr(from_value(object)?).encode_to_vec(),
    })
}

/// The metadata of an object.
pub(super) fn metadata(metadata: Value) -> Result<meta::ObjectMeta, serde_json::Error> {
    Ok(object_meta(from_value(metadata)?))
}

/// A value that is always sent.
fn sent<T: Default>(value: Option<T>) -> Option<T> {
    Some(value.unwrap_or_default())
}

fn all<T, U>(values: Option<Vec<T>>, convert: impl Fn(T) -> U) -> Vec<U> {
    values.unwrap_or_default().into_iter().map(convert).collect()
}

fn time(time: meta_json::Time) -> meta::Time {
    meta::Time { seconds: Some(time.0.as_second()), nanos: Some(0) }
}

fn object_meta(metadata: meta_json::ObjectMeta) -> meta::ObjectMeta {
    meta::ObjectMeta {
        name: sent(metadata.name),
        generate_name: sent(metadata.generate_name),
        namespace: sent(metadata.namespace),
        self_link: sent(metadata.self_link),
        uid: sent(metadata.uid),
        resource_version: sent(metadata.resource_version),
        generation: sent(metadata.generation),
        // The zero time is an empty message.
        creation_timestamp: sent(metadata.creation_timestamp.map(time)),
        deletion_timestamp: metadata.deletion_timestamp.map(time),
        deletion_grace_period_seconds: metadata.deletion_grace_period_seconds,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        owner_references: all(metadata.owner_references, |owner| meta::OwnerReference {
            api_version: Some(owner.api_version),
            kind: Some(owner.kind),
            name: Some(owner.name),
            uid: Some(owner.uid),
            controller: owner.controller,
            block_owner_deletion: owner.block_owner_deletion,
        }),
        finalizers: metadata.finalizers.unwrap_or_default(),
        managed_fields: all(metadata.managed_fields, |entry| meta::ManagedFieldsEntry {
            manager: sent(entry.manager),
            operation: sent(entry.operation),
            api_version: sent(entry.api_version),
            time: entry.time.map(time),
            fields_type: sent(entry.fields_type),
            fields_v1: entry.fields_v1.map(|fields| meta::FieldsV1 { raw: Some(fields.0.to_string().into_bytes()) }),
            subresource: sent(entry.subresource),
        }),
    }
}

fn service(service: core_json::Service) -> core::Service {
    let load_balancer = service.status.and_then(|status| status.load_balancer).unwrap_or_default();
    core::Service {
        metadata: Some(object_meta(service.metadata)),
        spec: Some(service_spec(service.spec.unwrap_or_default())),
        status: Some(core::ServiceStatus {
            load_balancer: Some(core::LoadBalancerStatus {
                ingress: all(load_balancer.ingress, |ingress| core::LoadBalancerIngress {
                    ip: sent(ingress.ip),
                    hostname: sent(ingress.hostname),
                    ip_mode: ingress.ip_mode,
                    ports: all(ingress.ports, |port| core::PortStatus {
                        port: Some(port.port),
                        protocol: Some(port.protocol),
                        error: port.error,
                    }),
                }),
            }),
            conditions: Vec::new(),
        }),
    }
}

fn service_spec(spec: core_json::ServiceSpec) -> core::ServiceSpec {
    core::ServiceSpec {
        ports: all(spec.ports, service_port),
        selector: spec.selector.unwrap_or_default(),
        cluster_ip: sent(spec.cluster_ip),
        cluster_ips: spec.cluster_ips.unwrap_or_default(),
        r#type: sent(spec.type_),
        external_ips: spec.external_ips.unwrap_or_default(),
        session_affinity: sent(spec.session_affinity),
        load_balancer_ip: sent(spec.load_balancer_ip),
        load_balancer_source_ranges: spec.load_balancer_source_ranges.unwrap_or_default(),
        external_name: sent(spec.external_name),
        external_traffic_policy: sent(spec.external_traffic_policy),
        health_check_node_port: sent(spec.health_check_node_port),
        publish_not_ready_addresses: sent(spec.publish_not_ready_addresses),
        session_affinity_config: spec.session_affinity_config.map(|config| core::SessionAffinityConfig {
            client_ip: config
                .client_ip
                .map(|client_ip| core::ClientIpConfig { timeout_seconds: client_ip.timeout_seconds }),
        }),
        ip_families: spec.ip_families.unwrap_or_default(),
        ip_family_policy: spec.ip_family_policy,
        allocate_load_balancer_node_ports: spec.allocate_load_balancer_node_ports,
        load_balancer_class: spec.load_balancer_class,
        internal_traffic_policy: spec.internal_traffic_policy,
        traffic_distribution: spec.traffic_distribution,
    }
}

fn service_port(port: core_json::ServicePort) -> core::ServicePort {
    let target_port = port.target_port.unwrap_or(IntOrString::Int(0));
    core::ServicePort {
        name: sent(port.name),
        protocol: sent(port.protocol),
        app_protocol: port.app_protocol,
        port: Some(port.port),
        target_port: Some(match target_port {
            IntOrString::Int(number) => {
                intstr::IntOrString { r#type: Some(0), int_val: Some(number), str_val: Some(String::new()) }
            }
            IntOrString::String(name) => intstr::IntOrString { r#type: Some(1), int_val: Some(0), str_val: Some(name) },
        }),
        node_port: sent(port.node_port),
    }
}

fn slice(slice: discovery_json::EndpointSlice) -> discovery::EndpointSlice {
    discovery::EndpointSlice {
        metadata: Some(object_meta(slice.metadata)),
        address_type: Some(slice.address_type),
        endpoints: all(slice.endpoints, endpoint),
        ports: all(slice.ports, |port| discovery::EndpointPort {
            name: port.name,
            protocol: port.protocol,
            port: port.port,
            app_protocol: port.app_protocol,
        }),
    }
}

fn endpoint(endpoint: discovery_json::Endpoint) -> discovery::Endpoint {
    let conditions = endpoint.conditions.unwrap_or_default();
    discovery::Endpoint {
        addresses: endpoint.addresses,
        conditions: Some(discovery::EndpointConditions {
            ready: conditions.ready,
            serving: conditions.serving,
            terminating: conditions.terminating,
        }),
        hostname: endpoint.hostname,
        target_ref: endpoint.target_ref.map(|target| core::ObjectReference {
            kind: sent(target.kind),
            namespace: sent(target.namespace),
            name: sent(target.name),
            uid: sent(target.uid),
            api_version: sent(target.api_version),
            resource_version: sent(target.resource_version),
            field_path: sent(target.field_path),
        }),
        deprecated_topology: endpoint.deprecated_topology.unwrap_or_default(),
        node_name: endpoint.node_name,
        zone: endpoint.zone,
        hints: endpoint.hints.map(|hints| discovery::EndpointHints {
            for_zones: all(hints.for_zones, |zone| discovery::ForZone { name: Some(zone.name) }),
            for_nodes: all(hints.for_nodes, |node| discovery::ForNode { name: Some(node.name) }),
        }),
    }
}

fn node(node: core_json::Node) -> core::Node {
    let (spec, status) = (node.spec.unwrap_or_default(), node.status.unwrap_or_default());
    core::Node {
        metadata: Some(object_meta(node.metadata)),
        spec: Some(core::NodeSpec {
            pod_cidr: sent(spec.pod_cidr),
            pod_cid_rs: spec.pod_cidrs.unwrap_or_default(),
            provider_id: sent(spec.provider_id),
            unschedulable: sent(spec.unschedulable),
            taints: all(spec.taints, |taint| core::Taint {
                key: Some(taint.key),
                value: sent(taint.value),
                effect: Some(taint.effect),
                time_added: taint.time_added.map(time),
            }),
            external_id: sent(spec.external_id),
            ..core::NodeSpec::default()
        }),
        status: Some(core::NodeStatus {
            phase: sent(status.phase),
            addresses: all(status.addresses, |address| core::NodeAddress {
                r#type: Some(address.type_),
                address: Some(address.address),
            }),
            images: all(status.images, |image| core::ContainerImage {
                names: image.names.unwrap_or_default(),
                size_bytes: sent(image.size_bytes),
            }),
            ..core::NodeStatus::default()
        }),
    }
}

fn service_cidr(service_cidr: networking_json::ServiceCIDR) -> networking::ServiceCIDR {
    networking::ServiceCIDR {
        metadata: Some(object_meta(service_cidr.metadata)),
        spec: Some(networking::ServiceCIDRSpec {
            cidrs: service_cidr.spec.and_then(|spec| spec.cidrs).unwrap_or_default(),
        }),
        ..networking::ServiceCIDR::default()
    }
}
