//! Service `shop/web`, on every kind of address and in both families, and its
//! endpoints: what most tests with packets ask.

use serde_json::Value;
use vmap_proxy_lab::Transport::{Tcp, Udp};

use crate::cluster::{ALL_TRANSPORTS, Cluster, POD_PORT, at, ip, node_object, proxy_config};
use crate::manifests::{ServiceManifest, SliceManifest, service, slice};
use crate::proxy::Proxy;

/// Its cluster IPs.
pub const VIP: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
/// Its load balancer's addresses, once it has one.
pub const LOAD_BALANCER: [&str; 2] = ["203.0.113.10", "2001:db8:3::10"];

/// Service `shop/web`: TCP and UDP port 80 on a cluster IP of either family and on NodePort 30080.
pub fn web() -> ServiceManifest {
    let service = VIP.into_iter().fold(service("shop/web"), ServiceManifest::cluster_ip);
    [Tcp, Udp].into_iter().fold(service, |service, transport| service.port(transport, 80).node_port(30080))
}

/// The same Service with a load balancer before it.
pub fn with_load_balancer(service: ServiceManifest) -> ServiceManifest {
    LOAD_BALANCER.into_iter().fold(service, ServiceManifest::load_balancer_ip)
}

/// A slice of a Service for each family; `pods` are chosen in both.
pub fn slices(service: &str, pods: impl Fn(usize) -> Vec<&'static str>) -> Vec<Value> {
    let slices = [0, 1].map(|family| on_pod_port(slice(service, &family.to_string())).endpoints(pods(family)));
    let types = ["IPv4", "IPv6"];
    slices.into_iter().zip(types).map(|(slice, address_type)| slice.address_type(address_type).build()).collect()
}

/// Pods beyond those of every cluster, this number of each family: every other
/// one is on this node, beginning with the first. They serve TCP and UDP.
///
/// # Panics
///
/// If the kernel refuses one.
#[track_caller]
pub fn many_pods(cluster: &Cluster, count: usize) -> [Vec<String>; 2] {
    let prefixes = [["10.244.1.", "10.244.2."], ["fd00:10:244:1::", "fd00:10:244:2::"]];
    prefixes.map(|prefixes| {
        let name = |number: usize| format!("{}{}", prefixes[number % 2], 100 + number / 2);
        let pods: Vec<String> = (0..count).map(name).collect();
        for (host, first) in [("pods", 0), ("outside", 1)] {
            let addresses: Vec<_> = pods.iter().skip(first).step_by(2).map(|pod| ip(pod)).collect();
            cluster.lab().add_addresses(host, &addresses).unwrap_or_else(|error| panic!("{error}"));
        }
        for pod in &pods {
            [Tcp, Udp].into_iter().for_each(|transport| cluster.serve(at(pod, POD_PORT), transport));
        }
        pods
    })
}

/// A slice of a Service for each family, with the first `count` of these pods.
pub fn slices_of(service: &str, pods: &[Vec<String>; 2], count: usize) -> Vec<Value> {
    let slice_of = |family: usize| {
        let pods = pods[family].iter().take(count).map(String::as_str);
        on_pod_port(slice(service, &family.to_string())).endpoints(pods).build()
    };
    vec![slice_of(0), slice_of(1)]
}

/// Every protocol, on the port where the pods of the cluster serve.
pub fn on_pod_port(slice: SliceManifest) -> SliceManifest {
    ALL_TRANSPORTS.into_iter().fold(slice, |slice, transport| slice.port(transport, POD_PORT.into()))
}

/// A cluster with these objects programmed, and the node's own.
///
/// # Panics
///
/// If that fails.
#[track_caller]
pub fn programmed(objects: impl IntoIterator<Item = Value>) -> (Cluster, Proxy) {
    let cluster = Cluster::new();
    let mut all = vec![node_object()];
    all.extend(objects);
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &all);
    (cluster, proxy)
}
