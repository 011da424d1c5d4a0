//! `vmap-proxy` and `vmap-proxy run`: the node agent itself. Wires the modules
//! together: a source, the sync loop, and their observers.

mod flow_table;
mod localhost;
mod name_take_over;
mod names;
mod node;
mod own_node;
mod sync_thread;
mod take_over;

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::{mpsc, watch};
use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::ruleset::Family;

use crate::after_sync::Observers;
use crate::after_sync::events::ServiceEvents;
use crate::after_sync::flows::FlowCleaner;
use crate::after_sync::health::SyncHealth;
use crate::after_sync::health_checks::ServiceHealthChecks;
use crate::after_sync::localhost_node_ports::LocalhostRelay;
use crate::after_sync::metrics::SyncMetrics;
use crate::after_sync::resets::ConnectionResets;
use crate::cli::{RunOptions, Source};
use crate::health::listen::{Listen, ListenError};
use crate::health::service_servers::ServiceHealthServers;
use crate::health::state::{Clock, HealthState, NodeEligibility};
use crate::health::{metrics_server, proxy_server, zpages};
use crate::instance::{self, InstanceError};
use crate::k8s_events::{self, Notice, Recorder};
use crate::localhost_node_ports::limits;
use crate::logging;
use crate::metrics::{Metrics, counters};
use crate::netlink::{AddressWatcher, FlowRelease, NetlinkError, families, local_addresses, without_ipv6};
use crate::process;
use crate::query::server::{self, Asked, Facts};
use crate::source::Event;
use crate::source::kubernetes::{ConnectError, KubernetesOptions, KubernetesSource, Timing};
use crate::source::manifests::{ManifestSource, SourceError};
use crate::status_page;
use crate::sync::SyncError;
use crate::sync_loop::{Inputs, Status, SyncLoopOptions};
use crate::sysctl::{SysctlError, Sysctls};
use flow_table::FlowTableThread;
pub use own_node::NodeError;
use own_node::NodeSource;
use sync_thread::{SyncThread, Work};

/// Maximum number of events between a source and the sync loop. It is small,
/// because each may hold hundreds of objects, and a first list is compiled as
/// fast as it arrives.
const EVENT_QUEUE: usize = 4;

/// The reason why the agent ended.
#[derive(Debug, Error)]
pub enum Error {
    /// The event loop or the signal handlers could not be set up.
    #[error("the event loop could not be started: {0}")]
    Runtime(#[from] std::io::Error),
    /// Another agent works in this network namespace.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The thread that speaks to the kernel panicked.
    #[error(
        "the thread that speaks to the kernel ended unexpectedly; this is an error in vmap-proxy, please report it"
    )]
    SyncThread,
    /// The kernel could not be spoken to.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The first sync failed for good.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The manifests can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The API server's address or our credentials can't be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A sysctl can't be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The Node object lacks a field that the configuration needs.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The configuration file changed.
    #[error("the configuration file {} changed; ending, to be started again with the new one", .0.display())]
    ConfigurationChanged(PathBuf),
    /// A server can't listen, and `bindAddressHardFail` is set.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

/// Runs the agent until SIGTERM or SIGINT. The rules stay in place, as
/// kube-proxy's do.
///
/// # Errors
/// If it can't start: no permission, no nf_tables, a source that can't be
/// read. Later failures are logged and retried.
pub fn run(options: RunOptions) -> Result<(), Error> {
    process::raise_descriptor_limit();
    let runtime = process::event_loop()?;
    process::run_to_end(runtime, run_agent(options))
}

async fn run_agent(options: RunOptions) -> Result<(), Error> {
    let shutdown = shutdown()?;
    let hangups = process::ignore_hangups()?;
    if options.init_only {
        Sysctls::default().set_up(&options.configuration.conntrack, options.sysctl_failure_is_fatal())?;
        tracing::info!("the sysctls are set; --init-only ends here");
        return Ok(());
    }
    // Held until the process ends.
    let _instance = instance::claim()?;
    if matches!(options.source, Source::Kubernetes { .. }) {
        set_up_node(&options)?;
    }
    // Opened before the first look, so that nothing is missed in between.
    let addresses = AddressWatcher::open()?;
    let families = families();
    if let Some(reason) = without_ipv6() {
        tracing::info!("this node has no IPv6 ({reason}): Services are served over IPv4 alone");
    }
    let own_addresses = local_addresses().await?;

    let (names, metrics) = names::Names::start(options.dns.as_ref(), Metrics::new());
    if let Some(names) = &names {
        names.set_addresses(&own_addresses);
    }
    let health = HealthState::new(Clock::system(), options.health_timeout);
    if matches!(options.source, Source::Manifests(_)) {
        // Without a cluster the node counts as eligible.
        health.set_node(NodeEligibility::Eligible);
    }
    let (recorder, notices) = k8s_events::channel(&options.proxy.node_name);
    recorder.starting();
    let node_ports_on_localhost = localhost::served(&options, &families);
    let mut observers = observers(&metrics, &health, &families, &recorder, node_ports_on_localhost);
    let grace = options.configuration.nftables.reset_gone_endpoints_after.to_duration();
    let flow_release = FlowRelease::default();
    if !grace.is_zero() {
        let release = options.flow_table.is_some().then(|| flow_release.clone());
        observers.push(Box::new(ConnectionResets::new(grace, metrics.clone(), release)));
    }

    let (events, listed) = mpsc::channel(EVENT_QUEUE);
    let (listed, follow_names) = names::follow(names.as_ref(), listed);
    let (passed, received) = mpsc::channel(EVENT_QUEUE);
    let node_source = match options.source {
        Source::Manifests(_) => NodeSource::Manifests,
        Source::Kubernetes { .. } => NodeSource::Cluster,
    };
    let (changed_addresses, changes_of_addresses) = mpsc::channel(EVENT_QUEUE);
    let (questions, asked) = server::channel();
    let (status, watched) = watch::channel(Status::default());
    // Ends with this function, and so does the flow table.
    let _flow_table =
        FlowTableThread::start(options.flow_table.clone(), metrics.clone(), flow_release, watched.clone());
    let metrics_of_source = metrics.clone();
    let facts = Facts { started: SystemTime::now(), source: options.source.to_string(), metrics: metrics.clone() };
    let follow_options = SyncLoopOptions {
        retry: options.sync_period,
        min_gap: options.min_sync_period,
        compare_period: options.compare_period,
    };
    let mut sync_thread = SyncThread::start(Work {
        config: options.proxy.clone(),
        flush_proof: options.configuration.nftables.flush_proof,
        follow_gone: !grace.is_zero(),
        follow_node_ports: node_ports_on_localhost,
        metrics: metrics.clone(),
        families,
        addresses: own_addresses,
        inputs: Inputs { events: received, addresses: changes_of_addresses, questions: asked },
        status,
        observers,
        options: follow_options,
    })
    .await?;
    let outcome = tokio::select! {
        () = shutdown => Ok(()),
        ended = sync_thread.ended() => return ended,
        failed = run_source(&options, &metrics_of_source, events, notices) => failed.map(|never| match never {}),
        failed = own_node::watch(&options.proxy, node_source, own_node::PATIENCE, listed, passed) => {
            failed.map(|never| match never {}).map_err(Error::from)
        }
        failed = serve_health(&options, health, metrics.clone(), recorder) => failed.map(|never| match never {}),
        failed = serve_metrics(&options, facts.clone(), questions.clone()) => failed.map(|never| match never {}),
        never = server::serve(options.query_socket.clone(), questions, facts) => match never {},
        () = take_over::once_ready(options.cleanup_kube_proxy, watched) => Ok(()),
        () = node::watch(addresses, changed_addresses, names.as_ref()) => Ok(()),
        () = follow_names => Ok(()),
        () = names::follow_resolv_conf(names.as_ref()) => Ok(()),
        () = hangups => Ok(()),
        () = logging::limit::report() => Ok(()),
        changed = configuration_changed(&options) => Err(changed),
    };
    let ended = sync_thread.end().await;
    outcome.and(ended)?;
    tracing::info!("stopped; the rules stay in place (vmap-proxy cleanup removes them)");
    Ok(())
}

/// Everything that follows from a sync beside the rules. Called where the health
/// check servers of Services are to run.
fn observers(
    metrics: &Metrics,
    health: &HealthState,
    families: &[Family],
    recorder: &Recorder,
    node_ports_on_localhost: PerFamily<bool>,
) -> Observers {
    let descriptors = process::descriptor_limit();
    let relay = localhost::start(node_ports_on_localhost, descriptors, metrics);
    let left = if relay.is_some() { limits::left_to_others(descriptors) } else { descriptors };
    let servers = ServiceHealthServers::new(health.clone(), left).with_events(recorder.clone());
    let mut observers: Observers = vec![
        Box::new(SyncMetrics::new(metrics.clone(), families, SystemTime::now())),
        Box::new(SyncHealth::new(health.clone(), families)),
        Box::new(ServiceHealthChecks::new(servers)),
        Box::new(FlowCleaner::new(metrics.clone(), families)),
        Box::new(ServiceEvents::new(recorder.clone())),
    ];
    if let Some(relay) = relay {
        observers.push(Box::new(LocalhostRelay::new(relay)));
    }
    observers
}

/// Sets the sysctls that kube-proxy sets on a node. With manifests the machine
/// may not be such a node, and stays unchanged.
fn set_up_node(options: &RunOptions) -> Result<(), SysctlError> {
    let sysctls = Sysctls::default();
    sysctls.set_up(&options.configuration.conntrack, options.sysctl_failure_is_fatal())?;
    if let Err(error) = sysctls.set_oom_score_adj(options.configuration.oom_score_adj) {
        tracing::warn!("{error}");
    }
    Ok(())
}

/// Follows the source for ever, or fails. Events need the API server, too.
async fn run_source(
    options: &RunOptions,
    metrics: &Metrics,
    events: mpsc::Sender<Event>,
    notices: mpsc::Receiver<Notice>,
) -> Result<Infallible, Error> {
    match &options.source {
        Source::Manifests(paths) => {
            drop(notices);
            let source = ManifestSource::new(paths.clone(), &options.proxy.node_name);
            source.with_names(options.dns.is_some()).run(events).await?;
        }
        Source::Kubernetes { kubeconfig, master, encoding } => {
            let source = KubernetesSource::connect(KubernetesOptions {
                kubeconfig: kubeconfig.clone(),
                master: master.clone(),
                node_name: options.proxy.node_name.clone(),
                encoding: *encoding,
                timing: Timing::default(),
                metrics: metrics.clone(),
            });
            let source = source.await?.with_names(options.dns.is_some());
            let post = k8s_events::post(source.client(), &options.proxy.node_name, notices);
            tokio::join!(source.run(events), post);
        }
    }
    // The sync loop ends when the source does.
    std::future::pending().await
}

/// Returns when the configuration file changes, so that the agent is started
/// again with the new one, as in kube-proxy.
async fn configuration_changed(options: &RunOptions) -> Error {
    let Some(path) = &options.configuration_file else { return std::future::pending().await };
    crate::files::follow::changed(path).await;
    Error::ConfigurationChanged(path.clone())
}

async fn serve_health(
    options: &RunOptions,
    health: HealthState,
    metrics: Metrics,
    recorder: Recorder,
) -> Result<Infallible, Error> {
    let Some(address) = options.healthz_address else { return std::future::pending().await };
    let listen = Listen::new("health", "healthzBindAddress", address, options.bind_address_hard_fail);
    let listen = listen.with_events(recorder);
    Ok(listen.serve(proxy_server::router(health, metrics)).await?)
}

async fn serve_metrics(
    options: &RunOptions,
    facts: Facts,
    questions: mpsc::Sender<Asked>,
) -> Result<Infallible, Error> {
    let Some(address) = options.metrics_address else { return std::future::pending().await };
    let connections = if options.service_metrics { Some(counters::source()?) } else { None };
    let configuration = options.configuration.effective();
    let mut router = metrics_server::router(facts.metrics.clone(), connections, &configuration);
    router = router.merge(zpages::router(&options.flags));
    if options.status_page {
        router = router.merge(status_page::router(questions, facts));
    }
    let listen = Listen::new("metrics", "metricsBindAddress", address, options.bind_address_hard_fail);
    Ok(listen.serve(router).await?)
}

/// Resolves at SIGTERM or SIGINT.
fn shutdown() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    })
}
