//! Updates [`HealthState`] after each sync.

use vmap_proxy_compiler::ruleset::Family;

use super::{Observer, SyncDone, Trouble};
use crate::health::state::{HealthState, NodeEligibility};
use crate::source::Event;

/// Writes [`HealthState`].
#[derive(Debug)]
pub struct SyncHealth {
    health: HealthState,
    families: Vec<Family>,
}

impl SyncHealth {
    /// For an agent that serves these families.
    pub fn new(health: HealthState, families: &[Family]) -> Self {
        Self { health, families: families.to_vec() }
    }
}

impl Observer for SyncHealth {
    fn on_event(&mut self, event: &Event) {
        match event {
            Event::Changes(changes) => {
                for marks in changes.iter().filter_map(|change| change.node_marks.as_ref()) {
                    let taints = marks.taints.iter().map(String::as_str);
                    self.health.set_node(NodeEligibility::of_node(marks.is_being_deleted, taints));
                }
            }
            Event::Synced => self.health.initialized(&self.families),
            Event::ListStarted(_) | Event::ListCompleted(_) | Event::Degraded(_) => {}
        }
    }

    fn on_queued(&mut self) {
        self.families.iter().for_each(|family| self.health.queued(*family));
    }

    fn on_sync(&mut self, done: &SyncDone) {
        self.families.retain(|family| !done.left_out.contains(family));
        done.left_out.iter().for_each(|family| self.health.left_out(*family));
        if done.failure.is_none() {
            self.families.iter().for_each(|family| self.health.updated(*family));
        }
    }

    fn on_trouble(&mut self, trouble: &Trouble) {
        self.health.troubled(trouble.reason.clone(), trouble.rules_missing);
    }

    fn on_recovery(&mut self) {
        self.health.recovered();
    }
}
