//! A cluster of any size, made object by object, so that it need not be in
//! memory as a whole.

use std::net::Ipv4Addr;

use vmap_proxy_compiler::model::{Change, Object};

use super::Failure;

/// The node that the agent runs on. One endpoint in a hundred is on it.
pub const NODE: &str = "node-00";
/// Number of nodes of the endpoints.
const NODES: u32 = 100;
/// The most endpoints that Kubernetes puts into one slice
/// (`--max-endpoints-per-slice` of kube-controller-manager).
pub const SLICE_ENDPOINTS: u32 = 100;

/// A cluster: `ClusterIP` Services with equally many ready endpoints each.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// The number of Services.
    pub services: u32,
    /// The number of endpoints of each Service.
    pub endpoints: u32,
}

/// A port of every Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Kubernetes' word for the protocol.
    pub protocol: &'static str,
    /// The Service's port.
    pub port: u16,
    /// The pods' port.
    pub target: u16,
}

/// The ports of most measurements: one.
pub const HTTP: &[Port] = &[Port { name: "http", protocol: "TCP", port: 80, target: 8080 }];

/// The pods of a Service: `first`, `first + 1`, …
#[derive(Debug, Clone, Copy)]
pub struct Pods {
    /// The number of the first one, unique in the cluster.
    pub first: u32,
    /// The number of objects.
    pub count: u32,
    /// One that was replaced: its position, and the number of the new pod.
    pub replaced: Option<(u32, u32)>,
}

impl Workload {
    /// The pods of a Service as the cluster begins.
    pub fn pods(&self, service: u32) -> Pods {
        Pods { first: service * self.endpoints, count: self.endpoints, replaced: None }
    }

    /// A pod number that no Service of the cluster uses.
    pub fn spare_pod(&self, nth: u32) -> u32 {
        (self.services + 1) * self.endpoints + nth
    }

    /// Every object, as JSON text, one after the other: the Node, then each
    /// Service with its slices.
    pub fn manifests(self) -> impl Iterator<Item = String> {
        std::iter::once(node_manifest())
            .chain((0..self.services).flat_map(move |service| self.service_manifests(service)))
    }

    /// One Service with its slices.
    pub fn service_manifests(self, service: u32) -> impl Iterator<Item = String> {
        std::iter::once(service_manifest(service, HTTP)).chain(slice_manifests(service, self.pods(service), HTTP))
    }
}

/// Parses a manifest as a source does.
///
/// # Errors
/// If it is not of the form that we follow.
pub fn parse(manifest: &str) -> Result<Change, Failure> {
    Ok(Change::Apply(serde_json::from_str::<Object>(manifest)?))
}

/// The Node that the agent runs on.
pub fn node_manifest() -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{NODE}"}},
"status":{{"addresses":[{{"type":"InternalIP","address":"192.0.2.11"}}]}}}}"#
    )
}

/// Namespace and name of a Service: about as long as people's names are.
pub fn names(service: u32) -> (String, String) {
    (format!("team-{:03}", service % 200), format!("backend-{service:06}"))
}

/// The cluster IP of a Service, in 10.0.0.0/11.
pub fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 1, 0)) + service)
}

/// The address of a pod, in 10.128.0.0/9.
pub fn pod_ip(pod: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 1)) + pod)
}

/// A Service, with the fields that an API server fills in.
pub fn service_manifest(service: u32, ports: &[Port]) -> String {
    let port = |port: &Port| {
        let Port { name, protocol, port, target } = port;
        format!(r#"{{"name":"{name}","protocol":"{protocol}","port":{port},"targetPort":{target}}}"#)
    };
    let ports: Vec<String> = ports.iter().map(port).collect();
    let (namespace, name) = names(service);
    let ip = cluster_ip(service);
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"{namespace}",
"uid":"8f2d5c1e-7a3b-4c60-9e11-{service:012x}","resourceVersion":"{version}","creationTimestamp":"2026-01-02T03:04:05Z",
"labels":{{"app.kubernetes.io/name":"{name}","app.kubernetes.io/part-of":"{namespace}"}}}},
"spec":{{"type":"ClusterIP","clusterIP":"{ip}","clusterIPs":["{ip}"],"ipFamilies":["IPv4"],
"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Workload","sessionAffinity":"None",
"selector":{{"app.kubernetes.io/name":"{name}"}},
"ports":[{ports}]}},"status":{{"loadBalancer":{{}}}}}}"#,
        ports = ports.join(","),
        version = 1000 + service,
    )
}

/// The slices of a Service, at most [`SLICE_ENDPOINTS`] endpoints in each.
pub fn slice_manifests(service: u32, pods: Pods, ports: &'static [Port]) -> impl Iterator<Item = String> {
    let slices = pods.count.div_ceil(SLICE_ENDPOINTS).max(1);
    (0..slices).map(move |slice| slice_manifest(service, pods, slice, ports))
}

/// The slice that holds the pod at a position.
pub fn slice_at(service: u32, pods: Pods, position: u32) -> String {
    slice_manifest(service, pods, position / SLICE_ENDPOINTS, HTTP)
}

fn slice_manifest(service: u32, pods: Pods, slice: u32, ports: &[Port]) -> String {
    let port = |port: &Port| {
        let Port { name, protocol, target, .. } = port;
        format!(r#"{{"name":"{name}","protocol":"{protocol}","port":{target}}}"#)
    };
    let ports: Vec<String> = ports.iter().map(port).collect();
    let (namespace, name) = names(service);
    let positions = slice * SLICE_ENDPOINTS..pods.count.min((slice + 1) * SLICE_ENDPOINTS);
    let endpoints: Vec<String> = positions
        .map(|position| match pods.replaced {
            Some((replaced, pod)) if replaced == position => pod,
            _ => pods.first + position,
        })
        .map(|pod| endpoint(&namespace, &name, pod))
        .collect();
    format!(
        r#"{{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","addressType":"IPv4",
"metadata":{{"name":"{name}-{slice:05}","namespace":"{namespace}","uid":"0c9d1f2a-55aa-4d61-8c22-{service:012x}",
"resourceVersion":"{version}","labels":{{"kubernetes.io/service-name":"{name}",
"endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io"}}}},
"endpoints":[{endpoints}],"ports":[{ports}]}}"#,
        ports = ports.join(","),
        version = 2000 + service,
        endpoints = endpoints.join(","),
    )
}

fn endpoint(namespace: &str, name: &str, pod: u32) -> String {
    let (ip, node) = (pod_ip(pod), pod % NODES);
    format!(
        r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},
"nodeName":"node-{node:02}","zone":"zone-{zone}","targetRef":{{"kind":"Pod","name":"{name}-{pod:x}",
"namespace":"{namespace}","uid":"1f0e3dad-9990-4345-a1b2-{pod:012x}"}}}}"#,
        zone = node % 3,
    )
}
