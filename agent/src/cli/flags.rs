//! kube-proxy's flags, by what they are about, with its names and defaults
//! (`cmd/kube-proxy/app/options.go`). Every value is optional, so that a flag
//! that was given is told from one that was not.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::go_flags::parse_bool;
use crate::config::GoDuration;

/// Where the configuration comes from, and what to do beside running.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigurationFlags {
    /// The configuration file (KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1, YAML or JSON). With it,
    /// flags that set a field of the file are ignored, except --hostname-override and those of logging
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write the configuration, defaults filled in, to this file and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,

    /// The node's name, in place of the host's name
    #[arg(long, visible_alias = "node-name", value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Do what needs privileges and no rules (sysctls), then exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub init_only: Option<bool>,

    /// Remove the tables of vmap-proxy and exit; the same as `vmap-proxy cleanup`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub cleanup: Option<bool>,

    /// Remove what kube-proxy left behind (iptables, ipvs, nftables) once our own rules are in place; with --cleanup,
    /// beside our own tables
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub cleanup_kube_proxy: Option<bool>,

    /// Print the version and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|raw")]
    pub version: Option<String>,
}

/// How the API server is reached.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "API server")]
pub struct ApiFlags {
    /// The kubeconfig file; without it and --master, the pod's service account is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// URL of the API server; overrides the kubeconfig's and the file's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
}

/// Which traffic is served, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficFlags {
    /// The proxy mode: nftables, the one there is (empty is taken as nftables)
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,

    /// Overrides the node's primary address; nothing listens on it [default: 0.0.0.0, no override]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,

    /// How local pods are told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix [default: ClusterCIDR]
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,

    /// The range of pod addresses, or one of each family, comma-separated; for ClusterCIDR
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Option<String>,

    /// The bridge that local pods are attached to; for BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// The prefix that the interfaces of local pods share; for InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Masquerade all traffic to cluster IPs [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub masquerade_all: Option<bool>,

    /// Which node addresses serve NodePorts: ranges, `primary`, `all`, in any combination; `localhost` is accepted
    /// and serves none [default: primary]
    #[arg(long, alias = "node-port-addresses", value_delimiter = ',', value_name = "CIDR,...")]
    pub nodeport_addresses: Option<Vec<String>>,
}

/// Where health and metrics are served.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct ServerFlags {
    /// Address of /healthz and /livez, port 10256 if left out; empty: off [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,

    /// Address of /metrics, port 10249 if left out; empty: off [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,

    /// End the process if it can't listen, instead of trying again every 5 s [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub bind_address_hard_fail: Option<bool>,

    /// How long a change may wait for its sync before health turns bad [default: twice the sync period]
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<GoDuration>,

    /// Serve vmap_proxy_service_connections_total, a series for each service port that had connections through this
    /// node [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub service_metrics: Option<bool>,

    /// Deprecated: port of /healthz, 0: off; use --healthz-bind-address
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,

    /// Deprecated: port of /metrics, 0: off; use --metrics-bind-address
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
}

/// What is set in the kernel beside rules.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Kernel settings")]
pub struct KernelFlags {
    /// oom_score_adj of this process, -1000 to 1000 [default: -999]
    #[arg(long, allow_negative_numbers = true, value_name = "SCORE")]
    pub oom_score_adj: Option<i32>,

    /// Tracked connections per CPU; 0 leaves the limit alone [default: 32768]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_max_per_core: Option<i32>,

    /// Tracked connections at least, whatever the CPUs [default: 131072]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_min: Option<i32>,

    /// Idle time of established TCP connections; 0 leaves it alone [default: 24h0m0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,

    /// Time of TCP connections in CLOSE_WAIT; 0 leaves it alone [default: 1h0m0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,

    /// Don't treat packets outside the TCP window as invalid [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// Idle time of unanswered UDP flows; 0 leaves it alone [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,

    /// Idle time of answered UDP flows; 0 leaves it alone [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
}

/// When rules are synced. The names are kube-proxy's; they are not about iptables alone.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Timing")]
pub struct TimingFlags {
    /// Time between attempts after a failed sync [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<GoDuration>,

    /// Shortest time between the beginnings of two syncs; the default of kube-proxy, 1s, counts as not set
    /// [default: 50ms]
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<GoDuration>,
}

/// What is logged; these win over the file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingFlags {
    /// Verbosity: 0 what an operator has to know, 2 each sync too, 4 debug, 6 and more trace [default: 0]
    #[arg(short = 'v', long = "v", value_name = "LEVEL", allow_negative_numbers = true, value_parser = clap::value_parser!(u32))]
    pub verbosity: Option<u32>,

    /// text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,
}

/// Flags that change nothing here. They are accepted, so that the arguments of
/// a kube-proxy DaemonSet can stay as they are; one log line says why each is
/// ignored.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Accepted for compatibility, without effect")]
pub struct InertFlags {
    /// No feature gate of Kubernetes concerns this proxy
    #[arg(long, value_delimiter = ',', value_name = "NAME=BOOL,...")]
    pub feature_gates: Option<Vec<String>>,

    /// The API is spoken in JSON
    #[arg(long, value_name = "TYPE")]
    pub kube_api_content_type: Option<String>,

    /// Watches need no rate limit
    #[arg(long, value_name = "COUNT")]
    pub kube_api_burst: Option<i32>,

    /// Watches need no rate limit
    #[arg(long, value_name = "RATE")]
    pub kube_api_qps: Option<f32>,

    /// Objects are followed by watches
    #[arg(long, value_name = "DURATION")]
    pub config_sync_period: Option<GoDuration>,

    /// There are no Go profiles
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub profiling: Option<bool>,

    /// No metric is hidden
    #[arg(long, value_name = "VERSION")]
    pub show_hidden_metrics_for_version: Option<String>,

    /// iptables mode
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<i32>,

    /// iptables mode
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub iptables_localhost_nodeports: Option<bool>,

    /// ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_sync_period: Option<GoDuration>,

    /// ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_min_sync_period: Option<GoDuration>,

    /// ipvs mode
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,

    /// ipvs mode
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub ipvs_exclude_cidrs: Option<Vec<String>>,

    /// ipvs mode
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub ipvs_strict_arp: Option<bool>,

    /// ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcp_timeout: Option<GoDuration>,

    /// ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,

    /// ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_udp_timeout: Option<GoDuration>,

    /// The node's identity is its name alone
    #[arg(long, value_name = "FILE,...")]
    pub boot_id_file: Option<String>,

    /// The node's identity is its name alone
    #[arg(long, value_name = "FILE,...")]
    pub machine_id_file: Option<String>,

    /// Log lines are written at once
    #[arg(long, value_name = "DURATION")]
    pub log_flush_frequency: Option<GoDuration>,

    /// Log lines are written at once
    #[arg(long, value_name = "SIZE")]
    pub log_json_info_buffer_size: Option<String>,

    /// Everything is logged to standard error
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub log_json_split_stream: Option<bool>,

    /// Log lines are written at once
    #[arg(long, value_name = "SIZE")]
    pub log_text_info_buffer_size: Option<String>,

    /// Everything is logged to standard error
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub log_text_split_stream: Option<bool>,

    /// Verbosity is not set by Go source file
    #[arg(long, value_name = "PATTERN=LEVEL,...", action = ArgAction::Append)]
    pub vmodule: Option<Vec<String>>,
}

/// All of kube-proxy's flags.
#[derive(Debug, Clone, Default, Args)]
pub struct ProxyFlags {
    /// See [`ConfigurationFlags`].
    #[command(flatten)]
    pub configuration: ConfigurationFlags,
    /// See [`ApiFlags`].
    #[command(flatten)]
    pub api: ApiFlags,
    /// See [`TrafficFlags`].
    #[command(flatten)]
    pub traffic: TrafficFlags,
    /// See [`ServerFlags`].
    #[command(flatten)]
    pub servers: ServerFlags,
    /// See [`KernelFlags`].
    #[command(flatten)]
    pub kernel: KernelFlags,
    /// See [`TimingFlags`].
    #[command(flatten)]
    pub timing: TimingFlags,
    /// See [`LoggingFlags`].
    #[command(flatten)]
    pub logging: LoggingFlags,
    /// See [`InertFlags`].
    #[command(flatten)]
    pub inert: InertFlags,
}
