//! Deletes stale flows on a separate thread. A dump of the kernel's table of
//! flows takes from some milliseconds to a second, inside system calls, and no
//! change must wait for it.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::words::count;

use super::{Observer, SyncDone};
use crate::conntrack::{Conntrack, StaleFlows};
use crate::metrics::Metrics;

/// The longest rest between two dumps.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Queues flows that became stale for the thread, and never waits.
pub struct FlowCleaner {
    metrics: Metrics,
    families: Vec<Family>,
    waiting: Waiting,
    /// Wakes the thread, once there is one.
    wake: Option<SyncSender<()>>,
}

/// The stale flows that have not been searched for yet. After any number of
/// syncs it is no larger than the number of frontends, and one dump serves all
/// of it.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<StaleFlows>>);

impl Waiting {
    fn add(&self, more: &StaleFlows) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).merge(more.clone());
    }

    fn take(&self) -> StaleFlows {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl FlowCleaner {
    /// Starts its thread with the first flows that are stale.
    pub fn new(metrics: Metrics, families: &[Family]) -> Self {
        Self { metrics, families: families.to_vec(), waiting: Waiting::default(), wake: None }
    }

    /// Has flows deleted.
    fn clean(&mut self, stale: &StaleFlows) {
        if stale.is_empty() {
            return;
        }
        self.waiting.add(stale);
        if self.wake.is_none() {
            self.wake = self.start();
        }
        if let Some(wake) = &self.wake {
            // If it is full, the thread is about to search anyway. It is closed
            // where there is no conntrack, which was logged.
            let _ = wake.try_send(());
        }
    }

    /// Starts the thread. If none can be created, the next call tries again.
    fn start(&self) -> Option<SyncSender<()>> {
        let (wake, woken) = sync_channel(1);
        let (waiting, metrics, families) = (self.waiting.clone(), self.metrics.clone(), self.families.clone());
        let work = move || clean_all(&woken, &waiting, &metrics, &families);
        match std::thread::Builder::new().name("conntrack".to_owned()).spawn(work) {
            Ok(_) => Some(wake),
            Err(error) => {
                tracing::warn!(
                    "stale flows stay until the next sync: no thread could be created to delete them: {error}"
                );
                None
            }
        }
    }
}

impl Observer for FlowCleaner {
    fn on_sync(&mut self, done: &SyncDone) {
        self.clean(&done.stale_flows);
    }

    fn on_removal(&mut self, done: &SyncDone) {
        self.clean(&done.stale_flows);
    }
}

/// Deletes stale flows as they arrive on the channel; returns when the channel
/// closes. Failed deletions are tried again with the next ones.
fn clean_all(woken: &Receiver<()>, waiting: &Waiting, metrics: &Metrics, families: &[Family]) {
    let mut conntrack = match Conntrack::open() {
        Ok(conntrack) => conntrack,
        Err(error) => {
            tracing::warn!("stale flows will not be deleted: {error}");
            return;
        }
    };
    let mut stale = StaleFlows::default();
    while woken.recv().is_ok() {
        stale.merge(waiting.take());
        // Changes committed during a dump take effect immediately and are searched for in the next dump.
        while stale.to_look_for() > 0 {
            let mut next = StaleFlows::default();
            let cleaned = conntrack.clean_learning(&mut stale, |current| {
                let more = waiting.take();
                if !more.is_empty() {
                    current.learn(&more);
                    next.merge(more);
                }
            });
            match cleaned {
                Ok(cleaned) => {
                    stale = next;
                    // One dump serves both families; its deletions are counted once.
                    let mut deleted = cleaned.deleted;
                    for family in families {
                        metrics.conntrack_reconciled(*family, cleaned.duration, std::mem::take(&mut deleted));
                    }
                    if cleaned.deleted > 0 {
                        tracing::info!("deleted {} in {:?}", count(cleaned.deleted, "stale flow"), cleaned.duration);
                    }
                    if cleaned.offloaded > 0 {
                        tracing::warn!(
                            "{} not deleted: this kernel (before Linux 6.4) does not delete entries that a flow table \
                             carries; each ends 30 s after its last packet",
                            count(cleaned.offloaded, "stale flow")
                        );
                    }
                    // However many changes arrive, dumps take at most half of one processor; changes that
                    // arrive meanwhile share the next dump.
                    std::thread::sleep(cleaned.duration.min(LONGEST_REST));
                }
                Err(error) => {
                    tracing::warn!("stale flows were not deleted, trying again after the next sync: {error}");
                    stale.merge(next);
                    break;
                }
            }
        }
        if stale.to_look_for() == 0 {
            stale = StaleFlows::default();
        }
    }
}
