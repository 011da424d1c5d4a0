//! Checks that `deploy/` fits the binary: its configuration is accepted without a warning, its arguments are existing
//! flags, and the chart's schema knows the same fields. `scripts/check-deploy` compares these files with what the chart
//! renders.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn documents(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(deploy().join(file)).unwrap();
    let documents = text.split("\n---\n").filter(|document| document.contains("kind:"));
    documents.map(|document| serde_saphyr::from_str(document.trim_start_matches("---\n")).unwrap()).collect()
}

fn of_kind(documents: &[Value], kind: &str) -> Value {
    documents.iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("no {kind}")).clone()
}

/// A directory for one test's files; removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("vmap-proxy-deploy-{}-{test}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The configuration that these arguments come to, as the binary writes it, and what it logs on the way.
fn written(arguments: &[String], scratch: &Scratch) -> (Value, String) {
    let path = scratch.0.join("written.yaml");
    let output = Command::new(env!("CARGO_BIN_EXE_vmap-proxy"))
        .args(arguments)
        .arg(format!("--write-config-to={}", path.display()))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {log}");
    (serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap(), log)
}

/// The arguments of each container, with the mounted files put where `scratch` is.
fn containers(documents: &[Value], scratch: &Scratch) -> Vec<Vec<String>> {
    let directory = scratch.0.display().to_string();
    for (name, text) in of_kind(documents, "ConfigMap")["data"].as_object().unwrap() {
        fs::write(scratch.0.join(name), text.as_str().unwrap().replace("/var/lib/kube-proxy", &directory)).unwrap();
    }
    let pod = of_kind(documents, "DaemonSet")["spec"]["template"]["spec"].clone();
    let containers = ["initContainers", "containers"].map(|list| pod[list].as_array().unwrap().clone()).concat();
    let arguments = containers.iter().map(|container| container["args"].as_array().unwrap());
    arguments
        .map(|list| list.iter().map(|text| text.as_str().unwrap()))
        .map(|list| {
            list.map(|text| text.replace("/var/lib/kube-proxy", &directory).replace("$(NODE_NAME)", "node-1")).collect()
        })
        .collect()
}

#[test]
fn the_manifests_run_this_binary_without_a_complaint() {
    let scratch = Scratch::new("manifests");
    let documents = ["daemonset.yaml", "configmap.yaml"].map(documents).concat();
    let containers = containers(&documents, &scratch);
    assert_eq!(containers.len(), 2);
    for arguments in containers {
        let (configuration, log) = written(&arguments, &scratch);
        assert_eq!(configuration["mode"], "nftables");
        assert_eq!(configuration["clusterCIDR"], "10.244.0.0/16");
        assert_eq!(configuration["hostnameOverride"], "node-1");
        assert!(!log.contains("WARN"), "{log}");
    }
}

#[test]
fn every_value_of_the_chart_reaches_this_binary() {
    let scratch = Scratch::new("every-value");
    let documents = documents("chart/testdata/every-value.rendered.yaml");
    for arguments in containers(&documents, &scratch) {
        let (configuration, _) = written(&arguments, &scratch);
        assert_eq!(configuration["clusterCIDR"], "10.1.0.0/16,2001:db8:1::/48");
        assert_eq!(configuration["conntrack"]["min"], 1_048_576);
        assert_eq!(configuration["conntrack"]["tcpEstablishedTimeout"], "12h0m0s");
        assert_eq!(configuration["detectLocal"]["bridgeInterface"], "cbr0");
        assert_eq!(configuration["nodePortAddresses"], serde_json::json!(["192.0.2.0/24", "2001:db8::/64"]));
        assert_eq!(configuration["oomScoreAdj"], -999, "null is the default");
        assert_eq!(configuration["dns"]["takeOver"], "kube-system/kube-dns");
    }
}

#[test]
fn the_values_of_every_distribution_run_this_binary_without_a_complaint() {
    let scratch = Scratch::new("distributions");
    let mut distributions = BTreeSet::new();
    for entry in fs::read_dir(deploy().join("distributions")).unwrap() {
        let directory = entry.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        let values: Value =
            serde_saphyr::from_str(&fs::read_to_string(directory.join("values.yaml")).unwrap()).unwrap();
        // The chart's rendering of `config`.
        let mut config = values["config"].clone();
        config["apiVersion"] = "kubeproxy.config.k8s.io/v1alpha1".into();
        config["kind"] = "KubeProxyConfiguration".into();
        config["clusterCIDR"] = values["clusterCIDR"].clone();
        let path = scratch.0.join("config.conf");
        fs::write(&path, config.to_string()).unwrap();
        let arguments = [format!("--config={}", path.display()), "--hostname-override=node-1".to_owned()];
        let (configuration, log) = written(&arguments, &scratch);
        assert_eq!(configuration["clusterCIDR"], values["clusterCIDR"], "{name}");
        assert!(!log.contains("WARN"), "{name}: {log}");
        distributions.insert(name);
    }
    assert_eq!(distributions, BTreeSet::from(["k3s", "kind", "kops", "talos"].map(str::to_owned)));
}

/// Fields that kube-proxy no longer has; files that are pasted into the chart still may.
const GONE: [&str; 3] = ["conntrack.max", "resourceContainer", "udpIdleTimeout"];

/// The paths of all fields, but for what is below fields whose keys are free.
fn paths(prefix: &str, fields: &Value, children: &dyn Fn(&Value) -> Option<Value>, found: &mut BTreeSet<String>) {
    for (name, value) in fields.as_object().unwrap() {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let free = ["featureGates", "logging.options"].contains(&path.as_str());
        match children(value).filter(|_| !free) {
            Some(inner) => paths(&path, &inner, children, found),
            None => _ = found.insert(path),
        }
    }
}

#[test]
fn the_schema_of_the_chart_knows_every_field_of_the_configuration() {
    let scratch = Scratch::new("schema");
    let (defaults, _) =
        written(&["--proxy-mode=nftables".to_owned(), "--hostname-override=node-1".to_owned()], &scratch);
    let mut fields = BTreeSet::from(GONE.map(str::to_owned));
    paths("", &defaults, &|value| value.is_object().then(|| value.clone()), &mut fields);
    let schema = fs::read_to_string(deploy().join("chart/vmap-proxy/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut known = BTreeSet::new();
    let properties = &schema["properties"]["config"]["properties"];
    paths("", properties, &|value| value.get("properties").cloned(), &mut known);
    assert_eq!(known, fields);
    assert!(fields.len() > 50, "{}", fields.len());
}
