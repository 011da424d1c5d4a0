//! Our own code on a vector: its configuration and manifests, read by the
//! modules that read them in the agent.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};
use vmap_proxy_agent::config::load;
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_testbed::manifests::{self, ObjectName};

use crate::run_packets::ProxyError;
use crate::schema::{ObjectRef, Vector};

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
pub fn changes(delete: &[ObjectRef], apply: &[Value]) -> Result<Vec<Change>, ProxyError> {
    let names: Vec<ObjectName<'_>> =
        delete.iter().map(|ObjectRef { kind, namespace, name }| ObjectName { kind, namespace, name }).collect();
    Ok(manifests::changes(&names, apply)?)
}

/// Every address on the interfaces of the vector's node.
pub fn interface_addresses(vector: &Vector) -> Vec<IpAddr> {
    let mut addresses: BTreeSet<IpAddr> = vector.node.addresses();
    addresses.extend([IpAddr::from([127, 0, 0, 1]), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]);
    addresses.into_iter().collect()
}
