//! Our own code on a vector: its configuration and manifests, read by the
//! modules that read them in the agent.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use vmap_proxy_agent::config::load;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::model::{Change, Object, ObjectRef, ProxyConfig};

use super::run_packets::ProxyError;
use super::schema::{self, Vector};

/// The vector's `KubeProxyConfiguration` as the agent reads it.
///
/// # Errors
/// If the agent refuses it.
pub fn proxy_config(config: &serde_json::Map<String, Value>, node_name: &str) -> Result<ProxyConfig, ProxyError> {
    let mut file = config.clone();
    file.insert("apiVersion".to_owned(), json!("kubeproxy.config.k8s.io/v1alpha1"));
    file.insert("kind".to_owned(), json!("KubeProxyConfiguration"));
    file.insert("mode".to_owned(), json!("nftables"));
    let (configuration, _warnings) = load::load(&Value::Object(file).to_string())?;
    Ok(configuration.to_proxy_config(node_name)?)
}

/// Manifests as changes.
///
/// # Errors
/// If one of a kind that we follow is not of its form.
pub fn changes(delete: &[schema::ObjectRef], apply: &[Value]) -> Result<Vec<Change>, ProxyError> {
    let mut changes = Vec::with_capacity(delete.len() + apply.len());
    for object in delete {
        let kind = match object.kind.as_str() {
            "Service" => Kind::Service,
            "EndpointSlice" => Kind::EndpointSlice,
            "Node" => Kind::Node,
            "ServiceCIDR" => Kind::ServiceCidr,
            _ => continue,
        };
        let (namespace, name) = (object.namespace.clone(), object.name.clone());
        changes.push(Change::Delete(ObjectRef { kind, namespace, name }));
    }
    for manifest in apply {
        let kind = manifest.get("kind").and_then(Value::as_str).unwrap_or_default();
        if !["Service", "EndpointSlice", "Node", "ServiceCIDR"].contains(&kind) {
            continue;
        }
        let object: Object = serde_json::from_value(manifest.clone())?;
        changes.push(Change::Apply(object));
    }
    Ok(changes)
}

/// Every address on the interfaces of the vector's node.
pub fn interface_addresses(vector: &Vector) -> Vec<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = vector.node.addresses();
    addresses.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]);
    addresses.into_iter().collect()
}
