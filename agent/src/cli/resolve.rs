//! Combines arguments and a configuration file into an action.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmap_proxy_compiler::model::config::{DetectLocal, ProxyConfig};

use super::apply::{apply_flags, apply_logging, apply_traffic, inert_flag_warnings};
use super::flags::{ConfigurationFlags, LoggingFlags, ProxyFlags};
use super::{
    AgentArguments, Command, CompileArguments, Given, Invocation, OutputFormat, Shell, StatusArguments,
    TrafficConfiguration, VerifyArguments, VersionArguments, flag_values,
};
use crate::config::addresses::listen_address;
use crate::config::flow_table::FlowTableOptions;
use crate::config::ignored::ignored_fields;
use crate::config::kube_proxy_configuration::Logging;
use crate::config::validate::parse_cidrs;
use crate::config::{ConfigError, InvalidField, KubeProxyConfiguration, Warning, load, validate};
use crate::query::server;
use crate::source::kubernetes::Encoding;
use crate::sync_loop::MIN_GAP;

mod questions;

pub use questions::{
    CheckMigrationOptions, ConnectionsOptions, DoctorOptions, ExplainOptions, GetOptions, JournalOptions, PlanFrom,
    PlanOptions, StateSource, StatusOptions, TraceOptions, VerifyOptions, VersionOptions,
};
use questions::{
    resolve_check_migration, resolve_doctor, resolve_explain, resolve_get, resolve_journal, resolve_plan, resolve_trace,
};

/// Flags that apply together with `--config`. All others set fields of the file
/// and are ignored then. `--health-timeout` and `--cleanup-kube-proxy` exist
/// only here and have no field.
const FLAGS_BESIDE_A_FILE: [&str; 17] = [
    "query-socket",
    "service-metrics",
    "status-page",
    "config",
    "write-config-to",
    "hostname-override",
    "init-only",
    "cleanup",
    "cleanup-kube-proxy",
    "version",
    "master",
    "health-timeout",
    "verbosity",
    "logging-format",
    "vmodule",
    "manifests",
    "log-flush-frequency",
];

/// The action of the binary.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Program the kernel and follow changes.
    Run(Box<RunOptions>),
    /// Print the compiled rule set.
    Compile(Box<CompileOptions>),
    /// Explain a packet or a Service.
    Explain(Box<ExplainOptions>),
    /// List Services, frontends or endpoints.
    Get(Box<GetOptions>),
    /// List connections.
    GetConnections(ConnectionsOptions),
    /// Compare with kube-proxy.
    CheckMigration(Box<CheckMigrationOptions>),
    /// Show what would change.
    Plan(Box<PlanOptions>),
    /// Trace packets.
    Trace(TraceOptions),
    /// Show the last syncs.
    Journal(JournalOptions),
    /// Print the versions of program and agent.
    Version(VersionOptions),
    /// Show the state of the agent.
    Status(StatusOptions),
    /// Compare the kernel with the agent.
    Verify(VerifyOptions),
    /// Examine the node.
    Doctor(DoctorOptions),
    /// Print a script for a shell.
    PrintCompletion(Shell),
    /// Show the proxy at work.
    #[cfg(feature = "demo")]
    Demo {
        /// Whether its namespaces are kept for a shell (`--keep`).
        keep: bool,
    },
    /// Remove tables.
    Cleanup(CleanupOptions),
    /// Write the configuration to a file (`--write-config-to`).
    WriteConfiguration {
        /// The file.
        path: PathBuf,
        /// The configuration to write.
        configuration: Box<KubeProxyConfiguration>,
    },
    /// Print the version (`--version`).
    PrintVersion,
}

/// An action, with the logging that it needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The action.
    pub action: Action,
    /// Logging, to be set up before the warnings are logged.
    pub logging: Logging,
    /// Unknown and ignored fields and flags, to be logged once.
    pub warnings: Vec<Warning>,
}

/// The source of Services and EndpointSlices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Files or directories of manifests.
    Manifests(Vec<PathBuf>),
    /// A cluster's API server.
    Kubernetes {
        /// The kubeconfig file; `None`, and no `master`: the pod's service account.
        kubeconfig: Option<PathBuf>,
        /// URL that overrides the kubeconfig's (`--master`).
        master: Option<String>,
        /// The encoding to ask for.
        encoding: Encoding,
    },
}

impl fmt::Display for Source {
    /// `the API server`, `the files cluster/, more/`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(paths) => {
                let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
                write!(f, "the files {}", paths.join(", "))
            }
            Self::Kubernetes { master: Some(master), .. } => write!(f, "the API server {master}"),
            Self::Kubernetes { kubeconfig: Some(path), .. } => write!(f, "the API server of {}", path.display()),
            Self::Kubernetes { .. } => f.write_str("the API server of this cluster"),
        }
    }
}

/// Options of `vmap-proxy` and `vmap-proxy run`: flags, file and defaults,
/// combined and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct RunOptions {
    /// The source of objects.
    pub source: Source,
    /// The whole configuration, for `/configz` and for the sysctls of [`crate::sysctl`].
    pub configuration: KubeProxyConfiguration,
    /// The file it was read from. When the file changes, the process exits with
    /// an error, as kube-proxy does, to be started again with the new one.
    pub configuration_file: Option<PathBuf>,
    /// The settings that decide the fate of packets, including the node's name.
    pub proxy: ProxyConfig,
    /// Address of `/healthz` and `/livez`; `None` if they are off.
    pub healthz_address: Option<SocketAddr>,
    /// Address of `/metrics`; `None` if it is off.
    pub metrics_address: Option<SocketAddr>,
    /// End the process if it cannot listen there.
    pub bind_address_hard_fail: bool,
    /// Longest time that a change may wait for its sync before `/healthz` and
    /// `/livez` answer 503: `--health-timeout`, or twice the sync period.
    pub health_timeout: Duration,
    /// Time between attempts after a failed sync.
    pub sync_period: Duration,
    /// Shortest time between the beginnings of two syncs.
    pub min_sync_period: Duration,
    /// Time in which the kernel is compared once in the background; zero for
    /// never.
    pub compare_period: Duration,
    /// The flow table of established connections; `None` if it is off.
    pub flow_table: Option<FlowTableOptions>,
    /// Whether `/metrics` has the connections of each service port.
    pub service_metrics: bool,
    /// Whether the metrics server has the status page.
    pub status_page: bool,
    /// The DNS server; `None` if it is off.
    pub dns: Option<vmap_proxy_dns::Options>,
    /// The Unix socket at which questions are answered; `None` if it is off.
    pub query_socket: Option<PathBuf>,
    /// kube-proxy's flags and their values, for `/flagz`.
    pub flags: BTreeMap<String, String>,
    /// Set sysctls and exit (`--init-only`).
    pub init_only: bool,
    /// Remove kube-proxy's own rules once ours are in place.
    pub cleanup_kube_proxy: bool,
}

impl RunOptions {
    /// Returns whether a sysctl that cannot be set ends the process. In a
    /// cluster it does, as in kube-proxy. With manifests it is a warning,
    /// because the node may serve other purposes.
    pub fn sysctl_failure_is_fatal(&self) -> bool {
        matches!(self.source, Source::Kubernetes { .. })
    }
}

/// Options of `vmap-proxy compile`.
#[derive(Debug, Clone, PartialEq)]
pub struct CompileOptions {
    /// Files or directories of manifests.
    pub manifests: Vec<PathBuf>,
    /// The settings that decide the fate of packets, including the node's name.
    pub proxy: ProxyConfig,
    /// nft's language or JSON.
    pub output: OutputFormat,
}

/// Options of `vmap-proxy cleanup` and `--cleanup`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CleanupOptions {
    /// Also remove the leftovers of kube-proxy, in any of its modes.
    pub kube_proxy: bool,
}

impl Invocation {
    /// Combines the arguments with the configuration file and kube-proxy's
    /// defaults, and checks the result. Reads the file and the host's name.
    ///
    /// # Errors
    /// Everything that makes the configuration unusable.
    pub fn resolve(self) -> Result<Resolved, ConfigError> {
        match self.cli.command {
            None => resolve_run(&self.cli.flags, Vec::new(), &self.given),
            Some(Command::Run(arguments)) => resolve_run(&arguments.flags, arguments.manifests, &self.given),
            Some(Command::Compile(arguments)) => resolve_compile(*arguments),
            Some(Command::Explain(arguments)) => resolve_explain(*arguments),
            Some(Command::Get(arguments)) => resolve_get(*arguments),
            Some(Command::Status(StatusArguments { wait, watch, busiest, agent })) => {
                let AgentArguments { socket, output, logging } = agent;
                let options = StatusOptions { wait, watch, busiest, socket, output };
                Ok(without_configuration(Action::Status(options), &logging))
            }
            Some(Command::Verify(VerifyArguments { digests, agent: AgentArguments { socket, output, logging } })) => {
                Ok(without_configuration(Action::Verify(VerifyOptions { digests, socket, output }), &logging))
            }
            Some(Command::CheckMigration(arguments)) => resolve_check_migration(*arguments),
            Some(Command::Plan(arguments)) => resolve_plan(*arguments),
            Some(Command::Trace(arguments)) => resolve_trace(arguments),
            Some(Command::Journal(arguments)) => Ok(resolve_journal(arguments)),
            Some(Command::Version(VersionArguments { agent: AgentArguments { socket, output, logging } })) => {
                Ok(without_configuration(Action::Version(VersionOptions { socket, output }), &logging))
            }
            Some(Command::Doctor(arguments)) => resolve_doctor(arguments),
            Some(Command::Completion(arguments)) => {
                let action = Action::PrintCompletion(arguments.shell);
                Ok(without_configuration(action, &LoggingFlags::default()))
            }
            #[cfg(feature = "demo")]
            Some(Command::Demo(arguments)) => {
                Ok(without_configuration(Action::Demo { keep: arguments.keep }, &arguments.logging))
            }
            Some(Command::Cleanup(arguments)) => {
                let options = CleanupOptions { kube_proxy: arguments.cleanup_kube_proxy };
                Ok(without_configuration(Action::Cleanup(options), &arguments.logging))
            }
        }
    }
}

fn without_configuration(action: Action, flags: &LoggingFlags) -> Resolved {
    let mut configuration = KubeProxyConfiguration::default();
    apply_logging(flags, &mut configuration);
    Resolved { action, logging: configuration.logging, warnings: Vec::new() }
}

fn resolve_run(flags: &ProxyFlags, manifests: Vec<PathBuf>, given: &Given) -> Result<Resolved, ConfigError> {
    let what = &flags.configuration;
    if wants_version(what)? {
        return Ok(without_configuration(Action::PrintVersion, &flags.logging));
    }
    if what.cleanup == Some(true) {
        let options = CleanupOptions { kube_proxy: what.cleanup_kube_proxy == Some(true) };
        return Ok(without_configuration(Action::Cleanup(options), &flags.logging));
    }
    let (mut configuration, mut warnings) = configuration(flags, given)?;
    let logging = configuration.logging.clone();
    if let Some(path) = &what.write_config_to {
        let action = Action::WriteConfiguration { path: path.clone(), configuration: Box::new(configuration) };
        return Ok(Resolved { action, logging, warnings });
    }
    if !manifests.is_empty() && what.config.is_none() && configuration.mode.is_empty() {
        // No kube-proxy is replaced here, so a notice about its default mode would be confusing.
        configuration.mode = "nftables".to_owned();
    }
    validate::validate(&configuration)?;
    warnings.append(&mut ignored_fields(&configuration)?);
    warnings.append(&mut inert_flag_warnings(&flags.inert));
    let mut options = run_options(flags, manifests, configuration)?;
    options.flags = flag_values::all(given)?;
    Ok(Resolved { action: Action::Run(Box::new(options)), logging, warnings })
}

fn wants_version(flags: &ConfigurationFlags) -> Result<bool, ConfigError> {
    match flags.version.as_deref() {
        None | Some("false") => Ok(false),
        Some("true" | "raw") => Ok(true),
        Some(other) => Err(ConfigError::Invalid(vec![InvalidField {
            path: "--version".to_owned(),
            value: format!("{other:?}"),
            reason: "must be true, raw or left out".to_owned(),
        }])),
    }
}

/// File and flags with kube-proxy's precedence.
fn configuration(flags: &ProxyFlags, given: &Given) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
    let (mut configuration, mut warnings) = file_or_defaults(flags.configuration.config.as_deref())?;
    if flags.configuration.config.is_none() {
        apply_flags(flags, &mut configuration)?;
    } else {
        warnings.extend(
            given
                .keys()
                .filter(|flag| !FLAGS_BESIDE_A_FILE.contains(&flag.as_str()))
                .map(|flag| Warning::new(format!("--{flag}"), "ignored: with --config, only the file sets this value")),
        );
    }
    apply_logging(&flags.logging, &mut configuration);
    if let Some(name) = &flags.configuration.hostname_override {
        configuration.hostname_override.clone_from(name);
    }
    Ok((configuration, warnings))
}

fn run_options(
    flags: &ProxyFlags,
    manifests: Vec<PathBuf>,
    configuration: KubeProxyConfiguration,
) -> Result<RunOptions, ConfigError> {
    let node_name = node_name(&configuration.hostname_override)?;
    let is_on_manifests = !manifests.is_empty();
    let sync_period = configuration.nftables.sync_period.to_duration();
    let health_timeout = match flags.servers.health_timeout {
        Some(timeout) if timeout.is_zero() || timeout.is_negative() => {
            return Err(invalid("--health-timeout", &timeout.to_string(), "must be greater than 0"));
        }
        Some(timeout) => timeout.to_duration(),
        None => sync_period * 2,
    };
    let proxy = configuration.to_proxy_config(&node_name)?;
    let cluster_ranges = match &proxy.detect_local {
        DetectLocal::ClusterCidr(ranges) => ranges.clone(),
        // The range is of no use for packets then, but it is that of the pods all the same.
        _ => parse_cidrs(&configuration.cluster_cidr).unwrap_or_default(),
    };
    Ok(RunOptions {
        source: source(flags, manifests, &configuration),
        configuration_file: flags.configuration.config.clone(),
        dns: configuration.dns.options(&cluster_ranges).map_err(ConfigError::Invalid)?,
        proxy,
        healthz_address: address("healthzBindAddress", &configuration.healthz_bind_address)?,
        metrics_address: address("metricsBindAddress", &configuration.metrics_bind_address)?,
        bind_address_hard_fail: configuration.bind_address_hard_fail,
        health_timeout,
        sync_period,
        min_sync_period: min_sync_period(&configuration),
        compare_period: configuration.nftables.compare_period.to_duration(),
        flow_table: configuration.nftables.flow_table.options().map_err(ConfigError::Invalid)?,
        service_metrics: flags.servers.service_metrics != Some(false),
        status_page: flags.servers.status_page != Some(false),
        query_socket: query_socket(flags, is_on_manifests),
        flags: BTreeMap::new(),
        init_only: flags.configuration.init_only == Some(true),
        cleanup_kube_proxy: flags.configuration.cleanup_kube_proxy == Some(true),
        configuration,
    })
}

/// kube-proxy's default of 1 s suits syncs that cost seconds, and kubeadm and
/// the installers write it out. It therefore counts as not set.
fn min_sync_period(configuration: &KubeProxyConfiguration) -> Duration {
    let given = configuration.nftables.min_sync_period;
    let default = KubeProxyConfiguration::default().nftables.min_sync_period;
    if given == default { MIN_GAP } else { given.to_duration().max(MIN_GAP) }
}

/// With manifests several agents may run on one machine, each in a network
/// namespace, and the machine may not be a node: no socket unless it is asked for.
fn query_socket(flags: &ProxyFlags, is_on_manifests: bool) -> Option<PathBuf> {
    match flags.servers.query_socket.as_deref() {
        Some("") => None,
        Some(path) => Some(path.into()),
        None => (!is_on_manifests).then(|| server::DEFAULT_PATH.into()),
    }
}

fn source(flags: &ProxyFlags, manifests: Vec<PathBuf>, configuration: &KubeProxyConfiguration) -> Source {
    if !manifests.is_empty() {
        return Source::Manifests(manifests);
    }
    let kubeconfig = configuration.client_connection.kubeconfig.as_str();
    Source::Kubernetes {
        kubeconfig: (!kubeconfig.is_empty()).then(|| Path::new(kubeconfig).to_owned()),
        master: flags.api.master.clone().filter(|master| !master.is_empty()),
        encoding: configuration.client_connection.encoding().unwrap_or_default(),
    }
}

fn address(path: &str, text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    listen_address(text).map_err(|reason| invalid(path, text, reason))
}

fn invalid(path: &str, value: &str, reason: &str) -> ConfigError {
    ConfigError::Invalid(vec![InvalidField {
        path: path.to_owned(),
        value: format!("{value:?}"),
        reason: reason.to_owned(),
    }])
}

/// Returns the node's name as in kube-proxy: the override or the host's name,
/// trimmed and in lower case.
///
/// # Errors
/// If both are empty, or the host's name cannot be read.
fn node_name(hostname_override: &str) -> Result<String, ConfigError> {
    let name = match hostname_override.trim() {
        "" => nix::unistd::gethostname()
            .map_err(|errno| ConfigError::NodeName(format!("the host's name can't be read: {errno}")))?
            .to_string_lossy()
            .trim()
            .to_lowercase(),
        name => name.to_lowercase(),
    };
    if name.is_empty() {
        return Err(ConfigError::NodeName("the host has no name".to_owned()));
    }
    Ok(name)
}

fn resolve_compile(arguments: CompileArguments) -> Result<Resolved, ConfigError> {
    let (configuration, warnings) = traffic_configuration(&arguments.configuration)?;
    let options = CompileOptions {
        manifests: arguments.manifests,
        proxy: configuration.to_proxy_config(&node_name(&arguments.node_name)?)?,
        output: arguments.output,
    };
    Ok(Resolved { action: Action::Compile(Box::new(options)), logging: configuration.logging, warnings })
}

/// The configuration of a command that follows no cluster, checked.
fn traffic_configuration(
    arguments: &TrafficConfiguration,
) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
    let (mut configuration, mut warnings) = file_or_defaults(arguments.config.as_deref())?;
    let of_flags = |error: ConfigError| if arguments.config.is_none() { error.of_flags() } else { error };
    if arguments.config.is_none() {
        apply_traffic(&arguments.traffic, &mut configuration).map_err(of_flags)?;
        // The usual notice about an empty mode would be noise here.
        if arguments.traffic.proxy_mode.is_none() {
            configuration.mode = "nftables".to_owned();
        }
    }
    apply_logging(&arguments.logging, &mut configuration);
    validate::validate(&configuration).map_err(of_flags)?;
    warnings.append(&mut ignored_fields(&configuration)?);
    Ok((configuration, warnings))
}

fn file_or_defaults(path: Option<&Path>) -> Result<(KubeProxyConfiguration, Vec<Warning>), ConfigError> {
    path.map_or_else(|| Ok((KubeProxyConfiguration::default(), Vec::new())), load::load_file)
}

#[cfg(test)]
mod tests;
