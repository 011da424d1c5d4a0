//! The sync loop on a thread of its own. The kernel works on a commit inside the
//! system call, and a first sync or a repair of a large cluster is seconds of
//! that: health, metrics, signals and the sources do not wait for it.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_compiler::ruleset::Family;

use super::Error;
use crate::after_sync::Observers;
use crate::netlink::{Kernel, StopFlag};
use crate::source::Event;
use crate::sync::Syncer;
use crate::sync_loop::{Status, SyncLoopOptions, run_sync_loop};

/// How long the thread may take to end. It does so behind the commit that it is
/// in, which takes 50 ms, or longer on a machine under load.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the loop works with.
pub(super) struct Work {
    pub(super) config: ProxyConfig,
    pub(super) families: Vec<Family>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) changes_of_addresses: mpsc::Receiver<Vec<IpAddr>>,
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
    /// If there is no thread to be had, no permission, or no nf_tables.
    pub(super) async fn start(work: Work) -> Result<Self, Error> {
        let (opened, open) = oneshot::channel();
        let (shutdown, asked) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("sync".to_owned());
        thread.spawn(move || {
            // Nobody waits any more if this fails.
            let _ = end.send(run(work, opened, asked));
        })?;
        match open.await {
            Ok(stop) => Ok(Self { stop, shutdown, ended }),
            // It ended before it had one; why, it says itself.
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
        let Work { config, families, addresses, events, changes_of_addresses, status, mut observers, options } = work;
        let mut syncer = Syncer::new(config, Kernel::open()?, &families);
        syncer.set_interface_addresses(addresses);
        // Whoever started this waits for it.
        let _ = opened.send(syncer.stop_flag());
        let shutdown = async {
            let _ = asked.await;
        };
        run_sync_loop(&mut syncer, events, changes_of_addresses, &status, &mut observers, &options, shutdown).await?;
        Ok(())
    })
}
