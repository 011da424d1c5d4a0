//! The flags of the commands that ask about the state.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::TrafficConfiguration;
use super::flags::LoggingFlags;

/// Examples and exit status of `vmap-proxy explain`.
pub(super) const EXPLAIN_HELP: &str = "\
Sources (--from):
  198.51.100.7          an address
  pod:shop/web-0        a Pod, if the files hold it or a slice refers to it
  node                  this node itself
  outside               a client outside of the cluster

Destinations (--to):
  10.96.0.10:80         an address and a port; /UDP or /SCTP behind it, else TCP
  svc:shop/cart         the cluster IP of a Service and its first port
  svc:shop/cart:http    the same with the name or the number of a port
  pod:shop/web-0:8080   a Pod
  node:30080            this node's address, for NodePorts

Without --manifests the agent of this node is asked, over its Unix socket, and the kernel's elements are read and
compared with its answer. Without an agent the kernel alone answers.

Examples:
  Where does this pod's packet go on this node?
    vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart
    kubectl -n kube-system exec POD -- /vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart

  Why does a client outside not reach the load balancer?
    vmap-proxy explain --from outside --to 203.0.113.80:443 --manifests cluster/ --node-name node-1

  Which endpoints does this pod reach, with which chance?
    vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart --manifests cluster/ --node-name node-1

  Why is a Service not served?
    vmap-proxy explain --to svc:shop/cart --manifests cluster/ --node-name node-1

Exit status: 0 the packet reaches an endpoint (or every frontend of the Service serves), 1 failure, 2 wrong usage,
3 dropped or refused (or the Service is not served), 4 no frontend: the packet goes where it was sent to, 5 the kernel
differs from the agent.";

/// Examples and exit status of `vmap-proxy get`.
pub(super) const GET_HELP: &str = "\
Examples:
  vmap-proxy get services
  vmap-proxy get frontends -n shop
  vmap-proxy get endpoints -n shop cart -o wide
  vmap-proxy get services --manifests cluster/ --node-name node-1 -o json

Exit status: 0 success, 1 failure (no agent, or no such Service), 2 wrong usage.";

/// Examples and exit status of `vmap-proxy status`.
pub(super) const STATUS_HELP: &str = "\
Examples:
  vmap-proxy status
  vmap-proxy status --wait 60 && echo everything is programmed

Exit status: 0 everything is programmed, 1 failure (no agent), 2 wrong usage, 3 a change waits or the last sync failed.";

/// Examples and exit status of `vmap-proxy verify`.
pub(super) const VERIFY_HELP: &str = "\
Every element is looked up and every rule compared. The digest is the same for the same elements, whatever their order.

Examples:
  vmap-proxy verify
  vmap-proxy verify -o json

Exit status: 0 the kernel has exactly what the agent wants, 1 it differs, or failure (with a message on standard error),
2 wrong usage.";

/// `vmap-proxy get`
#[derive(Debug, Clone, Args)]
pub struct GetArguments {
    /// The list
    #[arg(value_enum)]
    pub listed: Listed,

    /// Only this Service
    pub name: Option<String>,

    /// Only this namespace; of a Service without it: default
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: GetFormat,

    /// The state that is asked about.
    #[command(flatten)]
    pub state: StateArguments,
}

/// The kind of object that `vmap-proxy get` lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Listed {
    /// One line for each Service.
    Services,
    /// One line for each address and port, or NodePort.
    Frontends,
    /// One line for each endpoint of each port.
    Endpoints,
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

    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArguments,
}

/// `vmap-proxy verify`
#[derive(Debug, Clone, Args)]
pub struct VerifyArguments {
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

/// Examples and exit status of `vmap-proxy doctor`.
pub(super) const DOCTOR_HELP: &str = "\
It examines the kernel (it loads the rules of every kind of Service in a network namespace of its own), the settings of
forwarding, bridges and connection tracking, the base chains of other tables, other programs that write rules, and whatever
kube-proxy left. It changes nothing, needs no agent, and names the remedy of each finding.

Examples:
  On a node, or in the agent's container:
    vmap-proxy doctor --config /var/lib/kube-proxy/config.conf

  For a script:
    vmap-proxy doctor -o json

Exit status: 0 nothing worse than a note, 1 an error was found (or a failure), 2 wrong usage, 3 a warning was found.";

/// `vmap-proxy doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArguments {
    /// The configuration file (KubeProxyConfiguration) of the agent
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The ranges of pods, if there is no --config: a comma-separated list
    #[arg(long, value_name = "CIDRS", conflicts_with = "config")]
    pub cluster_cidr: Option<String>,

    /// Output format
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: ReportFormat,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// Examples of `vmap-proxy completion`.
pub(super) const COMPLETION_HELP: &str = "\
Examples:
  vmap-proxy completion bash > /etc/bash_completion.d/vmap-proxy
  vmap-proxy completion zsh > \"${fpath[1]}/_vmap-proxy\"
  vmap-proxy completion fish > ~/.config/fish/completions/vmap-proxy.fish";

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
