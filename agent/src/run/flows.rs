//! Deletes stale flows behind the syncs: a look through the kernel's table of
//! flows takes a tenth of a second on a large node, and no change waits for it.

use compiler::ruleset::Family;
use tokio::sync::mpsc;

use crate::conntrack::{Conntrack, StaleFlows};
use crate::metrics::Metrics;

/// Deletes what it is told until nobody tells any more. What fails is tried
/// again with the next.
pub(super) async fn clean(mut received: mpsc::UnboundedReceiver<StaleFlows>, metrics: Metrics, families: Vec<Family>) {
    let mut conntrack = match Conntrack::open() {
        Ok(conntrack) => conntrack,
        Err(error) => {
            tracing::warn!("stale flows will not be deleted: {error}");
            return;
        }
    };
    let mut stale = StaleFlows::default();
    while let Some(more) = received.recv().await {
        stale.merge(more);
        while let Ok(more) = received.try_recv() {
            stale.merge(more);
        }
        // What is committed during the look is heeded at once, and looked for in the next one.
        while stale.to_look_for() > 0 {
            let mut next = StaleFlows::default();
            let cleaned = conntrack.clean_learning(&mut stale, |current| {
                while let Ok(more) = received.try_recv() {
                    current.learn(&more);
                    next.merge(more);
                }
            });
            match cleaned.await {
                Ok(cleaned) => {
                    stale = next;
                    // One look serves both families; what it deleted is counted once.
                    let mut deleted = cleaned.deleted;
                    for family in &families {
                        metrics.conntrack_reconciled(*family, cleaned.duration, std::mem::take(&mut deleted));
                    }
                    if cleaned.deleted > 0 {
                        tracing::info!("deleted {} stale flows in {:?}", cleaned.deleted, cleaned.duration);
                    }
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
