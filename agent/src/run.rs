//! `vmap-proxy` and `vmap-proxy run`: the node agent itself. Wires the rooms
//! together: a source, the sync loop, and what watches them.

use std::net::IpAddr;

use compiler::ruleset::Family;
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::cli::{RunOptions, Source};
use crate::follow::{FollowOptions, Nobody, NodeEvent, Status, follow};
use crate::netlink::{Kernel, NetlinkError};
use crate::source::Event;
use crate::source::manifests::{ManifestSource, SourceError};
use crate::sync::{SyncError, Syncer};

/// How many events may wait between a source and the sync loop.
const EVENT_QUEUE: usize = 64;

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum Error {
    /// The event loop or the signal handlers could not be set up.
    #[error("the event loop could not be started: {0}")]
    Runtime(#[from] std::io::Error),
    /// The kernel could not be spoken to.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The first sync failed for good.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The source can't be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Runs the agent until SIGTERM or SIGINT. The rules stay in place, as
/// kube-proxy's do.
///
/// # Errors
/// If it can't start: no permission, no nf_tables, manifests that can't be
/// read. Later failures are logged and retried.
pub fn run(options: RunOptions) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_agent(options))
}

async fn run_agent(options: RunOptions) -> Result<(), Error> {
    let shutdown = shutdown()?;
    let kernel = Kernel::open()?;
    let families = families();
    let mut syncer = Syncer::new(options.proxy.clone(), kernel, &families);
    syncer.set_interface_addresses(local_addresses()?);

    let (events, received) = mpsc::channel(EVENT_QUEUE);
    let source = start_source(&options, events);
    let (_node_events, node_received) = mpsc::channel::<NodeEvent>(16);
    let (status, _watched) = watch::channel(Status::default());
    let follow_options = FollowOptions { retry: options.sync_period };
    let mut observer = Nobody;
    let following = follow(&mut syncer, received, node_received, &status, &mut observer, &follow_options, shutdown);
    tokio::pin!(following);
    tokio::select! {
        ended = &mut following => ended?,
        failed = source => failed?,
    }
    tracing::info!("stopped; the rules stay in place (vmap-proxy cleanup removes them)");
    Ok(())
}

/// Follows the source until it fails; a source that ends by itself is awaited
/// for ever, since the sync loop then ends the agent.
async fn start_source(options: &RunOptions, events: mpsc::Sender<Event>) -> Result<(), SourceError> {
    match &options.source {
        Source::Manifests(paths) => ManifestSource::new(paths.clone()).run(events).await?,
        Source::Kubernetes { .. } => {}
    }
    std::future::pending().await
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

/// The families that the node has: IPv6 unless it is compiled out or switched
/// off, as kube-proxy decides.
pub fn families() -> Vec<Family> {
    let mut families = vec![Family::Ipv4];
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    if std::path::Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|value| value.trim() != "1") {
        families.push(Family::Ipv6);
    }
    families
}

/// The addresses on this network namespace's interfaces.
///
/// # Errors
/// If the kernel does not tell.
pub fn local_addresses() -> std::io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let mut addresses: Vec<IpAddr> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}
