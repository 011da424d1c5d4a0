//! The sync loop: follows a source and programs its changes.
//!
//! Nothing is programmed before the source has listed everything once. After that a change is
//! committed at once; changes that arrive while a commit runs, or within
//! [`SyncLoopOptions::min_gap`] of the last one, go together into the next. Foreign changes to
//! our tables are repaired likewise ([`pace`] decides when). All consequences of a sync other
//! than rules are handled by [observers](crate::after_sync).

mod background;
mod culprits;
mod ownership;
mod pace;
mod retrial;
mod unserved;

use std::future::Future;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use vmap_proxy_compiler::limits::MAX_ELEMENTS;
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::plan::TooLarge;
use vmap_proxy_compiler::words::count;

use crate::after_sync::{Observer, SyncDone, Trouble};
use crate::query::answer::{State, answer};
use crate::query::journal::Journal;
use crate::query::protocol::JournalCause;
use crate::query::server::Asked;
use crate::source::{Event, ObjectChange};
use crate::sync::report::SyncReport;
use crate::sync::{Attempt, Notice, SyncError, Syncer, Tidied};
use background::Background;
use culprits::Culprits;
use ownership::Ownership;
pub use pace::MIN_GAP;
use pace::{Blame, Pace};
use retrial::Retrial;

/// Idle time before unused chains are deleted.
const IDLE: Duration = Duration::from_secs(5);

/// The most events that go into one sync.
const MAX_EVENTS: usize = 4096;

/// Interval of log lines about syncs that go on failing.
const FAILURE_LINES: Duration = Duration::from_secs(60);

/// The published state of the loop.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether everything has been programmed once.
    pub ready: bool,
    /// The number of successful syncs.
    pub syncs: u64,
    /// The number of Services with rules.
    pub services: usize,
    /// The number of endpoints in the slices.
    pub endpoints: usize,
    /// The cause, if the last sync failed.
    pub failure: Option<String>,
}

/// The options of the loop.
#[derive(Debug, Clone)]
pub struct SyncLoopOptions {
    /// The longest time until a failed sync is tried again, if nothing else
    /// happens before. The first attempts follow much sooner.
    pub retry: Duration,
    /// The shortest time between the beginnings of two syncs; [`MIN_GAP`] unless
    /// the operator sets another.
    pub min_gap: Duration,
    /// The time in which the kernel is compared once between syncs, a piece at a
    /// time (`nftables.comparePeriod`); zero for never.
    pub compare_period: Duration,
}

/// The inputs of the loop.
#[derive(Debug)]
pub struct Inputs {
    /// The events of the source.
    pub events: mpsc::Receiver<Event>,
    /// All addresses of the node's interfaces, after each change of them.
    pub addresses: mpsc::Receiver<Vec<IpAddr>>,
    /// Questions about the state. One is answered between two syncs.
    pub questions: mpsc::Receiver<Asked>,
}

/// Follows the events until the source ends or `shutdown` resolves. What is
/// programmed stays.
///
/// # Errors
/// If the first sync fails because the kernel lacks something, or the agent
/// lacks the permission: waiting would not help. Later failures are retried.
pub async fn run_sync_loop<O: Observer>(
    syncer: &mut Syncer,
    inputs: Inputs,
    status: &watch::Sender<Status>,
    observer: &mut O,
    options: &SyncLoopOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SyncError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let Inputs { mut events, mut addresses, mut questions } = inputs;
    let mut state = Loop {
        syncer,
        status,
        observer,
        pace: Pace::new(options.retry, options.min_gap),
        culprits: Culprits::default(),
        failures: Failures::default(),
        retrial: Retrial::default(),
        ownership: Ownership::default(),
        listed: false,
        foreign: false,
        news: false,
        journal: Journal::default(),
        background: Background::new(options.compare_period),
    };
    let mut idle = Instant::now() + IDLE;
    let (mut addresses_open, mut questions_open) = (true, true);
    loop {
        let wake = state.due().or(state.pace.truce()).or(state.ownership.next()).or(state.retrial.next());
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                state.take(event);
                for _ in 1..MAX_EVENTS {
                    let Ok(event) = events.try_recv() else { break };
                    state.take(event);
                }
            }
            changed = addresses.recv(), if addresses_open => match changed {
                Some(addresses) => state.syncer.set_interface_addresses(addresses),
                None => addresses_open = false,
            },
            notice = state.syncer.notice() => match notice {
                Notice::ForeignChange => state.note_foreign_changes(),
                Notice::Leftovers => state.remove_leftovers(),
            },
            () = sleep_until(wake.unwrap_or(idle)), if wake.is_some() => {
                state.make_truce();
                state.look_for_free_tables();
                state.retry_quarantined();
            }
            () = sleep_until(idle), if wake.is_none() && state.syncer.idle_chains() > 0 => {
                state.tidy();
            }
            () = sleep_until(state.background.next().unwrap_or(idle)), if wake.is_none() && state.may_compare() => {
                // It is no activity, unless something has to be repaired.
                if !state.compare_piece() {
                    continue;
                }
            }
            // Last, so that questions never keep changes waiting. They are no activity either.
            asked = questions.recv(), if questions_open => {
                match asked {
                    Some(asked) => state.answer(asked),
                    None => questions_open = false,
                }
                continue;
            }
        }
        let is_due = state.due().is_some_and(|due| due <= Instant::now());
        if is_due && state.sync()?.is_break() {
            return Ok(());
        }
        idle = Instant::now() + IDLE;
    }
}

struct Loop<'a, O> {
    syncer: &'a mut Syncer,
    status: &'a watch::Sender<Status>,
    observer: &'a mut O,
    pace: Pace,
    culprits: Culprits,
    failures: Failures,
    retrial: Retrial,
    ownership: Ownership,
    listed: bool,
    /// Whether another program changed our table since the last sync.
    foreign: bool,
    /// Whether the sources sent anything since the last sync.
    news: bool,
    /// The last syncs.
    journal: Journal,
    background: Background,
}

/// The log lines about a series of failed syncs.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    last_line: Option<Instant>,
}

impl<O: Observer> Loop<'_, O> {
    fn take(&mut self, event: Event) {
        self.observer.on_event(&event);
        match &event {
            Event::Synced => {
                self.listed = true;
                self.warn_of_lone_slices();
            }
            Event::Degraded(why) => tracing::warn!("{why}"),
            Event::Changes(changes) if self.listed => {
                changes.iter().for_each(log_change);
                changes.iter().for_each(|change| self.journal.note(change));
            }
            _ => {}
        }
        self.syncer.take(event);
        if self.syncer.is_pending() {
            self.news = true;
            self.observer.on_queued();
        }
    }

    /// Answers a question; its work is bounded.
    fn answer(&self, asked: Asked) {
        let state = State {
            store: self.syncer.store(),
            planner: self.syncer.planner(),
            ready: self.status.borrow().ready,
            pending: self.syncer.is_pending(),
            digest: self.syncer.digest(),
            journal: &self.journal,
        };
        // The client may be gone.
        let _ = asked.reply.send(answer(&state, &asked.question));
    }

    /// Returns the time of the next sync, if anything waits.
    fn due(&self) -> Option<Instant> {
        (self.listed && self.syncer.is_pending()).then(|| self.pace.next(Instant::now(), self.news))
    }

    fn note_foreign_changes(&mut self) {
        let now = Instant::now();
        let changes = self.syncer.take_foreign_changes();
        if changes.is_empty() {
            return;
        }
        for change in changes {
            self.pace.foreign_change(now);
            if let Some(line) = self.culprits.note(&change, now) {
                tracing::warn!("{line}");
            }
        }
        self.foreign = true;
        self.observer.on_queued();
        self.observer.on_trouble(&self.foreign_trouble());
    }

    fn foreign_trouble(&self) -> Trouble {
        let who = self.culprits.last().unwrap_or("another process");
        let reason = match self.pace.is_fight() {
            true => format!("{who} changes the table vmap-proxy again and again; it is repaired each time"),
            false => format!("{who} changed the table vmap-proxy; it is being repaired"),
        };
        Trouble { reason, rules_missing: true }
    }

    /// A fight is over if nobody has changed anything for a while.
    fn make_truce(&mut self) {
        if self.pace.truce().is_some_and(|truce| truce <= Instant::now()) {
            self.pace.make_truce();
            tracing::info!("nobody has changed the table vmap-proxy for a while; all rules are in place");
            if !self.ownership.is_lost() {
                self.observer.on_recovery();
            }
        }
    }

    fn may_compare(&self) -> bool {
        self.background.next().is_some() && !self.syncer.seeks_leftovers()
    }

    /// Removes a part of the elements that a comparison could not see.
    fn remove_leftovers(&mut self) {
        let Attempt { report, failure } = self.syncer.remove_leftovers();
        if let Some(error) = failure.filter(|error| !error.is_stopped()) {
            tracing::warn!("elements of an earlier state were not removed; comparing everything again: {error}");
        }
        if self.syncer.is_pending() {
            self.observer.on_queued();
        }
        log_cleaned(&report, None);
        if !report.is_empty() || !report.cleaned.is_empty() {
            self.journal.add_removal(&report);
        }
        self.observer.on_removal(&SyncDone::removal(self.syncer, report));
    }

    /// Compares a piece of the kernel. Returns whether it differs: then the next
    /// sync compares everything.
    fn compare_piece(&mut self) -> bool {
        let begun = Instant::now();
        let piece = self.syncer.compare_piece();
        let is_last = piece.as_ref().is_ok_and(|piece| piece.is_last);
        self.background.done(begun.elapsed(), is_last, Instant::now());
        match piece {
            Ok(piece) => match piece.difference {
                None => false,
                Some(what) => {
                    tracing::warn!(
                        "the kernel differs from what was programmed, and nobody reported a change; comparing all of it, \
                         and repairing: {what}"
                    );
                    self.foreign = true;
                    self.syncer.mark_damaged();
                    self.observer.on_queued();
                    true
                }
            },
            Err(error) => {
                tracing::debug!("the comparison in the background could not read the kernel: {error}");
                false
            }
        }
    }

    /// Services in quarantine are tried again by a comparison with the kernel.
    fn retry_quarantined(&mut self) {
        if self.retrial.take_due(Instant::now()) {
            self.syncer.mark_damaged();
        }
    }

    /// Slices of no Service have no effect; after the first list that is worth
    /// a line, later it is how Services come and go.
    fn warn_of_lone_slices(&self) {
        let mut lone: Vec<ObjectRef> = self.syncer.store().lone_slices().collect();
        lone.sort_unstable();
        for slice in lone {
            tracing::warn!(
                "{slice}: no Service of the name in its label exists here (one with label \
                 service.kubernetes.io/service-proxy-name is another proxy's); the slice has no effect until one does"
            );
        }
    }

    /// One sync with its consequences. Breaks if the agent has to end.
    fn sync(&mut self) -> Result<ControlFlow<()>, SyncError> {
        self.news = false;
        self.pace.begin(Instant::now());
        let Attempt { report, failure } = self.syncer.attempt();
        self.note_foreign_changes();
        match failure {
            None => {
                self.pace.succeeded(Instant::now());
                self.succeeded(report);
                Ok(ControlFlow::Continue(()))
            }
            Some(error) if error.is_stopped() => Ok(ControlFlow::Break(())),
            Some(error) if !self.status.borrow().ready && is_hopeless(&error) => Err(error),
            Some(error) => {
                self.pace.failed(Instant::now(), blame(&error));
                self.failed(report, &error);
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    fn succeeded(&mut self, report: SyncReport) {
        let first = !self.status.borrow().ready;
        self.failures.recovered();
        self.publish(&report, first);
        unserved::log_unserved(self.syncer, &report, first);
        if !report.is_empty() || !report.cleaned.is_empty() {
            log_details(&report, self.journal.waiting());
        }
        self.journal.add_success(&report, self.culprits.last().filter(|_| self.foreign));
        let done = SyncDone::succeeded(self.syncer, report, std::mem::take(&mut self.foreign));
        self.retrial.note(done.quarantined > 0, Instant::now());
        self.background.begin(self.syncer.store().service_count(), Instant::now());
        self.observer.on_sync(&done);
        self.note_owned_tables();
        if !self.pace.is_fight() && !self.ownership.is_lost() {
            self.observer.on_recovery();
        }
    }

    /// Another process owns one of our tables: what does not concern it is
    /// programmed.
    fn note_owned_tables(&mut self) {
        let owned = self.syncer.owned_tables();
        let reasons: Vec<String> = owned.iter().map(ToString::to_string).collect();
        let reason = reasons.join("; ");
        if let Some(line) = self.ownership.note(&reason, Instant::now()) {
            tracing::error!("{line}");
        }
        if self.ownership.is_lost() {
            self.observer.on_trouble(&Trouble { reason, rules_missing: true });
        }
    }

    fn look_for_free_tables(&mut self) {
        if !self.ownership.take_due(Instant::now()) {
            return;
        }
        if let Err(error) = self.syncer.look_for_free_tables() {
            tracing::debug!("whether our tables are free again is not known: {error}");
            self.syncer.mark_damaged();
        }
    }

    fn failed(&mut self, report: SyncReport, error: &SyncError) {
        self.failures.log(error, self.pace.next(Instant::now(), false));
        report.too_large.iter().for_each(log_too_large);
        self.journal.add(&report, self.culprits.last().filter(|_| self.foreign), Some(error.to_string()));
        self.observer.on_sync(&SyncDone::failed(self.syncer, report, error));
        self.observer.on_queued();
        let rules_missing = self.foreign || matches!(error, SyncError::Owned { .. });
        self.observer.on_trouble(&Trouble { reason: format!("the last sync failed: {error}"), rules_missing });
        self.status.send_modify(|status| status.failure = Some(error.to_string()));
    }

    fn publish(&mut self, report: &SyncReport, first: bool) {
        let (services, endpoints) = (self.syncer.store().service_count(), self.syncer.store().endpoint_count());
        log_left_out(report);
        if self.culprits.is_quiet(Instant::now()) {
            log_cleaned(report, self.culprits.last().filter(|_| self.foreign));
            log_report(report, first, services, endpoints);
        }
        self.status.send_modify(|status| {
            *status = Status { ready: true, syncs: status.syncs + 1, services, endpoints, failure: None };
        });
    }

    fn tidy(&mut self) {
        let why = match self.syncer.tidy() {
            Ok(Tidied::Done) => return,
            Ok(Tidied::Refused(why)) => why,
            Err(error) => error.to_string(),
        };
        tracing::warn!("chains that nothing uses could not be deleted, trying again later: {why}");
        self.observer.on_cleanup_failed();
    }
}

impl Failures {
    /// The first of a row, and one a minute.
    fn log(&mut self, error: &SyncError, next: Instant) {
        let now = Instant::now();
        self.count = self.count.saturating_add(1);
        if self.last_line.is_some_and(|line| now.saturating_duration_since(line) < FAILURE_LINES) {
            return;
        }
        self.last_line = Some(now);
        let next = next.saturating_duration_since(now);
        match self.count {
            1 => tracing::error!("sync failed, trying again in {next:?}: {error}"),
            count => tracing::error!("sync failed {count} times in a row, trying again in {next:?}: {error}"),
        }
    }

    fn recovered(&mut self) {
        if self.count > 0 {
            tracing::info!("sync succeeded after {} that failed", self.count);
        }
        *self = Self::default();
    }
}

/// Returns the cause of a failed sync.
fn blame(error: &SyncError) -> Blame {
    match error {
        SyncError::Disturbed { .. } | SyncError::Owned { .. } => Blame::Others,
        SyncError::Netlink(error) if error.is_interrupted() => Blame::Others,
        _ => Blame::Us,
    }
}

/// Returns whether trying again cannot help.
fn is_hopeless(error: &SyncError) -> bool {
    match error {
        SyncError::Skeleton { .. } => true,
        SyncError::Netlink(error) => error.is_permanent(),
        SyncError::Owned { .. }
        | SyncError::Disturbed { .. }
        | SyncError::OutOfMemory(_)
        | SyncError::Passing(_)
        | SyncError::Unrepairable { .. } => false,
    }
}

fn log_change(change: &ObjectChange) {
    let object = change.object();
    match (change.is_gone(), object.kind) {
        (true, Kind::Node) => tracing::warn!("{object} was deleted; its last known state stays in use"),
        (true, _) => tracing::debug!("{object} deleted"),
        // The source has logged the reason.
        (false, _) if change.is_kept() => {}
        (false, _) => tracing::debug!("{object} applied, from {}", change.origin),
    }
}

/// Logs foreign objects in our tables, and foreign changes.
fn log_cleaned(report: &SyncReport, culprit: Option<&str>) {
    for cleaned in &report.cleaned {
        let family = cleaned.family.keyword();
        let by = culprit.map(|who| format!(" (last changed by {who})")).unwrap_or_default();
        tracing::warn!("not ours in table {family} vmap-proxy{by}: {} {}", cleaned.count, cleaned.description);
    }
}

/// Logs Services that do not get what they ask for.
fn log_left_out(report: &SyncReport) {
    for refused in &report.refused {
        let owner = refused.owner.as_deref().unwrap_or("the skeleton");
        let state = if refused.keeps_earlier_rules { "its earlier rules stay" } else { "nothing of it is programmed" };
        tracing::error!(
            "Service {owner} is quarantined: {state} until it changes or a retry succeeds (after 30 s, doubling up to \
             an hour). Everything else is programmed. The refusal: {}",
            refused.description
        );
    }
    report.too_large.iter().for_each(log_too_large);
    for contested in &report.contested {
        tracing::warn!(
            "Service {}: {} belongs to Service {}, which {} and keeps it",
            contested.name,
            contested.claim,
            contested.holder,
            contested.reason
        );
    }
}

fn log_report(report: &SyncReport, first: bool, services: usize, endpoints: usize) {
    let milliseconds = report.duration.as_secs_f64() * 1000.0;
    if first {
        let early = match report.early {
            0 => String::new(),
            early => format!("; about {early} of the elements before, while the lists arrived"),
        };
        tracing::info!(
            "programmed {}, {} in {milliseconds:.1} ms ({} added, {} removed, {}{early})",
            count(services, "service"),
            count(endpoints, "endpoint"),
            count(report.added, "element"),
            report.removed,
            count(report.transactions, "commit")
        );
    } else if !report.is_empty() {
        let did = format!(
            "in {milliseconds:.1} ms: {} added, {} removed, {}",
            count(report.added, "element"),
            report.removed,
            count(report.transactions, "commit")
        );
        if report.repaired {
            tracing::info!("repaired {did}");
        } else {
            // kube-proxy logs each sync from `-v 2` on.
            tracing::info!(target: crate::logging::SYNCS, "synced {did}");
        }
    }
}

/// From `-v 3` on: the objects and Services behind a sync.
fn log_details(report: &SyncReport, causes: &[JournalCause]) {
    if !tracing::enabled!(target: crate::logging::SYNC_DETAILS, tracing::Level::INFO) {
        return;
    }
    let causes: Vec<String> =
        causes.iter().map(|cause| format!("{} {} ({})", cause.object, cause.change, cause.origin)).collect();
    let services = report.touched.services.iter();
    let services: Vec<String> =
        services.map(|service| format!("{} +{} -{}", service.name, service.added, service.removed)).collect();
    let more = if report.touched.more_services { " and more" } else { "" };
    tracing::info!(
        target: crate::logging::SYNC_DETAILS,
        "elements of {}{more}, because of {}",
        services.join(", "),
        if causes.is_empty() { "a comparison with the kernel".to_owned() } else { causes.join(", ") }
    );
}

pub(crate) fn log_too_large(large: &TooLarge) {
    tracing::warn!(
        "Service {} is not programmed for {}, everything else is: its ports, addresses and endpoints may need {} \
         elements, and the limit is {MAX_ELEMENTS}; make several Services of it",
        large.name,
        large.family,
        large.elements
    );
}
