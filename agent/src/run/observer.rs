//! What follows from a sync beside the rules: metrics, health, the health
//! check ports of Services, and flows that must not go on.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use tokio::runtime::Handle;
use vmap_proxy_compiler::limits::MAX_ELEMENTS;
use vmap_proxy_compiler::model::convert;
use vmap_proxy_compiler::model::objects::{ANNOTATION_TRIGGER_TIME, EndpointSliceObject, Kind};
use vmap_proxy_compiler::model::{Change, Object, PerFamily};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::service::CompiledService;

use super::flows::FlowCleaner;
use crate::conntrack::StaleFlows;
use crate::events::{self, EventSender};
use crate::health::service_servers::{ServiceHealth, ServiceHealthServers, ServiceName, listen_addresses};
use crate::health::state::{HealthState, NodeEligibility};
use crate::metrics::{Metrics, Operation, SyncKind, TrafficPolicy};
use crate::source::Event;
use crate::sync::report::SyncReport;
use crate::sync::{SyncError, Syncer};
use crate::sync_loop::{Observer, Trouble, describe};

/// The observer of a node's agent.
pub(super) struct NodeObserver {
    metrics: Metrics,
    health: HealthState,
    families: Vec<Family>,
    started: SystemTime,
    /// When what changed a slice happened, by the Service's namespace and name.
    triggers: HashMap<(String, String), Vec<(Family, SystemTime)>>,
    changed_services: usize,
    changed_slices: usize,
    without_local: PerFamily<[usize; 2]>,
    health_servers: ServiceHealthServers,
    served: BTreeMap<ServiceName, ServiceHealth>,
    served_on: Vec<IpAddr>,
    flows: FlowCleaner,
    events: EventSender,
    /// Where the health check servers run: not where commits block.
    servers: Handle,
}

impl NodeObserver {
    /// To be called where the servers of Services are to run.
    pub(super) fn new(
        metrics: Metrics,
        health: HealthState,
        families: &[Family],
        started: SystemTime,
        events: EventSender,
    ) -> Self {
        Self {
            flows: FlowCleaner::new(metrics.clone(), families),
            metrics,
            health_servers: ServiceHealthServers::new(health.clone()).with_events(events.clone()),
            health,
            families: families.to_vec(),
            started,
            triggers: HashMap::new(),
            changed_services: 0,
            changed_slices: 0,
            without_local: PerFamily::default(),
            served: BTreeMap::new(),
            served_on: Vec::new(),
            events,
            servers: Handle::current(),
        }
    }

    fn take_change(&mut self, change: &Change) {
        match change {
            Change::Apply(Object::EndpointSlice(slice)) => {
                self.changed_slices += 1;
                self.metrics.endpoint_changes(1);
                self.note_trigger(slice);
            }
            Change::Apply(Object::Node(node)) => {
                let being_deleted = node.metadata.deletion_timestamp.is_some();
                let taints = node.spec.taints.iter().map(|taint| taint.key.as_str());
                self.health.set_node(NodeEligibility::of_node(being_deleted, taints));
            }
            Change::Apply(Object::Service(_)) => self.count_service(),
            Change::Apply(Object::ServiceCidr(_)) => {}
            Change::Delete(reference) => match reference.kind {
                Kind::Service => self.count_service(),
                Kind::EndpointSlice => {
                    self.changed_slices += 1;
                    self.metrics.endpoint_changes(1);
                }
                Kind::Node | Kind::ServiceCidr => {}
            },
            Change::Keep(_) => return,
        }
        self.metrics.set_endpoint_changes_pending(self.changed_slices);
        self.metrics.set_service_changes_pending(self.changed_services);
    }

    /// kube-proxy counts the events of a Service once for each family.
    fn count_service(&mut self) {
        self.changed_services += 1;
        self.metrics.service_changes(self.families.len());
    }

    /// Changes from before this process are not its latency.
    fn note_trigger(&mut self, slice: &EndpointSliceObject) {
        let Some(text) = slice.metadata.annotations.get(ANNOTATION_TRIGGER_TIME) else { return };
        let Some(triggered) = text.parse::<Timestamp>().ok().map(SystemTime::from) else { return };
        let family = if slice.address_type == "IPv6" { Family::Ipv6 } else { Family::Ipv4 };
        if let Some(owner) = convert::owner(slice).filter(|_| triggered >= self.started) {
            let service = (slice.metadata.namespace.clone(), owner.to_owned());
            self.triggers.entry(service).or_default().push((family, triggered));
        }
    }

    fn report(&mut self, syncer: &Syncer, report: &SyncReport) {
        let now = SystemTime::now();
        let kind = if report.repaired { SyncKind::Full } else { SyncKind::Partial };
        for family in &self.families {
            self.metrics.sync_succeeded(*family, kind, report.duration, now);
            self.health.updated(*family);
        }
        for commit in &report.commits {
            self.metrics.committed(*commit);
            self.metrics.lock_held(*commit);
        }
        self.metrics.elements_changed(Operation::Add, report.added);
        self.metrics.elements_changed(Operation::Delete, report.removed);
        for cleaned in &report.cleaned {
            self.metrics.foreign_removed(cleaned.kind, cleaned.count);
        }
        self.metrics.set_quarantined_services(syncer.planner().quarantined().count());
        for (family, triggered) in self.triggers.drain().flat_map(|(_, triggers)| triggers) {
            self.metrics.network_programmed(family, now.duration_since(triggered).unwrap_or(Duration::ZERO));
        }
        self.changed_services = 0;
        self.changed_slices = 0;
        self.metrics.set_endpoint_changes_pending(0);
        self.metrics.set_service_changes_pending(0);
    }

    /// Counts anew after a repair, else only what changed.
    fn count_without_local(&mut self, syncer: &Syncer, report: &SyncReport) {
        if report.repaired {
            self.without_local = PerFamily::default();
            for family in Family::ALL {
                for (_, compiled) in syncer.planner().all_compiled(family) {
                    add(&mut self.without_local[family], without_local(compiled));
                }
            }
        } else {
            for change in &report.changed {
                let counts = &mut self.without_local[change.family];
                let count = |compiled: &Option<CompiledService>| compiled.as_ref().map_or([0; 2], without_local);
                add(counts, count(&change.after));
                let before = count(&change.before);
                *counts = [counts[0].saturating_sub(before[0]), counts[1].saturating_sub(before[1])];
            }
        }
        for family in &self.families {
            let [internal, external] = self.without_local[*family];
            self.metrics.set_no_local_endpoints(*family, TrafficPolicy::Internal, internal);
            self.metrics.set_no_local_endpoints(*family, TrafficPolicy::External, external);
        }
    }

    /// Opens, closes and updates the health check ports of Services.
    fn serve_health_checks(&mut self, syncer: &Syncer, report: &SyncReport) {
        let handle = self.servers.clone();
        let _servers = handle.enter();
        let addresses = listen_addresses(syncer.planner().config(), syncer.store().node(), &self.families);
        if addresses != self.served_on {
            self.served_on.clone_from(&addresses);
            self.health_servers.set_addresses(addresses);
        }
        let before = self.served.clone();
        if report.repaired {
            self.served.clear();
            for family in Family::ALL {
                for (name, _) in syncer.planner().all_compiled(family) {
                    self.serve_health_check(syncer, name);
                }
            }
        } else {
            for change in &report.changed {
                self.serve_health_check(syncer, &change.name);
            }
        }
        if self.served != before {
            self.health_servers.set(self.served.clone());
        }
    }

    fn serve_health_check(&mut self, syncer: &Syncer, name: &vmap_proxy_compiler::model::types::ServiceName) {
        let [v4, v6] = Family::ALL.map(|family| syncer.planner().compiled(name, family));
        let port = v4.or(v6).and_then(|compiled| compiled.service.health_check_node_port);
        let key = ServiceName { namespace: name.namespace().to_owned(), name: name.name().to_owned() };
        let count = |compiled: Option<&CompiledService>| compiled.map(|compiled| compiled.ready_local as usize);
        match port {
            Some(port) => {
                self.served.insert(key, ServiceHealth { port, local_ipv4: count(v4), local_ipv6: count(v6) });
            }
            None => {
                self.served.remove(&key);
            }
        }
    }

    /// Tells the owners of Services that these don't work as they ask.
    fn send_events(&self, report: &SyncReport) {
        for refused in &report.refused {
            if let Some((namespace, name)) = refused.owner.as_deref().and_then(|owner| owner.split_once('/')) {
                self.events.quarantined(events::Service { namespace, name }, &refused.description);
            }
        }
        for large in &report.too_large {
            let service = events::Service { namespace: large.name.namespace(), name: large.name.name() };
            self.events.too_large(service, large.elements, MAX_ELEMENTS);
        }
        for denied in &report.denied {
            let service = events::Service { namespace: denied.name.namespace(), name: denied.name.name() };
            self.events.frontend_taken(service, &describe(denied.claim), &denied.holder.to_string());
        }
    }

    /// Has flows deleted that must not go on; the next sync does not wait.
    fn clean_flows(&mut self, syncer: &Syncer, report: &SyncReport) {
        let (planner, node) = (syncer.planner(), syncer.store().node());
        self.flows.clean(StaleFlows::of_sync(planner, node, report));
    }
}

impl Observer for NodeObserver {
    fn taken(&mut self, event: &Event) {
        match event {
            Event::Changes(changes) => changes.iter().for_each(|change| self.take_change(change)),
            Event::Synced => self.health.initialized(&self.families),
            Event::ListStarted(_) | Event::ListCompleted(_) | Event::Degraded(_) => {}
        }
    }

    fn queued(&mut self) {
        let now = SystemTime::now();
        for family in &self.families {
            self.health.queued(*family);
            self.metrics.sync_queued(*family, now);
        }
    }

    async fn synced(&mut self, syncer: &Syncer, report: &SyncReport) {
        self.report(syncer, report);
        self.count_without_local(syncer, report);
        self.serve_health_checks(syncer, report);
        self.clean_flows(syncer, report);
        self.send_events(report);
    }

    fn failed(&mut self, _error: &SyncError) {
        for family in &self.families {
            self.metrics.sync_failed(*family, SyncKind::Full, Duration::ZERO);
        }
    }

    fn troubled(&mut self, trouble: Trouble) {
        self.health.troubled(trouble.reason, trouble.rules_missing);
    }

    fn recovered(&mut self) {
        self.health.recovered();
    }

    fn repaired_foreign_change(&mut self, report: &SyncReport) {
        self.metrics.drift_repaired();
        // Those that we could have written ourselves. What the sources removed at
        // the same time is counted with them.
        if report.removed > 0 {
            self.metrics.foreign_removed("element", report.removed);
        }
    }
}

fn add(counts: &mut [usize; 2], more: [usize; 2]) {
    counts[0] += more[0];
    counts[1] += more[1];
}

/// How many ports of a Service have endpoints somewhere, but none that its
/// internal (first) or external policy allows on this node.
fn without_local(compiled: &CompiledService) -> [usize; 2] {
    let service = &compiled.service;
    let mut counts = [0; 2];
    for (port, endpoints) in service.ports.iter().zip(&compiled.ports) {
        if !endpoints.any || !endpoints.local.is_empty() {
            continue;
        }
        counts[0] += usize::from(service.internal_policy_local);
        counts[1] += usize::from(service.external_policy_local && service.externally_accessible(port));
    }
    counts
}
