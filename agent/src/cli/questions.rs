//! The flags of the commands that ask about the state.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::flags::{LoggingFlags, TrafficFlags};

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

Examples:
  Why does a client outside not reach the load balancer?
    vmap-proxy explain --from outside --to 203.0.113.80:443 --manifests cluster/ --node-name node-1

  Which endpoints does this pod reach, with which chance?
    vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart --manifests cluster/ --node-name node-1

  Why is a Service not served?
    vmap-proxy explain --to svc:shop/cart --manifests cluster/ --node-name node-1

Exit status: 0 the packet reaches an endpoint (or every frontend of the Service serves), 1 failure, 2 wrong usage,
3 dropped or refused (or the Service is not served), 4 no frontend: the packet goes where it was sent to.";

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
    /// Files or directories of Kubernetes YAML or JSON: ask about the state that they make
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// The node to answer for [default: the host's name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,

    /// The configuration file (KubeProxyConfiguration); with it, the traffic flags below are ignored
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Flags about traffic.
    #[command(flatten)]
    pub traffic: TrafficFlags,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
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
