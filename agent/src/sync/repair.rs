//! The start, and the repair after a refusal or a foreign change: read the
//! kernel's state, compare, and send the difference.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::plan::planner::ServiceChange;
use vmap_proxy_compiler::plan::{KernelState, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::maps::Map;

use super::compare::{LookedUp, Read, Reading};
use super::look_up::LookUps;
use super::replace::Carry;
use super::report::{Refused, SyncReport};
use super::{SyncError, Syncer, pipeline, programmed};
use crate::netlink::{CommitError, Moment, NetlinkError, OwnTable, Refusal};

/// Maximum number of passes with a refusal before a repair is given up.
const MAX_REFUSALS: usize = 64;

/// Maximum number of passes that other programs may disturb before a repair is
/// given up. The caller tries again, with pauses that limit the cost of a
/// fight.
const MAX_DISTURBED: u32 = 5;

/// Number of refusals in a repair that are put down to a wrong reading of the
/// kernel's tables before Services are blamed.
const MAX_MISREAD: u32 = 2;

/// The wait after the first disturbed pass, which doubles after each further
/// one. A program that flushes a rule set often changes more after that.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The result of a pass through the kernel.
pub(super) enum Pass {
    /// It has the desired state.
    Done,
    /// What has to be removed may be in use by elements that were not seen: list
    /// all maps.
    Hidden,
    /// It refused a transaction.
    Refused(Transaction, CommitError),
    /// Stand-ins have taken the place of tables that could not be changed in
    /// place: recreate these.
    Replaced,
}

/// Why a difference was not sent.
enum Unsent {
    Refused(Transaction, CommitError),
    /// The kernel's elements could not be looked up.
    Unread(NetlinkError),
}

impl From<pipeline::Failed> for Unsent {
    fn from((transaction, error): pipeline::Failed) -> Self {
        Self::Refused(transaction, error)
    }
}

impl From<NetlinkError> for Unsent {
    fn from(error: NetlinkError) -> Self {
        Self::Unread(error)
    }
}

/// The results of the passes of one repair so far.
#[derive(Default)]
struct Met {
    refusals: usize,
    disturbed: u32,
    /// The number of refusals that were put down to a wrong reading.
    misread: u32,
    /// The number of passes that ended with stand-ins.
    replaced: u32,
    /// How the next one reads.
    reading: Reading,
    last: String,
}

impl Syncer {
    /// Brings the kernel to the desired state. Services that the kernel refuses
    /// keep their programmed state, and everything else is programmed.
    ///
    /// A refusal counts only if nobody else changed our tables between their
    /// reading and the refusal. Otherwise it is tried again.
    pub(super) fn repair(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        let outcome = self.repair_all(report);
        self.kernel.direct_to(PerFamily::default());
        outcome
    }

    fn repair_all(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        report.repaired = true;
        // Changes that came at the same time are reported like any other. At
        // the start there is no earlier state.
        if self.initialised {
            self.remember_programmed(self.store.dirty().cloned().collect());
        }
        self.release_quarantined();
        let reading = Reading { list_all: self.leftovers.cut_off(), ..Reading::default() };
        let mut met = Met { reading, ..Met::default() };
        while met.refusals < MAX_REFUSALS {
            let moment = self.kernel.moment()?;
            self.see_foreign_changes();
            // This reading serves them.
            self.damaged = false;
            match self.pass(&met.reading, report) {
                Ok(Pass::Done) => {
                    if self.is_settled(moment)? {
                        self.leave_out()?;
                        self.finish(report);
                        return Ok(());
                    }
                    tracing::info!("others changed the rule set during the first sync; comparing once more");
                }
                Ok(Pass::Hidden) => met.reading.list_all = true,
                Ok(Pass::Replaced) => met.replace()?,
                Ok(Pass::Refused(transaction, error)) => {
                    self.judge(moment, transaction, error, &mut met, report)?;
                }
                Err(error) => self.judge_failure(moment, error, &mut met)?,
            }
        }
        Err(SyncError::Unrepairable { attempts: MAX_REFUSALS, last: met.last })
    }

    /// Each comparison tries refused Services again. A Service that is refused
    /// once more keeps its current programmed state.
    fn release_quarantined(&mut self) {
        for name in self.planner.release_quarantined() {
            let programmed = Arc::new(programmed(&self.planner, &name));
            self.untold.entry(name.clone()).or_insert_with(|| programmed.clone());
            self.last_good.insert(name, programmed);
        }
    }

    /// One reading of the kernel's state, and the commits of the difference.
    fn pass(&mut self, reading: &Reading, report: &mut SyncReport) -> Result<Pass, SyncError> {
        // After a refusal in a stand-in the culprits are sought there.
        self.kernel.direct_to(PerFamily::default());
        let read = self.read_kernel(reading, report)?;
        if read.outdated.values().any(|outdated| *outdated) {
            return self.replace(read, report);
        }
        let Read { states, looked_up, foreign, stand_ins, mut carry, .. } = read;
        let pass = self.send_difference(states, &looked_up, &mut carry, report)?;
        if let Pass::Done = pass {
            let is_hidden = |family| !self.leftovers.suspects[family].is_empty();
            if foreign.iter().any(|(family, foreign)| !foreign.is_empty() && is_hidden(family)) {
                return Ok(Pass::Hidden);
            }
            for (family, foreign) in foreign {
                self.kernel.remove_foreign(family, &foreign)?;
            }
            self.hand_over(stand_ins, OwnTable::StandIn, &carry)?;
        }
        Ok(pass)
    }

    /// The steps after the kernel has the desired state.
    pub(super) fn finish(&mut self, report: &mut SyncReport) {
        self.initialised = true;
        self.last_good.clear();
        report.changed = self.changes();
        report.contested = self.planner.all_denied();
        self.to_sweep = PerFamily::from_fn(|_| true);
    }

    /// Finds the cause of a refusal: other programs that changed our tables
    /// meanwhile, the skeleton (an error), or Services, which are quarantined.
    fn judge(
        &mut self,
        moment: Moment,
        transaction: Transaction,
        error: CommitError,
        met: &mut Met,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let CommitError::Refused { failures } = &error else {
            let CommitError::Netlink(error) = error else { return Ok(()) };
            return self.judge_failure(moment, error.into(), met);
        };
        if self.was_disturbed(moment) {
            return disturbed(&error, met);
        }
        if let Some(passing) = passing(&error) {
            return Err(passing);
        }
        if met.misread < MAX_MISREAD && failures.iter().all(contradicts_reading) {
            // A kernel that lacks a feature answers alike, at each attempt: no line for an operator.
            tracing::debug!(
                "the refusal contradicts what was read of the kernel's tables; reading them again: {error}"
            );
            met.misread += 1;
            return Ok(());
        }
        if let Some(family) = looped(&transaction, failures).filter(|family| !met.reading.looped[*family]) {
            tracing::debug!("an element leads back to its chain, which therefore can't get its rules: {error}");
            met.reading.looped[family] = true;
            return Ok(());
        }
        let culprits = match failures.iter().all(|failure| failure.span == 1) {
            true => named(&transaction, &error),
            false => self.find_culprits(&transaction)?,
        };
        // Finding them takes a commit for each Service: others may have changed something meanwhile.
        if self.was_disturbed(moment) {
            return disturbed(&error, met);
        }
        if culprits.is_empty() {
            return Err(SyncError::Skeleton { refused: error.to_string(), lacking: error.lacking() });
        }
        met.refusals += 1;
        for mut refusal in culprits {
            met.last.clone_from(&refusal.description);
            match refusal.owner.as_deref().and_then(ServiceName::parse) {
                Some(name) => refusal.keeps_earlier_rules = self.quarantine(&name),
                None => {
                    self.skeleton_was_refused(&refusal)?;
                    continue;
                }
            }
            report.refused.push(refusal);
        }
        Ok(())
    }

    /// A part that all Services of a family need was refused. If the kernel lacks something for it, that costs the
    /// family alone, as if the node did not have it. It is an error if no other family is left, or after the start.
    fn skeleton_was_refused(&mut self, refusal: &Refused) -> Result<(), SyncError> {
        let Refused { family, lacking, description, .. } = refusal;
        if !self.enabled[*family] {
            return Ok(());
        }
        let has_another = self.families().len() > 1;
        let Some(lacking) = lacking.filter(|_| has_another && !self.initialised) else {
            let others = self.left_out.iter().filter(|(_, other, _)| Some(*other) != *lacking);
            let mut refused: Vec<&str> = others.map(|(_, _, refused)| refused.as_str()).collect();
            refused.push(description);
            return Err(SyncError::Skeleton { refused: refused.join("; "), lacking: *lacking });
        };
        self.enabled[*family] = false;
        self.left_out.push((*family, lacking, description.clone()));
        Ok(())
    }

    /// Deletes the tables of families that are left out, now that another family is served: what was committed before
    /// the refusal serves nothing.
    fn leave_out(&mut self) -> Result<(), SyncError> {
        while let Some((family, lacking, refused)) = self.left_out.last() {
            for table in [OwnTable::Main, OwnTable::StandIn] {
                self.kernel.delete_table(table, *family)?;
            }
            let remedy = lacking.remedy();
            tracing::error!(
                "no Service is served over {family}, because the kernel refused {refused}; {remedy}, then restart vmap-proxy"
            );
            self.left_out.pop();
        }
        Ok(())
    }

    /// A pass that failed as such: an error, unless others are to blame.
    fn judge_failure(&mut self, moment: Moment, error: SyncError, met: &mut Met) -> Result<(), SyncError> {
        let is_ours = matches!(error, SyncError::Owned { .. }) || error.is_stopped();
        if is_ours || !self.was_disturbed(moment) {
            return Err(error);
        }
        disturbed(&error, met)
    }

    /// Finds the refused Services of a transaction in which the kernel has
    /// named no single operation: commits its operations owner by owner. The
    /// next pass shows which of them succeeded.
    ///
    /// # Errors
    /// A refusal for a reason that passes proves nothing.
    fn find_culprits(&mut self, transaction: &Transaction) -> Result<Vec<Refused>, SyncError> {
        let mut culprits = Vec::new();
        for operations in transaction.operations.chunk_by(|one, other| one.owner == other.owner) {
            let mut part = Transaction { operations: operations.to_vec() };
            let refusal = self.commit(&mut part, &mut SyncReport::default());
            if let Err(error @ CommitError::Refused { .. }) = refusal {
                if let Some(passing) = passing(&error) {
                    return Err(passing);
                }
                culprits.extend(named(&part, &error));
            }
        }
        Ok(culprits)
    }

    /// Commits the missing transactions, up to one that is refused.
    pub(super) fn send_difference(
        &mut self,
        kernel: PerFamily<KernelState>,
        looked_up: &LookedUp,
        carry: &mut Carry,
        report: &mut SyncReport,
    ) -> Result<Pass, SyncError> {
        let writable = self.writable();
        self.leftovers.suspects = PerFamily::default();
        let mut resync = self.planner.resync(&mut self.store, kernel);
        if looked_up.values().all(BTreeMap::is_empty) {
            let sent = pipeline::run(&mut resync, &mut self.kernel, writable, carry, report);
            let left_out = resync.take_left_out();
            self.plan_again(left_out);
            return Ok(match sent {
                Ok(()) => Pass::Done,
                Err((transaction, error)) => Pass::Refused(transaction, error),
            });
        }
        let maps = looked_up.as_ref().map(|maps| maps.keys().copied().collect::<BTreeSet<Map>>());
        let mut found: PerFamily<BTreeMap<Map, u32>> = PerFamily::default();
        let (services, keys_at_once) = self.looked_up_at_once;
        let mut look_ups = LookUps::new(&mut self.kernel, keys_at_once);
        // While these Services are planned and committed, the elements of the next are looked up.
        let mut planned = 0;
        while !resync.is_finished() {
            let keys = resync.keys_ahead(&maps, services);
            let elements = look_ups.look_up_while(keys, report, |kernel, report| {
                if planned == 0 {
                    // Foreign elements that are found first may stand in the way of what all Services need.
                    return Ok(());
                }
                pipeline::commit_all(resync.next_chunk(planned), kernel, writable, carry, report).map_err(Unsent::from)
            });
            let elements = match elements {
                Ok(elements) => elements,
                Err(Unsent::Refused(transaction, error)) => return Ok(Pass::Refused(transaction, error)),
                Err(Unsent::Unread(error)) => return Err(error.into()),
            };
            for (family, element) in elements {
                *found[family].entry(element.map).or_default() += 1;
                resync.supply(family, element);
            }
            planned = services;
        }
        let left_out = resync.take_left_out();
        self.plan_again(left_out);
        self.leftovers.suspects = PerFamily::from_fn(|family| {
            let found = &found[family];
            let has_more =
                |(map, count): &(&Map, &Option<u32>)| count.is_none_or(|count| found.get(*map) != Some(&count));
            looked_up[family].iter().filter(has_more).map(|(map, _)| *map).collect()
        });
        Ok(Pass::Done)
    }

    /// Services that a comparison left out are planned with the next sync.
    fn plan_again(&mut self, left_out: Vec<ServiceName>) {
        for name in &left_out {
            tracing::warn!(
                "Service {name} was left out of this comparison: it takes an address or port from another Service whose \
                 turn was before; it is programmed with the next sync"
            );
        }
        self.store.mark_dirty(left_out);
    }

    /// Records the programmed state of Services that will change, unless it is
    /// known from a failed sync.
    pub(super) fn remember_programmed(&mut self, names: Vec<ServiceName>) {
        for name in names {
            let planner = &self.planner;
            self.untold.entry(name).or_insert_with_key(|name| Arc::new(programmed(planner, name)));
        }
    }

    /// Returns the changes of Services since the last report.
    fn changes(&mut self) -> Vec<ServiceChange> {
        let mut changes = Vec::new();
        let mut untold: Vec<_> = std::mem::take(&mut self.untold).into_iter().collect();
        untold.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (name, before) in untold {
            for (family, before) in Arc::unwrap_or_clone(before) {
                let after = self.planner.compiled(&name, family).cloned();
                if before != after {
                    changes.push(ServiceChange { name: name.clone(), family, before, after });
                }
            }
        }
        changes
    }

    /// Returns whether rules of an earlier state stay. There are none if the
    /// Service is new to this agent, or did not change: then it is the earlier
    /// state itself that the kernel refused, for what somebody else removed.
    fn quarantine(&mut self, name: &ServiceName) -> bool {
        let good = self.last_good.remove(name).map(Arc::unwrap_or_clone).unwrap_or_default();
        let any = good.values().any(Option::is_some);
        self.planner.quarantine(name, good);
        any
    }
}

impl Met {
    /// Counts a pass that ended with stand-ins. One is enough, unless another
    /// program changes the new table again.
    fn replace(&mut self) -> Result<(), SyncError> {
        self.replaced += 1;
        self.reading.looped = PerFamily::default();
        if self.replaced < MAX_DISTURBED {
            return Ok(());
        }
        let last = "a table that was just made was changed so that it had to be replaced again".to_owned();
        Err(SyncError::Disturbed { attempts: MAX_DISTURBED as usize, last })
    }
}

/// Waits a little before the next pass, or gives up.
fn disturbed(error: &(dyn std::error::Error + Sync), met: &mut Met) -> Result<(), SyncError> {
    met.disturbed += 1;
    if met.disturbed == MAX_DISTURBED {
        return Err(SyncError::Disturbed { attempts: MAX_DISTURBED as usize, last: error.to_string() });
    }
    let pause = FIRST_PAUSE * 2_u32.pow(met.disturbed - 1);
    tracing::debug!("others changed our tables meanwhile, looking again in {pause:?}: {error}");
    std::thread::sleep(pause);
    Ok(())
}

/// The error for a refusal that has nothing to do with the refused operations: no memory, or an interruption.
fn passing(error: &CommitError) -> Option<SyncError> {
    let CommitError::Refused { failures } = error else { return None };
    if failures.iter().any(|failure| failure.errno == libc::ENOMEM) {
        return Some(SyncError::OutOfMemory(error.to_string()));
    }
    let passes = |errno| matches!(errno, libc::EINTR | libc::EAGAIN | libc::ENOBUFS);
    failures.iter().any(|failure| passes(failure.errno)).then(|| SyncError::Passing(error.to_string()))
}

/// Returns whether the refusal is of something to be added that is there
/// already, be it with another value (`EBUSY`), or of something to be deleted
/// that is missing, or is still in use (`EBUSY`). Then the reading that it is
/// based on may be wrong.
fn contradicts_reading(failure: &Refusal) -> bool {
    matches!(failure.errno, libc::EEXIST | libc::ENOENT | libc::EBUSY)
}

/// The family whose rules were refused because a chain would lead back to itself (`ELOOP`), or through more chains than
/// the kernel allows (`EMLINK`, what newer kernels find first), see `nft_chain_validate` in
/// `net/netfilter/nf_tables_api.c`. Ours never do: an element of another program closes the loop.
fn looped(transaction: &Transaction, failures: &[Refusal]) -> Option<Family> {
    let is_loop = |failure: &&Refusal| matches!(failure.errno, libc::ELOOP | libc::EMLINK);
    let refused = failures.iter().find(is_loop)?;
    Some(transaction.operations.get(refused.operation)?.family)
}

/// Names the Services that a refusal is about.
fn named(transaction: &Transaction, error: &CommitError) -> Vec<Refused> {
    let CommitError::Refused { failures } = error else { return Vec::new() };
    let refused = |failure: &Refusal| {
        let operation: &Operation = transaction.operations.get(failure.operation)?;
        let Refusal { lacking, description, .. } = failure.clone();
        let (owner, family) = (operation.owner.clone(), operation.family);
        Some(Refused { owner, family, lacking, keeps_earlier_rules: false, description })
    };
    failures.iter().filter_map(refused).collect()
}
