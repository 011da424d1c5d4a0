//! Runs the sync loop on a separate thread. The kernel processes a commit inside
//! the system call, and a first sync or a repair of a large cluster takes
//! seconds. Health, metrics, signals and the sources must not wait for it.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use vmap_proxy_compiler::model::{PerFamily, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;

use super::Error;
use crate::after_sync::Observers;
use crate::metrics::Metrics;
use crate::netlink::{Kernel, NetlinkError, StopFlag};
use crate::sync::Syncer;
use crate::sync_loop::{Inputs, Status, SyncLoopOptions, run_sync_loop};

/// Longest time for the thread to end. It ends after its current commit, which
/// takes 50 ms, or longer on a machine under load.
const PATIENCE: Duration = Duration::from_secs(5);

/// The inputs of the loop.
pub(super) struct Work {
    pub(super) config: ProxyConfig,
    /// Whether other programs are to be kept away from the tables.
    pub(super) flush_proof: bool,
    /// Whether endpoints that are gone are to be followed.
    pub(super) follow_gone: bool,
    /// The families whose NodePorts are to be followed.
    pub(super) follow_node_ports: PerFamily<bool>,
    pub(super) metrics: Metrics,
    pub(super) families: Vec<Family>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) inputs: Inputs,
    pub(super) status: watch::Sender<Status>,
    pub(super) observers: Observers,
    pub(super) options: SyncLoopOptions,
}

/// The running thread.
pub(super) struct SyncThread {
    stop: StopFlag,
    shutdown: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<(), Error>>,
}

impl SyncThread {
    /// Starts it; returns when the kernel has been spoken to.
    ///
    /// # Errors
    /// If no thread can be created, or there is no permission or no nf_tables.
    pub(super) async fn start(work: Work) -> Result<Self, Error> {
        let (opened, open) = oneshot::channel();
        let (shutdown, asked) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("sync".to_owned());
        thread.spawn(move || {
            // It fails only if the receiver is gone.
            let _ = end.send(run(work, opened, asked));
        })?;
        match open.await {
            Ok(stop) => Ok(Self { stop, shutdown, ended }),
            // It ended before it had one, and reports the reason itself.
            Err(_) => Err(ended.await.ok().and_then(Result::err).unwrap_or(Error::SyncThread)),
        }
    }

    /// Resolves when the loop ends by itself.
    pub(super) async fn ended(&mut self) -> Result<(), Error> {
        (&mut self.ended).await.unwrap_or(Err(Error::SyncThread))
    }

    /// Ends it: between two commits, and not before.
    pub(super) async fn end(self) -> Result<(), Error> {
        self.stop.stop();
        let _ = self.shutdown.send(());
        match tokio::time::timeout(PATIENCE, self.ended).await {
            Ok(ended) => ended.unwrap_or(Err(Error::SyncThread)),
            Err(_) => {
                tracing::warn!("the last commit is not done after {PATIENCE:?}; ending nevertheless");
                Ok(())
            }
        }
    }
}

fn run(work: Work, opened: oneshot::Sender<StopFlag>, asked: oneshot::Receiver<()>) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let Work { config, flush_proof, follow_gone, metrics, families, addresses, inputs, .. } = work;
        let Work { status, mut observers, options, follow_node_ports, .. } = work;
        let mut kernel = Kernel::open()?;
        if flush_proof {
            metrics.set_flush_proof(make_flush_proof(&mut kernel)?);
        }
        let mut syncer = Syncer::new(config, kernel, &families);
        syncer.set_interface_addresses(addresses);
        if follow_gone {
            syncer.report_gone_endpoints();
        }
        syncer.report_node_ports(follow_node_ports);
        // The caller waits for it.
        let _ = opened.send(syncer.stop_flag());
        let shutdown = async {
            let _ = asked.await;
        };
        run_sync_loop(&mut syncer, inputs, &status, &mut observers, &options, shutdown).await?;
        Ok(())
    })
}

/// Keeps other programs away from the tables, if the kernel can. Returns whether
/// it can.
fn make_flush_proof(kernel: &mut Kernel) -> Result<bool, NetlinkError> {
    let is_known = kernel.knows_flush_proof_tables()?;
    kernel.make_flush_proof(is_known);
    if is_known {
        tracing::info!(
            "flush-proof: while this agent runs, the kernel lets no other program flush or change its tables (flags \
             owner and persist)"
        );
    } else {
        tracing::warn!(
            "nftables.flushProof has no effect: this kernel does not know the table flags owner and persist, which Linux \
             6.9 has; if another program flushes the tables, they are repaired as before"
        );
    }
    Ok(is_known)
}
