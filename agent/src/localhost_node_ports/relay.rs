//! The ports that are served, and their changes.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use tokio::task::{AbortHandle, spawn_local};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::ruleset::Family;

use super::changes::{NodePort, NodePortChanges};
use super::limits::Limits;
use super::listening::listen;
use super::port::{Place, Port, Shared};
use crate::metrics::LocalhostMetrics;

/// All ports.
#[derive(Debug)]
pub(super) struct Relay {
    shared: Rc<Shared>,
    ports: HashMap<Place, Serving>,
    /// The ports of each Service that has some.
    services: HashMap<(ServiceName, Family), Vec<Place>>,
}

/// A port with the task that serves it, which ends when this is dropped.
#[derive(Debug)]
struct Serving {
    port: Rc<Port>,
    task: AbortHandle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Relay {
    /// No ports yet.
    pub(super) fn new(limits: Limits, metrics: LocalhostMetrics) -> Self {
        let shared = Rc::new(Shared::new(limits, metrics));
        Self { shared, ports: HashMap::new(), services: HashMap::new() }
    }

    /// Applies changes. The work depends on them alone. A port that stays keeps
    /// its socket and its connections, also if it goes to another Service.
    ///
    /// # Panics
    /// Outside of a `LocalSet`.
    pub(super) fn apply(&mut self, changes: NodePortChanges) {
        let NodePortChanges { is_complete, mut services } = changes;
        if is_complete {
            for known in self.services.keys() {
                services.entry(known.clone()).or_default();
            }
        }
        let mut given_up = Vec::new();
        for ((name, family), wanted) in services {
            given_up.extend(self.serve(&name, family, wanted).into_iter().map(|place| (name.clone(), place)));
        }
        // Only now, because another Service may have taken one over.
        for (name, place) in given_up {
            if self.ports.get(&place).is_some_and(|serving| serving.port.is_of(&name)) {
                self.ports.remove(&place);
            }
        }
    }

    /// Serves the ports of a Service. Returns those that it had before and no
    /// longer wants.
    fn serve(&mut self, name: &ServiceName, family: Family, wanted: Vec<NodePort>) -> Vec<Place> {
        let key = (name.clone(), family);
        let mut before = self.services.remove(&key).unwrap_or_default();
        let places: Vec<Place> = wanted.iter().map(|wanted| Place { family, key: wanted.key }).collect();
        for (place, wanted) in places.iter().zip(wanted) {
            match self.ports.get(place) {
                Some(serving) => serving.port.update(name, wanted),
                None => self.open(*place, name, wanted),
            }
        }
        let stay: HashSet<&Place> = places.iter().collect();
        before.retain(|place| !stay.contains(place));
        if !places.is_empty() {
            self.services.insert(key, places);
        }
        before
    }

    fn open(&mut self, place: Place, name: &ServiceName, wanted: NodePort) {
        let port = Rc::new(Port::new(place, self.shared.clone(), name, wanted));
        let task = spawn_local(listen(port.clone())).abort_handle();
        self.ports.insert(place, Serving { port, task });
    }
}
