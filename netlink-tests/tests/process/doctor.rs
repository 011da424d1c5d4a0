//! `vmap-proxy doctor` on nodes with and without faults: real tables, devices and settings in namespaces.

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::nft::{load_nft, nft_in};

use super::vmap_proxy;

/// A node that forwards.
fn node() -> NetNs {
    let node = NetNs::new("node").unwrap();
    node.set_sysctls(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")]).unwrap();
    node
}

/// Runs the command; returns its exit status, and severity and subject of each finding.
fn examine(node: &NetNs) -> (Option<i32>, Vec<(String, String)>) {
    let output = node.run(|| vmap_proxy(&["doctor", "-o", "json"]).output().unwrap()).unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap();
    (output.status.code(), findings.iter().map(|one| (text(one, "severity"), text(one, "subject"))).collect())
}

fn has(findings: &[(String, String)], severity: &str, subject: &str) -> bool {
    findings.iter().any(|(one, about)| one == severity && about == subject)
}

#[test]
fn a_node_in_order_has_nothing_worse_than_a_note() {
    let (status, findings) = examine(&node());
    assert_eq!(status, Some(0), "{findings:?}");
    // The probe ran, and this kernel takes the rules of both families.
    assert!(!findings.iter().any(|(_, subject)| subject.starts_with("kernel")), "{findings:?}");
}

#[test]
fn each_fault_is_found_and_nothing_is_changed() {
    let node = node();
    node.set_sysctls(&[("net.ipv4.ip_forward", "0")]).unwrap();
    load_nft(
        &node,
        "table inet filter { chain forward { type filter hook forward priority 0; policy drop; }; }
         table ip nat { chain PREROUTING { type nat hook prerouting priority -100; }; chain KUBE-SERVICES { }; }
         table ip6 kube-proxy { chain services { }; }
         table ip firewalld { chain raw { }; }",
    )
    .unwrap();
    let before = nft_in(&node, &["list", "ruleset"], "").unwrap();
    let (status, findings) = examine(&node);
    assert_eq!(status, Some(1), "{findings:?}");
    assert_eq!(findings.first().map(|(severity, _)| severity.as_str()), Some("error"), "the worst comes first");
    for (severity, subject) in [
        ("error", "net.ipv4.ip_forward"),
        ("warning", "chain inet filter forward"),
        ("note", "chain ip nat PREROUTING"),
        ("warning", "kube-proxy"),
        ("note", "firewalld"),
    ] {
        assert!(has(&findings, severity, subject), "{severity} {subject}: {findings:?}");
    }
    assert_eq!(nft_in(&node, &["list", "ruleset"], "").unwrap(), before);
}

#[test]
fn warnings_alone_have_a_status_of_their_own() {
    let node = node();
    load_nft(&node, "table inet filter { chain input { type filter hook input priority 0; policy drop; }; }").unwrap();
    let (status, findings) = examine(&node);
    assert_eq!(status, Some(3), "{findings:?}");
}

#[test]
fn the_text_names_the_remedy() {
    let node = node();
    node.set_sysctls(&[("net.ipv4.ip_forward", "0")]).unwrap();
    let output = node.run(|| vmap_proxy(&["doctor"]).output().unwrap()).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("error    net.ipv4.ip_forward\n"), "{text}");
    assert!(text.contains("remedy: sysctl -w net.ipv4.ip_forward=1"), "{text}");
    assert!(text.contains("1 error, 0 warnings"), "{text}");
}
