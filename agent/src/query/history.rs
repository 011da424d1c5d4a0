//! The last syncs, for `vmap-proxy status`.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use super::protocol::SyncLine;
use crate::sync::report::SyncReport;

/// The number of syncs that are kept.
const KEPT: usize = 16;

/// The number of changed Services that are named.
const NAMED: usize = 3;

/// The last syncs, the newest first.
#[derive(Debug, Default)]
pub struct History {
    syncs: VecDeque<SyncLine>,
}

impl History {
    /// The last syncs, the newest first.
    pub fn syncs(&self) -> &VecDeque<SyncLine> {
        &self.syncs
    }

    /// Adds a sync that has just ended.
    pub fn add(&mut self, report: &SyncReport, failure: Option<String>) {
        let mut changed: Vec<String> = Vec::new();
        for change in &report.changed {
            let name = change.name.to_string();
            if !changed.contains(&name) {
                changed.push(name);
            }
            if changed.len() == NAMED {
                break;
            }
        }
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let number = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
        self.syncs.truncate(KEPT - 1);
        self.syncs.push_front(SyncLine {
            ended: number(ended.as_millis()),
            microseconds: number(report.duration.as_micros()),
            added: report.added,
            removed: report.removed,
            commits: report.transactions,
            repaired: report.repaired,
            changed,
            failure,
        });
    }
}
