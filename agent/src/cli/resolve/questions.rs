//! The options of the commands that ask about the state.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use vmap_proxy_compiler::model::config::ProxyConfig;

use super::{Action, Resolved, file_or_defaults, invalid, node_name, traffic_configuration, without_configuration};
use crate::cli::apply::apply_logging;
use crate::cli::{
    AgentArguments, CheckMigrationArguments, ConnectionFlags, DoctorArguments, ExplainArguments, GetArguments,
    GetFormat, JournalArguments, Listed, PlanArguments, ReportFormat, StateArguments, TraceArguments,
    TrafficConfiguration,
};
use crate::config::go_duration::GoDuration;
use crate::config::kube_proxy_configuration::Logging;
use crate::config::{ConfigError, Warning};
use crate::query::answer::service_name;
use crate::query::protocol::List;

/// The state that a question is about.
#[derive(Debug, Clone, PartialEq)]
pub enum StateSource {
    /// The state that manifest files make.
    Files {
        /// Files or directories of manifests.
        manifests: Vec<PathBuf>,
        /// The settings that decide the fate of packets, including the node's name.
        proxy: Box<ProxyConfig>,
    },
    /// The agent of this node, and its kernel.
    Node {
        /// The agent's socket.
        socket: PathBuf,
        /// The settings, for an answer without an agent.
        proxy: Box<ProxyConfig>,
    },
}

/// Options of `vmap-proxy explain`.
#[derive(Debug, Clone, PartialEq)]
pub struct ExplainOptions {
    /// The source of the packet, as it was written; absent: a Service is asked
    /// about.
    pub from: Option<String>,
    /// The destination, as it was written.
    pub to: String,
    /// The interface on which the packet arrives, if it was given.
    pub interface: Option<String>,
    /// Where the answer comes from.
    pub source: StateSource,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy get`.
#[derive(Debug, Clone, PartialEq)]
pub struct GetOptions {
    /// The list.
    pub listed: List,
    /// Only this Service.
    pub name: Option<String>,
    /// Only this namespace.
    pub namespace: Option<String>,
    /// Where the answer comes from.
    pub source: StateSource,
    /// The format.
    pub output: GetFormat,
}

/// Options of `vmap-proxy status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusOptions {
    /// Longest wait in seconds until everything is programmed.
    pub wait: Option<u64>,
    /// Seconds between two screens.
    pub watch: Option<u64>,
    /// Whether the busiest Services are shown however many there are.
    pub busiest: bool,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyOptions {
    /// Whether the digest of each Service is shown.
    pub digests: bool,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy get connections`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionsOptions {
    /// Only Services of this namespace.
    pub namespace: Option<String>,
    /// Only this Service of the namespace.
    pub name: Option<String>,
    /// Only this endpoint, whether through a Service or not.
    pub endpoint: Option<(IpAddr, Option<u16>)>,
    /// The agent's socket: an agent knows which Services exist.
    pub socket: PathBuf,
    /// Whether to wait until none is open.
    pub wait: bool,
    /// Longest wait in seconds.
    pub timeout: u64,
    /// The format.
    pub output: GetFormat,
}

/// Options of `vmap-proxy check-migration`.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckMigrationOptions {
    /// Files with the rules of the iptables mode; empty: the kernel's table of the
    /// nftables mode.
    pub iptables_save: Vec<PathBuf>,
    /// The state that is compared with kube-proxy's.
    pub source: StateSource,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy plan`.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanOptions {
    /// Files or directories of manifests: the desired state.
    pub manifests: Vec<PathBuf>,
    /// The settings that decide the fate of packets, including the node's name.
    pub proxy: Box<ProxyConfig>,
    /// Where the plan starts.
    pub from: PlanFrom,
    /// `nftables.flushProof`
    pub flush_proof: bool,
    /// Whether each operation is printed.
    pub operations: bool,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// The state that a plan starts from.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanFrom {
    /// The tables in the kernel of this node.
    Kernel,
    /// The state that other manifests make.
    Files {
        /// Files or directories of manifests.
        manifests: Vec<PathBuf>,
        /// The settings that go with them.
        proxy: Box<ProxyConfig>,
    },
}

/// Options of `vmap-proxy trace`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceOptions {
    /// Connections to this Service, `namespace/name`.
    pub service: Option<String>,
    /// Connections to this endpoint.
    pub endpoint: Option<(IpAddr, Option<u16>)>,
    /// Connections from or to this address.
    pub address: Option<IpAddr>,
    /// Only from this client.
    pub from: Option<IpAddr>,
    /// Longest time.
    pub duration: Duration,
    /// Most packets.
    pub count: u64,
    /// Most packets in a second.
    pub rate: u64,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Text or JSON lines.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy journal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalOptions {
    /// Only this Service, `namespace/name`.
    pub service: Option<String>,
    /// Only this address.
    pub address: Option<IpAddr>,
    /// Only syncs that ended within this time.
    pub since: Option<Duration>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy version`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionOptions {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Text or JSON.
    pub output: ReportFormat,
}

/// Options of `vmap-proxy doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorOptions {
    /// The agent's socket.
    pub socket: PathBuf,
    /// `clusterCIDR` of the configuration.
    pub cluster_cidrs: Vec<IpNet>,
    /// Whether the configuration wants a flow table.
    pub flow_table: bool,
    /// Text or JSON.
    pub output: ReportFormat,
}

pub(super) fn resolve_explain(arguments: ExplainArguments) -> Result<Resolved, ConfigError> {
    let ExplainArguments { from, to, interface, output, state } = arguments;
    let (source, logging, warnings) = resolve_state(state)?;
    let options = ExplainOptions { from, to, interface, source, output };
    Ok(Resolved { action: Action::Explain(Box::new(options)), logging, warnings })
}

pub(super) fn resolve_get(arguments: GetArguments) -> Result<Resolved, ConfigError> {
    let listed = match arguments.listed {
        Listed::Services => List::Services,
        Listed::Frontends => List::Frontends,
        Listed::Endpoints => List::Endpoints,
        Listed::Connections => return resolve_connections(arguments),
    };
    let GetArguments { name, namespace, output, state, connections, .. } = arguments;
    let ConnectionFlags { service, endpoint, wait, .. } = connections;
    let given = [("--service", service.is_some()), ("--endpoint", endpoint.is_some()), ("--wait", wait)];
    if let Some((flag, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
        return Err(invalid(flag, "", "is a flag of `get connections` alone").of_flags());
    }
    let (namespace, name) = namespace_and_name(namespace, name)?;
    let (source, logging, warnings) = resolve_state(state)?;
    let options = GetOptions { listed, name, namespace, source, output };
    Ok(Resolved { action: Action::Get(Box::new(options)), logging, warnings })
}

pub(super) fn resolve_doctor(arguments: DoctorArguments) -> Result<Resolved, ConfigError> {
    let (mut configuration, warnings) = file_or_defaults(arguments.config.as_deref())?;
    let is_flag = arguments.cluster_cidr.is_some();
    if let Some(ranges) = arguments.cluster_cidr {
        configuration.cluster_cidr = ranges;
    }
    apply_logging(&arguments.logging, &mut configuration);
    let (socket, output) = (arguments.socket, arguments.output);
    let flow_table = configuration.nftables.flow_table.options().map_err(ConfigError::Invalid)?.is_some();
    let ranges = configuration.cluster_cidrs();
    let cluster_cidrs = if is_flag { ranges.map_err(ConfigError::of_flags) } else { ranges }?;
    let options = DoctorOptions { socket, cluster_cidrs, flow_table, output };
    Ok(Resolved { action: Action::Doctor(options), logging: configuration.logging, warnings })
}

/// Where the state of a question comes from, with the same configuration as an
/// agent would have.
fn resolve_state(arguments: StateArguments) -> Result<(StateSource, Logging, Vec<Warning>), ConfigError> {
    let (configuration, warnings) = traffic_configuration(&arguments.configuration)?;
    let name = arguments.node_name.as_ref().unwrap_or(&configuration.hostname_override);
    let proxy = Box::new(configuration.to_proxy_config(&node_name(name)?)?);
    let source = match arguments.manifests.is_empty() {
        true => StateSource::Node { socket: arguments.socket, proxy },
        false => StateSource::Files { manifests: arguments.manifests, proxy },
    };
    Ok((source, configuration.logging, warnings))
}

fn resolve_connections(arguments: GetArguments) -> Result<Resolved, ConfigError> {
    let GetArguments { name, namespace, output, state, connections, .. } = arguments;
    if !state.manifests.is_empty() {
        return Err(invalid("--manifests", "", "has no connections: they are the kernel's").of_flags());
    }
    let ConnectionFlags { service, endpoint, wait, timeout } = connections;
    let (namespace, name) = namespace_and_name(namespace, name)?;
    let (namespace, name) = match service.as_deref().map(service_name) {
        Some(service) => (Some(service.namespace().to_owned()), Some(service.name().to_owned())),
        None if name.is_some() => (namespace.or_else(|| Some("default".to_owned())), name),
        None => (namespace, None),
    };
    let options = ConnectionsOptions { namespace, name, endpoint, socket: state.socket, wait, timeout, output };
    Ok(without_configuration(Action::GetConnections(options), &state.configuration.logging))
}

/// A name may bring its namespace with it, as in `shop/cart`.
fn namespace_and_name(
    namespace: Option<String>,
    name: Option<String>,
) -> Result<(Option<String>, Option<String>), ConfigError> {
    match name.as_deref().and_then(|name| name.split_once('/')) {
        None => Ok((namespace, name)),
        Some((within, own)) if namespace.as_deref().is_none_or(|namespace| namespace == within) => {
            Ok((Some(within.to_owned()), Some(own.to_owned())))
        }
        Some((within, _)) => {
            let other = namespace.unwrap_or_default();
            Err(invalid("--namespace", &other, &format!("is another namespace than that of the name, {within}"))
                .of_flags())
        }
    }
}

/// `namespace/name`; a name alone is in the namespace `default`.
fn full_name(service: String) -> String {
    if service.contains('/') { service } else { format!("default/{service}") }
}

pub(super) fn resolve_check_migration(arguments: CheckMigrationArguments) -> Result<Resolved, ConfigError> {
    let CheckMigrationArguments { iptables_save, output, state } = arguments;
    let (source, logging, warnings) = resolve_state(state)?;
    let options = CheckMigrationOptions { iptables_save, source, output };
    Ok(Resolved { action: Action::CheckMigration(Box::new(options)), logging, warnings })
}

pub(super) fn resolve_plan(arguments: PlanArguments) -> Result<Resolved, ConfigError> {
    let PlanArguments { manifests, against, against_config, operations, node_name: name, output, configuration } =
        arguments;
    let (wanted, warnings) = traffic_configuration(&configuration)?;
    let name = node_name(name.as_ref().unwrap_or(&wanted.hostname_override))?;
    let before = match against_config {
        Some(path) => traffic_configuration(&TrafficConfiguration { config: Some(path), ..configuration })?.0,
        None => wanted.clone(),
    };
    let from = match against.is_empty() {
        true => PlanFrom::Kernel,
        false => PlanFrom::Files { manifests: against, proxy: Box::new(before.to_proxy_config(&name)?) },
    };
    let proxy = Box::new(wanted.to_proxy_config(&name)?);
    let flush_proof = wanted.nftables.flush_proof;
    let options = PlanOptions { manifests, proxy, from, flush_proof, operations, output };
    Ok(Resolved { action: Action::Plan(Box::new(options)), logging: wanted.logging, warnings })
}

pub(super) fn resolve_trace(arguments: TraceArguments) -> Result<Resolved, ConfigError> {
    let TraceArguments { service, endpoint, address, from, duration, count, rate, agent } = arguments;
    let AgentArguments { socket, output, logging } = agent;
    if duration.is_zero() || duration.is_negative() {
        return Err(invalid("--duration", &duration.to_string(), "must be greater than 0").of_flags());
    }
    let options = TraceOptions {
        service: service.map(full_name),
        endpoint,
        address,
        from,
        duration: duration.to_duration(),
        count,
        rate,
        socket,
        output,
    };
    Ok(without_configuration(Action::Trace(options), &logging))
}

pub(super) fn resolve_journal(arguments: JournalArguments) -> Resolved {
    let JournalArguments { service, address, since, agent: AgentArguments { socket, output, logging } } = arguments;
    let service = service.map(full_name);
    let since = since.map(GoDuration::to_duration);
    without_configuration(Action::Journal(JournalOptions { service, address, since, socket, output }), &logging)
}
