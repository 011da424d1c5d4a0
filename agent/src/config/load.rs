//! Reads the configuration file, and writes it.
//!
//! As in kube-proxy, unknown and repeated fields cause a warning and are
//! ignored, so that a file for a newer Kubernetes still works. A value of a
//! wrong type is an error. Unlike in kube-proxy, one error names all such
//! values.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use serde_saphyr::DuplicateKeyPolicy;

use super::kube_proxy_configuration::{API_VERSION, KIND, KubeProxyConfiguration};
use super::{ConfigError, InvalidField, Warning};
use crate::yaml::{self, whole_numbers};

/// Fields with arbitrary content: maps by name, and klog's formats. Their keys
/// are never unknown.
const OPEN_FIELDS: [&str; 2] = ["featureGates", "logging.options"];

/// Reads a configuration file; see [`load`].
///
/// # Errors
/// Those of [`load`], and if the file cannot be read.
pub fn load_file(path: &Path) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    load(&text)
}

/// Reads a configuration from YAML or JSON and fills in kube-proxy's defaults.
/// Values are checked for their type only; see [`super::validate`].
///
/// # Errors
/// If the text is not YAML, is another kind of document, or has values of a
/// wrong type.
pub fn load(text: &str) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
    let mut warnings = Vec::new();
    let document = without_nulls(whole_numbers(parse(first_document(text, &mut warnings), &mut warnings)?));
    check_kind(&document)?;

    let known = serde_json::to_value(KubeProxyConfiguration::default())
        .map_err(|error| ConfigError::Print(error.to_string()))?;
    let mut findings = Findings::default();
    findings.compare("", &document, &known);
    if !findings.wrong.is_empty() {
        return Err(ConfigError::Invalid(findings.wrong));
    }
    warnings.append(&mut findings.unknown);

    let mut configuration: KubeProxyConfiguration =
        serde_json::from_value(document).map_err(|error| ConfigError::Syntax(error.to_string()))?;
    configuration.set_defaults();
    Ok((configuration, warnings))
}

/// Returns the configuration as YAML with every field, for `--write-config-to`.
///
/// # Errors
/// Never for a configuration that was loaded; otherwise the printer's error.
pub fn to_yaml(configuration: &KubeProxyConfiguration) -> Result<String, ConfigError> {
    serde_saphyr::to_string(configuration).map_err(|error| ConfigError::Print(error.to_string()))
}

/// Writes the configuration to a file (`--write-config-to`).
///
/// # Errors
/// If the file cannot be written.
pub fn write_file(configuration: &KubeProxyConfiguration, path: &Path) -> Result<(), ConfigError> {
    fs::write(path, to_yaml(configuration)?).map_err(|source| ConfigError::Write { path: path.to_owned(), source })
}

/// kube-proxy reads only the first document.
fn first_document<'t>(text: &'t str, warnings: &mut Vec<Warning>) -> &'t str {
    let documents = yaml::split(text);
    if let Some(second) = documents.get(1) {
        warnings.push(Warning::new(
            "configuration file",
            format!("only the first document is used; the document that begins on line {} is ignored", second.line),
        ));
    }
    documents.first().and_then(|first| text.get(first.range.clone())).unwrap_or(text)
}

fn parse(text: &str, warnings: &mut Vec<Warning>) -> Result<Value, ConfigError> {
    let strict = match serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error)) {
        Ok(document) => return Ok(document),
        Err(error) => error,
    };
    let document = serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::LastWins))
        .map_err(|error| ConfigError::Syntax(error.to_string()))?;
    warnings.push(Warning::new("configuration file", format!("a field is given twice, the last one counts: {strict}")));
    Ok(document)
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> serde_saphyr::Options {
    let mut options = yaml::options();
    options.duplicate_keys = duplicate_keys;
    options
}

/// `null` means "not set" (kubeadm writes it for every unset pointer).
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(name, value)| (name, without_nulls(value)))
                .collect(),
        ),
        other => other,
    }
}

fn check_kind(document: &Value) -> Result<(), ConfigError> {
    let text = |field| document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if api_version == API_VERSION && kind == KIND {
        return Ok(());
    }
    Err(ConfigError::OtherKind { api_version, kind })
}

#[derive(Default)]
struct Findings {
    unknown: Vec<Warning>,
    wrong: Vec<InvalidField>,
}

impl Findings {
    /// Compares a document with the known fields below `path`.
    fn compare(&mut self, path: &str, given: &Value, known: &Value) {
        if let (Value::Object(given), Value::Object(known), false) = (given, known, OPEN_FIELDS.contains(&path)) {
            for (name, value) in given {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => self.compare(&path, value, known),
                    None => self.unknown.push(Warning::new(path, "unknown field, ignored")),
                }
            }
            return;
        }
        // One field alone, so that the deserializer's error is about this
        // field.
        if let Err(error) = serde_json::from_value::<KubeProxyConfiguration>(nested(path, given.clone())) {
            self.wrong.push(InvalidField {
                path: path.to_owned(),
                value: given.to_string(),
                reason: error.to_string(),
            });
        }
    }
}

/// Returns a document that contains only `value` at `path`.
fn nested(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |inner, name| Value::Object(Map::from_iter([(name.to_owned(), inner)])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GoDuration;

    const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    /// The configuration that `kubeadm init` writes into the ConfigMap.
    const KUBEADM: &str = include_str!("testdata/kubeadm.yaml");

    fn load_fields(fields: &str) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
        load(&format!("{HEADER}{fields}"))
    }

    #[test]
    fn a_file_of_kubeadm_gives_the_defaults() {
        let (configuration, warnings) = load(KUBEADM).unwrap();
        assert_eq!(warnings, []);
        let mut expected = KubeProxyConfiguration { cluster_cidr: "10.244.0.0/16".to_owned(), ..Default::default() };
        expected.client_connection.kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf".to_owned();
        assert_eq!(configuration, expected);
        assert_eq!(configuration.healthz_bind_address, "0.0.0.0:10256");
        assert_eq!(configuration.conntrack.max_per_core, 32768);
    }

    #[test]
    fn explicit_zeros_of_pointers_are_kept() {
        let (configuration, _) =
            load_fields("conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s}\noomScoreAdj: 0\n").unwrap();
        assert_eq!(configuration.conntrack.max_per_core, 0);
        assert!(configuration.conntrack.tcp_established_timeout.is_zero());
        assert_eq!(configuration.oom_score_adj, 0);
    }

    #[test]
    fn unknown_fields_are_warned_about_with_their_path() {
        let (configuration, warnings) =
            load_fields("mode: nftables\nnftables: {syncPeriod: 10s, turbo: true}\nfuture: {a: 1}\n").unwrap();
        assert_eq!(configuration.nftables.sync_period, GoDuration::from_seconds(10));
        let mut paths: Vec<_> = warnings.iter().map(|warning| warning.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["future", "nftables.turbo"]);
    }

    #[test]
    fn every_wrong_value_is_refused_with_its_path() {
        let Err(ConfigError::Invalid(wrong)) =
            load_fields("oomScoreAdj: low\nconntrack: {tcpCloseWaitTimeout: 1 hour, min: 4}\n")
        else {
            panic!("accepted");
        };
        let mut paths: Vec<_> = wrong.iter().map(|field| field.path.as_str()).collect();
        paths.sort_unstable();
        assert_eq!(paths, ["conntrack.tcpCloseWaitTimeout", "oomScoreAdj"]);
    }

    #[test]
    fn a_repeated_field_is_warned_about() {
        let (configuration, warnings) = load_fields("oomScoreAdj: 1\noomScoreAdj: 2\n").unwrap();
        assert_eq!(configuration.oom_score_adj, 2);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn json_is_read_too() {
        let text = format!(r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "clusterCIDR": "10.0.0.0/8"}}"#);
        assert_eq!(load(&text).unwrap().0.cluster_cidr, "10.0.0.0/8");
    }

    #[test]
    fn whole_floats_are_taken_for_integers() {
        let (configuration, warnings) = load(include_str!("testdata/int-as-float.yaml")).unwrap();
        assert_eq!((configuration.conntrack.max_per_core, configuration.conntrack.min), (32768, 131_072));
        assert_eq!(warnings, []);
        assert!(matches!(load_fields("oomScoreAdj: 0.5\n"), Err(ConfigError::Invalid(_))));
    }

    #[test]
    fn what_follows_the_first_document_is_ignored_with_a_line() {
        let (configuration, warnings) = load(include_str!("testdata/multi-doc.yaml")).unwrap();
        assert_eq!(configuration.mode, "nftables");
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].message.contains("line 4"), "{}", warnings[0]);
        let (configuration, warnings) = load(include_str!("testdata/trailing-marker.yaml")).unwrap();
        assert_eq!((configuration.mode.as_str(), warnings.as_slice()), ("nftables", [].as_slice()));
        let commented = format!("# ours\n---\n{HEADER}mode: nftables\n...\n---\n# nothing\n");
        assert_eq!(load(&commented).unwrap().1, []);
    }

    #[test]
    fn any_number_of_comment_lines_is_read() {
        let comments = "# one of many lines\n".repeat(500);
        let (configuration, _) = load_fields(&format!("conntrack:\n{comments}  min: 4\n")).unwrap();
        assert_eq!(configuration.conntrack.min, 4);
    }

    /// The configuration that cluster installers write, with `mode: nftables`.
    #[test]
    fn files_of_common_installers_are_read_without_a_complaint() {
        for (name, text) in [
            ("eks", include_str!("testdata/eks.yaml")),
            ("kind", include_str!("testdata/kind.yaml")),
            ("kubespray", include_str!("testdata/kubespray.yaml")),
            ("minikube", include_str!("testdata/minikube.yaml")),
            ("Talos", include_str!("testdata/talos.yaml")),
        ] {
            let (configuration, warnings) = load(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(warnings, [], "{name}");
            crate::config::validate::validate(&configuration).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn a_field_that_kube_proxy_no_longer_has_is_the_only_complaint_about_k0s() {
        let (configuration, warnings) = load(include_str!("testdata/k0s.yaml")).unwrap();
        let paths: Vec<_> = warnings.iter().map(|warning| warning.path.as_str()).collect();
        assert_eq!(paths, ["udpIdleTimeout"]);
        crate::config::validate::validate(&configuration).unwrap();
    }

    #[test]
    fn other_documents_are_refused() {
        assert!(matches!(load("kind: Pod\napiVersion: v1\n"), Err(ConfigError::OtherKind { .. })));
        assert!(matches!(load("a: [1"), Err(ConfigError::Syntax(_))));
        assert!(matches!(load(""), Err(ConfigError::OtherKind { .. } | ConfigError::Syntax(_))));
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let configuration = load(KUBEADM).unwrap().0;
        let (again, warnings) = load(&to_yaml(&configuration).unwrap()).unwrap();
        assert_eq!(again, configuration);
        assert_eq!(warnings, []);
    }
}
