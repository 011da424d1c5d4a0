//! `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`, every field
//! of it, with kube-proxy's defaults.
//!
//! Field names and defaults are those of Kubernetes 1.36
//! (`staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go`,
//! `pkg/proxy/apis/config/v1alpha1/defaults.go`). Fields without effect are
//! included: they are read, checked for their type, written back, and listed in
//! [`crate::config::ignored`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::addresses;
use super::go_duration::GoDuration;
use crate::source::kubernetes::{Encoding, PROTOBUF};

/// `apiVersion` of the configuration file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// `kind` of the configuration file.
pub const KIND: &str = "KubeProxyConfiguration";

/// The configuration of the proxy, as in kube-proxy's file.
///
/// [`Default`] gives kube-proxy's defaults; a field that a file leaves out, or
/// sets to `null`, has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeProxyConfiguration {
    /// Always [`API_VERSION`].
    pub api_version: String,
    /// Always [`KIND`].
    pub kind: String,
    /// Feature gates of Kubernetes by name; one of them concerns this proxy:
    /// [`localhost_node_ports::GATE`](super::localhost_node_ports::GATE).
    pub feature_gates: BTreeMap<String, bool>,
    /// The connection to the API server.
    pub client_connection: ClientConnection,
    /// Logging.
    pub logging: Logging,
    /// The node's name, in place of the host's name.
    pub hostname_override: String,
    /// Overrides the node's primary address if it is a specific address.
    pub bind_address: String,
    /// Address and port of `/healthz` and `/livez`; [`addresses::ADDRESS_OFF`]: none.
    pub healthz_bind_address: String,
    /// Address and port of `/metrics`; [`addresses::ADDRESS_OFF`]: none.
    pub metrics_bind_address: String,
    /// Whether a failure to listen on these addresses ends the process.
    pub bind_address_hard_fail: bool,
    /// Whether profiles are served beside the metrics.
    pub enable_profiling: bool,
    /// Shows metrics that this version of Kubernetes hides.
    pub show_hidden_metrics_for_version: String,
    /// kube-proxy's mode; here `nftables` or empty.
    pub mode: String,
    /// Belongs to kube-proxy's iptables mode.
    pub iptables: Iptables,
    /// Belongs to kube-proxy's ipvs mode.
    pub ipvs: Ipvs,
    /// Belongs to the nftables mode.
    pub nftables: Nftables,
    /// Belongs to kube-proxy on Windows.
    pub winkernel: Winkernel,
    /// How to recognize traffic from local pods.
    pub detect_local_mode: String,
    /// Parameters of some of these modes.
    pub detect_local: DetectLocalConfiguration,
    /// Ranges of pod addresses: one, or one of each family, comma-separated.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// The node addresses that serve NodePorts: ranges and the keywords
    /// `primary`, `all` and `localhost`.
    pub node_port_addresses: Vec<String>,
    /// The process's `oom_score_adj`, -1000 to 1000.
    pub oom_score_adj: i32,
    /// Sysctls of connection tracking.
    pub conntrack: Conntrack,
    /// The period of kube-proxy's resync of objects.
    pub config_sync_period: GoDuration,
    /// Belongs to kube-proxy's former userspace mode.
    pub port_range: String,
    /// Whether kube-proxy runs as a service of Windows.
    pub windows_run_as_service: bool,
    /// The DNS server, which kube-proxy does not have.
    pub dns: Dns,
}

/// `clientConnection`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClientConnection {
    /// Path of a kubeconfig file; empty: the pod's service account.
    pub kubeconfig: String,
    /// `Accept` header of requests.
    pub accept_content_types: String,
    /// Encoding requested from the API server.
    pub content_type: String,
    /// Requests a second.
    pub qps: f32,
    /// Requests that may exceed `qps` at once.
    pub burst: i32,
}

impl ClientConnection {
    /// The encoding to ask the API server for: the first known media type of
    /// `acceptContentTypes`, or of `contentType` if that is empty, as client-go's
    /// `Accept` header. `None` if the field names no known type.
    pub fn encoding(&self) -> Option<Encoding> {
        let types = if self.accept_content_types.is_empty() { &self.content_type } else { &self.accept_content_types };
        Encoding::first_of(types)
    }
}

/// `logging` (`k8s.io/component-base/logs/api/v1`)
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Logging {
    /// `text` or `json`.
    pub format: String,
    /// Longest time that kube-proxy may buffer log lines.
    pub flush_frequency: GoDuration,
    /// klog's `-v`.
    pub verbosity: u32,
    /// klog's verbosity per source file.
    pub vmodule: Vec<Value>,
    /// Buffers of klog's formats.
    pub options: Value,
}

/// `iptables`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Iptables {
    /// Bit of the packet mark, 0 to 31; validated in every mode.
    pub masquerade_bit: i32,
    /// Masquerade everything.
    pub masquerade_all: bool,
    /// NodePorts on the loopback address.
    pub localhost_node_ports: bool,
    /// Longest time between two syncs.
    pub sync_period: GoDuration,
    /// Shortest time between two syncs.
    pub min_sync_period: GoDuration,
}

/// `ipvs`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Ipvs {
    /// Longest time between two syncs.
    pub sync_period: GoDuration,
    /// Shortest time between two syncs.
    pub min_sync_period: GoDuration,
    /// ipvs scheduler.
    pub scheduler: String,
    /// Virtual servers within these ranges stay unchanged.
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    /// Sets `arp_ignore` and `arp_announce`.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// Idle time of TCP connections.
    pub tcp_timeout: GoDuration,
    /// Time after FIN.
    pub tcp_fin_timeout: GoDuration,
    /// Idle time of UDP flows.
    pub udp_timeout: GoDuration,
}

/// `nftables`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Nftables {
    /// Bit of the packet mark, 0 to 31.
    pub masquerade_bit: i32,
    /// Masquerade everything that goes to a cluster IP.
    pub masquerade_all: bool,
    /// Time between attempts after a failure; twice it is the health timeout.
    pub sync_period: GoDuration,
    /// Shortest time between two syncs.
    pub min_sync_period: GoDuration,
    /// Keep other programs from flushing or changing the tables, where the
    /// kernel can (6.9). kube-proxy has no such field.
    pub flush_proof: bool,
    /// Reset TCP connections to an endpoint when no slice has listed it for this
    /// time; 0s: they go on, as in kube-proxy, which has no such field.
    pub reset_gone_endpoints_after: GoDuration,
    /// Time in which the kernel is compared once with what is programmed, in
    /// small pieces; 0 for never. kube-proxy has no such field.
    pub compare_period: GoDuration,
    /// The flow table of established connections. kube-proxy has no such field.
    pub flow_table: FlowTable,
}

/// `nftables.flowTable`: a section of vmap-proxy alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct FlowTable {
    /// Names of interfaces, or beginnings of names with an asterisk; none: no
    /// flow table.
    pub interfaces: Vec<String>,
    /// Packets of both directions after which a connection gets into it.
    pub after_packets: u32,
}

/// `winkernel`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Winkernel {
    /// HNS network.
    pub network_name: String,
    /// Source of traffic that kube-proxy balances.
    pub source_vip: String,
    /// Direct server return.
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    /// Endpoint in the host's compartment.
    pub root_hns_endpoint_name: String,
    /// Forward health checks to the load balancer's address.
    pub forward_health_check_vip: bool,
}

/// `detectLocal`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DetectLocalConfiguration {
    /// The bridge of `BridgeInterface`.
    pub bridge_interface: String,
    /// The prefix of `InterfaceNamePrefix`.
    pub interface_name_prefix: String,
}

/// `conntrack`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Conntrack {
    /// Maximum connections per CPU; 0 keeps the kernel's limit.
    pub max_per_core: i32,
    /// Lower bound of that maximum, whatever the number of CPUs.
    pub min: i32,
    /// Idle time of established TCP; 0 keeps the kernel's value.
    pub tcp_established_timeout: GoDuration,
    /// Time in CLOSE_WAIT; 0 keeps the kernel's value.
    pub tcp_close_wait_timeout: GoDuration,
    /// Do not mark out-of-window packets invalid.
    pub tcp_be_liberal: bool,
    /// Idle time of unanswered UDP; 0 keeps the kernel's value.
    pub udp_timeout: GoDuration,
    /// Idle time of answered UDP; 0 keeps the kernel's value.
    pub udp_stream_timeout: GoDuration,
}

/// `dns`: a section of vmap-proxy alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Dns {
    /// Addresses and ports to listen on; none: the server is off.
    pub bind_addresses: Vec<String>,
    /// The cluster's domain.
    pub domain: String,
    /// The servers for other names; none: those of `/etc/resolv.conf`.
    pub upstream: Vec<String>,
    /// The TTL of the cluster's records, in seconds.
    pub ttl_seconds: u32,
    /// Whether `a-b-c-d.namespace.pod` is answered.
    pub pod_names: bool,
    /// The Service (`namespace/name`) whose cluster IPs lead to the server while it
    /// answers; empty: none.
    pub take_over: String,
    /// Further ranges of clients.
    #[serde(rename = "clientCIDRs")]
    pub client_cidrs: Vec<String>,
}

const DEFAULT_BIND_ADDRESS: &str = "0.0.0.0";
const DEFAULT_QPS: f32 = 5.0;
const DEFAULT_BURST: i32 = 10;
const DEFAULT_SYNC_PERIOD: GoDuration = GoDuration::from_seconds(30);
const DEFAULT_MIN_SYNC_PERIOD: GoDuration = GoDuration::from_seconds(1);
/// One pass over 100,000 Services with 5 endpoints each, 1.2 million elements, takes about 4 s of a processor.
const DEFAULT_COMPARE_PERIOD: GoDuration = GoDuration::from_seconds(15 * 60);
const DEFAULT_CONFIG_SYNC_PERIOD: GoDuration = GoDuration::from_seconds(15 * 60);
const DEFAULT_MASQUERADE_BIT: i32 = 14;
const DEFAULT_FLUSH_FREQUENCY: GoDuration = GoDuration::from_seconds(5);

impl Default for KubeProxyConfiguration {
    fn default() -> Self {
        let mut configuration = Self {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            feature_gates: BTreeMap::new(),
            client_connection: ClientConnection::default(),
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: DEFAULT_BIND_ADDRESS.to_owned(),
            healthz_bind_address: String::new(),
            metrics_bind_address: String::new(),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: String::new(),
            iptables: Iptables::default(),
            ipvs: Ipvs::default(),
            nftables: Nftables::default(),
            winkernel: Winkernel::default(),
            detect_local_mode: String::new(),
            detect_local: DetectLocalConfiguration::default(),
            cluster_cidr: String::new(),
            node_port_addresses: Vec::new(),
            oom_score_adj: -999,
            conntrack: Conntrack::default(),
            config_sync_period: DEFAULT_CONFIG_SYNC_PERIOD,
            port_range: String::new(),
            windows_run_as_service: false,
            dns: Dns::default(),
        };
        configuration.set_defaults();
        configuration
    }
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            bind_addresses: Vec::new(),
            domain: super::dns::DEFAULT_DOMAIN.to_owned(),
            upstream: Vec::new(),
            ttl_seconds: vmap_proxy_dns::options::DEFAULT_TTL,
            pod_names: true,
            take_over: String::new(),
            client_cidrs: Vec::new(),
        }
    }
}

impl Default for ClientConnection {
    fn default() -> Self {
        Self {
            kubeconfig: String::new(),
            accept_content_types: String::new(),
            content_type: PROTOBUF.to_owned(),
            qps: DEFAULT_QPS,
            burst: DEFAULT_BURST,
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".to_owned(),
            flush_frequency: DEFAULT_FLUSH_FREQUENCY,
            verbosity: 0,
            vmodule: Vec::new(),
            options: serde_json::json!({"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}),
        }
    }
}

impl Default for Iptables {
    fn default() -> Self {
        Self {
            masquerade_bit: DEFAULT_MASQUERADE_BIT,
            masquerade_all: false,
            localhost_node_ports: true,
            sync_period: DEFAULT_SYNC_PERIOD,
            min_sync_period: DEFAULT_MIN_SYNC_PERIOD,
        }
    }
}

impl Default for Ipvs {
    fn default() -> Self {
        Self {
            sync_period: DEFAULT_SYNC_PERIOD,
            min_sync_period: GoDuration::ZERO,
            scheduler: String::new(),
            exclude_cidrs: Vec::new(),
            strict_arp: false,
            tcp_timeout: GoDuration::ZERO,
            tcp_fin_timeout: GoDuration::ZERO,
            udp_timeout: GoDuration::ZERO,
        }
    }
}

impl Default for Nftables {
    fn default() -> Self {
        Self {
            masquerade_bit: DEFAULT_MASQUERADE_BIT,
            masquerade_all: false,
            sync_period: DEFAULT_SYNC_PERIOD,
            min_sync_period: DEFAULT_MIN_SYNC_PERIOD,
            flush_proof: false,
            reset_gone_endpoints_after: GoDuration::ZERO,
            compare_period: DEFAULT_COMPARE_PERIOD,
            flow_table: FlowTable::default(),
        }
    }
}

impl Default for FlowTable {
    fn default() -> Self {
        Self { interfaces: Vec::new(), after_packets: super::flow_table::DEFAULT_AFTER_PACKETS }
    }
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: 32 * 1024,
            min: 128 * 1024,
            tcp_established_timeout: GoDuration::from_seconds(24 * 60 * 60),
            tcp_close_wait_timeout: GoDuration::from_seconds(60 * 60),
            tcp_be_liberal: false,
            udp_timeout: GoDuration::ZERO,
            udp_stream_timeout: GoDuration::ZERO,
        }
    }
}

impl KubeProxyConfiguration {
    /// Returns the effective configuration, for `/configz`: every empty value is
    /// replaced by the value it stands for, as in kube-proxy
    /// (`platformApplyDefaults` in `cmd/kube-proxy/app/server_linux.go`).
    #[must_use]
    pub fn effective(&self) -> Self {
        let mut effective = self.clone();
        set_if_empty(&mut effective.mode, "nftables");
        set_if_empty(&mut effective.detect_local_mode, "ClusterCIDR");
        if effective.node_port_addresses.is_empty() {
            effective.node_port_addresses = vec![super::validate::PRIMARY.to_owned()];
        }
        effective
    }

    /// Replaces empty and zero values that mean "not set" by their defaults, as
    /// `SetDefaults_KubeProxyConfiguration` does: kubeadm writes many of them.
    pub fn set_defaults(&mut self) {
        set_if_empty(&mut self.bind_address, DEFAULT_BIND_ADDRESS);
        let ipv6 = addresses::is_ipv6(&self.bind_address);
        let (healthz, metrics) = if ipv6 { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        for (address, default_host, port) in [
            (&mut self.healthz_bind_address, healthz, addresses::HEALTHZ_PORT),
            (&mut self.metrics_bind_address, metrics, addresses::METRICS_PORT),
        ] {
            *address = match address.as_str() {
                "" => format!("{default_host}:{port}"),
                given => addresses::with_port(given, port),
            };
        }
        for (period, default) in [
            (&mut self.iptables.sync_period, DEFAULT_SYNC_PERIOD),
            (&mut self.iptables.min_sync_period, DEFAULT_MIN_SYNC_PERIOD),
            (&mut self.ipvs.sync_period, DEFAULT_SYNC_PERIOD),
            (&mut self.nftables.sync_period, DEFAULT_SYNC_PERIOD),
            (&mut self.nftables.min_sync_period, DEFAULT_MIN_SYNC_PERIOD),
            (&mut self.config_sync_period, DEFAULT_CONFIG_SYNC_PERIOD),
            (&mut self.logging.flush_frequency, DEFAULT_FLUSH_FREQUENCY),
        ] {
            if period.is_zero() {
                *period = default;
            }
        }
        let client = &mut self.client_connection;
        set_if_empty(&mut client.content_type, PROTOBUF);
        if client.qps == 0.0 {
            client.qps = DEFAULT_QPS;
        }
        if client.burst == 0 {
            client.burst = DEFAULT_BURST;
        }
        set_if_empty(&mut self.logging.format, "text");
        set_if_empty(&mut self.dns.domain, super::dns::DEFAULT_DOMAIN);
    }
}

fn set_if_empty(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}
