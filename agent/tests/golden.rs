//! Golden rule sets: what `vmap-proxy compile` prints for the examples and for
//! one Service of each kind, word for word, in files that one can read.
//!
//! After a deliberate change of the rules, write them again and read the
//! difference: `UPDATE_GOLDEN=1 cargo test -p vmap-proxy --test golden`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

#[path = "../../compiler/tests/support/golden.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::check;

/// Returns the output of `vmap-proxy compile` for these manifests.
fn compile(manifests: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_vmap-proxy"))
        .args(["compile", "--node-name", "node-1", "--manifests"])
        .arg(manifests)
        .args(arguments)
        .output()
        .expect("the program starts");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {log}", manifests.display());
    let complaints: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert!(complaints.is_empty(), "{}: {complaints:?}", manifests.display());
    String::from_utf8(output.stdout).expect("rules are text")
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Compiles `tests/golden/NAME.yaml` and compares it with `NAME.nft`.
fn case(name: &str, arguments: &[&str]) {
    let text = compile(&golden(&format!("{name}.yaml")), arguments);
    check(&golden(&format!("{name}.nft")), &text);
}

const CLUSTER: &str = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56";

#[test]
fn examples() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    check(&golden("examples.nft"), &compile(&examples, &[CLUSTER]));
}

#[test]
fn cluster_ip() {
    case("cluster-ip", &[CLUSTER]);
}

#[test]
fn node_port_on_all_addresses() {
    case("node-port-on-all-addresses", &[CLUSTER, "--nodeport-addresses=0.0.0.0/0,::/0"]);
}

#[test]
fn external_policy_local() {
    case("external-policy-local", &[CLUSTER]);
}

#[test]
fn internal_policy_local() {
    case("internal-policy-local", &[CLUSTER]);
}

#[test]
fn session_affinity() {
    case("session-affinity", &[CLUSTER]);
}

#[test]
fn source_ranges() {
    case("source-ranges", &[CLUSTER]);
}

#[test]
fn no_endpoints() {
    case("no-endpoints", &[CLUSTER]);
}

#[test]
fn many_endpoints() {
    case("many-endpoints", &[CLUSTER]);
}
