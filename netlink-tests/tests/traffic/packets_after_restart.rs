//! Packets that follow elements of an earlier state, after a restart that has not removed these yet: what they leave
//! behind does no harm once the elements are gone.

use serde_json::Value;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::cluster::{
    CLIENT, Cluster, LOCAL, NODE, POD, REMOTE, answerer, at, ip, node_object, proxy_config,
};
use vmap_proxy_testbed::manifests::{service, slice};
use vmap_proxy_testbed::proxy::Proxy;

/// A Service with session affinity.
fn sticky(name: &str, address: &str, pods: &[&str]) -> Vec<Value> {
    vec![
        service(name).cluster_ip(address).port(Tcp, 80).affinity(600).build(),
        slice(name, "a").port(Tcp, 8080).endpoints(pods.iter().copied()).build(),
    ]
}

/// Starts a proxy that looks up all maps, and has removed nothing yet.
fn start_again(cluster: &Cluster, objects: &[Value]) -> Proxy {
    let (proxy, report) = Proxy::start_listing(0, cluster.node(), proxy_config(), objects);
    assert!(report.refused.is_empty(), "{report:?}");
    assert!(proxy.with(|syncer| syncer.seeks_leftovers()));
    proxy
}

/// Its clients are not remembered under a number that another Service has got.
#[test]
fn clients_of_a_service_that_is_gone_stay_apart() {
    let cluster = Cluster::new();
    let web = [vec![node_object()], sticky("shop/web", "10.96.0.10", &[REMOTE[0][3]])].concat();
    let old = sticky("shop/old", "10.96.0.20", &[REMOTE[0][0]]);
    drop(Proxy::start(cluster.node(), proxy_config(), &[old, web.clone()].concat()));
    let proxy = start_again(&cluster, &web);
    let new = sticky("shop/new", "10.96.0.30", &[REMOTE[0][1]]);
    proxy.apply(&new);
    cluster.assert_served(POD[0], at("10.96.0.20", 80), Tcp, [REMOTE[0][0]]);
    cluster.assert_served(POD[0], at("10.96.0.30", 80), Tcp, [REMOTE[0][1]]);
    // Another restart, in which the new one has its number from the kernel.
    drop(proxy);
    let proxy = start_again(&cluster, &[web, new].concat());
    cluster.assert_served(POD[0], at("10.96.0.20", 80), Tcp, [REMOTE[0][0]]);
    proxy.settle();
    proxy.assert_nothing_differs();
    cluster.assert_served(POD[0], at("10.96.0.30", 80), Tcp, [REMOTE[0][1]]);
}

#[test]
fn no_client_is_kept_at_an_endpoint_that_is_gone() {
    let cluster = Cluster::new();
    let web = || service("shop/web").cluster_ip("10.96.0.10").port(Tcp, 80).affinity(600);
    let pods = |pods: &[&str]| slice("shop/web", "a").port(Tcp, 8080).endpoints(pods.iter().copied()).build();
    let before = [node_object(), web().node_port(30080).build(), pods(&[REMOTE[0][0], REMOTE[0][1]])];
    drop(Proxy::start(cluster.node(), proxy_config(), &before));
    // While no agent ran, the NodePort went, and an endpoint.
    let proxy = start_again(&cluster, &[node_object(), web().build(), pods(&[REMOTE[0][1]])]);
    let clients = [POD[0], LOCAL[0][0], LOCAL[0][1], LOCAL[0][2], LOCAL[0][3], CLIENT[0]];
    for client in clients {
        cluster.probe(client, at(NODE[0], 30080), Tcp);
    }
    proxy.settle();
    proxy.assert_nothing_differs();
    for client in clients {
        cluster.assert_served(client, at("10.96.0.10", 80), Tcp, [REMOTE[0][1]]);
    }
}

#[test]
fn udp_flows_do_not_stay_with_an_endpoint_that_is_gone() {
    let cluster = Cluster::new();
    let dns = || {
        let dns = service("shop/dns").cluster_ip("10.96.0.10").port(Udp, 53);
        dns.load_balancer_ip("203.0.113.9").external_local().build()
    };
    let pods = |pods: &[&str]| slice("shop/dns", "a").port(Udp, 8080).endpoints(pods.iter().copied()).build();
    drop(Proxy::start(cluster.node(), proxy_config(), &[node_object(), dns(), pods(&[LOCAL[0][0], REMOTE[0][0]])]));
    let proxy = start_again(&cluster, &[node_object(), dns(), pods(&[REMOTE[0][0]])]);
    let mut flow = cluster.flow(CLIENT[0], at("203.0.113.9", 53), Udp);
    // The local endpoint is gone, and what leads to it is left over.
    assert_eq!(answerer(flow.ask(1).unwrap(), "before"), ip(LOCAL[0][0]));
    proxy.settle();
    proxy.apply(&[pods(&[LOCAL[0][1], REMOTE[0][0]])]);
    assert_eq!(answerer(flow.ask(1).unwrap(), "after"), ip(LOCAL[0][1]));
}
