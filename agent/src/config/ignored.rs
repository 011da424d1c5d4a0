//! Fields of kube-proxy's configuration that this proxy accepts but does not
//! use, each with the reason.

use serde_json::Value;

use super::kube_proxy_configuration::KubeProxyConfiguration;
use super::{ConfigError, Warning, localhost_node_ports};

const OTHER_MODE: &str = "belongs to another mode of kube-proxy";
const WINDOWS: &str = "belongs to kube-proxy on Windows";
const KLOG: &str = "belongs to Kubernetes' own logging library; log lines are written at once";
const UNKNOWN_ENCODING: &str = "neither acceptContentTypes nor contentType names an encoding that this proxy knows: \
     asking for application/vnd.kubernetes.protobuf; application/json is the other one";
const NO_MARKS: &str = "no packet marks are used: whether to masquerade is read from the connection itself";

/// Path of a field, or of a whole section, and why it is ignored.
pub const IGNORED_FIELDS: &[(&str, &str)] = &[
    ("clientConnection.qps", "a handful of watches need no rate limit; retries back off"),
    ("clientConnection.burst", "a handful of watches need no rate limit; retries back off"),
    ("logging.flushFrequency", KLOG),
    ("logging.vmodule", KLOG),
    ("logging.options", KLOG),
    ("enableProfiling", "there are no Go profiles to serve"),
    ("showHiddenMetricsForVersion", "no metric is hidden"),
    ("iptables", OTHER_MODE),
    ("ipvs", OTHER_MODE),
    ("nftables.masqueradeBit", NO_MARKS),
    ("winkernel", WINDOWS),
    ("windowsRunAsService", WINDOWS),
    ("configSyncPeriod", "objects are followed by watches and need no periodic resync"),
    ("portRange", "unused by kube-proxy itself since its userspace mode is gone"),
];

/// A line for each ignored field that has another value than its default, for
/// settings that have no effect without another one, and for an empty `mode`.
///
/// # Errors
/// Never for a configuration that was loaded; the printer's own otherwise.
pub fn ignored_fields(configuration: &KubeProxyConfiguration) -> Result<Vec<Warning>, ConfigError> {
    let tree = |configuration: &KubeProxyConfiguration| {
        serde_json::to_value(configuration).map_err(|error| ConfigError::Print(error.to_string()))
    };
    let (given, default) = (tree(configuration)?, tree(&KubeProxyConfiguration::default())?);
    let mut warnings: Vec<Warning> = IGNORED_FIELDS
        .iter()
        .filter(|(path, _)| lookup(&given, path) != lookup(&default, path))
        .map(|(path, why)| Warning::new(*path, format!("ignored: {why}")))
        .collect();
    warnings.append(&mut localhost_node_ports::warnings(configuration));
    if configuration.client_connection.encoding().is_none() {
        warnings.push(Warning::new("clientConnection", UNKNOWN_ENCODING));
    }
    if configuration.mode.is_empty() {
        warnings.push(empty_mode(configuration));
    }
    Ok(warnings)
}

/// For kube-proxy an empty mode means iptables, which differs in two points
/// that an operator may notice.
fn empty_mode(configuration: &KubeProxyConfiguration) -> Warning {
    let mut message = String::from("not set, nftables is used");
    if configuration.iptables.masquerade_all && !configuration.nftables.masquerade_all {
        message.push_str("; to masquerade all traffic set nftables.masqueradeAll, iptables.masqueradeAll is ignored");
    }
    if configuration.node_port_addresses.is_empty() {
        message.push_str("; NodePorts are served on the node's primary addresses only, set nodePortAddresses for more");
    }
    Warning::new("mode", message)
}

fn lookup<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(tree, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ignored_field_exists() {
        let tree = serde_json::to_value(KubeProxyConfiguration::default()).unwrap();
        for (path, _) in IGNORED_FIELDS {
            assert!(lookup(&tree, path).is_some(), "{path}");
        }
    }

    #[test]
    fn only_what_was_changed_is_told() {
        let mut configuration = KubeProxyConfiguration { mode: "nftables".to_owned(), ..Default::default() };
        assert_eq!(ignored_fields(&configuration).unwrap(), []);
        configuration.ipvs.scheduler = "wrr".to_owned();
        configuration.nftables.masquerade_bit = 15;
        let paths: Vec<_> = ignored_fields(&configuration).unwrap().into_iter().map(|warning| warning.path).collect();
        assert_eq!(paths, ["ipvs", "nftables.masqueradeBit"]);
    }

    #[test]
    fn an_unknown_encoding_is_named() {
        let mut configuration = KubeProxyConfiguration { mode: "nftables".to_owned(), ..Default::default() };
        configuration.client_connection.content_type = "application/cbor".to_owned();
        let warnings = ignored_fields(&configuration).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].to_string().contains("application/vnd.kubernetes.protobuf"), "{warnings:?}");
        configuration.client_connection.accept_content_types = "application/json".to_owned();
        assert_eq!(ignored_fields(&configuration).unwrap(), []);
    }

    #[test]
    fn localhost_is_told_not_to_be_served() {
        let addresses = vec!["primary".to_owned(), "localhost".to_owned()];
        let configuration = KubeProxyConfiguration {
            mode: "nftables".to_owned(),
            node_port_addresses: addresses,
            ..Default::default()
        };
        let warnings = ignored_fields(&configuration).unwrap();
        assert!(warnings[0].to_string().starts_with("nodePortAddresses: localhost: no NodePort"), "{warnings:?}");
    }

    #[test]
    fn an_empty_mode_is_told_with_its_consequences() {
        let mut configuration = KubeProxyConfiguration::default();
        configuration.iptables.masquerade_all = true;
        let warnings = ignored_fields(&configuration).unwrap();
        let mode = warnings.iter().find(|warning| warning.path == "mode").unwrap();
        assert!(mode.message.contains("nftables.masqueradeAll") && mode.message.contains("primary"));
    }
}
