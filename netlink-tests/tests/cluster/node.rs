//! This Node and the cluster's ranges change, or are incomplete; the agent goes on.

use std::time::Duration;

use serde_json::json;
use vmap_proxy_lab::Transport;
use vmap_proxy_testbed::api_objects::{Endpoint, cluster_ip, node, service, service_cidr, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::cluster::{OUTSIDER, SECOND_NODE_IP};
use vmap_proxy_testbed::end_to_end::{CLIENT, CLIENT_POD, EndToEnd, NODE_IP, local_pod, remote_pod};

use crate::{apply, apply_service, cluster, frontend, is_answered, is_refused, is_silent, seen_as};

#[test]
fn the_zone_of_the_node_changes() {
    let cluster = cluster();
    let in_zone =
        |zone: &'static str| node(|node| node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(zone));
    apply(&cluster, &[in_zone("a")]);
    let close = |service: &mut serde_json::Value| service["spec"]["trafficDistribution"] = json!("PreferSameZone");
    let endpoints = [Endpoint::local(1).for_zone("a"), Endpoint::remote(1).for_zone("b")];
    apply(&cluster, &[service("shop", &cluster_ip(2), close), slice("shop", &endpoints)]);
    let shop = frontend(&cluster_ip(2), 80);
    let agent = cluster.agent();
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    apply(&cluster, &[in_zone("b")]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[remote_pod(1)]);
    // A zone without endpoints, and no zone: all of them.
    apply(&cluster, &[in_zone("c")]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1), remote_pod(1)]);
}

#[test]
fn the_address_of_the_node_changes() {
    let cluster = cluster();
    apply_node_port(&cluster);
    let agent = cluster.agent();
    agent.wait_until_ready();
    // The default is `primary`: node ports are served on the Node's own address alone.
    cluster.eventually_reaches(CLIENT, frontend(NODE_IP, 30_080), &[local_pod(1)]);
    cluster.eventually(CLIENT, frontend(SECOND_NODE_IP, 30_080), Transport::Tcp, is_refused);
    apply(
        &cluster,
        &[node(|node| {
            node["status"]["addresses"] = json!([{"type": "InternalIP", "address": SECOND_NODE_IP}]);
        })],
    );
    cluster.eventually_reaches(CLIENT, frontend(SECOND_NODE_IP, 30_080), &[local_pod(1)]);
    cluster.eventually(CLIENT, frontend(NODE_IP, 30_080), Transport::Tcp, is_refused);
}

#[test]
fn the_pod_cidr_of_the_node_changes() {
    let mut cluster = cluster();
    // A real API server does not let a Node's podCIDR change.
    if cluster.api.double().is_none() {
        return;
    }
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::remote(1)]);
    let agent = cluster.agent_with(&cluster.configuration(&[("/detectLocalMode", json!("NodeCIDR"))]));
    agent.wait_until_ready();
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, seen_as(CLIENT_POD));
    let with_pod_cidr = |cidr: &'static str| {
        node(|node| {
            node["spec"]["podCIDR"] = json!(cidr);
            node["spec"]["podCIDRs"] = json!([cidr]);
        })
    };
    // The client's address is no pod's any more: what comes from outside is masqueraded.
    apply(&cluster, &[with_pod_cidr("10.244.9.0/24")]);
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, seen_as(NODE_IP));
    apply(&cluster, &[with_pod_cidr("10.244.1.0/24")]);
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, seen_as(CLIENT_POD));
}

#[test]
fn a_service_cidr_comes_and_goes() {
    let cluster = cluster();
    apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let outsider = frontend(OUTSIDER, 80);
    cluster.eventually(CLIENT_POD, outsider, Transport::Tcp, is_answered);
    // No Service has that address: packets to it are dropped as soon as the range is known.
    apply(&cluster, &[service_cidr()]);
    cluster.eventually(CLIENT_POD, outsider, Transport::Tcp, is_silent);
    cluster.api.delete(Resource::ServiceCidrs, "", "vmap-proxy-test").unwrap();
    cluster.eventually(CLIENT_POD, outsider, Transport::Tcp, is_answered);
}

/// A Service with node port 30080 and one endpoint here.
fn apply_node_port(cluster: &EndToEnd) {
    let with_node_port = |service: &mut serde_json::Value| {
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(30_080);
    };
    apply(cluster, &[service("shop", &cluster_ip(2), with_node_port), slice("shop", &[Endpoint::local(1)])]);
}

fn node_without_addresses() -> serde_json::Value {
    node(|node| node["status"]["addresses"] = json!([{"type": "Hostname", "address": "kestrel"}]))
}

#[test]
fn the_first_sync_waits_for_an_address_of_the_node() {
    let cluster = cluster();
    apply(&cluster, &[node_without_addresses()]);
    apply_node_port(&cluster);
    let before = cluster.generation();
    let agent = cluster.agent();
    let line = agent.wait_for_line("waiting up to 30s");
    assert!(line.contains("WARN") && line.contains("status.addresses"), "{line}");
    assert_eq!(cluster.generation(), before, "nothing is programmed");
    apply(&cluster, &[node(|_| {})]);
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT, frontend(NODE_IP, 30_080), &[local_pod(1)]);
    cluster.eventually(CLIENT, frontend(SECOND_NODE_IP, 30_080), Transport::Tcp, is_refused);
}

#[test]
fn a_node_that_loses_its_addresses_keeps_the_last_known() {
    let cluster = cluster();
    apply_node_port(&cluster);
    let agent = cluster.agent();
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT, frontend(NODE_IP, 30_080), &[local_pod(1)]);
    apply(&cluster, &[node_without_addresses()]);
    agent.wait_for_line("the last known addresses stay in use");
    // Once this is served, the Node before it has been taken.
    let later = apply_service(&cluster, "later", 3, &[Endpoint::local(2)]);
    cluster.eventually_reaches(CLIENT_POD, later, &[local_pod(2)]);
    cluster.eventually_reaches(CLIENT, frontend(NODE_IP, 30_080), &[local_pod(1)]);
    cluster.eventually(CLIENT, frontend(SECOND_NODE_IP, 30_080), Transport::Tcp, is_refused);
    apply(&cluster, &[node(|_| {})]);
    agent.wait_for_line("is complete");
}

#[test]
fn a_node_of_another_name_opens_no_node_port() {
    let cluster = cluster();
    apply_node_port(&cluster);
    let kubeconfig = format!("--kubeconfig={}", cluster.api.kubeconfig().display());
    let flags = [kubeconfig.as_str(), "--hostname-override=misspelt", "--conntrack-max-per-core=0"];
    let agent = cluster.agent_by(&flags);
    let line = agent.wait_for_line("waiting up to 30s for Node misspelt to appear");
    assert!(line.contains("--hostname-override"), "{line}");
    agent.wait_for_line_within(Duration::from_secs(60), "going on without: NodePorts stay closed");
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, frontend(&cluster_ip(2), 80), &[local_pod(1)]);
    for address in [NODE_IP, SECOND_NODE_IP] {
        cluster.eventually(CLIENT, frontend(address, 30_080), Transport::Tcp, is_refused);
    }
}
