//! Manifests in a few words. Every builder starts from what is usual and ends
//! in a [`Value`], as `kubectl get -o json` would print it.

use serde_json::{Value, json};
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::model::{Change, ObjectRef};
use vmap_proxy_lab::Transport;

/// The node that the proxy of every fixture runs on.
pub const NODE_NAME: &str = "node-1";

/// Names a Service, `namespace/name`.
pub fn service(name: &str) -> ServiceManifest {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    ServiceManifest(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"type": "ClusterIP", "clusterIPs": [], "ipFamilies": [], "ports": []},
    }))
}

/// A Service under construction.
#[derive(Debug, Clone)]
pub struct ServiceManifest(Value);

impl ServiceManifest {
    /// A cluster IP; the first one is the primary.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        let family = if address.contains(':') { "IPv6" } else { "IPv4" };
        let spec = &mut self.0["spec"];
        if spec["clusterIP"].is_null() {
            spec["clusterIP"] = json!(address);
        }
        push(&mut spec["clusterIPs"], json!(address));
        push(&mut spec["ipFamilies"], json!(family));
        self
    }

    /// No cluster IP on purpose.
    #[must_use]
    pub fn headless(mut self) -> Self {
        self.0["spec"]["clusterIP"] = json!("None");
        self.0["spec"]["clusterIPs"] = json!(["None"]);
        self
    }

    /// A port, named after its protocol and number unless [`Self::named`].
    #[must_use]
    pub fn port(mut self, transport: Transport, port: i64) -> Self {
        let name = port_name(transport);
        let port = json!({"name": name, "protocol": transport.to_string(), "port": port});
        push(&mut self.0["spec"]["ports"], port);
        self
    }

    /// The name of the port given last.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.last_port()["name"] = json!(name);
        self
    }

    /// The NodePort of the port given last; makes the type `NodePort`.
    #[must_use]
    pub fn node_port(mut self, port: i64) -> Self {
        self.last_port()["nodePort"] = json!(port);
        if self.0["spec"]["type"] == "ClusterIP" {
            self = self.of_type("NodePort");
        }
        self
    }

    /// The NodePort of every port so far; makes the type `NodePort`.
    #[must_use]
    pub fn every_node_port(mut self, port: i64) -> Self {
        for one in self.0["spec"]["ports"].as_array_mut().into_iter().flatten() {
            one["nodePort"] = json!(port);
        }
        if self.0["spec"]["type"] == "ClusterIP" {
            self = self.of_type("NodePort");
        }
        self
    }

    /// `spec.type`
    #[must_use]
    pub fn of_type(mut self, service_type: &str) -> Self {
        self.0["spec"]["type"] = json!(service_type);
        self
    }

    /// Makes it an `ExternalName`; a cluster IP given before stays in the
    /// manifest, as it does after such a change.
    #[must_use]
    pub fn external_name(mut self, host: &str) -> Self {
        self.0["spec"]["externalName"] = json!(host);
        self.of_type("ExternalName")
    }

    /// An address of the load balancer; makes the type `LoadBalancer`.
    #[must_use]
    pub fn load_balancer_ip(mut self, address: &str) -> Self {
        push(&mut self.0["status"]["loadBalancer"]["ingress"], json!({"ip": address}));
        self.of_type("LoadBalancer")
    }

    /// A range that may use the load balancer.
    #[must_use]
    pub fn source_range(mut self, range: &str) -> Self {
        push(&mut self.0["spec"]["loadBalancerSourceRanges"], json!(range));
        self
    }

    /// An external IP.
    #[must_use]
    pub fn external_ip(mut self, address: &str) -> Self {
        push(&mut self.0["spec"]["externalIPs"], json!(address));
        self
    }

    /// `sessionAffinity: ClientIP` with this timeout.
    #[must_use]
    pub fn affinity(mut self, seconds: i64) -> Self {
        self.0["spec"]["sessionAffinity"] = json!("ClientIP");
        self.0["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        self
    }

    /// `internalTrafficPolicy: Local`
    #[must_use]
    pub fn internal_local(mut self) -> Self {
        self.0["spec"]["internalTrafficPolicy"] = json!("Local");
        self
    }

    /// `externalTrafficPolicy: Local`
    #[must_use]
    pub fn external_local(mut self) -> Self {
        self.0["spec"]["externalTrafficPolicy"] = json!("Local");
        self
    }

    /// A label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    /// The creation time, RFC 3339: of two Services that claim a frontend, the
    /// older one holds it.
    #[must_use]
    pub fn created(mut self, time: &str) -> Self {
        self.0["metadata"]["creationTimestamp"] = json!(time);
        self
    }

    /// Sets any field of the `spec`.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// The manifest.
    pub fn build(&self) -> Value {
        self.0.clone()
    }

    fn last_port(&mut self) -> &mut Value {
        let ports = self.0["spec"]["ports"].as_array_mut();
        match ports.and_then(|ports| ports.last_mut()) {
            Some(port) => port,
            None => panic!("name a port first"),
        }
    }
}

/// A slice of a Service; `suffix` tells the slices of one Service apart.
pub fn slice(service: &str, suffix: &str) -> SliceManifest {
    let (namespace, name) = service.split_once('/').unwrap_or(("default", service));
    SliceManifest(json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": format!("{name}-{suffix}"),
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [],
    }))
}

/// An EndpointSlice under construction.
#[derive(Debug, Clone)]
pub struct SliceManifest(Value);

impl SliceManifest {
    /// A port of every endpoint; joins the Service's port of this protocol.
    #[must_use]
    pub fn port(mut self, transport: Transport, port: i64) -> Self {
        let port = json!({"name": port_name(transport), "protocol": transport.to_string(), "port": port});
        push(&mut self.0["ports"], port);
        self
    }

    /// The name of the port given last.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        if let Some(port) = self.0["ports"].as_array_mut().and_then(|ports| ports.last_mut()) {
            port["name"] = json!(name);
        }
        self
    }

    /// A ready endpoint. It is on this node if its address is one of this
    /// node's pods in [`crate::cluster`], else on `node-2`.
    #[must_use]
    pub fn endpoint(mut self, address: &str) -> Self {
        if address.contains(':') {
            self.0["addressType"] = json!("IPv6");
        }
        let node = if crate::cluster::is_on_this_node(address) { NODE_NAME } else { "node-2" };
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        let endpoint = json!({"addresses": [address], "nodeName": node, "conditions": conditions});
        push(&mut self.0["endpoints"], endpoint);
        self
    }

    /// Several ready endpoints.
    #[must_use]
    pub fn endpoints<'a>(self, addresses: impl IntoIterator<Item = &'a str>) -> Self {
        addresses.into_iter().fold(self, SliceManifest::endpoint)
    }

    /// The endpoint given last is not ready.
    #[must_use]
    pub fn not_ready(self) -> Self {
        self.conditions(json!({"ready": false, "serving": false, "terminating": false}))
    }

    /// The endpoint given last terminates and still serves.
    #[must_use]
    pub fn terminating(self) -> Self {
        self.conditions(json!({"ready": false, "serving": true, "terminating": true}))
    }

    /// A zone that should use the endpoint given last.
    #[must_use]
    pub fn zone_hint(mut self, zone: &str) -> Self {
        push(&mut self.last_endpoint()["hints"]["forZones"], json!({"name": zone}));
        self
    }

    /// The node of the endpoint given last.
    #[must_use]
    pub fn on(mut self, node: &str) -> Self {
        self.last_endpoint()["nodeName"] = json!(node);
        self
    }

    /// `addressType`, where the addresses would say otherwise.
    #[must_use]
    pub fn address_type(mut self, address_type: &str) -> Self {
        self.0["addressType"] = json!(address_type);
        self
    }

    /// The manifest.
    pub fn build(&self) -> Value {
        self.0.clone()
    }

    fn conditions(mut self, conditions: Value) -> Self {
        self.last_endpoint()["conditions"] = conditions;
        self
    }

    fn last_endpoint(&mut self) -> &mut Value {
        let endpoints = self.0["endpoints"].as_array_mut();
        match endpoints.and_then(|endpoints| endpoints.last_mut()) {
            Some(endpoint) => endpoint,
            None => panic!("name an endpoint first"),
        }
    }
}

/// Names an object to delete; `namespace` is empty for kinds of the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectName<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
}

/// Manifests as changes, first those that delete. Kinds that no proxy follows are left out.
///
/// # Errors
///
/// One of a kind that we follow is not of its form.
pub fn changes(delete: &[ObjectName<'_>], apply: &[Value]) -> Result<Vec<Change>, serde_json::Error> {
    let mut changes = Vec::with_capacity(delete.len() + apply.len());
    for ObjectName { kind, namespace, name } in delete {
        if let Some(kind) = followed(kind) {
            let (namespace, name) = ((*namespace).to_owned(), (*name).to_owned());
            changes.push(Change::Delete(ObjectRef { kind, namespace, name }));
        }
    }
    for manifest in apply {
        if followed(manifest.get("kind").and_then(Value::as_str).unwrap_or_default()).is_some() {
            changes.push(Change::Apply(serde_json::from_value(manifest.clone())?));
        }
    }
    Ok(changes)
}

fn followed(kind: &str) -> Option<Kind> {
    match kind {
        "Service" => Some(Kind::Service),
        "EndpointSlice" => Some(Kind::EndpointSlice),
        "Node" => Some(Kind::Node),
        "ServiceCIDR" => Some(Kind::ServiceCidr),
        _ => None,
    }
}

/// This node's Node object, with these `InternalIP`s.
pub fn node<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Value {
    let addresses: Vec<Value> =
        addresses.into_iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE_NAME},
        "status": {"addresses": addresses},
    })
}

/// A ServiceCIDR object.
pub fn service_cidr(name: &str, ranges: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": ranges},
    })
}

/// The name under which the builders join Service ports and slice ports.
fn port_name(transport: Transport) -> String {
    transport.to_string().to_lowercase()
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}
