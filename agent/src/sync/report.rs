//! The report of a sync.

use std::time::Duration;

use arcstr::ArcStr;
use vmap_proxy_compiler::plan::planner::{Denied, ServiceChange};
use vmap_proxy_compiler::plan::{Action, TooLarge, Transaction};
use vmap_proxy_compiler::ruleset::Family;

use super::background::Balance;
use super::gone::GoneEndpoints;
use super::touched::Touched;
use crate::netlink::{CommitReport, Lacking};

/// The report of one sync.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// The number of committed transactions.
    pub transactions: usize,
    /// The number of added elements.
    pub added: usize,
    /// The number of removed elements.
    pub removed: usize,
    /// The number of elements, about, that were added before the source had listed
    /// everything: [`Self::duration`] does not contain them. Only a start has any.
    pub early: usize,
    /// The number of operations on tables, chains, rules and maps.
    pub objects: usize,
    /// From the beginning to the last commit.
    pub duration: Duration,
    /// The duration of each transaction, including encoding and socket.
    pub commits: Vec<Duration>,
    /// For how long each kept other writers of nftables waiting, at most: the
    /// system call in which the kernel works on it.
    pub lock_holds: Vec<Duration>,
    /// The encoding part of that duration, for all transactions together.
    pub encoding: Duration,
    /// The refused operations; everything else was programmed.
    pub refused: Vec<Refused>,
    /// Services that have become too large to be programmed; each is named once.
    pub too_large: Vec<TooLarge>,
    /// Frontends that a Service wants and another one has.
    pub contested: Vec<Denied>,
    /// The changes, by Service; empty for the start. After a repair: the
    /// changes of the sources at the same time.
    pub changed: Vec<ServiceChange>,
    /// Whether the node itself changed: its addresses, zone or ranges.
    pub node_changed: bool,
    /// Whether the kernel was read and compared.
    pub repaired: bool,
    /// Whether elements of an earlier state, which a comparison could not see, are
    /// removed with this: until now packets may have followed them.
    pub removed_leftovers: bool,
    /// Whether chains that nothing uses any more could not be deleted.
    pub cleanup_failed: bool,
    /// The foreign objects and changes in our tables, which were removed or
    /// undone.
    pub cleaned: Vec<Cleaned>,
    /// The first Services and addresses of the committed operations.
    pub touched: Touched,
    /// Endpoints that are gone, if that is followed.
    pub gone: GoneEndpoints,
    /// The elements added to each map, less the removed ones.
    pub(crate) balance: Balance,
}

/// A foreign change to our tables that was undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cleaned {
    /// In which table.
    pub family: Family,
    /// The kind of object, in one word.
    pub kind: &'static str,
    /// The number of objects.
    pub count: usize,
    /// The object, and its treatment.
    pub description: String,
}

/// Something that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// `namespace/name` of the Service, `None` for the skeleton.
    pub owner: Option<ArcStr>,
    /// The family of addresses whose table it is in.
    pub family: Family,
    /// What the kernel lacks, if that is the cause.
    pub lacking: Option<Lacking>,
    /// Whether rules of an earlier state of the Service stay. If not, nothing
    /// of it is programmed. `false` for the skeleton.
    pub keeps_earlier_rules: bool,
    /// The operation, and the kernel's message.
    pub description: String,
}

impl SyncReport {
    /// Returns whether anything was sent.
    pub fn is_empty(&self) -> bool {
        self.transactions == 0
    }

    pub(super) fn add(&mut self, transaction: &Transaction, commit: &CommitReport) {
        self.transactions += 1;
        self.commits.push(commit.duration);
        self.lock_holds.push(commit.in_kernel);
        self.encoding += commit.encoding;
        self.balance.add(transaction);
        for operation in &transaction.operations {
            self.touched.note(operation);
            match operation.action {
                Action::AddElement(_) => self.added += 1,
                Action::DeleteElement(_) => self.removed += 1,
                _ => self.objects += 1,
            }
        }
    }
}
