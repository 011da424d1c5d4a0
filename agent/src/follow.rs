//! The sync loop: follows a source and programs what it tells.
//!
//! Nothing is programmed before the source has listed everything once. After
//! that a change is committed at once; what arrives while a commit runs, or
//! within [`MIN_GAP`] of the last one, goes together into the next.

use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use compiler::model::convert::Problem;
use compiler::model::objects::{Change, Kind, Object, ObjectRef};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::source::Event;
use crate::sync::report::SyncReport;
use crate::sync::{SyncError, Syncer};

/// The shortest time between the beginnings of two syncs: a burst of changes
/// becomes few commits, and a single change waits for nothing.
pub const MIN_GAP: Duration = Duration::from_millis(50);

/// How long nothing must happen before chains that nothing uses are deleted.
const IDLE: Duration = Duration::from_secs(5);

/// The most events that go into one sync.
const MAX_EVENTS: usize = 4096;

/// What the loop tells those who watch it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether everything has been programmed once.
    pub ready: bool,
    /// How many syncs succeeded.
    pub syncs: u64,
    /// How many Services have rules.
    pub services: usize,
    /// How many endpoints the slices hold.
    pub endpoints: usize,
    /// Why the last sync failed, if it did.
    pub failure: Option<String>,
}

/// What else happens on the node.
#[derive(Debug)]
pub enum NodeEvent {
    /// The addresses of the interfaces, all of them, after a change.
    Addresses(Vec<IpAddr>),
    /// Somebody else changed our table.
    ForeignChange(String),
}

/// Who is told what the loop does: metrics, health, conntrack.
pub trait Observer {
    /// Objects were taken, before they are programmed.
    fn taken(&mut self, _event: &Event) {}
    /// Something waits to be programmed.
    fn queued(&mut self) {}
    /// A sync succeeded.
    fn synced(&mut self, _syncer: &Syncer, _report: &SyncReport) -> impl Future<Output = ()> {
        async {}
    }
    /// What somebody else changed in our table was repaired.
    fn repaired_foreign_change(&mut self) {}
    /// A sync failed; it will be tried again.
    fn failed(&mut self, _error: &SyncError) {}
}

/// An observer that does nothing.
#[derive(Debug, Default)]
pub struct Nobody;

impl Observer for Nobody {}

/// How the loop behaves.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// When a failed sync is tried again, if nothing else happens before.
    pub retry: Duration,
    /// Whether to log what in an object can't be used. Not where the source
    /// does: it may know the file.
    pub log_problems: bool,
}

/// Follows `events` until the source ends or `shutdown` resolves. What is
/// programmed stays.
///
/// # Errors
/// If the first sync fails because the kernel lacks something, or the agent
/// lacks the permission: waiting would not help. Later failures are retried.
pub async fn follow<O: Observer>(
    syncer: &mut Syncer,
    mut events: mpsc::Receiver<Event>,
    mut node_events: mpsc::Receiver<NodeEvent>,
    status: &watch::Sender<Status>,
    observer: &mut O,
    options: &FollowOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), SyncError> {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut state = Loop {
        syncer,
        status,
        observer,
        retry: options.retry,
        log_problems: options.log_problems,
        listed: false,
        foreign: false,
        next: None,
        last: None,
    };
    let mut idle = Instant::now() + IDLE;
    let mut node_open = true;
    loop {
        let due = state.next;
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
            event = node_events.recv(), if node_open => match event {
                Some(event) => state.take_node(event).await?,
                None => node_open = false,
            },
            () = sleep_until(due.unwrap_or(idle)), if due.is_some() => {}
            () = sleep_until(idle), if due.is_none() && state.syncer.idle_chains() > 0 => {
                state.tidy().await;
            }
        }
        if state.listed && state.syncer.is_pending() && state.next.is_none() {
            let gap = state.last.map_or_else(Instant::now, |last| last + MIN_GAP);
            state.next = Some(gap.max(Instant::now()));
        }
        if state.next.is_some_and(|next| next <= Instant::now()) {
            state.sync().await?;
        }
        idle = Instant::now() + IDLE;
    }
}

struct Loop<'a, O> {
    syncer: &'a mut Syncer,
    status: &'a watch::Sender<Status>,
    observer: &'a mut O,
    retry: Duration,
    log_problems: bool,
    listed: bool,
    /// Whether somebody else changed our table since the last sync.
    foreign: bool,
    /// When to sync next, if anything waits.
    next: Option<Instant>,
    /// When the last sync began.
    last: Option<Instant>,
}

impl<O: Observer> Loop<'_, O> {
    fn take(&mut self, event: Event) {
        self.observer.taken(&event);
        match &event {
            Event::Synced => {
                self.listed = true;
                self.warn_of_lone_slices();
            }
            Event::Degraded(why) => tracing::warn!("{why}"),
            Event::Changes(changes) if self.listed => changes.iter().for_each(log_change),
            _ => {}
        }
        let problems = self.syncer.take(event);
        if self.log_problems {
            problems.iter().for_each(log_problem);
        }
        if self.syncer.is_pending() {
            self.observer.queued();
        }
    }

    async fn take_node(&mut self, event: NodeEvent) -> Result<(), SyncError> {
        match event {
            NodeEvent::Addresses(addresses) => self.syncer.set_interface_addresses(addresses),
            NodeEvent::ForeignChange(who) => {
                tracing::warn!("the table vmap-proxy was changed by {who}; comparing and repairing it");
                if self.listed {
                    self.syncer.mark_damaged();
                    self.foreign = true;
                }
            }
        }
        Ok(())
    }

    /// Slices of no Service have no effect; after the first list that is worth
    /// a line, later it is how Services come and go.
    fn warn_of_lone_slices(&self) {
        let mut lone: Vec<ObjectRef> = self.syncer.store().lone_slices().collect();
        lone.sort_unstable();
        for slice in lone {
            tracing::warn!(
                "{slice}: no Service of the name in its label exists; the slice has no effect until one does"
            );
        }
    }

    async fn sync(&mut self) -> Result<(), SyncError> {
        self.next = None;
        self.last = Some(Instant::now());
        match self.syncer.sync().await {
            Ok(report) => {
                let first = !self.status.borrow().ready;
                self.publish(&report, first);
                if std::mem::take(&mut self.foreign) {
                    self.observer.repaired_foreign_change();
                }
                self.observer.synced(self.syncer, &report).await;
                Ok(())
            }
            Err(error) if !self.status.borrow().ready && is_hopeless(&error) => Err(error),
            Err(error) => {
                tracing::error!("sync failed, trying again in {:?}: {error}", self.retry);
                self.observer.failed(&error);
                self.status.send_modify(|status| status.failure = Some(error.to_string()));
                self.next = Some(Instant::now() + self.retry);
                Ok(())
            }
        }
    }

    fn publish(&mut self, report: &SyncReport, first: bool) {
        let (services, endpoints) = (self.syncer.store().service_count(), self.syncer.store().endpoint_count());
        log_report(report, first, services, endpoints);
        self.status.send_modify(|status| {
            *status = Status { ready: true, syncs: status.syncs + 1, services, endpoints, failure: None };
        });
    }

    async fn tidy(&mut self) {
        if let Err(error) = self.syncer.tidy().await {
            tracing::warn!("chains that nothing uses could not be deleted: {error}");
        }
    }
}

/// Whether trying again can't help.
fn is_hopeless(error: &SyncError) -> bool {
    match error {
        SyncError::Skeleton(_) => true,
        SyncError::Netlink(error) => error.is_permanent(),
        SyncError::Unrepairable { .. } => false,
    }
}

fn log_problem(problem: &Problem) {
    tracing::warn!("{problem}");
}

fn log_change(change: &Change) {
    match change {
        Change::Apply(object) => tracing::debug!("{} applied", object.reference()),
        Change::Delete(reference) if reference.kind == Kind::Node => {
            tracing::warn!("{reference} was deleted; its last known state stays in use");
        }
        Change::Delete(reference) => tracing::debug!("{reference} deleted"),
        // The source has said why.
        Change::Keep(_) => {}
    }
}

fn log_report(report: &SyncReport, first: bool, services: usize, endpoints: usize) {
    let milliseconds = report.duration.as_secs_f64() * 1000.0;
    for refused in &report.refused {
        let owner = refused.owner.as_deref().unwrap_or("the skeleton");
        tracing::error!(
            "Service {owner} is quarantined until it changes, everything else is programmed: {}",
            refused.description
        );
    }
    for denied in &report.denied {
        tracing::warn!(
            "Service {}: {} belongs to Service {}, which is older; it goes there",
            denied.name,
            describe(denied.claim),
            denied.holder
        );
    }
    if first {
        tracing::info!(
            "programmed {services} services, {endpoints} endpoints in {milliseconds:.1} ms ({} elements added, {} \
             removed, {} commits)",
            report.added,
            report.removed,
            report.transactions
        );
    } else if !report.is_empty() {
        let what = if report.repaired { "repaired" } else { "synced" };
        tracing::info!(
            "{what} in {milliseconds:.1} ms: {} elements added, {} removed, {} commits",
            report.added,
            report.removed,
            report.transactions
        );
    }
}

/// A frontend in words.
pub(crate) fn describe(claim: compiler::ruleset::service::Claim) -> String {
    use compiler::ruleset::service::Claim;
    match claim {
        Claim::Frontend(key) | Claim::NoEndpoint(key) => {
            format!("{} port {}/{}", key.address, key.port, key.protocol)
        }
        Claim::Firewall(key) => {
            format!("the source ranges of {} port {}/{}", key.address, key.port, key.protocol)
        }
        Claim::NodePort(key) | Claim::NoEndpointNodePort(key) => format!("node port {}/{}", key.port, key.protocol),
    }
}

/// The objects of a change, for those who count them.
pub fn kinds(changes: &[Change]) -> impl Iterator<Item = Kind> {
    changes.iter().map(|change| match change {
        Change::Apply(Object::Service(_)) => Kind::Service,
        Change::Apply(Object::EndpointSlice(_)) => Kind::EndpointSlice,
        Change::Apply(Object::Node(_)) => Kind::Node,
        Change::Apply(Object::ServiceCidr(_)) => Kind::ServiceCidr,
        Change::Delete(reference) | Change::Keep(reference) => reference.kind,
    })
}
