//! Keeps the flow table and its interfaces, on a separate thread: a commit waits
//! for the kernel, and nothing else must wait for it.

use std::convert::Infallible;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use vmap_proxy_compiler::words::count;

use crate::config::flow_table::FlowTableOptions;
use crate::lists::some_of;
use crate::metrics::Metrics;
use crate::netlink::{FlowRelease, FlowTable, FlowTableError, Followed, InterfaceNames, LinkWatcher, NetlinkError};
use crate::sync_loop::Status;

/// Pods come and go several at a time: the time for which further changes of
/// interfaces are awaited.
const SETTLE: Duration = Duration::from_millis(100);

/// After a change the thread rests for so many times as long as that took.
const REST: u32 = 10;

/// The longest rest, also where the kernel is slow.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Time between two attempts after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Interfaces that one line names.
const NAMED: usize = 5;

#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    FlowTable(#[from] FlowTableError),
    #[error("the interfaces can't be followed: {0}")]
    Interfaces(#[from] NetlinkError),
}

/// The thread. When this is dropped, the flow table ends, and all packets take
/// the ordinary way again.
#[derive(Debug)]
pub(super) struct FlowTableThread {
    thread: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

impl FlowTableThread {
    /// Starts the thread, unless the flow table is off. It begins once everything
    /// is programmed. A failure is logged, and costs nothing but speed.
    pub(super) fn start(
        options: Option<FlowTableOptions>,
        metrics: Metrics,
        release: FlowRelease,
        status: watch::Receiver<Status>,
    ) -> Self {
        let started = options.map(|options| spawn(Keeper { options, metrics, release }, status)).transpose();
        let report = |error: &io::Error| {
            tracing::error!("flow table: there is none until the next start, because no thread can be made: {error}");
        };
        Self { thread: started.inspect_err(report).unwrap_or_default() }
    }
}

impl Drop for FlowTableThread {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // It has logged why, if it panicked.
            let _ = thread.join();
        }
    }
}

fn spawn(
    keeper: Keeper,
    mut status: watch::Receiver<Status>,
) -> io::Result<(oneshot::Sender<()>, thread::JoinHandle<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let work = move || {
        runtime.block_on(async {
            let keep = async {
                // Before, there is no connection of ours.
                if status.wait_for(|status| status.ready).await.is_ok() {
                    keeper.keep().await;
                }
            };
            tokio::select! {
                () = keep => {}
                _ = stopped => {}
            }
        });
    };
    Ok((stop, thread::Builder::new().name("flow-table".to_owned()).spawn(work)?))
}

struct Keeper {
    options: FlowTableOptions,
    metrics: Metrics,
    release: FlowRelease,
}

impl Keeper {
    /// Makes the flow table, and again after a failure. Returns if the kernel
    /// can't have one.
    async fn keep(self) {
        let mut failed = false;
        loop {
            let began = Instant::now();
            let Err(failure) = self.follow().await;
            self.metrics.set_flow_table_interfaces(0);
            match failure {
                Failure::FlowTable(error @ FlowTableError::Unsupported { .. }) => {
                    tracing::warn!(
                        "flow table: {error}; connections go through the rules, as without \
                         nftables.flowTable.interfaces: remove that, or load the modules and start again"
                    );
                    return;
                }
                failure if !failed || began.elapsed() > RETRY => {
                    tracing::error!(
                        "flow table: {failure}; connections go through the rules; next attempt in {RETRY:?}"
                    );
                }
                _ => {}
            }
            failed = true;
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Follows the interfaces until something fails.
    async fn follow(&self) -> Result<Infallible, Failure> {
        let mut table = FlowTable::make(self.options.after_packets)?;
        let mut links = LinkWatcher::open().await?;
        let followed = self.bring_up_to_date(&mut table, links.present())?;
        self.announce(&table, &followed, links.present());
        loop {
            tokio::select! {
                changed = links.changed() => changed?,
                () = self.release.requested() => {
                    table.release()?;
                    tracing::debug!("flow table: all flows were released");
                }
            }
            tokio::time::sleep(SETTLE).await;
            links.catch_up().await?;
            let began = Instant::now();
            let followed = self.bring_up_to_date(&mut table, links.present())?;
            if followed.added + followed.removed > 0 {
                let (Followed { added, removed, .. }, members) = (followed, table.members());
                tracing::debug!("flow table: {} added, {removed} removed, {members} in it", count(added, "interface"));
            }
            tokio::time::sleep((began.elapsed() * REST).min(LONGEST_REST)).await;
        }
    }

    fn bring_up_to_date(&self, table: &mut FlowTable, present: &InterfaceNames) -> Result<Followed, FlowTableError> {
        let followed = table.follow(present, |name| self.options.has(name))?;
        for (name, errno) in &followed.refused {
            let reason = io::Error::from_raw_os_error(*errno);
            tracing::warn!(
                "flow table: the kernel refuses the interface {name}, whose packets go through the rules: {reason}"
            );
        }
        self.metrics.set_flow_table_interfaces(table.members());
        Ok(followed)
    }

    fn announce(&self, table: &FlowTable, followed: &Followed, present: &InterfaceNames) {
        let patterns = self.options.patterns();
        if followed.added == 0 {
            tracing::warn!(
                "flow table: no interface is called {patterns}, so nothing bypasses the rules yet; there are {}",
                some_of(&present.values().collect::<Vec<_>>(), NAMED)
            );
            return;
        }
        let members: Vec<&String> = present.values().filter(|name| self.options.has(name)).collect();
        tracing::info!(
            "flow table: connections through Services bypass the rules after {} packets, on {} interfaces: {}",
            self.options.after_packets,
            table.members(),
            some_of(&members, NAMED)
        );
    }
}
