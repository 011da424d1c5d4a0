//! `vmap-proxy trace` of real packets, and what it leaves behind.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, POD, POD_PORT, at, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::{load_nft, nft_in};
use vmap_proxy_testbed::shop::{VIP, slices, web};

use crate::questions::ask;
use crate::{Agent, Scratch, eventually, run_manifests, vmap_proxy};

struct Node {
    cluster: Cluster,
    agent: Agent,
    socket: Scratch,
    _manifests: ManifestDirectory,
}

/// A node that serves `shop/web` with one endpoint.
fn node() -> Node {
    let (cluster, manifests, socket) = (crate::cluster(), ManifestDirectory::new(), Scratch::new("agent.sock"));
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", |family| vec![LOCAL[family][0]]));
    manifests.write_objects("web.json", &objects);
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    assert_eq!(ask(cluster.node(), &socket.0, &["status", "--wait", "60"]).0, 0);
    Node { cluster, agent, socket, _manifests: manifests }
}

/// A trace that is running: its table is made.
fn start(node: &Node, arguments: &[&str]) -> Child {
    let mut command: Command = vmap_proxy(&["trace", "-o", "json"]);
    command.args(arguments).arg("--socket").arg(&node.socket.0).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = node.cluster.node().run(|| command.spawn()).unwrap().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("tracing new connections"), "{line}");
    child
}

/// Waits for its end: its status and its events.
fn end(mut child: Child) -> (i32, Vec<Value>) {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let events = lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
    (child.wait().unwrap().code().unwrap(), events)
}

fn trace_tables(node: &Node) -> usize {
    let tables = nft_in(node.cluster.node(), &["list", "tables"], "").unwrap();
    tables.lines().filter(|line| line.contains("vmap-proxy-trace-")).count()
}

fn texts(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["text"].as_str().unwrap()).collect()
}

#[test]
fn a_connection_is_followed_to_its_endpoint_and_no_other_is() {
    let node = node();
    let (vip, other) = (at(VIP[0], 80), at(LOCAL[0][1], POD_PORT));
    let child = start(&node, &["--service", "shop/web", "--count", "2", "--duration", "60s"]);
    // These were not asked for.
    node.cluster.answers(POD[0], other, Tcp, 3);
    node.cluster.answers(POD[0], vip, Tcp, 2);
    let (status, events) = end(child);
    assert_eq!(status, 0, "{events:#?}");
    let packets: Vec<&Value> = events.iter().filter(|event| event["event"] == "packet").collect();
    assert_eq!(packets.len(), 2, "{events:#?}");
    for packet in packets {
        assert_eq!((&packet["destination"], &packet["service"]["name"]), (&vip.to_string().into(), &"web".into()));
    }
    let texts = texts(&events);
    for text in ["served by 1 endpoint", &format!("translated: now to {}:{POD_PORT}", LOCAL[0][0])] {
        assert!(texts.contains(&text), "no {text:?} in {texts:#?}");
    }
    eventually("the table goes with the command", || trace_tables(&node) == 0);
    assert!(node.agent.stop().success());
}

#[test]
fn a_drop_by_another_table_is_named_and_an_endpoint_is_followed_from_its_translation_on() {
    let node = node();
    load_nft(
        node.cluster.node(),
        "table inet wall { chain forward { type filter hook forward priority 10; tcp dport 8080 drop; }; }",
    )
    .unwrap();
    let endpoint = format!("{}:{POD_PORT}", LOCAL[0][0]);
    let child = start(&node, &["--endpoint", &endpoint, "--from", CLIENT[0], "--count", "1"]);
    node.cluster.assert_silence(CLIENT[0], at("192.0.2.11", 30080), Tcp);
    let (status, events) = end(child);
    let texts = texts(&events);
    assert_eq!(status, 0, "{texts:#?}");
    let drop = "dropped by a rule of chain forward of table inet wall, which is not ours";
    assert!(texts.contains(&drop), "{texts:#?}");
    assert!(texts[0].starts_with(CLIENT[0]) && texts[0].contains(&format!("-> {endpoint}/TCP")), "{texts:#?}");
    assert!(node.agent.stop().success());
}

/// A drop before conntrack, as of a table `raw`: the packet is marked still earlier.
#[test]
fn a_drop_before_conntrack_is_named_and_each_packet_is_marked_once() {
    let node = node();
    load_nft(
        node.cluster.node(),
        "table inet wall { chain raw { type filter hook prerouting priority raw - 100; ip daddr 10.96.0.10 drop; }; }",
    )
    .unwrap();
    let child = start(&node, &["--address", VIP[0], "--count", "1"]);
    node.cluster.assert_silence(POD[0], at(VIP[0], 80), Tcp);
    let (status, events) = end(child);
    let texts = texts(&events);
    let drop = "dropped by a rule of chain raw of table inet wall, which is not ours";
    assert!(status == 0 && texts.contains(&drop), "{texts:#?}");
    nft_in(node.cluster.node(), &["delete", "table", "inet", "wall"], "").unwrap();
    // TCP is marked by its first packet, UDP by its state.
    for transport in [Tcp, Udp] {
        let child = start(&node, &["--address", VIP[0], "--duration", "1s", "--count", "100", "--rate", "100"]);
        let mut flow = node.cluster.flow(POD[0], at(VIP[0], 80), transport);
        node.cluster.ask(&mut flow, 10);
        let (_, events) = end(child);
        let packets = events.iter().filter(|event| event["event"] == "packet").count();
        assert_eq!(packets, 1, "{transport:?}: {events:#?}");
    }
    assert!(node.agent.stop().success());
}

#[test]
fn nothing_stays_behind_when_it_is_killed_and_nothing_is_traced_in_vain() {
    let node = node();
    let mut child = start(&node, &["--address", VIP[0], "--duration", "1h"]);
    assert_eq!(trace_tables(&node), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the kernel deletes the table", || trace_tables(&node) == 0);
    // It ends by itself, with a status of its own if no packet came.
    let (status, events) = end(start(&node, &["--address", "192.0.2.250", "--duration", "300ms"]));
    assert_eq!((status, events.len()), (3, 0));
    let (status, _, error) = ask(node.cluster.node(), &node.socket.0, &["trace"]);
    assert_eq!((status, error.contains("--service <NAMESPACE/NAME>")), (2, true), "{error}");
    let (status, _, error) = ask(node.cluster.node(), &node.socket.0, &["trace", "--service", "shop/none"]);
    assert_eq!((status, error.contains("there is no Service shop/none")), (1, true), "{error}");
    assert!(node.agent.stop().success());
}

#[test]
fn the_rate_is_limited() {
    let node = node();
    let child = start(&node, &["--service", "shop/web", "--rate", "1", "--count", "1000", "--duration", "1500ms"]);
    node.cluster.answers(POD[0], at(VIP[0], 80), Tcp, 100);
    let (status, events) = end(child);
    let packets = events.iter().filter(|event| event["event"] == "packet").count();
    assert!(status == 0 && (1..=4).contains(&packets), "{status}: {packets} packets");
    assert!(node.agent.stop().success());
}
