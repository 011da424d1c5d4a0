//! `vmap-proxy get connections` on real connections through a node, with and without an agent.

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::cluster::{LOCAL, NODE, POD, POD_PORT, at, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::service;
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
    let (status, text) = connections(cluster.node(), &["-n", "other"]);
    assert_eq!((status, text.lines().count(), text.contains("no connection found")), (0, 2, true), "{text}");
    let (status, text) = connections(cluster.node(), &["-n", "shop", "wep"]);
    assert_eq!((status, text.contains("no Service shop/wep is programmed")), (1, true), "{text}");

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
        (vec!["get", "connections", "--endpoint", "10.244.1.7:"], "give an address, or an address and a port"),
        (vec!["get", "connections", "--endpoint", "foo"], "give an address, or an address and a port"),
        (vec!["get", "connections", "--manifests", "."], "has no connections"),
        (vec!["trace", "--endpoint", "foo"], "give an address, or an address and a port"),
        (vec!["trace", "--address", "foo"], "invalid IP address"),
        (vec!["trace", "--address", "10.96.0.10", "--duration", "0s"], "must be greater than 0"),
        (vec!["journal", "--address", "foo"], "invalid IP address"),
        (vec!["journal", "--since", "foo"], "--since"),
        (vec!["explain", "--to", "svc:shop/web", "--cluster-cidr", "foo"], "clusterCIDR"),
        (vec!["doctor", "--cluster-cidr", "foo"], "clusterCIDR"),
        (vec!["get", "services", "-n", "other", "shop/web"], "is another namespace than that of the name, shop"),
        (vec!["get", "pods"], "invalid value 'pods'"),
    ] {
        let output = node.run(|| vmap_proxy(&arguments).output()).unwrap().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
}

/// Two Services whose names have more bytes in common than a comment holds.
#[test]
fn services_with_long_names_are_kept_apart() {
    let (cluster, manifests) = (cluster(), ManifestDirectory::new());
    let names = ["a", "b"].map(|end| format!("shop/{}{end}", "long-".repeat(49)));
    let mut objects = vec![node_object()];
    for (name, address) in names.iter().zip(["10.96.0.21", "10.96.0.22"]) {
        objects.push(service(name).cluster_ip(address).port(Tcp, 80).build());
        objects.extend(slices(name, |family| vec![LOCAL[family][0]]));
    }
    manifests.write_objects("web.json", &objects);
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    let mut flows: Vec<_> =
        ["10.96.0.21", "10.96.0.22", "10.96.0.22"].map(|to| cluster.flow(CLIENT, at(to, 80), Tcp)).into();
    for flow in &mut flows {
        cluster.ask(flow, 10);
    }
    assert!(agent.stop().success());
    let (status, text) = connections(cluster.node(), &[]);
    assert_eq!((status, text.lines().filter(|line| line.starts_with("shop ")).count()), (0, 2), "{text}");
    assert!(text.contains("is cut"), "{text}");
    for (name, expected) in names.iter().zip([1, 2]) {
        let (status, text) = connections(cluster.node(), &["--service", name, "-o", "json"]);
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, report["open"].as_u64()), (0, Some(expected)), "{report}");
    }
    let (status, _) = connections(cluster.node(), &["--service", names[0].trim_end_matches('a')]);
    assert_eq!(status, 1);
}
