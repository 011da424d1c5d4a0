//! The start, and what follows a refusal or a foreign change: read the kernel,
//! compare, and send the difference.

use std::sync::Arc;

use compiler::diff::{KernelElements, KernelState, Resync, Transaction};
use compiler::model::convert::index;
use compiler::model::types::ServiceName;
use compiler::ruleset::Family;
use compiler::ruleset::chains::Chain;
use compiler::ruleset::maps::Map;
use compiler::ruleset::skeleton::rules;

use super::report::SyncReport;
use super::{SyncError, Syncer, refused};
use crate::netlink::{CommitError, NetlinkError, TableState};

/// How many Services the kernel may refuse, one after the other, before a
/// repair is given up.
const MAX_ATTEMPTS: usize = 64;

impl Syncer {
    /// Makes the kernel hold what it should. Services that the kernel refuses
    /// keep what was programmed for them, and everything else goes in.
    pub(super) async fn repair(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        report.repaired = true;
        let mut last = String::new();
        for _ in 0..MAX_ATTEMPTS {
            self.store.take_node_changed();
            self.store.take_dirty();
            let kernel = self.read_kernel().await?;
            let mut resync = Resync::begin(&mut self.planner, &self.store, kernel);
            let failed = self.run_resync(&mut resync, report).await;
            let Some((transaction, error)) = failed else {
                self.initialised = true;
                self.last_good.clear();
                let operations = self.stale_affinity().await?;
                let swept = self.commit(&mut Transaction { operations }, report).await;
                return swept.map_err(|error| self.netlink_error(error));
            };
            let CommitError::Refused { .. } = &error else { return Err(self.netlink_error(error)) };
            for refusal in refused(&transaction, &error) {
                last.clone_from(&refusal.description);
                match refusal.owner.as_deref().and_then(|owner| owner.split_once('/')) {
                    Some((namespace, name)) => self.quarantine(&ServiceName::new(namespace, name)),
                    None => return Err(SyncError::Skeleton(refusal.description)),
                }
                report.refused.push(refusal);
            }
        }
        Err(SyncError::Unrepairable { attempts: MAX_ATTEMPTS, last })
    }

    /// Commits all transactions; returns the one that failed.
    async fn run_resync(&mut self, resync: &mut Resync, report: &mut SyncReport) -> Option<(Transaction, CommitError)> {
        while let Some(mut transaction) = resync.next(&mut self.planner) {
            if let Err(error) = self.commit(&mut transaction, report).await {
                return Some((transaction, error));
            }
        }
        None
    }

    fn quarantine(&mut self, name: &ServiceName) {
        let good = self.last_good.remove(name).unwrap_or([None, None]);
        self.planner.quarantine(name, good);
    }

    async fn read_kernel(&mut self) -> Result<[KernelState; 2], NetlinkError> {
        let mut states = [KernelState::default(), KernelState::default()];
        for family in Family::ALL {
            if self.enabled[index(family)] {
                states[index(family)] = self.read_table(family).await?;
            }
        }
        Ok(states)
    }

    async fn read_table(&mut self, family: Family) -> Result<KernelState, NetlinkError> {
        let Some(table) = self.kernel.read_table(family).await? else {
            return Ok(KernelState::default());
        };
        if let Some(what) = incompatible(&table, family) {
            // Hooks and key types can't be changed in place.
            tracing::warn!(family = %family, "{what} is of another version of vmap-proxy: the table is made anew");
            self.kernel.delete_table(family).await?;
            return Ok(KernelState::default());
        }
        let skeleton = self.planner.skeleton(self.store.node(), family);
        let mut state = KernelState { exists: true, ..KernelState::default() };
        for name in table.chain_names() {
            if let Some(chain) = Chain::parse(name) {
                state.chains.insert(chain, table.chain_matches(chain, family, &rules(&skeleton, chain)));
            }
        }
        for map in Map::ALL.into_iter().filter(|map| table.map_matches(*map, family)) {
            state.maps.push(map);
            if map != Map::Affinity {
                state.elements = self.read_map(family, map, state.elements).await?;
            }
        }
        Ok(state)
    }

    async fn read_map(
        &mut self,
        family: Family,
        map: Map,
        mut elements: KernelElements,
    ) -> Result<KernelElements, NetlinkError> {
        // One text for all elements that carry it.
        let mut previous: Option<Arc<str>> = None;
        for state in self.kernel.read_elements(family, map).await? {
            let mut element = state.element;
            if element.comment.is_some() && element.comment == previous {
                element.comment.clone_from(&previous);
            }
            previous.clone_from(&element.comment);
            elements.insert(element);
        }
        Ok(elements)
    }
}

/// A map or base chain that exists and is not what it should be.
fn incompatible(table: &TableState, family: Family) -> Option<String> {
    let map = table.map_names().filter_map(Map::parse).find(|map| !table.map_matches(*map, family));
    if let Some(map) = map {
        return Some(format!("map {map}"));
    }
    let chain = table.chain_names().filter_map(Chain::parse).find(|chain| !table.base_matches(*chain));
    chain.map(|chain| format!("chain {chain}"))
}
