//! Serves NodePorts on localhost, if the configuration wants it.

use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::ruleset::Family;

use super::{Observer, SyncDone};
use crate::localhost_node_ports::LocalhostNodePorts;
use crate::localhost_node_ports::changes::{NodePortChanges, has_node_port, node_ports};
use crate::sync::Syncer;
use crate::sync::report::SyncReport;

/// Hands the changes of NodePorts to the relay, and never waits.
#[derive(Debug)]
pub struct LocalhostRelay {
    relay: LocalhostNodePorts,
    /// Whether it was reported that the relay has ended.
    lost: bool,
}

impl LocalhostRelay {
    /// For this relay, which serves nothing yet.
    pub fn new(relay: LocalhostNodePorts) -> Self {
        Self { relay, lost: false }
    }
}

impl Observer for LocalhostRelay {
    fn on_sync(&mut self, done: &SyncDone) {
        let changes = &done.node_ports;
        if !changes.is_empty() && !self.relay.change(changes.clone()) && !std::mem::replace(&mut self.lost, true) {
            tracing::error!(
                "the relay ended unexpectedly, NodePorts are not served on localhost until the next start; rules are"
            );
        }
    }
}

/// The changes of NodePorts in the families that are [served on
/// localhost](Syncer::report_node_ports); none if none is.
pub(super) fn node_port_changes(syncer: &Syncer, report: &SyncReport) -> NodePortChanges {
    let (planner, served) = (syncer.planner(), syncer.reported_node_ports());
    let families: Vec<Family> = Family::ALL.into_iter().filter(|family| served[*family]).collect();
    let mut changes =
        NodePortChanges { is_complete: report.repaired && !families.is_empty(), ..NodePortChanges::default() };
    let mut note = |name: &ServiceName, family: Family| {
        let programmed = || planner.compiled(name, family).map(node_ports).unwrap_or_default();
        changes.services.entry((name.clone(), family)).or_insert_with(programmed);
    };
    if report.repaired {
        for family in &families {
            let with_ports = planner.all_compiled(*family).filter(|(_, compiled)| has_node_port(compiled));
            with_ports.for_each(|(name, _)| note(name, *family));
        }
    }
    for change in report.changed.iter().filter(|change| served[change.family]) {
        if change.before.iter().chain(&change.after).any(has_node_port) {
            note(&change.name, change.family);
        }
    }
    changes
}
