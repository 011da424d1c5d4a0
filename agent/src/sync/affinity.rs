//! Removal of learned affinity entries.

use std::collections::{HashMap, HashSet};

use vmap_proxy_compiler::model::Endpoint;
use vmap_proxy_compiler::plan::{Action, MAX_OPERATIONS, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber};
use vmap_proxy_compiler::ruleset::maps::Map;

use super::Syncer;
use super::report::SyncReport;
use crate::netlink::{CommitError, NetlinkError};

impl Syncer {
    /// Removes every affinity entry whose endpoint is no longer in its list, and
    /// those of lists that are gone, in the families where a plan removed one.
    /// Runs once after all commits of a sync: listing the map takes up to a
    /// second, and a packet may learn of an endpoint until the last commit.
    ///
    /// If it fails, the next sync compares everything and sweeps again.
    pub(super) fn sweep(&mut self, report: &mut SyncReport) {
        if !self.to_sweep.values().any(|sweep| *sweep) {
            return;
        }
        match self.sweep_families(report) {
            Ok(()) => {
                self.to_sweep = Default::default();
                self.planner.forgotten();
            }
            Err(error) => {
                tracing::debug!("affinity entries of removed endpoints could not be swept: {error}");
                self.damaged = true;
            }
        }
    }

    fn sweep_families(&mut self, report: &mut SyncReport) -> Result<(), CommitError> {
        let mut operations = Vec::new();
        for family in Family::ALL {
            if self.to_sweep[family] && self.writable()[family] {
                operations.extend(self.stale_affinity(family)?);
            }
        }
        // Each can be removed alone, and very many at once would keep other writers of nftables waiting.
        let at_once = MAX_OPERATIONS.min(self.kernel.max_operations());
        operations
            .chunks(at_once)
            .try_for_each(|some| self.commit(&mut Transaction { operations: some.to_vec() }, report))
    }

    /// The entries to be removed in one family. Removing an entry that expires
    /// meanwhile is no error.
    fn stale_affinity(&mut self, family: Family) -> Result<Vec<Operation>, NetlinkError> {
        let learned = self.kernel.read_elements(family, Map::Affinity)?;
        // A list may be long, and many clients may be remembered in it.
        let mut lists: HashMap<ListNumber, HashSet<Endpoint>> = HashMap::new();
        let mut operations = Vec::new();
        for element in learned.into_iter().map(|state| state.element) {
            let Some((number, endpoint)) = learned_of(&element) else { continue };
            let list = lists.entry(number).or_insert_with(|| {
                self.planner.list(family, number).into_iter().flat_map(|list| list.iter()).collect()
            });
            if !list.contains(&endpoint) {
                operations.push(Operation { family, action: Action::DeleteElement(element), owner: None });
            }
        }
        Ok(operations)
    }
}

/// In which list a client was placed, and where.
pub(super) fn learned_of(element: &Element) -> Option<(ListNumber, Endpoint)> {
    match (element.key, element.data) {
        (Key::Affinity(_, number), Data::Endpoint(endpoint)) => Some((number, endpoint)),
        _ => None,
    }
}
