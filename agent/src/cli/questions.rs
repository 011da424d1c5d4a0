//! The flags of the commands that ask about the state.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::TrafficConfiguration;
use super::flags::LoggingFlags;
use crate::config::go_duration::GoDuration;

/// An address, or an address and a port.
fn endpoint(text: &str) -> Result<(IpAddr, Option<u16>), &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok((address, None));
    }
    match text.parse::<SocketAddr>() {
        Ok(endpoint) if endpoint.port() != 0 => Ok((endpoint.ip(), Some(endpoint.port()))),
        _ => Err("give an address, or an address and a port (IPv6: [ADDRESS]:PORT)"),
    }
}

/// `vmap-proxy get`
#[derive(Debug, Clone, Args)]
pub struct GetArguments {
    /// The list
    #[arg(value_enum)]
    pub listed: Listed,

    /// Only this Service
    #[arg(value_name = "[NAMESPACE/]NAME")]
    pub name: Option<String>,

    /// Only this namespace; of a Service without it: default
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: GetFormat,

    /// Connections only.
    #[command(flatten)]
    pub connections: ConnectionFlags,

    /// The state that is asked about.
    #[command(flatten)]
    pub state: StateArguments,
}

/// The flags of `vmap-proxy get connections`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Connections")]
pub struct ConnectionFlags {
    /// Only connections to this Service
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with_all = ["name", "namespace"])]
    pub service: Option<String>,

    /// Only connections to this endpoint, through a Service or not
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = endpoint)]
    pub endpoint: Option<(IpAddr, Option<u16>)>,

    /// Wait until none of these connections is open
    #[arg(long)]
    pub wait: bool,

    /// Longest wait
    #[arg(long, value_name = "SECONDS", requires = "wait", default_value_t = 300)]
    pub timeout: u64,
}

/// The kind of object that `vmap-proxy get` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// One line for each Service.
    #[value(alias = "service")]
    Services,
    /// One line for each address and port, or NodePort.
    #[value(alias = "frontend")]
    Frontends,
    /// One line for each endpoint of each port.
    #[value(alias = "endpoint")]
    Endpoints,
    /// The connections of each service port to each endpoint; with `-o wide` one line for each connection.
    #[value(alias = "connection")]
    Connections,
}

/// The format of a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum GetFormat {
    /// For people.
    #[default]
    Text,
    /// With the field that decides.
    Wide,
    /// For programs.
    Json,
}

/// `vmap-proxy status`
#[derive(Debug, Clone, Args)]
pub struct StatusArguments {
    /// Wait up to this many seconds until everything is programmed
    #[arg(long, value_name = "SECONDS")]
    pub wait: Option<u64>,

    /// Show it again and again, each time after this many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..), conflicts_with = "wait")]
    pub watch: Option<u64>,

    /// Show the busiest Services in a cluster of any size; the kernel takes a second or more for 100,000 counters
    #[arg(long)]
    pub busiest: bool,

    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// `vmap-proxy verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
    /// Add the digest of each Service to the JSON form
    #[arg(long)]
    pub digests: bool,

    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// `vmap-proxy journal`
#[derive(Debug, Clone, Args)]
pub struct JournalArguments {
    /// Only syncs that changed this Service, or were caused by it
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,

    /// Only syncs that changed this address of a frontend or an endpoint
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,

    /// Only syncs of the last time: 10m, 1h30m
    #[arg(long, value_name = "DURATION")]
    pub since: Option<GoDuration>,

    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// `vmap-proxy check-migration`
#[derive(Debug, Clone, Args)]
pub struct CheckMigrationArguments {
    /// The output of iptables-save and ip6tables-save on this node, if kube-proxy runs in iptables mode; `-` for
    /// standard input [default: the kernel's table of the nftables mode]
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub iptables_save: Vec<PathBuf>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// The state that is compared with kube-proxy's.
    #[command(flatten)]
    pub state: StateArguments,
}

/// `vmap-proxy plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArguments {
    /// Files or directories of Kubernetes YAML or JSON: the desired state
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// Compare with these files or directories, instead of the kernel of this node
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub against: Vec<PathBuf>,

    /// The configuration file that goes with --against [default: the same as for --manifests]
    #[arg(long, value_name = "FILE", requires = "against")]
    pub against_config: Option<PathBuf>,

    /// Print each operation in nft's language, too
    #[arg(long)]
    pub operations: bool,

    /// The node to plan for [default: the host's name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// The configuration that traffic follows.
    #[command(flatten)]
    pub configuration: TrafficConfiguration,
}

/// `vmap-proxy trace`
#[derive(Debug, Clone, Args)]
#[command(group = clap::ArgGroup::new("wanted").args(["service", "endpoint", "address"]).required(true).multiple(true))]
pub struct TraceArguments {
    /// Connections to any address and port of this Service; its NodePorts at this node's addresses
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,

    /// Connections to this endpoint, from the translation on
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = endpoint)]
    pub endpoint: Option<(IpAddr, Option<u16>)>,

    /// Connections from or to this address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,

    /// Of these, only connections from this client
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,

    /// End after this time
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub duration: GoDuration,

    /// End after this number of packets
    #[arg(long, value_name = "PACKETS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,

    /// Packets traced in a second, at most, for each family
    #[arg(long, value_name = "PACKETS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub rate: u64,

    /// The agent that is asked for the addresses of a Service.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// `vmap-proxy version`
#[derive(Debug, Clone, Args)]
pub struct VersionArguments {
    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// The agent that is asked, and the form of its answer.
#[derive(Debug, Clone, Args)]
pub struct AgentArguments {
    /// The Unix socket of the agent on this node
    #[arg(long, default_value = crate::query::server::DEFAULT_PATH, value_name = "PATH")]
    pub socket: PathBuf,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// `vmap-proxy explain`
#[derive(Debug, Clone, Args)]
pub struct ExplainArguments {
    /// The source of the packet; without it, --to names a Service to explain
    #[arg(long, value_name = "SOURCE")]
    pub from: Option<String>,

    /// The destination of the packet
    #[arg(long, value_name = "DESTINATION")]
    pub to: String,

    /// The interface on which the packet arrives, for detectLocalMode BridgeInterface and InterfaceNamePrefix
    /// [default: that of a pod for addresses in the node's pod range, else eth0]
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// The state that is asked about.
    #[command(flatten)]
    pub state: StateArguments,
}

/// The state that a question is about.
#[derive(Debug, Clone, Args)]
pub struct StateArguments {
    /// Files or directories of Kubernetes YAML or JSON: ask about the state that they make, instead of this node
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// The Unix socket of the agent on this node
    #[arg(long, default_value = crate::query::server::DEFAULT_PATH, value_name = "PATH")]
    pub socket: PathBuf,

    /// The node to answer for [default: the host's name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,

    /// The configuration that traffic follows.
    #[command(flatten)]
    pub configuration: TrafficConfiguration,
}

/// `vmap-proxy doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArguments {
    /// The configuration file (KubeProxyConfiguration) of the agent
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The ranges of pods, if there is no --config: a comma-separated list
    #[arg(long, value_name = "CIDRS", conflicts_with = "config")]
    pub cluster_cidr: Option<String>,

    /// The Unix socket of the agent on this node, which is asked for its own state if it answers
    #[arg(long, default_value = crate::query::server::DEFAULT_PATH, value_name = "PATH")]
    pub socket: PathBuf,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// `vmap-proxy completion`
#[derive(Debug, Clone, Args)]
pub struct CompletionArguments {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell with completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

impl Shell {
    /// The writer of the script.
    pub(crate) fn generator(self) -> clap_complete::Shell {
        match self {
            Self::Bash => clap_complete::Shell::Bash,
            Self::Zsh => clap_complete::Shell::Zsh,
            Self::Fish => clap_complete::Shell::Fish,
        }
    }
}

/// The format of an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}
