//! The core of the agent: takes changes into the store, plans, commits, and
//! keeps the kernel equal to the programmed state.
//!
//! * [`Syncer`]: one change or many, committed as ordered transactions;
//! * [`report`]: the report of a sync, with what it [touched];
//! * `repair`: the start, and the repair after a refusal or a foreign change;
//! * `leftovers`: removes what a comparison could not see;
//! * `compare`: reads the kernel's tables, and removes foreign objects from them;
//! * `replace`: replaces a table that can't be changed in place;
//! * `foreign`: concurrent foreign changes;
//! * [`gone`]: endpoints that no slice lists any more;
//! * [`preview`]: what a first sync would commit;
//! * `affinity`: removal of what clients learned of endpoints that left;
//! * [`Syncer::compare_piece`]: a slow comparison between syncs;
//! * `pipeline`: planning on one thread while another commits;
//! * `fill`: a first sync that begins while the source still lists.

mod affinity;
mod background;
mod compare;
mod fill;
mod foreign;
pub mod gone;
mod leftovers;
mod look_up;
mod pipeline;
pub mod preview;
mod repair;
mod replace;
pub mod report;
pub mod touched;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use vmap_proxy_compiler::model::convert::Problem;
use vmap_proxy_compiler::model::digest::Digest;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Change, PerFamily, ProxyConfig, Store};
use vmap_proxy_compiler::plan::planner::ServiceChange;
use vmap_proxy_compiler::plan::{Plan, Planner, Transaction};
use vmap_proxy_compiler::ruleset::service::CompiledService;
use vmap_proxy_compiler::ruleset::{Family, TABLE};

pub(crate) use background::PIECE_ELEMENTS;
pub use background::Piece;
pub(crate) use compare::MAX_LISTED;

use crate::netlink::{CommitError, Kernel, Lacking, Monitor, NetlinkError, Observed};
use crate::source::Event;
use background::Background;
use fill::{Arrived, Fill, Lists};
pub use foreign::Notice;
use gone::Leaving;
use leftovers::Leftovers;
use look_up::{KEYS_AT_ONCE, SERVICES_AT_ONCE};
use report::SyncReport;

/// The reason why a sync failed as a whole. A refused Service is not an error
/// here but a [`report::Refused`] in the report.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The kernel could not be spoken to.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel refused a part of the fixed skeleton: it lacks a feature.
    #[error("the kernel refused a part of the rule set that every Service needs: {refused}; {}", remedy(*lacking))]
    Skeleton {
        /// The refused part, and the kernel's reason.
        refused: String,
        /// What the kernel lacks, as far as it is known.
        lacking: Option<Lacking>,
    },
    /// Another process owns one of our tables, and only the owner may change it.
    #[error(
        "table {} {TABLE} belongs to {owner}, and the kernel lets nobody else change it (flag owner): no Service can be \
         programmed for {family} until that process ends or deletes the table",
        family.keyword()
    )]
    Owned {
        /// The table.
        family: Family,
        /// The owner, as far as it is known.
        owner: String,
    },
    /// Others changed our tables during each attempt to put them right.
    #[error("others changed our tables during each of {attempts} attempts to put them right; the last failed: {last}")]
    Disturbed {
        /// The number of attempts.
        attempts: usize,
        /// The last error.
        last: String,
    },
    /// The kernel had no memory for it: no Service is to blame.
    #[error("the kernel is short of memory and refused {0}")]
    OutOfMemory(String),
    /// The kernel could not carry it out at that moment: no Service is to blame.
    #[error("the kernel could not carry it out for now, and no Service is to blame: {0}")]
    Passing(String),
    /// Repairs were refused again and again.
    #[error("the kernel refused {attempts} repairs in a row, the last for: {last}; trying again at the next change")]
    Unrepairable {
        /// The number of attempts.
        attempts: usize,
        /// The last refused operation.
        last: String,
    },
}

fn remedy(lacking: Option<Lacking>) -> String {
    let check = || {
        "check that the kernel is 5.13 or newer and has NFT_CT, NFT_NAT, NFT_MASQ, NFT_FIB, NFT_REJECT and NFT_NUMGEN"
            .to_owned()
    };
    lacking.as_ref().map_or_else(check, Lacking::remedy)
}

impl SyncError {
    /// Returns whether the agent is to end, and nothing else is wrong.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.is_stopped())
    }
}

/// Chains that nothing points to may pile up to this number before they are
/// deleted at once rather than when the agent is idle.
const MAX_IDLE_CHAINS: usize = 64;

/// Takes changes, and programs them.
#[derive(Debug)]
pub struct Syncer {
    store: Store,
    planner: Planner,
    kernel: Kernel,
    enabled: PerFamily<bool>,
    /// Families whose rules the kernel lacks something for, with the refused part, until they are deleted and reported.
    left_out: Vec<(Family, Lacking, String)>,
    /// The processes that owned our tables when these were read last.
    owned: PerFamily<Option<String>>,
    initialised: bool,
    /// The first sync, before the source has listed everything.
    fill: Fill,
    /// The programmed state of Services whose change the kernel refused.
    last_good: HashMap<ServiceName, Arc<Programmed>>,
    /// The families in which clients may have learned of endpoints that lists
    /// have lost since the last [sweep](Self::sweep).
    to_sweep: PerFamily<bool>,
    damaged: bool,
    max_listed: u32,
    /// Services, and keys.
    looked_up_at_once: (usize, usize),
    /// Open from the end of the first sync on.
    monitor: Option<Monitor>,
    /// Foreign changes that have not been reported yet.
    seen: Vec<Observed>,
    /// Services of which an object changed since the last sync that succeeded.
    touched: Vec<ServiceName>,
    /// Follows endpoints that leave, if their connections are to be reset.
    leaving: Option<Leaving>,
    /// The earlier state of Services that changed in failed syncs: the next
    /// successful sync has to report them.
    untold: HashMap<ServiceName, Arc<Programmed>>,
    background: Background,
    leftovers: Leftovers,
    /// The families whose NodePorts listeners follow.
    node_ports: PerFamily<bool>,
}

/// The result of a sync, also of a failed one.
#[derive(Debug)]
pub struct Attempt {
    /// The committed changes, and the parts that were left out.
    pub report: SyncReport,
    /// The cause of the failure, if it failed.
    pub failure: Option<SyncError>,
}

/// The result of the deletion of unused chains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tidied {
    /// They are gone.
    Done,
    /// The kernel refused, with this answer: before 6.2 it may still hold on to
    /// a chain. The next sync compares and repairs.
    Refused(String),
}

impl Tidied {
    /// Returns whether the kernel refused.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// The programmed state of a Service.
type Programmed = PerFamily<Option<CompiledService>>;

impl Syncer {
    /// A syncer that has neither heard nor programmed anything. `families` are
    /// those that the node has.
    pub fn new(config: ProxyConfig, kernel: Kernel, families: &[Family]) -> Self {
        let store = Store::new(config.node_name.clone());
        let mut planner = Planner::new(config, store.node());
        planner.limit_transactions_to(kernel.max_operations());
        let enabled = PerFamily::from_fn(|family| families.contains(&family));
        Self {
            store,
            planner,
            kernel,
            enabled,
            left_out: Vec::new(),
            owned: PerFamily::default(),
            initialised: false,
            fill: Fill::Waiting(Lists::default()),
            last_good: HashMap::new(),
            to_sweep: PerFamily::default(),
            damaged: false,
            max_listed: MAX_LISTED,
            looked_up_at_once: (SERVICES_AT_ONCE, KEYS_AT_ONCE),
            monitor: None,
            seen: Vec::new(),
            touched: Vec::new(),
            leaving: None,
            untold: HashMap::new(),
            background: Background::default(),
            leftovers: Leftovers::default(),
            node_ports: PerFamily::default(),
        }
    }

    /// Maps with more elements than this are looked up element by element when
    /// the kernel is compared, instead of listed. The default is where looking
    /// up becomes faster.
    pub fn list_at_most(&mut self, elements: u32) {
        self.max_listed = elements;
    }

    /// The elements of this number of Services are looked up together, and while
    /// these are planned, those of the next. Two threads take this number of keys
    /// at a time. For tests, whose few Services would take one round and one thread.
    pub fn look_up_at_once(&mut self, services: usize, keys: usize) {
        self.looked_up_at_once = (services.max(1), keys.max(1));
    }

    /// Returns the state from the sources.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the programmed state.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// The digest of everything that is programmed: the same on every node that
    /// was told the same, and on which no Service is in quarantine.
    pub fn digest(&self) -> u64 {
        let quarantined =
            self.planner.quarantined().map(|name| Digest::default().text("quarantined").text(name.text()).finish());
        quarantined.fold(self.store.digest(), u64::wrapping_add)
    }

    /// The kernel, for read-back.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// The addresses on this node's interfaces, as the kernel has them.
    pub fn set_interface_addresses(&mut self, addresses: Vec<std::net::IpAddr>) {
        self.store.set_interface_addresses(addresses);
    }

    /// Takes an event of a source into the store. It programs nothing yet, except
    /// that new tables may begin to fill (`fill`) during the first list of slices.
    pub fn take(&mut self, event: Event) {
        match event {
            Event::ListStarted(kind) => {
                self.store.begin_list(kind);
                self.note_list(kind);
            }
            Event::ListCompleted(kind) => {
                self.store.end_list(kind);
                self.note_end_of_list(kind);
            }
            Event::Changes(changes) => {
                let arrived = (!matches!(self.fill, Fill::Over)).then(|| Arrived::of(&changes));
                changes.into_iter().for_each(|change| self.store.take(change.checked));
                if let Some(arrived) = arrived {
                    self.fill(arrived);
                }
            }
            Event::Synced | Event::Degraded(_) => {}
        }
    }

    /// Applies changes of objects that no source has read; programs nothing
    /// yet. Returns their unusable parts.
    pub fn take_changes(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Problem> {
        changes.into_iter().flat_map(|change| self.store.apply(change)).collect()
    }

    /// Has the changes of NodePorts reported to the listeners of syncs, in these
    /// families.
    pub fn report_node_ports(&mut self, families: PerFamily<bool>) {
        self.node_ports = families.zip(self.enabled).map(|(wanted, enabled)| wanted && enabled);
    }

    /// The families whose NodePorts are reported; none by default.
    pub fn reported_node_ports(&self) -> PerFamily<bool> {
        self.node_ports
    }

    /// The families that the node has.
    pub fn families(&self) -> Vec<Family> {
        Family::ALL.into_iter().filter(|family| self.enabled[*family]).collect()
    }

    /// The families whose tables can be changed.
    fn writable(&self) -> PerFamily<bool> {
        self.enabled.zip(self.owned.as_ref()).map(|(enabled, owner)| enabled && owner.is_none())
    }

    /// Returns an error for each table that another process owns. Everything
    /// else is programmed.
    pub fn owned_tables(&self) -> Vec<SyncError> {
        let owned = self.owned.iter().filter_map(|(family, owner)| Some((family, owner.clone()?)));
        owned.map(|(family, owner)| SyncError::Owned { family, owner }).collect()
    }

    /// Looks whether another process still owns tables of ours. If one is free,
    /// the next sync compares and programs it.
    ///
    /// # Errors
    /// If the kernel can't be spoken to.
    pub fn look_for_free_tables(&mut self) -> Result<(), SyncError> {
        for family in Family::ALL {
            if self.owned[family].is_some() && !self.kernel.is_owned_by_another(family)? {
                self.damaged = true;
            }
        }
        Ok(())
    }

    /// Returns whether something waits to be programmed.
    pub fn is_pending(&self) -> bool {
        self.store.has_dirty() || self.store.node_changed() || self.damaged || !self.initialised
    }

    /// Programs the changes. The first call, and each call after a failure,
    /// reads the kernel's state and sends only the difference. It blocks the
    /// thread while the kernel works. It must be called inside a tokio runtime,
    /// in which it watches for foreign changes.
    ///
    /// # Errors
    /// If the communication with the kernel fails, or it refuses a part that
    /// all Services share. The next call then reads the kernel again.
    pub fn sync(&mut self) -> Result<SyncReport, SyncError> {
        let Attempt { report, failure } = self.attempt();
        failure.map_or(Ok(report), Err)
    }

    /// Like [`Self::sync`], but also returns the completed part if it fails.
    pub fn attempt(&mut self) -> Attempt {
        let begun = Instant::now();
        let mut report = SyncReport::default();
        self.see_foreign_changes();
        self.touched.extend(self.store.dirty().cloned());
        let damaged = std::mem::take(&mut self.damaged);
        let outcome = match std::mem::replace(&mut self.fill, Fill::Over) {
            Fill::Running(fill) => self.complete_fill(*fill, damaged, &mut report),
            _ if self.initialised && !damaged => self.sync_changes(&mut report),
            _ => self.repair(&mut report),
        };
        self.follow_counts(&report, outcome.is_ok());
        if outcome.is_err() {
            self.damaged = true;
            // To be reported by the sync that succeeds.
            self.remember_untold(std::mem::take(&mut report.changed).into_iter());
        }
        report.too_large = self.planner.take_too_large();
        report.duration = begun.elapsed();
        if outcome.is_ok() {
            self.sweep(&mut report);
            self.finish_touched(&mut report);
        }
        Attempt { report, failure: outcome.err() }
    }

    /// What depends on all objects of the Services that changed.
    fn finish_touched(&mut self, report: &mut SyncReport) {
        let touched = std::mem::take(&mut self.touched);
        touched.iter().for_each(|name| self.store.renew_digest(name));
        if let Some(leaving) = &mut self.leaving {
            report.gone = leaving.after_sync((&self.store, &self.planner), &touched, &report.changed);
        }
    }

    /// From now on reports endpoints that no slice lists any more.
    pub fn report_gone_endpoints(&mut self) {
        self.leaving = Some(Leaving::default());
    }

    /// Marks the kernel's state as uncertain: the next sync reads it.
    pub fn mark_damaged(&mut self) {
        self.damaged = true;
    }

    /// Reads the kernel, and sends whatever it does not hold as it should.
    ///
    /// # Errors
    /// Those of [`Self::sync`].
    pub fn resync(&mut self) -> Result<SyncReport, SyncError> {
        self.damaged = true;
        self.sync()
    }

    /// Returns a flag that ends a sync from another thread, between two
    /// commits.
    pub fn stop_flag(&self) -> crate::netlink::StopFlag {
        self.kernel.stop_flag()
    }

    /// Follows the number of elements for the comparison in the background.
    fn follow_counts(&mut self, report: &SyncReport, succeeded: bool) {
        match (succeeded, report.repaired) {
            (true, false) => self.background.committed(&report.balance),
            (true, true) => {
                // If it can't be read, the numbers are left out of the comparison until the next repair.
                let mut counts = self.read_counts().ok();
                self.seek_leftovers(counts.as_mut());
                self.background.restart(counts);
            }
            (false, _) => self.background.restart(None),
        }
    }

    fn sync_changes(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        while let Some(plan) = self.planner.update(&mut self.store) {
            report.node_changed |= plan.node_changed;
            self.program(plan, report)?;
        }
        if self.idle_chains() > MAX_IDLE_CHAINS {
            let tidied = self.tidy();
            report.cleanup_failed = tidied.as_ref().map_or(true, Tidied::is_refused);
            tidied?;
        }
        Ok(())
    }

    /// Commits a plan. If the kernel refuses it, everything is compared and
    /// repaired, and nothing is left to be planned.
    fn program(&mut self, mut plan: Plan, report: &mut SyncReport) -> Result<(), SyncError> {
        report.contested.append(&mut plan.denied);
        let committed = self.commit_plan(&mut plan, report);
        let Err(error) = committed else {
            report.changed.append(&mut plan.changed);
            return Ok(());
        };
        // The kernel's state may differ from the expected one: read it, and
        // send the difference. Only a Service that is refused after that is at
        // fault.
        self.remember(&plan);
        // Earlier pieces are reported together with the repair of this one.
        self.remember_untold(report.changed.drain(..).chain(plan.changed));
        match error {
            CommitError::Refused { .. } => self.repair(report),
            CommitError::Netlink(error) => Err(error.into()),
        }
    }

    /// Records the programmed state before changes that have not been reported
    /// yet. Of two changes of one Service the first counts.
    fn remember_untold(&mut self, changes: impl DoubleEndedIterator<Item = ServiceChange>) {
        for change in changes.rev() {
            let planner = &self.planner;
            let programmed =
                self.untold.entry(change.name.clone()).or_insert_with_key(|name| Arc::new(programmed(planner, name)));
            Arc::make_mut(programmed)[change.family] = change.before;
        }
    }

    fn commit_plan(&mut self, plan: &mut Plan, report: &mut SyncReport) -> Result<(), CommitError> {
        for (family, unlearn) in plan.unlearn.iter() {
            self.to_sweep[family] |= *unlearn;
        }
        plan.transactions.iter_mut().try_for_each(|transaction| self.commit_change(transaction, report))
    }

    fn commit(&mut self, transaction: &mut Transaction, report: &mut SyncReport) -> Result<(), CommitError> {
        let writable = self.writable();
        self.leftovers.note(transaction);
        commit(&mut self.kernel, writable, transaction, report)
    }

    fn remember(&mut self, plan: &Plan) {
        for change in &plan.changed {
            let planner = &self.planner;
            let good = self
                .last_good
                .entry(change.name.clone())
                .or_insert_with_key(|name| Arc::new(programmed(planner, name)));
            Arc::make_mut(good)[change.family].clone_from(&change.before);
        }
    }

    /// Returns the number of chains that [`Self::tidy`] would delete.
    pub fn idle_chains(&self) -> usize {
        if self.initialised { self.planner.idle_chains() } else { 0 }
    }

    /// Deletes chains that nothing points to any more, but for balancing chains:
    /// these stay once they were in use.
    ///
    /// # Errors
    /// If the kernel can't be spoken to.
    pub fn tidy(&mut self) -> Result<Tidied, SyncError> {
        let Some(mut transaction) = self.planner.collect_idle_chains() else { return Ok(Tidied::Done) };
        match self.commit(&mut transaction, &mut SyncReport::default()) {
            Ok(()) => Ok(Tidied::Done),
            // Whether it was carried out may be unknown.
            Err(CommitError::Netlink(error)) => {
                self.damaged = true;
                Err(error.into())
            }
            Err(error @ CommitError::Refused { .. }) => {
                self.damaged = true;
                Ok(Tidied::Refused(error.to_string()))
            }
        }
    }
}

/// The programmed state of a Service.
fn programmed(planner: &Planner, name: &ServiceName) -> Programmed {
    PerFamily::from_fn(|family| planner.compiled(name, family).cloned())
}

/// Commits one transaction, without the families that the node lacks and those
/// whose table another process owns.
fn commit(
    kernel: &mut Kernel,
    writable: PerFamily<bool>,
    transaction: &mut Transaction,
    report: &mut SyncReport,
) -> Result<(), CommitError> {
    if writable.values().any(|writable| !writable) {
        transaction.operations.retain(|operation| writable[operation.family]);
    }
    if transaction.operations.is_empty() {
        return Ok(());
    }
    // From `-v 6` on.
    if tracing::enabled!(tracing::Level::TRACE) {
        transaction.operations.iter().for_each(|operation| tracing::trace!("{operation}"));
    }
    let commit = kernel.commit(transaction)?;
    report.add(transaction, &commit);
    Ok(())
}
