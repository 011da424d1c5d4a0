//! `--nftables-reset-gone-endpoints-after`: connections to an endpoint that no slice lists any more end.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, NODE, POD_PORT, at, ip, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::nft_in;

use crate::{Agent, Scratch, cluster, eventually, run_manifests};

const NODE_PORT: u16 = 30090;
const PORT: u16 = 9090;

/// Service `shop/raw` on a NodePort, with these endpoints, of which the second state of each is `ready`.
fn write(manifests: &ManifestDirectory, endpoints: &[(&str, bool)]) {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, ready)| {
            json!({"addresses": [address], "nodeName": "node-1",
                   "conditions": {"ready": ready, "serving": ready, "terminating": !ready}})
        })
        .collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "raw", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.30", "clusterIPs": ["10.96.0.30"],
                 "ports": [{"name": "raw", "port": 80, "nodePort": NODE_PORT, "protocol": "TCP"}]},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "raw-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "raw"}},
        "ports": [{"name": "raw", "port": PORT, "protocol": "TCP"}],
    });
    manifests.write_objects("raw.json", &[node_object(), service, slice]);
}

/// A connection through the NodePort, both of its ends.
fn connection(cluster: &Cluster, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = cluster.lab().owner(ip(CLIENT[0])).unwrap();
    let to = at(NODE[0], NODE_PORT);
    let connected = client.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10))).unwrap().unwrap();
    let (accepted, _) = listener.accept().unwrap();
    for stream in [&connected, &accepted] {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    (connected, accepted)
}

/// Sends on one end and returns whether it was reset.
fn is_reset(stream: &mut TcpStream) -> bool {
    let is_end = |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    if stream.write_all(b".").is_err_and(|error| is_end(&error)) {
        return true;
    }
    stream.read(&mut [0; 16]).is_err_and(|error| is_end(&error))
}

fn tables(cluster: &Cluster) -> String {
    nft_in(cluster.node(), &["list", "tables"], "").unwrap()
}

/// Slow: the entries are deleted 30 s after the first reset.
#[test]
fn both_sides_get_a_reset_when_the_grace_is_over_and_nothing_stays_behind() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    write(&manifests, &[(LOCAL[0][0], true)]);
    let flags = ["--nftables-reset-gone-endpoints-after", "1s", "-v=2"];
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &flags), &log.0);
    agent.wait_until_healthy();
    let pod = cluster.lab().owner(ip(LOCAL[0][0])).unwrap();
    let listener = pod.run(|| TcpListener::bind(at(LOCAL[0][0], PORT))).unwrap().unwrap();
    let (mut client, _accepted) = connection(&cluster, &listener);
    let (_connected, mut server) = connection(&cluster, &listener);
    // Past the Service, to the same pod.
    let mut direct = cluster.flow(CLIENT[0], at(LOCAL[0][0], POD_PORT), vmap_proxy_lab::Transport::Tcp);

    // It terminates, then its slice no longer lists it, as when a pod is deleted.
    write(&manifests, &[(LOCAL[0][0], false), (LOCAL[0][1], true)]);
    eventually("the endpoint leaves", || log.text().matches("synced in").count() == 1);
    assert!(!is_reset(&mut client) && !is_reset(&mut server), "it is still listed");
    assert!(!tables(&cluster).contains("vmap-proxy-resets"));
    write(&manifests, &[(LOCAL[0][1], true)]);
    eventually("the connections are found", || {
        log.text().contains("resets for 2 connections to endpoints that are gone")
    });
    assert!(tables(&cluster).contains("table ip vmap-proxy-resets"), "{}", tables(&cluster));
    eventually("the client gets a reset", || is_reset(&mut client));
    eventually("the endpoint gets a reset", || is_reset(&mut server));
    cluster.ask(&mut direct, 10);
    let metrics = agent.get(crate::METRICS, "/metrics").unwrap();
    assert!(metrics.contains("vmap_proxy_connections_reset_total 2\n"), "{metrics}");
    eventually("the table goes", || !tables(&cluster).contains("vmap-proxy-resets"));
    let mut command = crate::vmap_proxy(&["get", "connections", "--service", "shop/raw", "-o", "json"]);
    let output = cluster.node().run(|| command.output()).unwrap().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["connectionCount"], 0, "{report}");
    assert!(agent.stop().success());
}

#[test]
fn an_endpoint_that_comes_back_keeps_its_connections() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    write(&manifests, &[(LOCAL[0][0], true)]);
    let flags = ["--nftables-reset-gone-endpoints-after", "2s", "-v=2"];
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &flags), &log.0);
    agent.wait_until_healthy();
    let pod = cluster.lab().owner(ip(LOCAL[0][0])).unwrap();
    let listener = pod.run(|| TcpListener::bind(at(LOCAL[0][0], PORT))).unwrap().unwrap();
    let (mut client, _server) = connection(&cluster, &listener);
    write(&manifests, &[(LOCAL[0][1], true)]);
    eventually("the endpoint leaves", || log.text().matches("synced in").count() == 1);
    write(&manifests, &[(LOCAL[0][0], true)]);
    eventually("the endpoint comes back", || log.text().matches("synced in").count() == 2);
    // Another endpoint leaves meanwhile; when its grace is over, so would be the first one's.
    write(&manifests, &[(LOCAL[0][0], true), (LOCAL[0][2], true)]);
    let listener = pod.run(|| TcpListener::bind(at(LOCAL[0][2], PORT))).unwrap().unwrap();
    eventually("a third endpoint comes", || log.text().matches("synced in").count() == 3);
    listener.set_nonblocking(true).unwrap();
    let mut third = None;
    let client_namespace = cluster.lab().owner(ip(CLIENT[0])).unwrap();
    eventually("the third endpoint is drawn", || {
        let to = at(NODE[0], NODE_PORT);
        let connected =
            client_namespace.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10))).unwrap().unwrap();
        connected.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        if listener.accept().is_ok() {
            third = Some(connected);
        }
        third.is_some()
    });
    write(&manifests, &[(LOCAL[0][0], true)]);
    let mut third = third.unwrap();
    eventually("the third endpoint's connection ends", || is_reset(&mut third));
    assert!(!is_reset(&mut client), "{}", log.text());
    assert!(agent.stop().success());
}
