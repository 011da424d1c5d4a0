//! Every flag of kube-proxy with its value, for `/flagz`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Given;
use crate::config::{ConfigError, KubeProxyConfiguration};

/// Flags that set a field of the configuration, and the JSON pointer of the
/// field. Their defaults are those of the fields.
pub const FLAGS_OF_FIELDS: &[(&str, &str)] = &[
    ("bind-address", "/bindAddress"),
    ("bind-address-hard-fail", "/bindAddressHardFail"),
    ("cluster-cidr", "/clusterCIDR"),
    ("config-sync-period", "/configSyncPeriod"),
    ("conntrack-max-per-core", "/conntrack/maxPerCore"),
    ("conntrack-min", "/conntrack/min"),
    ("conntrack-tcp-be-liberal", "/conntrack/tcpBeLiberal"),
    ("conntrack-tcp-timeout-close-wait", "/conntrack/tcpCloseWaitTimeout"),
    ("conntrack-tcp-timeout-established", "/conntrack/tcpEstablishedTimeout"),
    ("conntrack-udp-timeout", "/conntrack/udpTimeout"),
    ("conntrack-udp-timeout-stream", "/conntrack/udpStreamTimeout"),
    ("detect-local-mode", "/detectLocalMode"),
    ("dns-bind-address", "/dns/bindAddresses"),
    ("dns-client-cidrs", "/dns/clientCIDRs"),
    ("dns-domain", "/dns/domain"),
    ("dns-pod-names", "/dns/podNames"),
    ("dns-take-over", "/dns/takeOver"),
    ("dns-ttl", "/dns/ttlSeconds"),
    ("dns-upstream", "/dns/upstream"),
    ("healthz-bind-address", "/healthzBindAddress"),
    ("hostname-override", "/hostnameOverride"),
    ("iptables-localhost-nodeports", "/iptables/localhostNodePorts"),
    ("iptables-masquerade-bit", "/iptables/masqueradeBit"),
    ("iptables-min-sync-period", "/nftables/minSyncPeriod"),
    ("iptables-sync-period", "/nftables/syncPeriod"),
    ("ipvs-min-sync-period", "/ipvs/minSyncPeriod"),
    ("ipvs-scheduler", "/ipvs/scheduler"),
    ("ipvs-strict-arp", "/ipvs/strictARP"),
    ("ipvs-sync-period", "/ipvs/syncPeriod"),
    ("ipvs-tcp-timeout", "/ipvs/tcpTimeout"),
    ("ipvs-tcpfin-timeout", "/ipvs/tcpFinTimeout"),
    ("ipvs-udp-timeout", "/ipvs/udpTimeout"),
    ("kube-api-burst", "/clientConnection/burst"),
    ("kube-api-content-type", "/clientConnection/contentType"),
    ("kube-api-qps", "/clientConnection/qps"),
    ("kubeconfig", "/clientConnection/kubeconfig"),
    ("log-flush-frequency", "/logging/flushFrequency"),
    ("logging-format", "/logging/format"),
    ("masquerade-all", "/nftables/masqueradeAll"),
    ("metrics-bind-address", "/metricsBindAddress"),
    ("nftables-compare-period", "/nftables/comparePeriod"),
    ("nftables-flow-table-after-packets", "/nftables/flowTable/afterPackets"),
    ("nftables-flow-table-interfaces", "/nftables/flowTable/interfaces"),
    ("nftables-flush-proof", "/nftables/flushProof"),
    ("nftables-reset-gone-endpoints-after", "/nftables/resetGoneEndpointsAfter"),
    ("oom-score-adj", "/oomScoreAdj"),
    ("pod-bridge-interface", "/detectLocal/bridgeInterface"),
    ("pod-interface-name-prefix", "/detectLocal/interfaceNamePrefix"),
    ("profiling", "/enableProfiling"),
    ("proxy-mode", "/mode"),
    ("show-hidden-metrics-for-version", "/showHiddenMetricsForVersion"),
    ("v", "/logging/verbosity"),
];

/// Flags without a field, with their defaults.
const OTHERS: &[(&str, &str)] = &[
    ("boot-id-file", "/proc/sys/kernel/random/boot_id"),
    ("cleanup", "false"),
    ("cleanup-kube-proxy", "false"),
    ("config", ""),
    ("feature-gates", ""),
    ("health-timeout", ""),
    ("healthz-port", "10256"),
    ("init-only", "false"),
    ("ipvs-exclude-cidrs", ""),
    ("log-json-info-buffer-size", "0"),
    ("log-json-split-stream", "false"),
    ("log-text-info-buffer-size", "0"),
    ("log-text-split-stream", "false"),
    ("machine-id-file", "/etc/machine-id,/var/lib/dbus/machine-id"),
    ("master", ""),
    ("metrics-port", "10249"),
    ("nodeport-addresses", ""),
    ("query-socket", "/run/vmap-proxy/agent.sock"),
    ("service-metrics", "true"),
    ("status-page", "true"),
    ("version", "false"),
    ("vmodule", ""),
    ("write-config-to", ""),
];

/// Returns the given values, and the defaults of all other flags. As in
/// kube-proxy, a configuration file changes no flag.
///
/// # Errors
/// Never in practice: the error of the JSON printer is returned.
pub(super) fn all(given: &Given) -> Result<BTreeMap<String, String>, ConfigError> {
    let defaults = serde_json::to_value(KubeProxyConfiguration::default())
        .map_err(|error| ConfigError::Print(error.to_string()))?;
    let text = |pointer| match defaults.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let of_fields = FLAGS_OF_FIELDS.iter().map(|(flag, pointer)| ((*flag).to_owned(), text(pointer)));
    let others = OTHERS.iter().map(|(flag, default)| ((*flag).to_owned(), (*default).to_owned()));
    let mut all: BTreeMap<String, String> = of_fields.chain(others).collect();
    for (flag, value) in given {
        let name = if flag == "verbosity" { "v" } else { flag };
        all.insert(name.to_owned(), value.clone());
    }
    Ok(all)
}
