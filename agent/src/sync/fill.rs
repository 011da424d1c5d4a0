//! A first sync that begins while the source still lists: Services whose slices
//! have arrived go into the new tables, and no rule leads there before all lists
//! are complete (decision 94).
//!
//! The list of slices is the long one. While it arrives, this thread takes objects
//! into the store and plans, and another one commits. That one has the socket until
//! the end, since the kernel may let only one change the tables.

use std::collections::HashSet;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{PerFamily, Store};
use vmap_proxy_compiler::plan::{MAX_OPERATIONS, Planner, Transaction};

use super::report::SyncReport;
use super::{SyncError, Syncer, commit};
use crate::netlink::{CommitError, Kernel, Moment, NetlinkError, OwnTable};
use crate::source::ObjectChange;

/// Number of objects that arrive between two looks at which Services are complete.
/// Fewer in all are not worth a second thread.
const OBJECTS_AT_ONCE: usize = 256;

/// Maximum number of plans that wait for the committer.
const WAITING: usize = 1;

/// The progress of a first sync before the lists are complete.
#[derive(Debug)]
pub(super) enum Fill {
    /// It has not begun.
    Waiting(Lists),
    /// The tables are being filled.
    Running(Box<Running>),
    /// There is nothing to fill: tables exist, or the first sync is done.
    Over,
}

/// The lists, as far as the source has sent them.
#[derive(Debug, Default)]
pub(super) struct Lists {
    open: HashSet<Kind>,
    /// Whether that of the Node was complete once.
    has_node: bool,
    arrived: Arrived,
}

/// Services and slices that have arrived.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    /// Their number since the last look at which Services are complete.
    objects: usize,
    /// The last Service in the order of names, in which API servers list.
    service: Option<ServiceName>,
    /// The Service of the last slice. More slices may follow for this one, and rarely
    /// for those before it.
    slice: Option<ServiceName>,
}

/// A fill.
#[derive(Debug)]
pub(super) struct Running {
    /// Before anything was committed.
    begun: Moment,
    committer: Committer,
    arrived: Arrived,
    /// Planned, but the committer was busy.
    ready: Option<Vec<Transaction>>,
    /// The last Service that was planned.
    planned: Option<ServiceName>,
    /// Elements that were planned before all lists were complete.
    early: usize,
}

/// The thread that commits. It ends when it hears no more.
#[derive(Debug)]
struct Committer {
    plans: Option<SyncSender<Vec<Transaction>>>,
    thread: Option<JoinHandle<Option<Committed>>>,
}

/// The result of the committer.
#[derive(Debug)]
struct Committed {
    kernel: Kernel,
    report: SyncReport,
    failure: Option<CommitError>,
}

impl Syncer {
    /// A list begins.
    pub(super) fn note_list(&mut self, kind: Kind) {
        if let Fill::Waiting(lists) = &mut self.fill {
            lists.open.insert(kind);
        }
    }

    /// A list is complete.
    pub(super) fn note_end_of_list(&mut self, kind: Kind) {
        if let Fill::Waiting(lists) = &mut self.fill {
            lists.open.remove(&kind);
            lists.has_node |= kind == Kind::Node;
        }
    }

    /// Programs the Services whose slices have arrived, once enough have. It waits
    /// for no commit.
    pub(super) fn fill(&mut self, arrived: Arrived) {
        match &mut self.fill {
            Fill::Waiting(lists) => {
                lists.arrived.add(arrived);
                if lists.are_ready() {
                    let arrived = std::mem::take(&mut lists.arrived);
                    self.fill = self.begin_fill(arrived).unwrap_or_else(|error| {
                        tracing::debug!("the first sync begins when the lists are complete: {error}");
                        Fill::Over
                    });
                }
            }
            Fill::Running(running) => running.arrived.add(arrived),
            Fill::Over => {}
        }
        if let Fill::Running(running) = &mut self.fill {
            running.advance(&mut self.planner, &mut self.store, &mut self.touched);
        }
    }

    /// Makes the tables, unless the kernel has any.
    fn begin_fill(&mut self, arrived: Arrived) -> Result<Fill, NetlinkError> {
        let begun = self.kernel.moment()?;
        for family in self.families() {
            for table in [OwnTable::Main, OwnTable::StandIn] {
                if self.kernel.read_table(table, family)?.is_some() {
                    return Ok(Fill::Over);
                }
            }
        }
        let writable = self.writable();
        let Some(committer) = Committer::start(&mut self.kernel, writable)? else { return Ok(Fill::Over) };
        let ready = Some(self.planner.begin_fill(&mut self.store));
        Ok(Fill::Running(Box::new(Running { begun, committer, arrived, ready, planned: None, early: 0 })))
    }

    /// Programs everything else, and the rules. If anything fails, or if others
    /// changed the rule set meanwhile, everything is compared and repaired.
    pub(super) fn complete_fill(
        &mut self,
        fill: Running,
        damaged: bool,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let (before, early) = (fill.begun, fill.early);
        let committed = fill.complete(&mut self.planner, &mut self.store, &self.touched);
        // It has had the socket since its start.
        let Some(committed) = committed else { return self.repair(report) };
        let Committed { kernel, report: committed, failure } = committed;
        (self.kernel, *report) = (kernel, committed);
        if let Some(error) = failure {
            tracing::debug!("a part of the first sync was not committed; comparing: {error}");
            return self.repair(report);
        }
        if damaged || !self.is_settled(before)? {
            tracing::info!("others changed the rule set during the first sync; comparing once more");
            return self.repair(report);
        }
        (report.repaired, report.early) = (true, early);
        // Their digests are renewed, and no endpoint has left yet.
        self.touched.clear();
        self.finish(report);
        Ok(())
    }
}

impl Lists {
    /// Returns whether the node is known, and enough has arrived while slices are
    /// listed. A change of the node or of the service ranges would concern all
    /// Services.
    fn are_ready(&self) -> bool {
        let is_open = |kind| self.open.contains(&kind);
        self.has_node
            && !is_open(Kind::Node)
            && !is_open(Kind::ServiceCidr)
            && is_open(Kind::EndpointSlice)
            && self.arrived.objects >= OBJECTS_AT_ONCE
    }
}

impl Arrived {
    /// What these changes bring.
    pub(super) fn of(changes: &[ObjectChange]) -> Self {
        let last = |name: fn(&ObjectChange) -> Option<ServiceName>| changes.iter().rev().find_map(name);
        let service = last(|change| match &change.checked {
            CheckedChange { content: Content::Service(_), object, .. } => {
                Some(ServiceName::new(&object.namespace, &object.name))
            }
            _ => None,
        });
        let slice = last(|change| match &change.checked.content {
            Content::EndpointSlice(Some((owner, _))) => Some(owner.clone()),
            _ => None,
        });
        Self { objects: changes.len(), service, slice }
    }

    fn add(&mut self, other: Self) {
        self.objects += other.objects;
        self.service = self.service.take().max(other.service);
        self.slice = self.slice.take().max(other.slice);
    }
}

impl Running {
    /// Plans while the committer takes it, and remembers which Services it planned.
    fn advance(&mut self, planner: &mut Planner, store: &mut Store, planned: &mut Vec<ServiceName>) {
        loop {
            if let Some(ready) = self.ready.take() {
                match self.committer.try_send(ready) {
                    Sent::Taken => {}
                    Sent::Busy(ready) => {
                        self.ready = Some(ready);
                        return;
                    }
                    Sent::Failed => return,
                }
            }
            let Some(names) = self.next(store) else { return };
            let transactions = planner.fill(store, &names);
            self.early += transactions.iter().map(|transaction| transaction.operations.len()).sum::<usize>();
            planned.extend(names);
            self.ready = Some(transactions);
        }
    }

    /// The next Services to plan: all their slices have probably arrived. Those that
    /// have none yet, and those that come in another order, are planned at the end.
    fn next(&mut self, store: &Store) -> Option<Vec<ServiceName>> {
        if self.arrived.objects < OBJECTS_AT_ONCE {
            return None;
        }
        let (service, slice) = (self.arrived.service.as_ref()?, self.arrived.slice.as_ref()?);
        let arrived = store.after(self.planned.as_ref()).take_while(|(name, _)| *name <= service && *name < slice);
        let complete = arrived.filter(|(_, entry)| entry.exists() && entry.slices().next().is_some());
        let (mut names, mut elements) = (Vec::new(), 0);
        for (name, entry) in complete {
            names.push(name.clone());
            // About: a cluster IP, a verdict and the endpoints.
            elements += 2 + entry.slices().map(|slice| slice.endpoints.len()).sum::<usize>();
            if elements >= MAX_OPERATIONS {
                break;
            }
        }
        if elements < MAX_OPERATIONS {
            self.arrived.objects = 0;
            return None;
        }
        self.planned = names.last().cloned();
        Some(names)
    }

    /// Plans everything else, and the rules. The digests of all Services are renewed
    /// while the kernel works.
    fn complete(mut self, planner: &mut Planner, store: &mut Store, changed: &[ServiceName]) -> Option<Committed> {
        let mut changed = changed.iter();
        let mut wanted = self.ready.take().is_none_or(|ready| self.committer.send(ready));
        while wanted && let Some(plan) = planner.update(store) {
            wanted = self.committer.send(plan.transactions);
            changed.by_ref().take(2 * OBJECTS_AT_ONCE).for_each(|name| store.renew_digest(name));
        }
        if wanted {
            self.committer.send(planner.connect());
        }
        changed.for_each(|name| store.renew_digest(name));
        self.committer.end()?.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Committer {
    /// Gives it the socket. `None` if there can be no thread.
    fn start(kernel: &mut Kernel, writable: PerFamily<bool>) -> Result<Option<Self>, NetlinkError> {
        let (plans, planned) = sync_channel(WAITING);
        let (lend, lent) = sync_channel::<Kernel>(1);
        // Without a thread the socket must not be lost, so it is handed over behind its start.
        let work = move || lent.recv().ok().map(|kernel| commit_all(kernel, writable, &planned));
        let interim = kernel.open_another()?;
        let Ok(thread) = thread::Builder::new().name("commit".to_owned()).spawn(work) else { return Ok(None) };
        let _ = lend.send(std::mem::replace(kernel, interim));
        Ok(Some(Self { plans: Some(plans), thread: Some(thread) }))
    }

    /// Waits until it takes a plan. Returns whether it goes on: it hangs up when a
    /// commit failed, and everything is to be compared.
    fn send(&self, plan: Vec<Transaction>) -> bool {
        self.plans.as_ref().is_some_and(|plans| plans.send(plan).is_ok())
    }

    /// The same, without waiting.
    fn try_send(&self, plan: Vec<Transaction>) -> Sent {
        match self.plans.as_ref().map(|plans| plans.try_send(plan)) {
            Some(Ok(())) => Sent::Taken,
            Some(Err(TrySendError::Full(plan))) => Sent::Busy(plan),
            Some(Err(TrySendError::Disconnected(_))) | None => Sent::Failed,
        }
    }

    /// Waits for its last commit, and for its result if nobody has taken that.
    fn end(&mut self) -> Option<thread::Result<Option<Committed>>> {
        self.plans = None;
        Some(self.thread.take()?.join())
    }
}

impl Drop for Committer {
    /// Nothing is committed after the syncer's end.
    fn drop(&mut self) {
        // The thread itself has reported a panic.
        let _ = self.end();
    }
}

/// The fate of a plan that was offered to the committer.
enum Sent {
    Taken,
    Busy(Vec<Transaction>),
    Failed,
}

/// Commits all plans, up to a transaction that fails.
fn commit_all(mut kernel: Kernel, writable: PerFamily<bool>, plans: &Receiver<Vec<Transaction>>) -> Committed {
    let mut report = SyncReport::default();
    let mut committed = plans.iter().flatten();
    let failure =
        committed.find_map(|mut transaction| commit(&mut kernel, writable, &mut transaction, &mut report).err());
    Committed { kernel, report, failure }
}
