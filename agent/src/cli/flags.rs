//! kube-proxy's flags, grouped by subject, with its names and defaults
//! (`cmd/kube-proxy/app/options.go`). Every value is optional, which
//! distinguishes a flag that was given from one that was not.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::go_flags::parse_bool;
use crate::config::GoDuration;

/// The source of the configuration, and actions other than running.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Configuration")]
pub struct ConfigurationFlags {
    /// The configuration file (KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1, YAML or JSON). With it,
    /// flags that set a field of the file are ignored, except --hostname-override and the logging flags
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write the configuration, including defaults, to this file and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,

    /// The node's name, in place of the host's name
    #[arg(long, visible_alias = "node-name", value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// Set the sysctls, which needs more privileges than programming rules does, then exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub init_only: Option<bool>,

    /// Remove the tables of vmap-proxy and exit; the same as `vmap-proxy cleanup`
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub cleanup: Option<bool>,

    /// Remove the leftovers of kube-proxy (iptables, ipvs, nftables) once the rules of vmap-proxy are in place; with
    /// --cleanup, in addition to the tables of vmap-proxy
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub cleanup_kube_proxy: Option<bool>,

    /// Print the version and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|raw")]
    pub version: Option<String>,
}

/// The connection to the API server.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "API server")]
pub struct ApiFlags {
    /// The kubeconfig file; without it and --master, the pod's service account is used
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// URL of the API server; overrides the URL in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// Encoding of lists and watches: application/vnd.kubernetes.protobuf or application/json; a server without the first answers in the second [default: application/vnd.kubernetes.protobuf]
    #[arg(long, value_name = "TYPE")]
    pub kube_api_content_type: Option<String>,
}

/// The traffic that is served, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Traffic")]
pub struct TrafficFlags {
    /// The proxy mode: only nftables is supported; empty means nftables
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,

    /// Overrides the node's primary address; no server listens on it [default: 0.0.0.0, no override]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,

    /// How to recognize traffic from local pods: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix
    /// [default: ClusterCIDR]
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

    /// The node addresses that serve NodePorts: ranges, `primary`, `all`, `localhost`, in any combination; a loopback
    /// range needs the feature gate KubeProxyNFTablesLocalhostNodePorts [default: primary]
    #[arg(long, alias = "node-port-addresses", value_delimiter = ',', value_name = "CIDR,...")]
    pub nodeport_addresses: Option<Vec<String>>,

    /// Feature gates of Kubernetes: KubeProxyNFTablesLocalhostNodePorts=true serves NodePorts on localhost if
    /// --nodeport-addresses names it; others have no effect
    #[arg(long, value_delimiter = ',', value_name = "NAME=BOOL,...")]
    pub feature_gates: Option<Vec<String>>,
}

/// The servers of health and metrics.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct ServerFlags {
    /// Address of /healthz and /livez; the port defaults to 10256; an empty value switches the server off
    /// [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,

    /// Address of /metrics; the port defaults to 10249; an empty value switches the server off
    /// [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,

    /// End the process if it cannot listen, instead of trying again every 5 s [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub bind_address_hard_fail: Option<bool>,

    /// Longest time that a change may wait for its sync before /healthz and /livez answer 503
    /// [default: twice the sync period]
    #[arg(long, value_name = "DURATION")]
    pub health_timeout: Option<GoDuration>,

    /// Serve vmap_proxy_service_connections_total, a series for each service port that had connections through this
    /// node [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub service_metrics: Option<bool>,

    /// The Unix socket at which this agent answers `vmap-proxy explain` and the like; only its owner may open it; an
    /// empty value switches it off [default: /run/vmap-proxy/agent.sock; with --manifests: off]
    #[arg(long, value_name = "PATH")]
    pub query_socket: Option<String>,

    /// Serve the status page at / of the metrics server, to clients on this node alone, whatever the server's address
    /// [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub status_page: Option<bool>,

    /// Deprecated: port of /healthz; 0 switches the server off; use --healthz-bind-address
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<u16>,

    /// Deprecated: port of /metrics; 0 switches the server off; use --metrics-bind-address
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<u16>,
}

/// The DNS server of the node.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "DNS")]
pub struct DnsFlags {
    /// Addresses on which names of Services and pods are answered, UDP and TCP; the port defaults to 53; none switches
    /// the server off [default: none]
    #[arg(long, value_delimiter = ',', value_name = "IP[:PORT],...")]
    pub dns_bind_address: Option<Vec<String>>,

    /// The cluster's domain [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub dns_domain: Option<String>,

    /// The servers that all other names are forwarded to [default: those of /etc/resolv.conf]
    #[arg(long, value_delimiter = ',', value_name = "IP[:PORT],...")]
    pub dns_upstream: Option<Vec<String>>,

    /// TTL of the cluster's records in seconds, 0 to 3600 [default: 5]
    #[arg(long, value_name = "SECONDS")]
    pub dns_ttl: Option<u32>,

    /// Answer a-b-c-d.NAMESPACE.pod.DOMAIN with the address a.b.c.d [default: true]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub dns_pod_names: Option<bool>,

    /// The Service whose cluster IPs lead to this server, port 53, while it answers, and to the Service's endpoints
    /// otherwise: kube-system/kube-dns [default: none]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub dns_take_over: Option<String>,

    /// Ranges of clients that are answered besides this node and its pods (--cluster-cidr, and spec.podCIDRs of the
    /// Node) [default: none]
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub dns_client_cidrs: Option<Vec<String>>,
}

/// Kernel settings other than rules.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Kernel settings")]
pub struct KernelFlags {
    /// oom_score_adj of this process, -1000 to 1000 [default: -999]
    #[arg(long, allow_negative_numbers = true, value_name = "SCORE")]
    pub oom_score_adj: Option<i32>,

    /// Keep other programs from flushing or changing the tables, by the table flags owner and persist of Linux 6.9; an
    /// older kernel gets a warning [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub nftables_flush_proof: Option<bool>,

    /// Reset TCP connections to an endpoint when no slice has listed it for this time; 0s: they go on, as with
    /// kube-proxy [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub nftables_reset_gone_endpoints_after: Option<GoDuration>,

    /// Time in which the kernel's tables are compared once with what is programmed, in small pieces; 0 for never
    /// [default: 15m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub nftables_compare_period: Option<GoDuration>,

    /// Interfaces of the flow table, on whose short way established connections through Services bypass the rules: eth*
    /// means all names that begin with eth; none: no flow table [default: none]
    #[arg(long, value_delimiter = ',', value_name = "NAME,...")]
    pub nftables_flow_table_interfaces: Option<Vec<String>>,

    /// Packets, of both directions together, after which a connection gets into the flow table [default: 20]
    #[arg(long, value_name = "COUNT")]
    pub nftables_flow_table_after_packets: Option<u32>,

    /// Maximum number of tracked connections per CPU; 0 keeps the kernel's limit [default: 32768]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_max_per_core: Option<i32>,

    /// Lower bound of that maximum, whatever the number of CPUs [default: 131072]
    #[arg(long, value_name = "COUNT")]
    pub conntrack_min: Option<i32>,

    /// Idle timeout of established TCP connections; 0 keeps the kernel's value [default: 24h0m0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,

    /// Timeout of TCP connections in CLOSE_WAIT; 0 keeps the kernel's value [default: 1h0m0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,

    /// Do not treat packets outside the TCP window as invalid [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// Idle timeout of unanswered UDP flows; 0 keeps the kernel's value [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,

    /// Idle timeout of answered UDP flows; 0 keeps the kernel's value [default: 0s]
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,
}

/// The timing of syncs. The names are kube-proxy's; the flags do not concern iptables alone.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Timing")]
pub struct TimingFlags {
    /// Longest time between attempts after a failed sync [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub iptables_sync_period: Option<GoDuration>,

    /// Shortest time between the beginnings of two syncs; kube-proxy's default, 1s, counts as not set
    /// [default: 50ms]
    #[arg(long, value_name = "DURATION")]
    pub iptables_min_sync_period: Option<GoDuration>,
}

/// Logging; these flags take precedence over the file.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Logging")]
pub struct LoggingFlags {
    /// Verbosity: 0 and 1 for operators; 2 adds a line for each sync, as kube-proxy does; 3 the objects and Services
    /// behind it; 4 and 5 debugging, without a limit of lines; 6 and 7 each operation in nft's language; 8 and more the
    /// libraries [default: 0]
    #[arg(short = 'v', long = "v", value_name = "LEVEL", allow_negative_numbers = true, value_parser = clap::value_parser!(u32))]
    pub verbosity: Option<u32>,

    /// Format of log lines: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,
}

/// Flags without effect. They are accepted, so that the arguments of a
/// kube-proxy DaemonSet can stay as they are. One log line for each gives the
/// reason.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Accepted for compatibility, without effect")]
pub struct InertFlags {
    /// Watches need no rate limit
    #[arg(long, value_name = "COUNT")]
    pub kube_api_burst: Option<i32>,

    /// Watches need no rate limit
    #[arg(long, value_name = "RATE")]
    pub kube_api_qps: Option<f32>,

    /// Watches deliver all changes
    #[arg(long, value_name = "DURATION")]
    pub config_sync_period: Option<GoDuration>,

    /// There are no Go profiles to serve
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub profiling: Option<bool>,

    /// No metric is hidden
    #[arg(long, value_name = "VERSION")]
    pub show_hidden_metrics_for_version: Option<String>,

    /// Belongs to the iptables mode
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<i32>,

    /// Belongs to the iptables mode
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub iptables_localhost_nodeports: Option<bool>,

    /// Belongs to the ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_sync_period: Option<GoDuration>,

    /// Belongs to the ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_min_sync_period: Option<GoDuration>,

    /// Belongs to the ipvs mode
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,

    /// Belongs to the ipvs mode
    #[arg(long, value_delimiter = ',', value_name = "CIDR,...")]
    pub ipvs_exclude_cidrs: Option<Vec<String>>,

    /// Belongs to the ipvs mode
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = parse_bool,
          value_name = "BOOL")]
    pub ipvs_strict_arp: Option<bool>,

    /// Belongs to the ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcp_timeout: Option<GoDuration>,

    /// Belongs to the ipvs mode
    #[arg(long, value_name = "DURATION")]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,

    /// Belongs to the ipvs mode
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

    /// Verbosity is not set per Go source file
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
    /// See [`DnsFlags`].
    #[command(flatten)]
    pub dns: DnsFlags,
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
