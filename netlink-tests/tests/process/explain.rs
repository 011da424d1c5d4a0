//! `vmap-proxy explain` on a node: over the agent's socket, and from the elements of the kernel.

use std::path::Path;

use serde_json::{Value, json};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::{load_nft, nft_in};
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
    let mut slices = slices("shop/web", pods);
    for slice in &mut slices {
        slice["endpoints"][0]["targetRef"] = json!({"kind": "Pod", "namespace": "shop", "name": "web-0"});
        slice["endpoints"][1]["targetRef"] = json!({"kind": "Pod", "namespace": "other", "name": "web-1"});
    }
    objects.extend(slices);
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
        (["--from", "pod:shop/web-0", "--to", SERVICE], 0),
        (["--from", "pod:shop/web-0", "--to", "[fd00:10:96::10]:80"], 0),
        (["--from", "node", "--to", "pod:shop/web-0:8080"], 4),
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
    let (_, text, _) = explain(cluster.node(), &socket.0, &["--from", "pod:shop/web-0", "--to", "svc:shop/web"]);
    assert!(text.starts_with(&format!("{} -> {SERVICE}/TCP", LOCAL[0][0])), "{text}");
    // No slice refers to it in this namespace.
    for pod in ["pod:shop/web-1", "pod:shop/none", "pod:other/web-1"] {
        let (status, _, error) = explain(cluster.node(), &socket.0, &["--from", pod, "--to", SERVICE]);
        let name = pod.rsplit_once('/').unwrap().1;
        assert_eq!((status, error.contains(&format!(" {name} -o jsonpath={{.status.podIP}}"))), (1, true), "{error}");
    }
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
    // The rules were made with another range of pods, which these flags do not name.
    let other = ["--from", "10.244.1.5", "--to", SERVICE, "--cluster-cidr", "10.99.0.0/16"];
    let (status, text, _) = explain(cluster.node(), &socket.0, &other);
    assert!(status == 0 && text.contains("Kernel   differs"), "{text}");
    assert!(text.contains("Next") && text.contains("--config FILE") && text.contains("--cluster-cidr,"), "{text}");
    let (_, text, _) = explain(cluster.node(), &socket.0, &[&other[..], &["-o", "json"]].concat());
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert!(answer["next"].as_str().unwrap().contains("--masquerade-all"), "{answer}");
    // A hole that no agent repairs.
    let element = "delete element ip vmap-proxy endpoints { 10.96.0.10 . tcp . 80 . 1 }";
    nft_in(cluster.node(), &["-f", "-"], element).unwrap();
    ask(3, &["depends on chance"]);
    nft_in(cluster.node(), &["-f", "-"], "flush chain ip vmap-proxy lb-2").unwrap();
    ask(3, &["chain lb-2 of the kernel is not the one that this configuration makes"]);
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

#[test]
fn a_chain_of_another_table_that_may_drop_is_in_the_verdict() {
    let (cluster, manifests, socket) = (cluster(), shop(), Scratch::new("agent.sock"));
    let path = socket.0.to_str().unwrap();
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    agent.wait_until_healthy();
    let ask = |doubt: &str, may_drop: Value| {
        let question = ["--from", "10.244.1.5", "--to", SERVICE];
        let (status, text, error) = explain(cluster.node(), &socket.0, &question);
        assert_eq!(status, 0, "{text}{error}");
        let verdict = text.lines().find(|line| line.starts_with("Verdict")).unwrap();
        assert!(verdict.ends_with(doubt), "{text}");
        let (_, text, _) = explain(cluster.node(), &socket.0, &[&question[..], &["-o", "json"]].concat());
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(answer["otherChains"][0]["mayDrop"], may_drop, "{answer}");
    };
    let service = "Service shop/web port tcp 80/TCP";
    load_nft(cluster.node(), "table inet wall { chain f { type filter hook forward priority 10; }; chain deny { }; }")
        .unwrap();
    ask(service, Value::Null);
    nft_in(cluster.node(), &["-f", "-"], "add rule inet wall f ip saddr 192.0.2.0/24 jump deny").unwrap();
    nft_in(cluster.node(), &["-f", "-"], "add rule inet wall deny tcp dport 22 counter reject").unwrap();
    ask(
        &format!("{service}, unless a rule of chain deny, behind inet wall f, drops it (in forward)"),
        json!({"rule": "deny"}),
    );
    nft_in(cluster.node(), &["-f", "-"], "add chain inet wall f { policy drop; }").unwrap();
    ask(&format!("{service}, unless chain inet wall f drops it (policy drop in forward)"), json!("policy"));
    assert!(agent.stop().success());
    let (_, text, _) = explain(cluster.node(), &socket.0, &["--from", "10.244.1.5", "--to", SERVICE]);
    assert!(text.contains(" of shop/web:tcp, unless chain inet wall f drops it"), "{text}");
}
