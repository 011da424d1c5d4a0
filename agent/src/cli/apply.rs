//! Writes given flags into the configuration's fields.

use super::flags::{
    ApiFlags, DnsFlags, InertFlags, KernelFlags, LoggingFlags, ProxyFlags, ServerFlags, TimingFlags, TrafficFlags,
};
use crate::config::addresses::{ADDRESS_OFF, HEALTHZ_PORT, METRICS_PORT, with_port};
use crate::config::kube_proxy_configuration::KubeProxyConfiguration;
use crate::config::{ConfigError, InvalidField, Warning};

/// Sets a field if the flag was given.
fn set<T: Clone>(field: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        field.clone_from(value);
    }
}

/// Writes every flag that has a field, for a start without `--config`.
/// [`apply_logging`] handles the logging flags.
///
/// # Errors
/// If `--feature-gates` is no list of `NAME=BOOL`.
pub(super) fn apply_flags(flags: &ProxyFlags, configuration: &mut KubeProxyConfiguration) -> Result<(), ConfigError> {
    apply_api(&flags.api, configuration);
    apply_traffic(&flags.traffic, configuration)?;
    apply_dns(&flags.dns, configuration);
    apply_kernel(&flags.kernel, configuration);
    apply_timing(&flags.timing, configuration);
    apply_inert(&flags.inert, configuration);
    // Defaults of the addresses below depend on the family of --bind-address.
    configuration.healthz_bind_address.clear();
    configuration.metrics_bind_address.clear();
    apply_servers(&flags.servers, configuration);
    configuration.set_defaults();
    Ok(())
}

/// Writes `-v` and `--logging-format`, which take precedence over the file.
pub(super) fn apply_logging(flags: &LoggingFlags, configuration: &mut KubeProxyConfiguration) {
    set(&mut configuration.logging.verbosity, &flags.verbosity);
    set(&mut configuration.logging.format, &flags.logging_format);
}

fn apply_api(flags: &ApiFlags, configuration: &mut KubeProxyConfiguration) {
    let path = flags.kubeconfig.as_ref().map(|path| path.to_string_lossy().into_owned());
    set(&mut configuration.client_connection.kubeconfig, &path);
    set(&mut configuration.client_connection.content_type, &flags.kube_api_content_type);
}

/// Also used by `vmap-proxy compile`.
///
/// # Errors
/// If `--feature-gates` is no list of `NAME=BOOL`.
pub(super) fn apply_traffic(
    flags: &TrafficFlags,
    configuration: &mut KubeProxyConfiguration,
) -> Result<(), ConfigError> {
    set(&mut configuration.mode, &flags.proxy_mode);
    set(&mut configuration.bind_address, &flags.bind_address);
    set(&mut configuration.detect_local_mode, &flags.detect_local_mode);
    set(&mut configuration.cluster_cidr, &flags.cluster_cidr);
    set(&mut configuration.detect_local.bridge_interface, &flags.pod_bridge_interface);
    set(&mut configuration.detect_local.interface_name_prefix, &flags.pod_interface_name_prefix);
    set(&mut configuration.nftables.masquerade_all, &flags.masquerade_all);
    set(&mut configuration.node_port_addresses, &without_empty(&flags.nodeport_addresses));
    for gate in flags.feature_gates.iter().flatten().filter(|gate| !gate.is_empty()) {
        let (name, enabled) = feature_gate(gate)?;
        configuration.feature_gates.insert(name, enabled);
    }
    Ok(())
}

/// `--nodeport-addresses=""` is an empty list.
fn without_empty(list: &Option<Vec<String>>) -> Option<Vec<String>> {
    list.as_ref().map(|list| list.iter().filter(|text| !text.is_empty()).cloned().collect())
}

fn apply_servers(flags: &ServerFlags, configuration: &mut KubeProxyConfiguration) {
    set(&mut configuration.bind_address_hard_fail, &flags.bind_address_hard_fail);
    for (field, address, port, default_port, ipv4, ipv6) in [
        (
            &mut configuration.healthz_bind_address,
            &flags.healthz_bind_address,
            flags.healthz_port,
            HEALTHZ_PORT,
            "0.0.0.0",
            "::",
        ),
        (
            &mut configuration.metrics_bind_address,
            &flags.metrics_bind_address,
            flags.metrics_port,
            METRICS_PORT,
            "127.0.0.1",
            "::1",
        ),
    ] {
        *field = match (address.as_deref(), port) {
            (Some(""), _) | (_, Some(0)) => ADDRESS_OFF.to_owned(),
            (Some(address), port) => with_port(address, port.unwrap_or(default_port)),
            (None, Some(port)) => {
                let ipv6_bind = crate::config::addresses::is_ipv6(&configuration.bind_address);
                with_port(if ipv6_bind { ipv6 } else { ipv4 }, port)
            }
            (None, None) => String::new(),
        };
    }
}

fn apply_dns(flags: &DnsFlags, configuration: &mut KubeProxyConfiguration) {
    let dns = &mut configuration.dns;
    set(&mut dns.bind_addresses, &without_empty(&flags.dns_bind_address));
    set(&mut dns.domain, &flags.dns_domain);
    set(&mut dns.upstream, &without_empty(&flags.dns_upstream));
    set(&mut dns.ttl_seconds, &flags.dns_ttl);
    set(&mut dns.pod_names, &flags.dns_pod_names);
    set(&mut dns.take_over, &flags.dns_take_over);
    set(&mut dns.client_cidrs, &without_empty(&flags.dns_client_cidrs));
}

fn apply_kernel(flags: &KernelFlags, configuration: &mut KubeProxyConfiguration) {
    set(&mut configuration.oom_score_adj, &flags.oom_score_adj);
    set(&mut configuration.nftables.flush_proof, &flags.nftables_flush_proof);
    set(&mut configuration.nftables.reset_gone_endpoints_after, &flags.nftables_reset_gone_endpoints_after);
    set(&mut configuration.nftables.compare_period, &flags.nftables_compare_period);
    let flow_table = &mut configuration.nftables.flow_table;
    set(&mut flow_table.interfaces, &without_empty(&flags.nftables_flow_table_interfaces));
    set(&mut flow_table.after_packets, &flags.nftables_flow_table_after_packets);
    let conntrack = &mut configuration.conntrack;
    set(&mut conntrack.max_per_core, &flags.conntrack_max_per_core);
    set(&mut conntrack.min, &flags.conntrack_min);
    set(&mut conntrack.tcp_established_timeout, &flags.conntrack_tcp_timeout_established);
    set(&mut conntrack.tcp_close_wait_timeout, &flags.conntrack_tcp_timeout_close_wait);
    set(&mut conntrack.tcp_be_liberal, &flags.conntrack_tcp_be_liberal);
    set(&mut conntrack.udp_timeout, &flags.conntrack_udp_timeout);
    set(&mut conntrack.udp_stream_timeout, &flags.conntrack_udp_timeout_stream);
}

/// kube-proxy applies these two to the nftables mode as well.
fn apply_timing(flags: &TimingFlags, configuration: &mut KubeProxyConfiguration) {
    set(&mut configuration.nftables.sync_period, &flags.iptables_sync_period);
    set(&mut configuration.nftables.min_sync_period, &flags.iptables_min_sync_period);
}

fn apply_inert(flags: &InertFlags, configuration: &mut KubeProxyConfiguration) {
    let client = &mut configuration.client_connection;
    set(&mut client.burst, &flags.kube_api_burst);
    set(&mut client.qps, &flags.kube_api_qps);
    set(&mut configuration.config_sync_period, &flags.config_sync_period);
    set(&mut configuration.enable_profiling, &flags.profiling);
    set(&mut configuration.show_hidden_metrics_for_version, &flags.show_hidden_metrics_for_version);
    set(&mut configuration.iptables.masquerade_bit, &flags.iptables_masquerade_bit);
    set(&mut configuration.iptables.localhost_node_ports, &flags.iptables_localhost_nodeports);
    let ipvs = &mut configuration.ipvs;
    set(&mut ipvs.sync_period, &flags.ipvs_sync_period);
    set(&mut ipvs.min_sync_period, &flags.ipvs_min_sync_period);
    set(&mut ipvs.scheduler, &flags.ipvs_scheduler);
    set(&mut ipvs.exclude_cidrs, &without_empty(&flags.ipvs_exclude_cidrs));
    set(&mut ipvs.strict_arp, &flags.ipvs_strict_arp);
    set(&mut ipvs.tcp_timeout, &flags.ipvs_tcp_timeout);
    set(&mut ipvs.tcp_fin_timeout, &flags.ipvs_tcpfin_timeout);
    set(&mut ipvs.udp_timeout, &flags.ipvs_udp_timeout);
}

fn feature_gate(text: &str) -> Result<(String, bool), ConfigError> {
    text.split_once('=')
        .and_then(|(name, value)| Some((name.trim().to_owned(), super::go_flags::parse_bool(value.trim()).ok()?)))
        .ok_or_else(|| {
            ConfigError::Invalid(vec![InvalidField {
                path: "--feature-gates".to_owned(),
                value: format!("{text:?}"),
                reason: "must be NAME=true or NAME=false".to_owned(),
            }])
        })
}

/// Returns a warning for each given flag that has no field in the configuration
/// and no effect.
pub(super) fn inert_flag_warnings(flags: &InertFlags) -> Vec<Warning> {
    let klog = "ignored: belongs to Kubernetes' own logging library; log lines are written to standard error at once";
    let identity = "ignored: the node's identity is its name alone";
    [
        ("--boot-id-file", flags.boot_id_file.is_some(), identity),
        ("--machine-id-file", flags.machine_id_file.is_some(), identity),
        ("--log-flush-frequency", flags.log_flush_frequency.is_some(), klog),
        ("--log-json-info-buffer-size", flags.log_json_info_buffer_size.is_some(), klog),
        ("--log-json-split-stream", flags.log_json_split_stream.is_some(), klog),
        ("--log-text-info-buffer-size", flags.log_text_info_buffer_size.is_some(), klog),
        ("--log-text-split-stream", flags.log_text_split_stream.is_some(), klog),
        ("--vmodule", flags.vmodule.is_some(), klog),
    ]
    .into_iter()
    .filter(|(_, given, _)| *given)
    .map(|(flag, _, why)| Warning::new(flag, why))
    .collect()
}
