//! Changes of a programmed cluster: from the event to the kernel's answer.

use std::cell::Cell;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use vmap_proxy_agent::after_sync::{Observer, SyncDone};
use vmap_proxy_agent::query::server;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::sync_loop::{Inputs, MIN_GAP, Status, SyncLoopOptions, run_sync_loop};
use vmap_proxy_compiler::model::Change;

use super::Failure;
use super::agent::{Agent, read};
use super::statistics::{Summary, milliseconds};
use super::workload::{HTTP, Pods, Workload, parse, service_manifest, slice_at, slice_manifests};

/// Longest time for repeating one kind of change.
const BUDGET: Duration = Duration::from_secs(8);

/// Repetitions of one kind of change.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Figures {
    /// From the parsed event to the kernel's last answer, in milliseconds.
    pub total_ms: Summary,
    /// Of that, what the kernel took, in milliseconds.
    pub kernel_ms: Summary,
    /// Of that, everything else (encoding included), in microseconds.
    pub user_us: Summary,
    /// Elements sent by one change, on average.
    pub elements: f64,
    /// Transactions of one change, on average.
    pub transactions: f64,
}

/// All kinds of change of single objects.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Changes {
    /// A pod is replaced by another: the endpoint count stays.
    pub replace: Figures,
    /// A Service gets one endpoint more.
    pub grow: Figures,
    /// A Service loses one endpoint.
    pub shrink: Figures,
    /// A Service is created, and its slice.
    pub add_service: Figures,
    /// A Service is deleted, and its slice.
    pub remove_service: Figures,
}

/// Makes changes one by one, and times each.
struct Repeater<'a> {
    agent: &'a mut Agent,
    totals: Vec<f64>,
    kernels: Vec<f64>,
    users: Vec<f64>,
    elements: usize,
    transactions: usize,
}

impl<'a> Repeater<'a> {
    fn new(agent: &'a mut Agent) -> Self {
        Self { agent, totals: Vec::new(), kernels: Vec::new(), users: Vec::new(), elements: 0, transactions: 0 }
    }

    fn once(&mut self, changes: Vec<Change>) -> Result<(), Failure> {
        let begun = Instant::now();
        for change in changes {
            self.agent.take(change)?;
        }
        let report = self.agent.sync()?;
        let total = begun.elapsed();
        let commits: Duration = report.commits.iter().sum();
        let kernel = commits.saturating_sub(report.encoding);
        if report.transactions == 0 {
            return Err("a change that was to be measured changed nothing".into());
        }
        self.totals.push(milliseconds(total));
        self.kernels.push(milliseconds(kernel));
        self.users.push(milliseconds(total.saturating_sub(kernel)) * 1e3);
        self.elements += report.added + report.removed;
        self.transactions += report.transactions;
        Ok(())
    }

    fn figures(self) -> Figures {
        let count = self.totals.len().max(1) as f64;
        Figures {
            total_ms: Summary::of(self.totals),
            kernel_ms: Summary::of(self.kernels),
            user_us: Summary::of(self.users),
            elements: self.elements as f64 / count,
            transactions: self.transactions as f64 / count,
        }
    }
}

/// Repeats one kind of change, each time of another object, until `count` are
/// done or the time is over.
fn repeat(
    agent: &mut Agent,
    count: u32,
    mut changes: impl FnMut(u32) -> Result<Vec<Change>, Failure>,
) -> Result<Figures, Failure> {
    let begun = Instant::now();
    let mut repeater = Repeater::new(agent);
    for nth in 0..count {
        repeater.once(changes(nth)?)?;
        if begun.elapsed() > BUDGET {
            break;
        }
    }
    Ok(repeater.figures())
}

/// Measures every kind of change, on Services spread over the whole cluster.
///
/// # Errors
/// If the kernel refuses one.
pub fn single(agent: &mut Agent, cluster: Workload, count: u32) -> Result<Changes, Failure> {
    let count = count.min(cluster.services);
    let service = |nth: u32| (u64::from(nth) * u64::from(cluster.services) / u64::from(count.max(1))) as u32;
    let slice = |nth: u32, pods: Pods, position: u32| Ok(vec![parse(&slice_at(service(nth), pods, position))?]);
    let replaced = |nth: u32| Pods {
        replaced: Some((cluster.endpoints / 2, cluster.spare_pod(nth))),
        ..cluster.pods(service(nth))
    };
    let grown = |nth: u32| Pods {
        count: cluster.endpoints + 1,
        replaced: Some((cluster.endpoints, cluster.spare_pod(count + nth))),
        ..cluster.pods(service(nth))
    };
    let replace = repeat(agent, count, |nth| slice(nth, replaced(nth), cluster.endpoints / 2))?;
    let grow = repeat(agent, count, |nth| slice(nth, grown(nth), cluster.endpoints))?;
    // Only those that grew can shrink.
    let grown_count = grow.total_ms.count as u32;
    let shrink = repeat(agent, grown_count, |nth| slice(nth, cluster.pods(service(nth)), cluster.endpoints))?;
    let add_service = repeat(agent, count, |nth| new_service(cluster, nth, cluster.endpoints))?;
    let added = add_service.total_ms.count as u32;
    let remove_service = repeat(agent, added, |nth| {
        let changes = new_service(cluster, nth, cluster.endpoints)?;
        Ok(changes.into_iter().map(deletion).collect())
    })?;
    Ok(Changes { replace, grow, shrink, add_service, remove_service })
}

/// The objects of a Service that the cluster does not have.
fn new_service(cluster: Workload, nth: u32, endpoints: u32) -> Result<Vec<Change>, Failure> {
    let service = cluster.services + nth;
    let mut changes = vec![parse(&service_manifest(service, HTTP))?];
    for slice in slice_manifests(service, extra_pods(cluster, nth, endpoints), HTTP) {
        changes.push(parse(&slice)?);
    }
    Ok(changes)
}

/// Pods behind the spare ones that single changes use.
fn extra_pods(cluster: Workload, nth: u32, endpoints: u32) -> Pods {
    Pods { first: cluster.spare_pod(100_000 + nth * endpoints), count: endpoints, replaced: None }
}

fn deletion(change: Change) -> Change {
    match change {
        Change::Apply(object) => Change::Delete(object.reference()),
        other => other,
    }
}

/// One Service with very many endpoints, beside the cluster.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct LargeService {
    /// The number of its endpoints.
    pub endpoints: u32,
    /// Creating it.
    pub create: Figures,
    /// One of its endpoints is replaced.
    pub replace: Figures,
    /// It gets one endpoint more.
    pub grow: Figures,
}

/// Adds a Service with very many endpoints, and changes it.
///
/// # Errors
/// If the kernel refuses anything.
pub fn large_service(
    agent: &mut Agent,
    cluster: Workload,
    endpoints: u32,
    count: u32,
) -> Result<LargeService, Failure> {
    let create = repeat(agent, 1, |_| new_service(cluster, 0, endpoints))?;
    let pods = extra_pods(cluster, 0, endpoints);
    let spare = |nth: u32| cluster.spare_pod(100_000 + endpoints + nth);
    let one = |pods: Pods, position: u32| Ok(vec![parse(&slice_at(cluster.services, pods, position))?]);
    // Another endpoint of the same slice each time: the one before comes back.
    let replace = repeat(agent, count, |nth| one(Pods { replaced: Some((nth % 50, spare(nth))), ..pods }, 0))?;
    let restore = one(pods, 0)?;
    repeat(agent, 1, |_| Ok(restore.clone()))?;
    let grow = repeat(agent, count, |nth| one(Pods { count: endpoints + nth + 1, ..pods }, endpoints + nth))?;
    Ok(LargeService { endpoints, create, replace, grow })
}

/// Very many changes in a second, through the agent's own event loop.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Burst {
    /// The number of changes.
    pub changes: u32,
    /// Over how long they were sent, in milliseconds.
    pub sent_in_ms: f64,
    /// From the last event until all of them are live, in milliseconds.
    pub live_after_ms: f64,
    /// The number of syncs.
    pub syncs: usize,
    /// The number of transactions.
    pub transactions: usize,
}

struct Counter<'a> {
    wanted: usize,
    changed: usize,
    syncs: usize,
    transactions: usize,
    live: Option<Instant>,
    done: &'a Notify,
}

impl Observer for Counter<'_> {
    fn on_sync(&mut self, done: &SyncDone) {
        let report = &done.report;
        self.changed += report.changed.len();
        self.syncs += usize::from(!report.is_empty());
        self.transactions += report.transactions;
        if self.changed >= self.wanted && self.live.is_none() {
            self.live = Some(Instant::now());
            self.done.notify_one();
        }
    }
}

/// Sends one change each of many Services within a second, evenly.
///
/// # Errors
/// If the sync loop ends early.
pub fn burst(agent: &mut Agent, cluster: Workload, count: u32) -> Result<Burst, Failure> {
    let count = count.min(cluster.services);
    let mut changes = Vec::new();
    for service in 0..count {
        let pods = Pods { replaced: Some((0, cluster.spare_pod(50_000 + service))), ..cluster.pods(service) };
        changes.push(parse(&slice_at(service, pods, 0))?);
    }
    let done = Notify::new();
    let mut counter = Counter { wanted: changes.len(), changed: 0, syncs: 0, transactions: 0, live: None, done: &done };
    let (events, received) = mpsc::channel(changes.len() + 1);
    let (_addresses, changed_addresses) = mpsc::channel(1);
    let (status, _watched) = watch::channel(Status { ready: true, ..Status::default() });
    let options = SyncLoopOptions { retry: Duration::from_secs(1), min_gap: MIN_GAP, compare_period: Duration::ZERO };
    let (begun, last) = (Instant::now(), Cell::new(None));
    let sender = async {
        // Those who follow believe a source that has listed everything.
        events.send(Event::Synced).await?;
        let gap = Duration::from_secs(1) / count.max(1);
        for (nth, change) in (1..).zip(changes) {
            tokio::time::sleep_until((begun + gap * nth).into()).await;
            events.send(Event::Changes(vec![read(&change)])).await?;
            last.set(Some(Instant::now()));
        }
        Ok::<_, mpsc::error::SendError<Event>>(())
    };
    let limit = tokio::time::Duration::from_secs(60);
    let (_questions, questions) = server::channel();
    let inputs = Inputs { events: received, addresses: changed_addresses, questions };
    let following = run_sync_loop(&mut agent.syncer, inputs, &status, &mut counter, &options, done.notified());
    let outcome =
        agent.runtime.block_on(async { tokio::time::timeout(limit, async { tokio::join!(following, sender) }).await });
    let (followed, sent) = outcome.map_err(|_| "the burst was not live after a minute")?;
    followed?;
    sent?;
    let last = last.get().ok_or("nothing was sent")?;
    let live = counter.live.ok_or("the sync loop ended before everything was live")?;
    Ok(Burst {
        changes: count,
        sent_in_ms: milliseconds(last - begun),
        live_after_ms: milliseconds(live.saturating_duration_since(last)),
        syncs: counter.syncs,
        transactions: counter.transactions,
    })
}
