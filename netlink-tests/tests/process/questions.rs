//! `vmap-proxy verify`, `status` and `get` on a node.

use std::path::Path;

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::shop::{slices, web};

use crate::{Agent, Scratch, cluster, run_manifests, vmap_proxy};

/// The exit status, the answer and the errors.
pub(crate) fn ask(namespace: &NetNs, socket: &Path, command: &[&str]) -> (i32, String, String) {
    let mut process = vmap_proxy(command);
    process.arg("--socket").arg(socket);
    let output = namespace.run(|| process.output()).unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// `shop/web`, with another Service or without.
fn shop(with_other: bool) -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", |family| vec![LOCAL[family][0], REMOTE[family][0]]));
    objects.extend(with_other.then(|| crate::web(99)));
    manifests.write_objects("web.json", &objects);
    manifests
}

#[test]
fn an_agent_in_step_is_verified_listed_and_reported() {
    let (cluster, manifests, socket) = (cluster(), shop(true), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    // It waits for the agent, too.
    let (status, text, error) = ask(cluster.node(), &socket.0, &["status", "--wait", "60"]);
    assert_eq!(status, 0, "{text}{error}");
    assert!(text.contains("everything is programmed") && text.contains("Services   2"), "{text}");

    let (status, text, error) = ask(cluster.node(), &socket.0, &["verify"]);
    assert_eq!(status, 0, "{text}{error}");
    let (_, text, _) = ask(cluster.node(), &socket.0, &["verify", "--digests", "-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["elements"].as_u64().unwrap() > 20, "{report}");
    assert_eq!(report["digest"], report["kernelDigest"], "{report}");
    // The sum of the Services' digests is that of the state, in `status` and, of its upper bits, as a metric.
    let hex = |value: &Value| u64::from_str_radix(value.as_str().unwrap(), 16).unwrap();
    let services = report["services"].as_array().unwrap();
    let sum = services.iter().fold(0_u64, |sum, service| sum.wrapping_add(hex(&service["digest"])));
    assert_eq!((services.len(), sum), (2, hex(&report["stateDigest"])), "{report}");
    let metrics = agent.get(crate::METRICS, "/metrics").unwrap();
    assert!(metrics.contains(&format!("vmap_proxy_state_digest {}\n", sum >> 12)), "{metrics}");
    let (_, text, _) = ask(cluster.node(), &socket.0, &["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["digest"], report["stateDigest"], "{status}");
    assert!(status["syncs"][0]["services"][0]["name"].is_string() && status["conntrack"]["most"].is_u64(), "{status}");
    assert!(status["source"].as_str().unwrap().starts_with("the files "), "{status}");

    let (status, text, error) = ask(cluster.node(), &socket.0, &["get", "services"]);
    assert_eq!(status, 0, "{error}");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAMESPACE", "NAME", "FRONTENDS", "ENDPOINTS", "STATE"]);
    // Two protocols in two families: cluster IP and NodePort.
    assert_eq!(lines[1], ["shop", "web", "8", "8", "serves"]);
    assert_eq!(lines[2][..4], ["shop", "web-99", "1", "0"]);
    let (_, text, _) = ask(cluster.node(), &socket.0, &["get", "endpoints", "-n", "shop", "web", "-o", "wide"]);
    assert!(text.contains(LOCAL[0][0]) && text.contains("conditions.ready=true"), "{text}");
    let (_, text, _) = ask(cluster.node(), &socket.0, &["get", "frontends", "-n", "shop", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Vec<Value>>(&text).unwrap().len(), 2, "{text}");
    let (status, text, _) = ask(cluster.node(), &socket.0, &["get", "services", "-n", "other"]);
    assert_eq!((status, text.lines().count()), (0, 1), "{text}");
    let missing = "there is no Service shop/none";
    for command in [
        &["get", "services", "-n", "shop", "none"][..],
        &["get", "frontends", "-n", "shop", "none", "-o", "json"],
        &["get", "endpoints", "-n", "shop", "none", "-o", "wide"],
        &["get", "connections", "shop/none"],
        &["get", "connections", "--service", "shop/none", "-o", "json"],
        &["trace", "--service", "shop/none"],
    ] {
        let (status, text, error) = ask(cluster.node(), &socket.0, command);
        assert_eq!((status, error.contains(missing), &*text), (1, true, ""), "{command:?}: {error}");
    }
    // A deleted one may be in the journal, so nothing that matches is no failure.
    let (status, _, error) = ask(cluster.node(), &socket.0, &["journal", "--service", "shop/none"]);
    assert_eq!((status, error.contains(missing)), (3, true), "{error}");
    let (_, _, error) = ask(cluster.node(), &socket.0, &["get", "services", "-n", "other"]);
    assert_eq!(error, "none found in namespace other\n");
    let (status, text, error) = ask(cluster.node(), &socket.0, &["version"]);
    assert_eq!(status, 0, "{error}");
    assert!(text.contains("Replaces   kube-proxy of Kubernetes 1.") && text.contains(", the same"), "{text}");
    assert!(agent.stop().success());
    let (status, text, _) = ask(cluster.node(), &socket.0, &["version", "-o", "json"]);
    let version: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &version["version"], &version["agent"]), (0, &1.into(), &Value::Null), "{version}");
    let (status, _, error) = ask(cluster.node(), &socket.0, &["status"]);
    assert_eq!((status, error.contains("no agent answers at")), (1, true), "{error}");
}

#[test]
fn a_kernel_that_differs_is_named_by_service() {
    let (cluster, manifests, socket) = (cluster(), shop(true), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    let (status, _, error) = ask(cluster.node(), &socket.0, &["status", "--wait", "60"]);
    assert_eq!(status, 0, "{error}");
    // The kernel of another namespace, programmed by another agent, which lacks one Service and has other rules.
    let (other, fewer, other_socket) = (crate::cluster(), shop(false), Scratch::new("other.sock"));
    let flags = ["--query-socket", other_socket.0.to_str().unwrap(), "--masquerade-all"];
    let second = Agent::start(other.node(), run_manifests(&fewer, &flags));
    let (status, _, error) = ask(other.node(), &other_socket.0, &["status", "--wait", "60"]);
    assert_eq!(status, 0, "{error}");
    assert_eq!(ask(other.node(), &other_socket.0, &["verify"]).0, 0);
    let (status, text, error) = ask(other.node(), &socket.0, &["verify"]);
    assert_eq!(status, 1, "{text}{error}");
    let missing = "shop/web-99: table ip: no-endpoint-services lacks 10.96.0.99 . tcp . 80";
    assert!(text.contains(missing), "{text}");
    assert!(text.contains("rules: table ip: chain masquerading has other rules"), "{text}");
    let (status, text, _) = ask(cluster.node(), &other_socket.0, &["verify"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("nobody: table ip: no-endpoint-services has 10.96.0.99 . tcp . 80"), "{text}");
    assert!(agent.stop().success() && second.stop().success());
}

#[test]
fn a_missing_table_is_a_difference() {
    let (cluster, manifests, socket) = (cluster(), shop(false), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    let (status, _, error) = ask(cluster.node(), &socket.0, &["status", "--wait", "60"]);
    assert_eq!(status, 0, "{error}");
    let unprogrammed = crate::cluster();
    let (status, text, error) = ask(unprogrammed.node(), &socket.0, &["verify"]);
    assert_eq!(status, 1, "{text}{error}");
    assert!(text.contains("rules: table ip: there is no table vmap-proxy"), "{text}");
    assert!(agent.stop().success());
}
