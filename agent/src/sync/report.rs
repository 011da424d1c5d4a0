//! What a sync did.

use std::sync::Arc;
use std::time::Duration;

use vmap_proxy_compiler::plan::planner::{Denied, ServiceChange};
use vmap_proxy_compiler::plan::{Action, TooLarge, Transaction};
use vmap_proxy_compiler::ruleset::Family;

use crate::netlink::CommitReport;

/// What one sync did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// How many transactions were committed.
    pub transactions: usize,
    /// How many elements were added.
    pub added: usize,
    /// How many elements were removed.
    pub removed: usize,
    /// How many operations on tables, chains, rules and maps there were.
    pub objects: usize,
    /// From the beginning to the last commit.
    pub duration: Duration,
    /// What each transaction took, encoding and socket included.
    pub commits: Vec<Duration>,
    /// For how long each kept other writers of nftables waiting, at most: the
    /// system call in which the kernel works on it.
    pub lock_holds: Vec<Duration>,
    /// Of that, what encoding took, all transactions together.
    pub encoding: Duration,
    /// What the kernel refused; everything else was programmed.
    pub refused: Vec<Refused>,
    /// Services that have become too large to be programmed; each is named once.
    pub too_large: Vec<TooLarge>,
    /// Frontends that a Service wants and an older one has.
    pub contested: Vec<Denied>,
    /// What changed, by Service; empty for the start. After a repair: what the
    /// sources changed at the same time.
    pub changed: Vec<ServiceChange>,
    /// Whether the node itself changed: its addresses, zone or ranges.
    pub node_changed: bool,
    /// Whether the kernel was read and compared.
    pub repaired: bool,
    /// Whether chains that nothing uses any more could not be deleted.
    pub cleanup_failed: bool,
    /// What was in our tables and not ours: it was removed or undone.
    pub cleaned: Vec<Cleaned>,
}

/// Something that somebody else did to our tables, and that was undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// In which table.
    pub family: Family,
    /// What kind of thing it was, in one word.
    pub kind: &'static str,
    /// How many.
    pub count: usize,
    /// What it was, and what became of it.
    pub description: String,
}

/// Something that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `namespace/name` of the Service, `None` for the skeleton.
    pub owner: Option<Arc<str>>,
    /// Which operation, and what the kernel said.
    pub description: String,
}

impl SyncReport {
    /// Whether anything was sent.
    pub fn is_empty(&self) -> bool {
        self.transactions == 0
    }

    pub(super) fn add(&mut self, transaction: &Transaction, commit: &CommitReport) {
        self.transactions += 1;
        self.commits.push(commit.duration);
        self.lock_holds.push(commit.in_kernel);
        self.encoding += commit.encoding;
        for operation in &transaction.operations {
            match operation.action {
                Action::AddElement(_) => self.added += 1,
                Action::DeleteElement(_) => self.removed += 1,
                _ => self.objects += 1,
            }
        }
    }
}
