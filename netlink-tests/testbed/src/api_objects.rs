//! The objects that tests give the API server: valid ones, to a real one too.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::POD_PORT;
use crate::end_to_end::{NODE_IP, local_pod, remote_pod};

/// The name of this node.
pub const NODE: &str = "vmap-proxy-test-node";
/// The name of the other node.
pub const OTHER_NODE: &str = "vmap-proxy-test-other";
/// The namespace of Services and slices.
pub const NAMESPACE: &str = "vmap-proxy-test";

/// An endpoint of a slice.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its address.
    pub address: String,
    /// Its node's name.
    pub node: &'static str,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it is going, and still serves.
    pub terminating: bool,
    /// The zone that should use it.
    pub zone: Option<&'static str>,
}

impl Endpoint {
    /// A ready one on this node.
    pub fn local(number: u8) -> Self {
        Self::at(local_pod(number), NODE)
    }

    /// A ready one on the other node.
    pub fn remote(number: u8) -> Self {
        Self::at(remote_pod(number), OTHER_NODE)
    }

    /// A ready one.
    pub fn at(address: String, node: &'static str) -> Self {
        Self { address, node, ready: true, terminating: false, zone: None }
    }

    /// The same, about to go but still serving.
    pub fn terminating(self) -> Self {
        Self { ready: false, terminating: true, ..self }
    }

    /// The same, with a hint for a zone.
    pub fn for_zone(self, zone: &'static str) -> Self {
        Self { zone: Some(zone), ..self }
    }
}

/// The address of the n-th Service; the range is within kubeadm's default.
pub fn cluster_ip(number: u8) -> String {
    format!("10.96.77.{number}")
}

/// A Service of type ClusterIP, port 80 over TCP, changed as `change` says.
pub fn service(name: &str, cluster_ip: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "type": "ClusterIP", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip],
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": POD_PORT}],
        },
    });
    change(&mut service);
    service
}

/// The slice of a Service of that name.
pub fn slice(service: &str, endpoints: &[Endpoint]) -> Value {
    named_slice(&format!("{service}-1"), service, endpoints)
}

/// One of several slices of a Service.
pub fn named_slice(name: &str, service: &str, endpoints: &[Endpoint]) -> Value {
    let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "vmap-proxy-test",
        }},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": POD_PORT, "protocol": "TCP"}],
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let mut value = json!({
        "addresses": [endpoint.address], "nodeName": endpoint.node,
        "conditions": {
            "ready": endpoint.ready, "serving": endpoint.ready || endpoint.terminating,
            "terminating": endpoint.terminating,
        },
    });
    if let Some(zone) = endpoint.zone {
        value["zone"] = json!(zone);
        value["hints"] = json!({"forZones": [{"name": zone}]});
    }
    value
}

/// This node, changed as `change` says.
pub fn node(change: impl FnOnce(&mut Value)) -> Value {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE_IP}, {"type": "Hostname", "address": NODE}]},
    });
    change(&mut node);
    node
}

/// A ServiceCIDR that covers [`OUTSIDER`](crate::cluster::OUTSIDER).
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "vmap-proxy-test"},
        "spec": {"cidrs": ["10.77.0.0/16"]},
    })
}

/// `config.conf` of the ConfigMap `kube-proxy` as kubeadm 1.36 writes it, but
/// for `mode`, the kubeconfig's path and what kind sets for nodes that are
/// containers.
pub fn kubeadm_configuration(kubeconfig: &Path) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "bindAddress": "0.0.0.0", "bindAddressHardFail": false,
        "clientConnection": {
            "acceptContentTypes": "", "burst": 0, "contentType": "", "kubeconfig": kubeconfig.display().to_string(),
            "qps": 0,
        },
        "clusterCIDR": "10.244.0.0/16", "configSyncPeriod": "0s",
        "conntrack": {
            "maxPerCore": 0, "min": null, "tcpBeLiberal": false, "tcpCloseWaitTimeout": null,
            "tcpEstablishedTimeout": null, "udpStreamTimeout": "0s", "udpTimeout": "0s",
        },
        "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""}, "detectLocalMode": "",
        "enableProfiling": false, "healthzBindAddress": "", "hostnameOverride": "",
        "iptables": {
            "localhostNodePorts": null, "masqueradeAll": false, "masqueradeBit": null, "minSyncPeriod": "0s",
            "syncPeriod": "0s",
        },
        "ipvs": {
            "excludeCIDRs": null, "minSyncPeriod": "0s", "scheduler": "", "strictARP": false, "syncPeriod": "0s",
            "tcpFinTimeout": "0s", "tcpTimeout": "0s", "udpTimeout": "0s",
        },
        "logging": {
            "flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}},
            "verbosity": 0,
        },
        "metricsBindAddress": "", "mode": "nftables",
        "nftables": {"masqueradeAll": false, "masqueradeBit": null, "minSyncPeriod": "0s", "syncPeriod": "0s"},
        "nodePortAddresses": null, "oomScoreAdj": null, "portRange": "", "showHiddenMetricsForVersion": "",
        "winkernel": {
            "enableDSR": false, "forwardHealthCheckVip": false, "networkName": "", "rootHnsEndpointName": "",
            "sourceVip": "",
        },
    })
}
