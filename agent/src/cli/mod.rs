//! The command line: kube-proxy's flags, and a few subcommands.
//!
//! [`parse`] reads the arguments, [`Invocation::resolve`] turns them, with the
//! configuration file if there is one, into an [`Action`] that the binary
//! carries out.

mod apply;
mod flag_values;
pub mod flags;
mod go_flags;
mod help;
mod questions;
mod resolve;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use flags::{LoggingFlags, ProxyFlags, TrafficFlags};
pub use questions::{
    AgentArguments, CheckMigrationArguments, CompletionArguments, ConnectionFlags, DoctorArguments, ExplainArguments,
    GetArguments, GetFormat, JournalArguments, Listed, PlanArguments, ReportFormat, Shell, StateArguments,
    StatusArguments, TraceArguments, VerifyArguments, VersionArguments,
};

pub use flag_values::FLAGS_OF_FIELDS;
pub use resolve::{
    Action, CheckMigrationOptions, CleanupOptions, CompileOptions, ConnectionsOptions, DoctorOptions, ExplainOptions,
    GetOptions, JournalOptions, PlanFrom, PlanOptions, Resolved, RunOptions, Source, StateSource, StatusOptions,
    TraceOptions, VerifyOptions, VersionOptions,
};

/// The exit status for wrong usage, as of clap's own errors.
pub(crate) const WRONG_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  In a cluster, instead of kube-proxy (as its DaemonSet starts it):
    vmap-proxy --config=/var/lib/kube-proxy/config.conf --hostname-override=$(NODE_NAME)

  Without a cluster, from files, and follow their changes:
    vmap-proxy run --manifests examples/ --node-name node-1

  Print the rules for these files, without privileges:
    vmap-proxy compile --manifests examples/ --node-name node-1

  Where does a packet go, and why? On this node, or from files:
    vmap-proxy explain --from 10.244.1.5 --to svc:shop/cart
    vmap-proxy explain --from outside --to svc:default/web --manifests examples/ --node-name node-1

When something does not work, on a node with the agent:
  a Service refuses, or nobody answers    vmap-proxy explain --from POD-IP --to svc:shop/cart
  some connections hang                   vmap-proxy doctor, then vmap-proxy trace --service shop/cart
  it worked an hour ago                   vmap-proxy journal --service shop/cart
  the whole node                          vmap-proxy status, vmap-proxy get services

  Remove the tables of vmap-proxy, and nothing else:
    vmap-proxy cleanup
";

/// Only if the demo is part of the program.
const DEMO_EXAMPLE: &str = "
  See it work with real packets, in separate namespaces; then explore them in a shell:
    vmap-proxy demo --keep
";

const EXIT_STATUS: &str = "
Exit status: 0 success, 1 failure, 2 wrong usage.";

fn after_help() -> String {
    [EXAMPLES, if cfg!(feature = "demo") { DEMO_EXAMPLE } else { "" }, EXIT_STATUS].concat()
}

/// A drop-in replacement for kube-proxy: Services become elements of nftables
/// maps, in a rule set that does not grow.
///
/// Without a subcommand it runs against the cluster and accepts kube-proxy's
/// flags and configuration file.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "vmap-proxy",
    bin_name = "vmap-proxy",
    after_help = after_help(),
    args_conflicts_with_subcommands = true,
    args_override_self = true,
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct Cli {
    /// The subcommand; without one, run against the cluster.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// kube-proxy's flags.
    #[command(flatten)]
    pub flags: ProxyFlags,
}

/// The subcommands.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Program the kernel of this node, from a cluster or from files, and follow changes
    #[command(args_override_self = true)]
    Run(Box<RunArguments>),
    /// Print the rule set for manifest files; needs no privileges
    Compile(Box<CompileArguments>),
    /// Explain where a packet goes, and which object and field decide about it
    #[command(after_help = help::EXPLAIN_HELP)]
    Explain(Box<ExplainArguments>),
    /// List Services, frontends or endpoints as the agent of this node, or files, have them; or connections
    #[command(after_help = help::GET_HELP)]
    Get(Box<GetArguments>),
    /// Show the state of the agent of this node
    #[command(after_help = help::STATUS_HELP)]
    Status(StatusArguments),
    /// Compare the kernel with what the agent has programmed; changes nothing
    #[command(after_help = help::VERIFY_HELP)]
    Verify(VerifyArguments),
    /// Show what manifests, a configuration or this version would change on this node; changes nothing
    #[command(after_help = help::PLAN_HELP)]
    Plan(Box<PlanArguments>),
    /// Follow new connections through the kernel, live, in terms of Services; adds a table of its own for that time, and
    /// changes no traffic
    #[command(after_help = help::TRACE_HELP)]
    Trace(TraceArguments),
    /// Show the last changes that the agent of this node programmed, with their causes
    #[command(after_help = help::JOURNAL_HELP)]
    Journal(JournalArguments),
    /// Examine this node for whatever stands in the way of Service traffic; changes nothing
    #[command(after_help = help::DOCTOR_HELP)]
    Doctor(DoctorArguments),
    /// Compare what kube-proxy (nftables or iptables mode) does on this node with what vmap-proxy does; changes nothing
    #[command(after_help = help::CHECK_MIGRATION_HELP)]
    CheckMigration(Box<CheckMigrationArguments>),
    /// Print the versions of this program and of the agent of this node
    #[command(after_help = help::VERSION_HELP)]
    Version(VersionArguments),
    /// Print a script that completes the command line in a shell
    #[command(after_help = help::COMPLETION_HELP)]
    Completion(CompletionArguments),
    /// Show the proxy at work with real connections between network namespaces; changes nothing outside of them
    #[cfg(feature = "demo")]
    Demo(DemoArguments),
    /// Remove the tables of vmap-proxy and exit
    Cleanup(CleanupArguments),
}

/// `vmap-proxy run`
#[derive(Debug, Clone, Args)]
pub struct RunArguments {
    /// Files or directories of Kubernetes YAML or JSON to serve instead of a cluster: Services, EndpointSlices, Nodes
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// kube-proxy's flags.
    #[command(flatten)]
    pub flags: ProxyFlags,
}

/// `vmap-proxy compile`
#[derive(Debug, Clone, Args)]
pub struct CompileArguments {
    /// Files or directories of Kubernetes YAML or JSON
    #[arg(long, num_args = 1.., required = true, value_name = "PATH")]
    pub manifests: Vec<PathBuf>,

    /// The node to compile for
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: String,

    /// Output format: nft's language, or the typed rule set as JSON
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,

    /// The configuration that traffic follows.
    #[command(flatten)]
    pub configuration: TrafficConfiguration,
}

/// The configuration that decides the fate of packets, for commands that follow
/// no cluster.
#[derive(Debug, Clone, Args)]
pub struct TrafficConfiguration {
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

/// `vmap-proxy demo`
#[cfg(feature = "demo")]
#[derive(Debug, Clone, Args)]
pub struct DemoArguments {
    /// Keep the namespaces, and open a shell inside them
    #[arg(long)]
    pub keep: bool,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// `vmap-proxy cleanup`
#[derive(Debug, Clone, Args)]
pub struct CleanupArguments {
    /// Also remove the leftovers of kube-proxy (iptables, ipvs, nftables)
    #[arg(long)]
    pub cleanup_kube_proxy: bool,

    /// Flags about logging.
    #[command(flatten)]
    pub logging: LoggingFlags,
}

/// `vmap-proxy compile --output`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// nft's own language.
    #[default]
    Text,
    /// The typed rule set.
    Json,
}

/// The parsed arguments, not yet combined with a configuration file.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// The typed arguments.
    pub cli: Cli,
    given: Given,
}

/// The flags on the command line: names without dashes, and values as written.
pub(crate) type Given = BTreeMap<String, String>;

/// Parses the command line, the program's name first.
///
/// # Errors
/// clap's, which prints itself and ends the process with the right status
/// (`clap::Error::exit`): 0 for `--help`, 2 for wrong usage.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = Cli::command().disable_version_flag(true).try_get_matches_from(go_flags::normalized(arguments))?;
    let cli = Cli::from_arg_matches(&matches)?;
    let innermost = matches.subcommand().map_or(&matches, |(_, matches)| matches);
    Ok(Invocation { cli, given: given_flags(innermost) })
}

fn given_flags(matches: &ArgMatches) -> Given {
    matches
        .ids()
        .map(clap::Id::as_str)
        // Flattened groups are ids too; they have the names of types.
        .filter(|id| id.starts_with(|first: char| first.is_ascii_lowercase()))
        .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
        .map(|id| {
            let raw = matches.get_raw(id).into_iter().flatten();
            let values: Vec<String> = raw.map(|value| value.to_string_lossy().into_owned()).collect();
            (id.replace('_', "-"), values.join(","))
        })
        .collect()
}
