//! Very many Services added to a table that is in use, and taken from it, at
//! once; beside the first sync that programmed the rest of them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use vmap_proxy_agent::after_sync::{Observer, SyncDone};
use vmap_proxy_agent::query::server;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::sync_loop::{Inputs, MIN_GAP, Status, SyncLoopOptions, run_sync_loop};
use vmap_proxy_compiler::model::Change;

use super::Failure;
use super::agent::{Agent, SyncTimes, read};
use super::memory::{Resident, reset_peak, resident};
use super::statistics::milliseconds;
use super::workload::{Workload, parse};

/// The length of the agent's event queue (`EVENT_QUEUE` in `vmap_proxy_agent::run`).
const EVENT_QUEUE: usize = 4;
/// Longest time for all of it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A first sync, and as much again on the running table.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct LargeChange {
    /// The first sync: half of all Services.
    pub first: SyncTimes,
    /// The other half is added, in one sync.
    pub add: SyncTimes,
    /// The process when the other half is known but not programmed, its peak
    /// while that was programmed, and afterwards.
    pub add_memory: [Resident; 2],
    /// The other half is removed, in one sync.
    pub remove: SyncTimes,
    /// As for adding.
    pub remove_memory: [Resident; 2],
    /// The other half is added once more, one object at a time through the
    /// agent's event loop, as fast as it takes them: until all are live, in
    /// milliseconds.
    #[serde(default)]
    pub stream_ms: f64,
    /// The number of these syncs.
    #[serde(default)]
    pub stream_syncs: usize,
}

impl LargeChange {
    /// The ratio to the first sync, per element.
    pub fn ratio(&self, times: &SyncTimes) -> f64 {
        let per_element = |times: &SyncTimes| times.sync_ms / (times.added + times.removed).max(1) as f64;
        per_element(times) / per_element(&self.first)
    }
}

/// Measures it for a cluster that ends up twice as large.
///
/// # Errors
/// If the kernel refuses anything.
pub fn run(cluster: Workload) -> Result<LargeChange, Failure> {
    let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
    let first = agent.first_sync(cluster)?.sync;
    let twice = Workload { services: 2 * cluster.services, ..cluster };
    let more = || (cluster.services..twice.services).flat_map(move |service| twice.service_manifests(service));
    for manifest in more() {
        agent.take(parse(&manifest)?)?;
    }
    let (add, add_memory) = timed(&mut agent)?;
    for manifest in more() {
        let Change::Apply(object) = parse(&manifest)? else { continue };
        agent.take(Change::Delete(object.reference()))?;
    }
    let (remove, remove_memory) = timed(&mut agent)?;
    let objects = more().map(|manifest| parse(&manifest)).collect::<Result<Vec<Change>, Failure>>()?;
    let (stream_ms, stream_syncs) = stream(&mut agent, objects, add.added)?;
    Ok(LargeChange { first, add, add_memory, remove, remove_memory, stream_ms, stream_syncs })
}

/// Ends the loop when everything is there.
struct Counter<'a> {
    wanted: usize,
    added: usize,
    syncs: usize,
    done: &'a Notify,
}

impl Observer for Counter<'_> {
    fn on_sync(&mut self, done: &SyncDone) {
        let report = &done.report;
        self.added += report.added - report.removed.min(report.added);
        self.syncs += 1;
        if self.added >= self.wanted {
            self.done.notify_one();
        }
    }
}

/// Sends one object after the other until this number of further elements is there.
fn stream(agent: &mut Agent, objects: Vec<Change>, wanted: usize) -> Result<(f64, usize), Failure> {
    let done = Notify::new();
    let mut counter = Counter { wanted, added: 0, syncs: 0, done: &done };
    let (events, received) = mpsc::channel(EVENT_QUEUE);
    let (_addresses, changed_addresses) = mpsc::channel(1);
    let (status, _watched) = watch::channel(Status { ready: true, ..Status::default() });
    let options = SyncLoopOptions { retry: Duration::from_secs(1), min_gap: MIN_GAP, compare_period: Duration::ZERO };
    let begun = Instant::now();
    let sender = async move {
        events.send(Event::Synced).await?;
        for object in objects {
            events.send(Event::Changes(vec![read(&object)])).await?;
        }
        // A source that has sent everything waits; one that ends would end the loop.
        Ok::<_, mpsc::error::SendError<Event>>(events)
    };
    let (_questions, questions) = server::channel();
    let inputs = Inputs { events: received, addresses: changed_addresses, questions };
    let following = run_sync_loop(&mut agent.syncer, inputs, &status, &mut counter, &options, done.notified());
    let both = async { tokio::time::timeout(PATIENCE, async { tokio::join!(following, sender) }).await };
    let (followed, sent) = agent.runtime.block_on(both).map_err(|_| "not everything was live after ten minutes")?;
    followed?;
    sent?;
    Ok((milliseconds(begun.elapsed()), counter.syncs))
}

fn timed(agent: &mut Agent) -> Result<(SyncTimes, [Resident; 2]), Failure> {
    reset_peak()?;
    let before = resident()?;
    let report = agent.sync()?;
    Ok((SyncTimes::of(&report), [before, resident()?]))
}
