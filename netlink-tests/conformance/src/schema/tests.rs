use std::path::Path;

use super::*;

const GOOD: &str = r"
name: sample
why: shows the format
node:
  name: kestrel
  zone: ''
  ips: {v4: 192.0.2.11, v6: '2001:db8:1::11'}
  extraIPs: [192.0.2.211]
  podCIDRs: [10.244.1.0/24]
config: {nftables: {masqueradeAll: true}}
objects: []
packets:
- from: {kind: local-pod, ip: 10.244.1.7, iif: veth1}
  to: {ip: 10.96.0.1, port: 80, proto: UDP}
  expect: {verdict: dnat, endpoints: ['10.244.1.7:80'], masquerade: false, hairpin: ['10.244.1.7:80']}
  sticky: true
  stickyGroup: one
steps:
- delete: [{kind: Service, namespace: shop, name: web}]
  apply: [{apiVersion: v1, kind: Node, metadata: {name: on}}]
  packets:
  - from: {kind: node, ip: 127.0.0.1}
    to: {ip: 10.96.0.1, port: 80, proto: SCTP}
    expect: {verdict: reject}
";

fn error_of(text: &str) -> String {
    parse(Path::new("some/where/sample.yaml"), text).unwrap_err().to_string()
}

#[test]
fn every_key_is_read() {
    let vector = parse(Path::new("sample.yaml"), GOOD).unwrap();
    assert_eq!(vector.node.extra_ips, ["192.0.2.211".parse::<IpAddr>().unwrap()]);
    assert_eq!(vector.config["nftables"]["masqueradeAll"], Value::Bool(true));
    let probe = &vector.packets[0];
    assert!(probe.sticky);
    assert_eq!(probe.sticky_group.as_deref(), Some("one"));
    assert_eq!(probe.from.iif.as_deref(), Some("veth1"));
    assert_eq!(probe.to.proto, TransportProtocol::Udp);
    assert_eq!(probe.expect.hairpin, probe.expect.endpoints);
    assert_eq!(vector.phases().count(), 2);
    assert_eq!(vector.steps[0].delete[0].name, "web");
    assert_eq!(vector.steps[0].apply[0]["metadata"]["name"], "on");
    assert_eq!(vector.steps[0].packets[0].expect.verdict, Verdict::Reject);
}

#[test]
fn what_is_left_out_is_the_default() {
    let start = GOOD.find("node:").unwrap();
    let short = [&GOOD[..start], "objects: []\npackets: []\n"].concat();
    let vector = parse(Path::new("sample.yaml"), &short).unwrap();
    assert_eq!((vector.node.name.as_str(), vector.node.pod_cidrs.len()), ("kestrel", 2));
    assert_eq!(vector.config["clusterCIDR"], "10.244.0.0/16,fd00:10:244::/56");
    assert_eq!(vector.objects.len(), 1);
    assert_eq!(vector.objects[0]["status"]["addresses"][0]["address"], "192.0.2.11");
    // A node that is written down brings no object of its own, and an empty configuration is empty.
    let vector = parse(Path::new("sample.yaml"), &GOOD.replace("{nftables: {masqueradeAll: true}}", "{}")).unwrap();
    assert!(vector.objects.is_empty() && vector.config.is_empty());
}

#[test]
fn json_is_the_same_format() {
    let vector = parse(Path::new("sample.yaml"), GOOD).unwrap();
    let text = serde_json::to_string(&vector).unwrap();
    assert_eq!(parse(Path::new("sample.json"), &text).unwrap(), vector);
}

/// Every mapping of the format refuses a key that it does not know, and the
/// message names file and key.
#[test]
fn unknown_keys_are_refused() {
    for (known, unknown) in [
        ("why:", "wy:"),
        ("zone:", "zones:"),
        ("v4:", "v5:"),
        ("extraIPs:", "extraIps:"),
        ("nftables:", "nftable:"),
        ("masqueradeAll:", "masqueradeAl:"),
        ("iif:", "oif:"),
        ("proto:", "protocol:"),
        ("hairpin:", "hairpins:"),
        ("sticky:", "stick:"),
        ("stickyGroup:", "group:"),
        ("delete:", "remove:"),
        ("namespace:", "ns:"),
        ("steps:", "step:"),
    ] {
        let error = error_of(&GOOD.replacen(known, unknown, 1));
        assert!(error.contains("sample.yaml"), "{error}");
        assert!(error.contains(unknown.trim_end_matches(':')), "{unknown} in {error}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (right, wrong, expected) in [
        ("name: sample", "name: other", "not the name of the file"),
        ("kind: local-pod", "kind: external", "not of kind"),
        ("kind: node", "kind: remote-pod", "not of kind"),
        ("masquerade: false, ", "", "needs `endpoints`"),
        ("verdict: reject", "verdict: reject, masquerade: true", "belong to verdict dnat"),
        ("hairpin: ['10.244.1.7:80']", "hairpin: ['10.244.1.8:80']", "not in `endpoints`"),
        ("10.96.0.1, port: 80, proto: SCTP", "'::1', port: 80, proto: SCTP", "families"),
        ("metadata: {name: on}", "metadata: {}", "without /metadata/name"),
    ] {
        let error = error_of(&GOOD.replacen(right, wrong, 1));
        assert!(error.contains(expected), "{wrong}: {error}");
    }
}

#[test]
fn a_folder_without_vectors_is_an_error() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert!(matches!(load_dir(&sources), Err(VectorError::Empty { .. })));
    let nowhere = sources.join("nowhere");
    assert!(matches!(load_dir(&nowhere), Err(VectorError::Read { .. })));
}

#[test]
fn the_vectors_of_the_repository_load() {
    let vectors = load_dir(&crate::repository_dir()).unwrap();
    assert!(vectors.is_sorted_by(|a, b| a.name < b.name));
    // A folder that lost files would otherwise pass unseen.
    assert!(vectors.len() >= 115, "only {} vectors", vectors.len());
}
