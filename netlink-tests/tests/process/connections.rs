//! `vmap-proxy get connections` on real connections through a node, with and without an agent.

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::cluster::{LOCAL, NODE, POD, POD_PORT, at, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::shop::{VIP, slices, web};

use crate::{Agent, cluster, run_manifests, vmap_proxy};

/// A client in a pod of this node.
const CLIENT: &str = POD[0];

/// The exit status and the answer.
fn connections(namespace: &NetNs, arguments: &[&str]) -> (i32, String) {
    let mut command = vmap_proxy(&["get", "connections"]);
    let output = namespace.run(|| command.args(arguments).output()).unwrap().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap() + &error)
}

fn shop() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", |family| vec![LOCAL[family][0]]));
    manifests.write_objects("web.json", &objects);
    manifests
}

#[test]
fn connections_are_counted_by_service_and_endpoint_and_waited_for() {
    let (cluster, manifests) = (cluster(), shop());
    let endpoint = at(LOCAL[0][0], POD_PORT);
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    let mut flows = Vec::new();
    for (to, transport) in [(at(VIP[0], 80), Tcp), (at(VIP[0], 80), Udp), (at(NODE[0], 30080), Tcp)] {
        let mut flow = cluster.flow(CLIENT, to, transport);
        cluster.ask(&mut flow, 10);
        flows.push(flow);
    }
    // Past every Service, as to a headless one.
    let mut direct = cluster.flow(CLIENT, endpoint, Tcp);
    cluster.ask(&mut direct, 10);
    // The kernel alone answers from here on.
    assert!(agent.stop().success());

    let (status, text) = connections(cluster.node(), &["--service", "shop/web"]);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(status, 0, "{text}");
    assert_eq!(rows[0], ["NAMESPACE", "NAME", "PORT", "ENDPOINT", "OPEN", "CLOSING"]);
    let row = |protocol: &str, open: &str| {
        let place = format!("{endpoint}/{protocol}");
        rows.iter().any(|row| row[..2] == ["shop", "web"] && row[3] == place && row[4] == open)
    };
    assert!(row("TCP", "2") && row("UDP", "1") && rows.len() == 3, "{text}");

    let of_endpoint = endpoint.to_string();
    let (_, text) = connections(cluster.node(), &["--endpoint", &of_endpoint, "-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&report["open"], &report["connectionCount"]), (&4.into(), &4.into()), "{report}");
    let all = report["connections"].as_array().unwrap();
    assert!(all.iter().any(|one| one["name"] == "" && one["destination"] == of_endpoint), "{report}");
    let node_port = all.iter().find(|one| one["destination"] == "192.0.2.11:30080").unwrap();
    assert_eq!((&node_port["name"], &node_port["state"]), (&"web".into(), &"ESTABLISHED".into()), "{report}");
    assert_eq!(node_port["masqueraded"], true, "external policy Cluster: {report}");
    let (_, text) = connections(cluster.node(), &["-n", "shop", "-o", "wide"]);
    assert!(text.contains("10.96.0.10:80/TCP") && text.contains("ESTABLISHED"), "{text}");
    let (_, text) = connections(cluster.node(), &["-n", "other"]);
    assert_eq!(text.lines().count(), 1, "{text}");

    // A wait ends with a status of its own while one is open, and well after the last.
    let wait = |seconds| connections(cluster.node(), &["--service", "shop/web", "--wait", "--timeout", seconds]);
    let (status, text) = wait("0");
    assert_eq!(status, 3, "{text}");
    // An entry of UDP is open until it expires, here a second after the next packet.
    let timeouts = ["", "_stream"].map(|kind| format!("net.netfilter.nf_conntrack_udp_timeout{kind}"));
    cluster.node().set_sysctls(&timeouts.each_ref().map(|name| (name.as_str(), "1"))).unwrap();
    cluster.ask(&mut flows[1], 10);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| connections(cluster.node(), &["-n", "shop", "web", "--wait", "--timeout", "60"]));
        drop(flows);
        let (status, text) = waiting.join().unwrap();
        assert_eq!(status, 0, "{text}");
    });
    drop(direct);
}

#[test]
fn flags_of_connections_alone_are_refused_elsewhere() {
    let node = NetNs::new("node").unwrap();
    for (arguments, word) in [
        (vec!["get", "services", "--endpoint", "10.244.1.7"], "is a flag of `get connections` alone"),
        (vec!["get", "connections", "--endpoint", "10.244.1.7:"], "must be an address, or an address and a port"),
        (vec!["get", "connections", "--manifests", "."], "has no connections"),
    ] {
        let output = node.run(|| vmap_proxy(&arguments).output()).unwrap().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(word), "{arguments:?}: {error}");
    }
}
