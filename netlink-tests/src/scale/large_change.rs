//! Very many Services added to a table that is in use, and taken from it, at
//! once; beside the first sync that programmed the rest of them.

use compiler::model::Change;
use serde::{Deserialize, Serialize};

use super::Failure;
use super::agent::{Agent, SyncTimes};
use super::memory::{Resident, reset_peak, resident};
use super::state::{Cluster, parse};

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
}

impl LargeChange {
    /// How many times as long as the first sync, per element.
    pub fn ratio(&self, times: &SyncTimes) -> f64 {
        let per_element = |times: &SyncTimes| times.sync_ms / (times.added + times.removed).max(1) as f64;
        per_element(times) / per_element(&self.first)
    }
}

/// Measures it for a cluster that ends up twice as large.
///
/// # Errors
/// If the kernel refuses anything.
pub fn run(cluster: Cluster) -> Result<LargeChange, Failure> {
    let mut agent = Agent::start(&agent::run::families())?;
    let first = agent.first_sync(cluster)?.sync;
    let twice = Cluster { services: 2 * cluster.services, ..cluster };
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
    Ok(LargeChange { first, add, add_memory, remove, remove_memory })
}

fn timed(agent: &mut Agent) -> Result<(SyncTimes, [Resident; 2]), Failure> {
    reset_peak()?;
    let before = resident()?;
    let report = agent.sync()?;
    Ok((SyncTimes::of(&report), [before, resident()?]))
}
