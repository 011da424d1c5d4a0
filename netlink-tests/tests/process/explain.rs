//! `vmap-proxy explain` on a node: over the agent's socket, and from the elements of the kernel.

use std::path::Path;

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::nft_in;
use vmap_proxy_testbed::shop::{slices, web};

use crate::{Agent, Scratch, cluster, eventually, run_manifests, vmap_proxy};

const SERVICE: &str = "10.96.0.10:80";

/// The exit status, the answer and the errors.
fn explain(namespace: &NetNs, socket: &Path, question: &[&str]) -> (i32, String, String) {
    let mut command = vmap_proxy(&["explain"]);
    command.args(question).arg("--socket").arg(socket).args(["--node-name", "node-1"]);
    let output = namespace.run(|| command.output()).unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn shop() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let pods = |family: usize| vec![LOCAL[family][0], REMOTE[family][0]];
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", pods));
    manifests.write_objects("web.json", &objects);
    manifests
}

#[test]
fn agent_and_kernel_agree() {
    let (cluster, manifests, socket) = (cluster(), shop(), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    agent.wait_until_healthy();
    eventually("the agent answers", || explain(cluster.node(), &socket.0, &["--to", "svc:shop/web"]).0 == 0);
    for (question, status) in [
        (["--from", "10.244.1.5", "--to", "svc:shop/web"], 0),
        (["--from", "outside", "--to", "node:30080"], 0),
        (["--from", "node", "--to", "[fd00:10:96::10]:80/UDP"], 0),
        (["--from", LOCAL[0][0], "--to", SERVICE], 0),
        (["--from", "10.244.1.5", "--to", "10.96.0.10:81"], 3),
        (["--from", "10.244.1.5", "--to", "203.0.113.1:80"], 4),
    ] {
        let (actual, text, error) = explain(cluster.node(), &socket.0, &question);
        assert_eq!(actual, status, "{question:?}: {text}{error}");
        assert!(text.contains("Kernel   has the same"), "{question:?}: {text}");
        let (actual, text, error) = explain(cluster.node(), &socket.0, &[&question[..], &["-o", "json"]].concat());
        assert_eq!(actual, status, "{question:?}: {text}{error}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["kernel"]["verdict"], answer["verdict"], "{question:?}");
        let endpoints = answer["kernel"]["endpoints"].as_array().unwrap().len();
        assert_eq!(Some(endpoints as u64), answer["endpointCount"].as_u64(), "{question:?}");
    }
    let (_, text, _) = explain(cluster.node(), &socket.0, &["--from", "10.244.1.5", "--to", "10.96.0.10:81"]);
    assert!(text.contains("Service shop/web, which has no port 81/TCP"), "{text}");
    assert!(agent.stop().success());
    assert!(!socket.0.exists(), "the socket stays behind");
}

#[test]
fn without_an_agent_the_kernel_answers() {
    let (cluster, manifests, socket) = (cluster(), shop(), Scratch::new("agent.sock"));
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    assert!(agent.stop().success());
    let ask = |status: i32, words: &[&str]| {
        let (actual, text, error) = explain(cluster.node(), &socket.0, &["--from", "10.244.1.5", "--to", SERVICE]);
        assert_eq!(actual, status, "{text}{error}");
        assert!(error.contains("no agent answers at"), "{error}");
        words.iter().for_each(|word| assert!(text.contains(word), "no {word:?} in {text}"));
    };
    ask(0, &["reaches one of 2 endpoints of shop/web:tcp", LOCAL[0][0], REMOTE[0][0], "has the rules of this"]);
    // A hole that no agent repairs.
    let element = "delete element ip vmap-proxy endpoints { 10.96.0.10 . tcp . 80 . 1 }";
    nft_in(cluster.node(), &["-f", "-"], element).unwrap();
    ask(3, &["depends on chance"]);
    nft_in(cluster.node(), &["-f", "-"], "flush chain ip vmap-proxy masquerading").unwrap();
    ask(3, &["chain masquerading of the kernel is not the one that this configuration makes"]);
    nft_in(cluster.node(), &["delete", "table", "ip", "vmap-proxy"], "").unwrap();
    ask(4, &["the kernel has no table ip vmap-proxy"]);
    let (status, _, error) = explain(cluster.node(), &socket.0, &["--to", "svc:shop/web"]);
    assert_eq!((status, error.contains("no agent answers at")), (1, true), "{error}");
}

#[test]
fn a_difference_between_agent_and_kernel_is_named() {
    let (cluster, manifests, socket) = (cluster(), shop(), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    agent.wait_until_healthy();
    eventually("the agent answers", || explain(cluster.node(), &socket.0, &["--to", "svc:shop/web"]).0 == 0);
    // In a namespace whose kernel nobody has programmed, the same agent answers.
    let other = crate::cluster();
    let (status, text, error) = explain(other.node(), &socket.0, &["--from", "10.244.1.5", "--to", SERVICE]);
    assert_eq!(status, 5, "{text}{error}");
    assert!(text.contains("Kernel   differs") && text.contains("the kernel lacks endpoint"), "{text}");
    assert!(agent.stop().success());
}
