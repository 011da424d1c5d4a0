//! kube-proxy's checks of its configuration
//! (`pkg/proxy/apis/config/validation/validation.go`), with the same messages.

use std::net::IpAddr;

use ipnet::IpNet;

use super::addresses::{ADDRESS_OFF, listen_address};
use super::go_duration::GoDuration;
use super::kube_proxy_configuration::KubeProxyConfiguration;
use super::{ConfigError, InvalidField};

/// The keyword in `nodePortAddresses` for the node's primary addresses.
pub const PRIMARY: &str = "primary";

/// The keyword for loopback addresses (Kubernetes 1.37, KEP-6032).
pub const LOCALHOST: &str = "localhost";

/// The keyword for every address (Kubernetes 1.37, KEP-6032).
pub const ALL: &str = "all";

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const POSITIVE: &str = "must be greater than 0";
const CIDR: &str = "must be a valid CIDR block (e.g. 10.100.0.0/16 or fde4:8dba:82e1::/48)";
const NODE_PORT_ADDRESS: &str = "must be primary, localhost, all or a valid CIDR block";
const ONE_PER_FAMILY: &str = "only one CIDR allowed or a valid DualStack CIDR (e.g. 10.100.0.0/16,fde4:8dba:82e1::/48)";

/// Checks a configuration that has its defaults.
///
/// # Errors
/// [`ConfigError::OtherMode`] for a mode other than nftables (an empty mode
/// means nftables), else every field that fails a check.
pub fn validate(configuration: &KubeProxyConfiguration) -> Result<(), ConfigError> {
    check_mode(&configuration.mode)?;
    let mut check = Check::default();
    check_numbers(configuration, &mut check);
    check_periods(configuration, &mut check);
    check_addresses(configuration, &mut check);
    check_detect_local(configuration, &mut check);
    check.node_port_addresses(&configuration.node_port_addresses);
    check_logging(configuration, &mut check);
    if let Err(mut invalid) = configuration.dns.options(&[]) {
        check.invalid.append(&mut invalid);
    }
    if let Err(mut invalid) = configuration.nftables.flow_table.options() {
        check.invalid.append(&mut invalid);
    }
    if check.invalid.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(check.invalid)) }
}

/// Returns the ranges of a comma-separated list; empty text has none.
///
/// # Errors
/// If a part is no range: the first such part.
pub fn parse_cidrs(text: &str) -> Result<Vec<IpNet>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(str::trim).map(|part| part.parse().map_err(|_| part.to_owned())).collect()
}

fn check_mode(mode: &str) -> Result<(), ConfigError> {
    match mode {
        "" | "nftables" => Ok(()),
        "iptables" | "ipvs" | "kernelspace" => Err(ConfigError::OtherMode { mode: mode.to_owned() }),
        other => Err(ConfigError::Invalid(vec![InvalidField {
            path: "mode".to_owned(),
            value: format!("{other:?}"),
            reason: "must be nftables (of kube-proxy's iptables, ipvs and nftables, the one vmap-proxy has)".to_owned(),
        }])),
    }
}

#[derive(Default)]
struct Check {
    invalid: Vec<InvalidField>,
}

impl Check {
    fn that(&mut self, valid: bool, path: &str, value: impl ToString, reason: &str) {
        if !valid {
            self.invalid.push(InvalidField {
                path: path.to_owned(),
                value: value.to_string(),
                reason: reason.to_owned(),
            });
        }
    }

    fn node_port_addresses(&mut self, addresses: &[String]) {
        for (index, address) in addresses.iter().enumerate() {
            let path = format!("nodePortAddresses[{index}]");
            let valid = [PRIMARY, LOCALHOST, ALL].contains(&address.as_str()) || address.parse::<IpNet>().is_ok();
            self.that(valid, &path, quoted(address), NODE_PORT_ADDRESS);
        }
    }
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn check_numbers(configuration: &KubeProxyConfiguration, check: &mut Check) {
    for (path, bit) in [
        ("iptables.masqueradeBit", configuration.iptables.masquerade_bit),
        ("nftables.masqueradeBit", configuration.nftables.masquerade_bit),
    ] {
        check.that((0..=31).contains(&bit), path, bit, "must be within the range [0, 31]");
    }
    let score = configuration.oom_score_adj;
    check.that((-1000..=1000).contains(&score), "oomScoreAdj", score, "must be within the range [-1000, 1000]");
    let conntrack = &configuration.conntrack;
    check.that(conntrack.max_per_core >= 0, "conntrack.maxPerCore", conntrack.max_per_core, NOT_NEGATIVE);
    check.that(conntrack.min >= 0, "conntrack.min", conntrack.min, NOT_NEGATIVE);
    let burst = configuration.client_connection.burst;
    check.that(burst >= 0, "clientConnection.burst", burst, "must be non-negative");
}

fn check_periods(configuration: &KubeProxyConfiguration, check: &mut Check) {
    let conntrack = &configuration.conntrack;
    for (path, period) in [
        ("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout),
        ("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout),
        ("conntrack.udpTimeout", conntrack.udp_timeout),
        ("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout),
        ("nftables.minSyncPeriod", configuration.nftables.min_sync_period),
        ("nftables.resetGoneEndpointsAfter", configuration.nftables.reset_gone_endpoints_after),
        ("nftables.comparePeriod", configuration.nftables.compare_period),
    ] {
        check.that(!period.is_negative(), path, period, NOT_NEGATIVE);
    }
    for (path, period) in [
        ("nftables.syncPeriod", configuration.nftables.sync_period),
        ("configSyncPeriod", configuration.config_sync_period),
    ] {
        check.that(period > GoDuration::ZERO, path, period, POSITIVE);
    }
    let nftables = &configuration.nftables;
    let reason = "must be greater than or equal to nftables.minSyncPeriod";
    check.that(nftables.sync_period >= nftables.min_sync_period, "nftables.syncPeriod", nftables.sync_period, reason);
}

fn check_addresses(configuration: &KubeProxyConfiguration, check: &mut Check) {
    let bind = &configuration.bind_address;
    let reason = "not a valid textual representation of an IP address";
    check.that(bind.parse::<IpAddr>().is_ok(), "bindAddress", quoted(bind), reason);
    for (path, address) in [
        ("healthzBindAddress", &configuration.healthz_bind_address),
        ("metricsBindAddress", &configuration.metrics_bind_address),
    ] {
        if let Err(reason) = listen_address(address) {
            check.that(false, path, quoted(address), &format!("{reason} (or {ADDRESS_OFF:?} for none)"));
        }
    }
}

fn check_detect_local(configuration: &KubeProxyConfiguration, check: &mut Check) {
    let detect = &configuration.detect_local;
    match configuration.detect_local_mode.as_str() {
        "" | "ClusterCIDR" => check_cluster_cidr(&configuration.cluster_cidr, check),
        "NodeCIDR" => {}
        "BridgeInterface" => check_interface("detectLocal.bridgeInterface", &detect.bridge_interface, check),
        "InterfaceNamePrefix" => {
            check_interface("detectLocal.interfaceNamePrefix", &detect.interface_name_prefix, check);
        }
        other => check.that(
            false,
            "detectLocalMode",
            quoted(other),
            "must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or empty",
        ),
    }
}

/// Linux allows names of up to 15 bytes without `/`; a longer name would never
/// match.
fn check_interface(path: &str, name: &str, check: &mut Check) {
    check.that(!name.is_empty(), path, quoted(name), "cannot be empty in this detectLocalMode");
    check.that(name.len() <= 15, path, quoted(name), "must be at most 15 bytes");
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b'"' && byte != b'*');
    check.that(printable, path, quoted(name), "must be the name of a network interface");
}

fn check_cluster_cidr(text: &str, check: &mut Check) {
    match parse_cidrs(text) {
        Err(part) => check.that(false, "clusterCIDR", quoted(&part), CIDR),
        Ok(cidrs) => {
            let valid = match cidrs.as_slice() {
                [] | [_] => true,
                [first, second] => first.addr().is_ipv4() != second.addr().is_ipv4(),
                _ => false,
            };
            check.that(valid, "clusterCIDR", quoted(text), ONE_PER_FAMILY);
        }
    }
}

fn check_logging(configuration: &KubeProxyConfiguration, check: &mut Check) {
    let format = &configuration.logging.format;
    check.that(matches!(format.as_str(), "text" | "json"), "logging.format", quoted(format), "must be text or json");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invalid(change: impl FnOnce(&mut KubeProxyConfiguration)) -> Vec<String> {
        let mut configuration = KubeProxyConfiguration::default();
        change(&mut configuration);
        match validate(&configuration) {
            Ok(()) => Vec::new(),
            Err(ConfigError::Invalid(fields)) => fields.into_iter().map(|field| field.path).collect(),
            Err(other) => vec![other.to_string()],
        }
    }

    #[test]
    fn the_defaults_are_valid() {
        assert!(invalid(|_| ()).is_empty());
    }

    #[test]
    fn other_modes_are_told_what_to_change() {
        for mode in ["iptables", "ipvs"] {
            let messages = invalid(|c| c.mode = mode.to_owned());
            assert!(messages.iter().any(|message| message.contains("mode: nftables")), "{messages:?}");
        }
        assert_eq!(invalid(|c| c.mode = "ebpf".to_owned()), ["mode"]);
        assert!(invalid(|c| c.mode = "nftables".to_owned()).is_empty());
    }

    #[test]
    fn each_check_names_its_field() {
        type Change = fn(&mut KubeProxyConfiguration);
        let cases: [(&str, Change); 28] = [
            ("iptables.masqueradeBit", |c| c.iptables.masquerade_bit = 32),
            ("nftables.masqueradeBit", |c| c.nftables.masquerade_bit = -1),
            ("oomScoreAdj", |c| c.oom_score_adj = 1001),
            ("conntrack.maxPerCore", |c| c.conntrack.max_per_core = -1),
            ("conntrack.min", |c| c.conntrack.min = -1),
            ("conntrack.udpTimeout", |c| c.conntrack.udp_timeout = GoDuration::from_seconds(-1)),
            ("clientConnection.burst", |c| c.client_connection.burst = -1),
            ("nftables.syncPeriod", |c| c.nftables.min_sync_period = GoDuration::from_seconds(31)),
            ("configSyncPeriod", |c| c.config_sync_period = GoDuration::ZERO),
            ("bindAddress", |c| c.bind_address = "node-1".to_owned()),
            ("healthzBindAddress", |c| c.healthz_bind_address = "0.0.0.0:0".to_owned()),
            ("metricsBindAddress", |c| c.metrics_bind_address = "localhost:10249".to_owned()),
            ("clusterCIDR", |c| c.cluster_cidr = "10.0.0.0".to_owned()),
            ("clusterCIDR", |c| c.cluster_cidr = "10.0.0.0/8,11.0.0.0/8".to_owned()),
            ("detectLocalMode", |c| c.detect_local_mode = "Magic".to_owned()),
            ("detectLocal.bridgeInterface", |c| c.detect_local_mode = "BridgeInterface".to_owned()),
            ("detectLocal.interfaceNamePrefix", |c| c.detect_local_mode = "InterfaceNamePrefix".to_owned()),
            ("nodePortAddresses[1]", |c| {
                c.node_port_addresses = vec!["primary".to_owned(), "Primary".to_owned()];
            }),
            ("nodePortAddresses[0]", |c| c.node_port_addresses = vec!["10.0.0.1".to_owned()]),
            ("logging.format", |c| c.logging.format = "xml".to_owned()),
            ("dns.bindAddresses[1]", |c| c.dns.bind_addresses = vec!["10.0.0.1".to_owned(), "x".to_owned()]),
            ("dns.domain", |c| c.dns.domain = "a..b".to_owned()),
            ("dns.upstream[0]", |c| c.dns.upstream = vec!["resolver.example".to_owned()]),
            ("dns.takeOver", |c| c.dns.take_over = "kube-dns".to_owned()),
            ("dns.ttlSeconds", |c| c.dns.ttl_seconds = 3601),
            ("dns.clientCIDRs[0]", |c| c.dns.client_cidrs = vec!["10.0.0.1".to_owned()]),
            ("nftables.minSyncPeriod", |c| c.nftables.min_sync_period = GoDuration::from_seconds(-1)),
            ("nftables.flowTable.interfaces[0]", |c| c.nftables.flow_table.interfaces = vec!["eth/0".to_owned()]),
        ];
        for (path, change) in cases {
            assert_eq!(invalid(change), [path]);
        }
    }

    #[test]
    fn dual_stack_and_empty_cluster_cidrs_are_valid() {
        assert!(invalid(|c| c.cluster_cidr = "10.0.0.0/8,fd00::/48".to_owned()).is_empty());
        assert!(invalid(|c| c.cluster_cidr = String::new()).is_empty());
        // Not checked in another mode, as in kube-proxy.
        assert!(
            invalid(|c| {
                c.detect_local_mode = "NodeCIDR".to_owned();
                c.cluster_cidr = "nonsense".to_owned();
            })
            .is_empty()
        );
    }
}
