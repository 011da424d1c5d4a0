//! The result of one sync.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::plan::planner::ServiceChange;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::service::CompiledService;

use super::localhost_node_ports::node_port_changes;
use crate::conntrack::StaleFlows;
use crate::health::service_servers::{ServiceHealth, listen_addresses};
use crate::localhost_node_ports::changes::NodePortChanges;
use crate::metrics::SyncKind;
use crate::sync::report::SyncReport;
use crate::sync::{SyncError, Syncer};

/// The complete result of one sync, for all listeners.
#[derive(Debug, Default)]
pub struct SyncDone {
    /// The committed changes, and the parts that were left out. For a failed
    /// sync: the changes committed before the failure.
    pub report: SyncReport,
    /// The cause of the failure; `None` if it succeeded.
    pub failure: Option<String>,
    /// Whether it undid a foreign change to our tables.
    pub undid_foreign_change: bool,
    /// The families that are not served: the node does not have them, or the kernel lacks something for their rules.
    pub left_out: Vec<Family>,
    /// The number of Services in quarantine.
    pub quarantined: usize,
    /// The digest of the state; `None` after a failure.
    pub digest: Option<u64>,
    /// Service ports that a Local policy leaves without endpoints.
    pub without_local: WithoutLocal,
    /// The health check ports of Services.
    pub health_checks: HealthChecks,
    /// The NodePorts that are served on localhost.
    pub node_ports: NodePortChanges,
    /// Tracked flows that must not go on.
    pub stale_flows: StaleFlows,
}

/// Service ports that have endpoints somewhere, but none that a Local policy
/// allows on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WithoutLocal {
    /// Whether `after` counts all Services, and not only those that changed.
    pub is_complete: bool,
    /// Those of the changed Services before the sync.
    pub before: PerFamily<LocalCounts>,
    /// And after it.
    pub after: PerFamily<LocalCounts>,
}

/// Numbers of service ports, by the policy that counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LocalCounts {
    /// `internalTrafficPolicy: Local`
    pub internal: usize,
    /// `externalTrafficPolicy: Local`
    pub external: usize,
}

/// The changes of the health check ports of Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthChecks {
    /// The addresses to listen on; `None`: as before.
    pub addresses: Option<Vec<IpAddr>>,
    /// Whether `services` names every Service that has such a port.
    pub is_complete: bool,
    /// The Services that have such a port or had one, and its current answer;
    /// `None` if it is gone.
    pub services: BTreeMap<ServiceName, Option<ServiceHealth>>,
}

impl SyncDone {
    /// A sync that succeeded. The work depends on the changes, unless the whole
    /// kernel state was compared or the node changed.
    pub fn succeeded(syncer: &Syncer, report: SyncReport, undid_foreign_change: bool) -> Self {
        Self {
            failure: None,
            undid_foreign_change,
            left_out: left_out(syncer),
            quarantined: syncer.planner().quarantined().count(),
            digest: Some(syncer.digest()),
            without_local: WithoutLocal::of(syncer, &report),
            health_checks: HealthChecks::of(syncer, &report),
            node_ports: node_port_changes(syncer, &report),
            stale_flows: StaleFlows::of_sync(syncer.planner(), syncer.store().node(), &report),
            report,
        }
    }

    /// A sync that failed. What it changed is reported with the next that
    /// succeeds.
    pub fn failed(syncer: &Syncer, report: SyncReport, error: &SyncError) -> Self {
        let quarantined = syncer.planner().quarantined().count();
        Self { failure: Some(error.to_string()), left_out: left_out(syncer), quarantined, report, ..Self::default() }
    }

    /// A removal of elements of an earlier state, between two syncs.
    pub fn removal(syncer: &Syncer, report: SyncReport) -> Self {
        Self {
            left_out: left_out(syncer),
            quarantined: syncer.planner().quarantined().count(),
            stale_flows: StaleFlows::of_sync(syncer.planner(), syncer.store().node(), &report),
            report,
            ..Self::default()
        }
    }

    /// Returns whether the whole kernel state was compared.
    pub fn kind(&self) -> SyncKind {
        if self.report.repaired { SyncKind::Full } else { SyncKind::Partial }
    }
}

fn left_out(syncer: &Syncer) -> Vec<Family> {
    let served = syncer.families();
    Family::ALL.into_iter().filter(|family| !served.contains(family)).collect()
}

impl WithoutLocal {
    fn of(syncer: &Syncer, report: &SyncReport) -> Self {
        let mut counts = Self { is_complete: report.repaired, ..Self::default() };
        if report.repaired {
            for family in Family::ALL {
                let all = syncer.planner().all_compiled(family);
                all.for_each(|(_, compiled)| counts.after[family].add(compiled));
            }
            return counts;
        }
        for ServiceChange { family, before, after, .. } in &report.changed {
            for (counts, compiled) in [(&mut counts.before, before), (&mut counts.after, after)] {
                compiled.iter().for_each(|compiled| counts[*family].add(compiled));
            }
        }
        counts
    }
}

impl LocalCounts {
    fn add(&mut self, compiled: &CompiledService) {
        let service = &compiled.service;
        for (port, endpoints) in service.ports.iter().zip(&compiled.ports) {
            if endpoints.any && endpoints.local.is_empty() {
                self.internal += usize::from(service.internal_policy_local);
                self.external += usize::from(service.external_policy_local && service.externally_accessible(port));
            }
        }
    }
}

impl HealthChecks {
    fn of(syncer: &Syncer, report: &SyncReport) -> Self {
        let planner = syncer.planner();
        let is_new = report.repaired || report.node_changed;
        let addresses = is_new.then(|| listen_addresses(planner.config(), syncer.store().node(), &syncer.families()));
        let has_port = |compiled: &CompiledService| compiled.service.health_check_node_port.is_some();
        let mut services = BTreeMap::new();
        let mut note = |name: &ServiceName| {
            services.entry(name.clone()).or_insert_with(|| service_health(syncer, name));
        };
        if report.repaired {
            let all = Family::ALL.into_iter().flat_map(|family| planner.all_compiled(family));
            all.filter(|(_, compiled)| has_port(compiled)).for_each(|(name, _)| note(name));
        }
        for change in &report.changed {
            if change.before.iter().chain(&change.after).any(has_port) {
                note(&change.name);
            }
        }
        Self { addresses, is_complete: report.repaired, services }
    }
}

/// Returns the answer of a Service's health check; `None` if it has none.
fn service_health(syncer: &Syncer, name: &ServiceName) -> Option<ServiceHealth> {
    let [v4, v6] = Family::ALL.map(|family| syncer.planner().compiled(name, family));
    let count = |compiled: Option<&CompiledService>| compiled.map(|compiled| compiled.ready_local as usize);
    let port = v4.or(v6).and_then(|compiled| compiled.service.health_check_node_port)?;
    Some(ServiceHealth { port, local_ipv4: count(v4), local_ipv6: count(v6) })
}
