//! The NodePorts of Services that the relay serves.

use std::collections::BTreeMap;
use std::time::Duration;

use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::service::{Claim, CompiledService, all_frontends};
use vmap_proxy_compiler::ruleset::target::{NodePortKey, Target};

/// A NodePort of one family that has endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePort {
    /// Protocol and port.
    pub key: NodePortKey,
    /// The endpoints for new connections, never empty: with
    /// `externalTrafficPolicy: Local` those of this node, else those of the
    /// cluster, as readiness, topology and their fallbacks leave them.
    pub endpoints: Box<[Endpoint]>,
    /// The endpoints that established flows of UDP may stay with, sorted; empty
    /// for TCP.
    pub keeping_flows: Box<[Endpoint]>,
    /// How long the relay stays with an endpoint after a connection to it;
    /// `None` without session affinity.
    pub affinity: Option<Duration>,
}

/// Changes of NodePorts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodePortChanges {
    /// Whether `services` names every Service that has a NodePort.
    pub is_complete: bool,
    /// Each changed Service in each family, with all its NodePorts; empty if it
    /// has none any more.
    pub services: BTreeMap<(ServiceName, Family), Vec<NodePort>>,
}

impl NodePortChanges {
    /// Returns whether they change nothing.
    pub fn is_empty(&self) -> bool {
        !self.is_complete && self.services.is_empty()
    }
}

/// Returns whether a Service has any NodePort.
pub fn has_node_port(compiled: &CompiledService) -> bool {
    compiled.service.ports.iter().any(|port| port.node_port.is_some())
}

/// Returns the NodePorts that a Service holds and that have endpoints, without
/// those of SCTP.
///
/// Unlike the rules, which let this node's own clients use all endpoints of a
/// Service with `externalTrafficPolicy: Local`, kube-proxy's relay uses those of
/// this node alone (`pkg/proxy/nftables/proxier.go`, 1.37).
pub fn node_ports(compiled: &CompiledService) -> Vec<NodePort> {
    let affinity = compiled.service.affinity.map(|seconds| Duration::from_secs(seconds.into()));
    let served = |frontend: vmap_proxy_compiler::ruleset::service::ServedFrontend| {
        let Target::NodePort(key) = frontend.target else { return None };
        if key.protocol == Protocol::Sctp || compiled.is_denied(&Claim::Serve(frontend.target)) {
            return None;
        }
        let port = compiled.ports.get(frontend.position)?;
        let endpoints = if frontend.is_local { &port.local } else { &port.cluster };
        let keeping_flows = port.keeping_flows.as_slice();
        let node_port =
            || NodePort { key, endpoints: endpoints.iter().collect(), keeping_flows: keeping_flows.into(), affinity };
        (!endpoints.is_empty()).then(node_port)
    };
    all_frontends(&compiled.service).into_iter().filter_map(served).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use vmap_proxy_compiler::model::{Change, Object, PerFamily, ProxyConfig, Store};
    use vmap_proxy_compiler::plan::Planner;

    use super::*;

    fn service(name: &str, created: &str, ports: &Value, spec: &[(&str, Value)]) -> Object {
        let mut service = json!({
            "metadata": {"namespace": "shop", "name": name, "creationTimestamp": created},
            "spec": {"type": "NodePort", "clusterIP": format!("10.96.0.{}", name.len()), "ports": ports},
        });
        for (field, value) in spec {
            service["spec"][field] = value.clone();
        }
        Object::Service(serde_json::from_value(service).unwrap())
    }

    /// Endpoints by their last number; those below 100 are on this node.
    fn slice(service: &str, endpoints: &[u8]) -> Object {
        let endpoint = |last: &u8| {
            let node = if *last < 100 { "here" } else { "elsewhere" };
            json!({"addresses": [format!("10.244.1.{last}")], "nodeName": node})
        };
        let port = |name: &str, protocol: &str| json!({"name": name, "port": 8080, "protocol": protocol});
        let slice = json!({
            "metadata": {
                "namespace": "shop", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
            "ports": [port("t", "TCP"), port("u", "UDP"), port("s", "SCTP")],
        });
        Object::EndpointSlice(serde_json::from_value(slice).unwrap())
    }

    fn port(name: &str, protocol: &str, node_port: u16) -> Value {
        json!({"name": name, "protocol": protocol, "port": node_port, "nodePort": node_port})
    }

    /// `TCP 30080: 10.244.1.1:8080 ...` for each NodePort of `shop/NAME`.
    fn served(objects: Vec<Object>, name: &str) -> Vec<String> {
        let mut store = Store::new("here");
        for object in objects {
            assert!(store.apply(Change::Apply(object)).is_empty());
        }
        let config = ProxyConfig { node_name: "here".to_owned(), ..ProxyConfig::default() };
        let mut planner = Planner::new(config, store.node());
        planner.resync(&mut store, PerFamily::default()).for_each(drop);
        let compiled = planner.compiled(&ServiceName::new("shop", name), Family::Ipv4).unwrap();
        let shown = |port: NodePort| {
            let mut endpoints: Vec<String> = port.endpoints.iter().map(ToString::to_string).collect();
            endpoints.sort_unstable();
            format!("{} {}: {}", port.key.protocol, port.key.port, endpoints.join(" "))
        };
        node_ports(compiled).into_iter().map(shown).collect()
    }

    #[test]
    fn tcp_and_udp_are_served_and_sctp_is_not() {
        let ports = json!([port("t", "TCP", 30080), port("u", "UDP", 30080), port("s", "SCTP", 30080)]);
        let objects = vec![service("web", "2026-01-01T00:00:00Z", &ports, &[]), slice("web", &[1, 100])];
        let both = "10.244.1.100:8080 10.244.1.1:8080";
        assert_eq!(served(objects, "web"), [format!("TCP 30080: {both}"), format!("UDP 30080: {both}")]);
    }

    #[test]
    fn a_local_policy_leaves_the_endpoints_of_this_node() {
        let ports = json!([port("t", "TCP", 30080)]);
        let local = [("externalTrafficPolicy", json!("Local"))];
        let web = || service("web", "2026-01-01T00:00:00Z", &ports, &local);
        assert_eq!(served(vec![web(), slice("web", &[1, 100])], "web"), ["TCP 30080: 10.244.1.1:8080"]);
        assert!(served(vec![web(), slice("web", &[100])], "web").is_empty(), "not served by endpoints elsewhere");
        // internalTrafficPolicy governs cluster IPs alone.
        let internal = [("internalTrafficPolicy", json!("Local"))];
        let web = service("web", "2026-01-01T00:00:00Z", &ports, &internal);
        assert_eq!(served(vec![web, slice("web", &[100])], "web"), ["TCP 30080: 10.244.1.100:8080"]);
    }

    #[test]
    fn a_port_that_an_older_service_holds_is_not_served() {
        let ports = json!([port("t", "TCP", 30080), port("u", "UDP", 30081)]);
        let objects = || {
            let [old, young] = [("old", "2026-01-01T00:00:00Z"), ("young", "2026-02-01T00:00:00Z")]
                .map(|(name, created)| service(name, created, &ports, &[]));
            vec![young, slice("young", &[2]), old, slice("old", &[1])]
        };
        assert_eq!(served(objects(), "old"), ["TCP 30080: 10.244.1.1:8080", "UDP 30081: 10.244.1.1:8080"]);
        assert!(served(objects(), "young").is_empty());
    }

    #[test]
    fn a_cluster_ip_alone_is_not_served() {
        let ports = json!([{"name": "t", "port": 80}]);
        let objects =
            vec![service("web", "2026-01-01T00:00:00Z", &ports, &[("type", json!("ClusterIP"))]), slice("web", &[1])];
        assert!(served(objects, "web").is_empty());
    }
}
