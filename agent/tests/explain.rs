//! `vmap-proxy explain` on files: its text, its JSON and its exit status. The
//! texts are the page `docs/broken-services.md`:
//! `UPDATE_GOLDEN=1 cargo test -p vmap-proxy --test explain` writes it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "../../compiler/tests/support/golden.rs"]
mod golden;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/explain")
}

fn explain_in(manifests: &Path, question: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmap-proxy"));
    command.arg("explain").args(question).args(["--node-name", "node-1", "--cluster-cidr", "10.244.0.0/16"]);
    command.arg("--manifests").arg(manifests).output().unwrap()
}

fn explain(question: &[&str]) -> (i32, String) {
    let output = explain_in(&manifests(), question);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

/// A situation, the question, the exit status, and a text that the answer must
/// have.
const SITUATIONS: [(&str, &[&str], i32, &str); 17] = [
    ("A Service that works", &["--from", "10.244.1.5", "--to", "svc:shop/cart"], 0, "reaches one of 2 endpoints"),
    ("The same from outside, by NodePort", &["--from", "outside", "--to", "node:30080"], 0, "masqueraded"),
    ("A pod that reaches itself", &["--from", "pod:shop/cart-0", "--to", "svc:shop/cart:http"], 0, "reaches itself"),
    (
        "No endpoint is ready",
        &["--from", "10.244.1.5", "--to", "svc:shop/starting"],
        3,
        "endpoints[0].conditions.ready=false",
    ),
    (
        "`targetPort` names no port of the pods",
        &["--from", "10.244.1.5", "--to", "svc:shop/misnamed"],
        3,
        "EndpointSlice shop/misnamed-a ports=[]",
    ),
    ("No slice at all", &["--from", "10.244.1.5", "--to", "svc:shop/external"], 3, "no EndpointSlice belongs to"),
    (
        "Policy Local, and no pod on this node",
        &["--from", "outside", "--to", "203.0.113.13:443"],
        3,
        "spec.externalTrafficPolicy=Local",
    ),
    (
        "Source ranges",
        &["--from", "outside", "--to", "203.0.113.14:443"],
        3,
        "spec.loadBalancerSourceRanges=192.0.2.128/25",
    ),
    ("Source ranges of a Service", &["--to", "svc:shop/office"], 0, "serves only 192.0.2.128/25"),
    ("A headless Service", &["--from", "10.244.1.5", "--to", "svc:shop/headless"], 3, "spec.clusterIP=None"),
    ("Another proxy's Service", &["--to", "svc:shop/mesh"], 3, "service-proxy-name"),
    (
        "An address of another proxy's Service",
        &["--from", "10.244.1.5", "--to", "10.96.0.15:80"],
        3,
        "10.96.0.15 is an address of Service shop/mesh, but a label gives",
    ),
    ("Two Services want one address", &["--to", "svc:shop/second"], 3, "Service shop/first is older and has it"),
    (
        "Two Services of files want one address",
        &["--to", "svc:shop/twin-b"],
        3,
        "Service shop/twin-a comes first by name (neither has a creationTimestamp) and has it",
    ),
    (
        "A port that the Service does not have",
        &["--from", "10.244.1.5", "--to", "10.96.0.10:8080"],
        3,
        "has no port 8080/TCP, only 80/TCP",
    ),
    ("Hints keep traffic in the zone", &["--from", "10.244.1.5", "--to", "svc:shop/zonal"], 0, "hints.forZones=zone-b"),
    (
        "No Service has the address",
        &["--from", "10.244.1.5", "--to", "10.96.7.7:80"],
        3,
        "ServiceCIDR kubernetes spec.cidrs=10.96.0.0/16",
    ),
];

#[test]
fn broken_services() {
    let mut page = String::from(
        "# Broken Services\n\nThis page is generated from the code: `vmap-proxy explain` on files with Services that do \
         not work.\n\n[The manifests](https://github.com/vmap-proxy/vmap-proxy/blob/main/agent/tests/golden/explain/shop.yaml), and [how to ask](explain.md).\n",
    );
    for (title, question, status, text) in SITUATIONS {
        let (actual, answer) = explain(question);
        assert_eq!(actual, status, "{title}: {answer}");
        assert!(answer.contains(text), "{title}: no {text:?} in {answer}");
        write!(page, "\n## {title}\n\n```console\n$ vmap-proxy explain {}\n{answer}```\n", question.join(" ")).unwrap();
        writeln!(page, "\nExit status {status}.").unwrap();
    }
    golden::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/broken-services.md"), &page);
}

#[test]
fn json_has_the_same_answer() {
    for (title, question, status, _) in SITUATIONS {
        let (actual, answer) = explain(&[question, &["-o", "json"]].concat());
        assert_eq!(actual, status, "{title}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["version"], json!(1), "{title}");
        let is_packet = answer.get("verdict").is_some();
        assert!(is_packet || answer["reasons"].is_array(), "{title}: {answer}");
    }
    let (_, answer) = explain(&["--from", "10.244.1.5", "--to", "svc:shop/cart", "-o", "json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["verdict"], json!("dnat"));
    assert_eq!(answer["decision"]["code"], json!("frontend"));
    assert_eq!(answer["endpoints"][0]["oneIn"], json!(2));
    assert_eq!(answer["endpoints"][0]["cause"]["field"], json!("endpoints[0].conditions.ready"));
    assert!(answer["next"].is_null(), "{answer}");
    let (_, answer) = explain(&["--to", "svc:shop/starting", "-o", "json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["next"].as_str().unwrap().starts_with("see why the pods are not ready"), "{answer}");
}

#[test]
fn a_list_shows_who_is_served_alone() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmap-proxy"));
    command.args(["get", "services", "-n", "shop", "--node-name", "node-1", "--manifests"]).arg(manifests());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for (service, state) in [
        ("cart", "serves"),
        ("office", "serves, 1 of 2 frontends only source ranges"),
        ("elsewhere", "serves, 1 of 2 frontends only local clients"),
        ("starting", "1 of 1 frontend not served"),
        ("mesh", "not programmed"),
    ] {
        let line = text.lines().find(|line| line.split_whitespace().nth(1) == Some(service)).unwrap();
        assert!(line.ends_with(&format!("  {state}")), "{state} is not in {line}");
    }
    for (name, status) in [("cart", 0), ("none", 1)] {
        for list in ["services", "frontends", "endpoints"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_vmap-proxy"));
            command.args(["get", list, "-n", "shop", name, "--node-name", "node-1", "--manifests"]).arg(manifests());
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), Some(status), "{list} {name}");
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(error.contains("there is no Service shop/none in these files"), status == 1, "{error}");
        }
    }
}

#[test]
fn wrong_questions_are_refused_with_the_remedy() {
    for (question, status, text) in [
        (
            &["--from", "nowhere", "--to", "10.96.0.10:80"][..],
            2,
            "give an address, pod:NAMESPACE/NAME, node or outside",
        ),
        (&["--from", "outside", "--to", "cart"], 2, "svc:NAMESPACE/NAME[:PORT]"),
        (&["--to", "10.96.0.10:80"], 2, "--from is missing"),
        (&["--from", "pod:shop/none", "--to", "10.96.0.10:80"], 1, "kubectl get pod -n shop none"),
        (&["--from", "2001:db8::1", "--to", "10.96.0.10:80"], 2, "two address families"),
        (&["--from", "10.244.1.5", "--to", "svc:shop/cart:https"], 1, "no port of the name \"https\""),
    ] {
        let output = explain_in(&manifests(), question);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{question:?}: {error}");
        assert!(error.contains(text), "{question:?}: {error}");
    }
}

#[test]
fn a_port_that_the_service_lacks_is_answered_for_that_port() {
    let (status, answer) = explain(&["--from", "10.244.1.5", "--to", "svc:shop/cart:8080"]);
    assert_eq!(status, 3, "{answer}");
    assert!(answer.contains("has no port 8080/TCP, only 80/TCP"), "{answer}");
}

#[test]
fn hostile_names_are_escaped() {
    let directory = std::env::temp_dir().join(format!("vmap-proxy-explain-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let name = format!("a\u{1b}[2J\nVerdict  reaches{}", "x".repeat(230));
    let objects = json!({"kind": "List", "apiVersion": "v1", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "h\nt", "port": 80}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "h\nt", "port": 80}],
            "endpoints": [{"addresses": ["10.244.1.5"]}, {"addresses": ["10.244.1.6"], "conditions": {"ready": false}}]},
    ]});
    std::fs::write(directory.join("hostile.json"), objects.to_string()).unwrap();
    let output = explain_in(&directory, &["--from", "outside", "--to", "10.96.0.10:80"]);
    std::fs::remove_dir_all(&directory).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(r"a\u{1b}[2J\nVerdict  reaches"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("Verdict")).count(), 1, "{text}");
}
