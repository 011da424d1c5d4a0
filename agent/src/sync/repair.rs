//! The start, and what follows a refusal or a foreign change: read the kernel,
//! compare, and send the difference.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use compiler::diff::planner::ServiceChange;
use compiler::diff::{KernelElements, KernelState, Resync, Transaction};
use compiler::model::convert::{PerFamily, index};
use compiler::model::types::ServiceName;
use compiler::ruleset::Family;
use compiler::ruleset::chains::Chain;
use compiler::ruleset::element::{Element, Key};
use compiler::ruleset::maps::Map;
use compiler::ruleset::service::CompiledService;
use compiler::ruleset::skeleton::rules;

use super::report::SyncReport;
use super::{SyncError, Syncer, commit, pipeline, refused};
use crate::netlink::{CommitError, Kernel, NetlinkError, TableState};

/// How many Services the kernel may refuse, one after the other, before a
/// repair is given up.
const MAX_ATTEMPTS: usize = 64;

/// A map with more elements than this is not listed but looked up element by
/// element: the time of a listing grows with the square of their number (half
/// a minute for 500,000), that of look-ups does not. And what is listed is in
/// memory as a whole: 50,000 elements are 18 MiB.
pub(super) const MAX_LISTED: u32 = 8_192;

/// How many Services are looked up together.
const SERVICES_AT_ONCE: usize = 512;

/// Maps that are looked up, and how many elements each has.
type LookedUp = PerFamily<HashMap<Map, u32>>;

/// How a pass through the kernel ended.
enum Pass {
    /// It holds what it should.
    Done,
    /// A map that was looked up holds more than was looked for: list it.
    Leftovers,
    /// It refused a transaction.
    Refused(Transaction, CommitError),
}

impl Syncer {
    /// Makes the kernel hold what it should. Services that the kernel refuses
    /// keep what was programmed for them, and everything else goes in.
    pub(super) async fn repair(&mut self, report: &mut SyncReport) -> Result<(), SyncError> {
        report.repaired = true;
        let mut last = String::new();
        let mut list_all = false;
        // What came at the same time is to be told like any change. At the
        // start nothing was before.
        let dirty = self.store.take_dirty();
        let changing = if self.initialised { self.compiled(dirty) } else { Vec::new() };
        for _ in 0..MAX_ATTEMPTS {
            self.store.take_node_changed();
            let (kernel, looked_up) = self.read_kernel(list_all).await?;
            let (transaction, error) = match self.send_difference(kernel, &looked_up, report).await? {
                Pass::Leftovers => {
                    list_all = true;
                    continue;
                }
                Pass::Done => {
                    self.initialised = true;
                    self.last_good.clear();
                    report.changed = self.changes(changing);
                    report.denied = self.planner.all_denied();
                    let operations = self.stale_affinity().await?;
                    let swept = self.commit(&mut Transaction { operations }, report);
                    return swept.map_err(|error| self.netlink_error(error));
                }
                Pass::Refused(transaction, error) => (transaction, error),
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

    /// Commits what the kernel lacks, up to a transaction that is refused.
    async fn send_difference(
        &mut self,
        kernel: PerFamily<KernelState>,
        looked_up: &LookedUp,
        report: &mut SyncReport,
    ) -> Result<Pass, NetlinkError> {
        let mut resync = Resync::begin(&mut self.planner, &self.store, kernel);
        if looked_up.iter().all(HashMap::is_empty) {
            let sent = pipeline::run(&mut resync, &mut self.planner, &mut self.kernel, self.enabled, report);
            return Ok(match sent {
                Ok(()) => Pass::Done,
                Err((transaction, error)) => Pass::Refused(transaction, error),
            });
        }
        let maps = looked_up.each_ref().map(|maps| maps.keys().copied().collect::<HashSet<Map>>());
        let mut found: LookedUp = Default::default();
        while !resync.is_finished() {
            let keys = resync.keys_ahead(&mut self.planner, &maps, SERVICES_AT_ONCE);
            for element in look_up(&mut self.kernel, keys).await? {
                *found[index(element.0)].entry(element.1.map).or_default() += 1;
                resync.supply(element.0, element.1);
            }
            for mut transaction in resync.next_chunk(&mut self.planner, SERVICES_AT_ONCE) {
                if let Err(error) = commit(&mut self.kernel, self.enabled, &mut transaction, report) {
                    return Ok(Pass::Refused(transaction, error));
                }
            }
        }
        Ok(if found == *looked_up { Pass::Done } else { Pass::Leftovers })
    }

    /// What is programmed for these Services.
    fn compiled(&self, names: Vec<ServiceName>) -> Vec<(ServiceName, PerFamily<Option<CompiledService>>)> {
        let compiled = |name: &ServiceName| Family::ALL.map(|family| self.planner.compiled(name, family).cloned());
        names.into_iter().map(|name| (name.clone(), compiled(&name))).collect()
    }

    /// What became of Services that were programmed so.
    fn changes(&self, before: Vec<(ServiceName, PerFamily<Option<CompiledService>>)>) -> Vec<ServiceChange> {
        let mut changes = Vec::new();
        for (name, before) in before {
            for (family, before) in Family::ALL.into_iter().zip(before) {
                let after = self.planner.compiled(&name, family).cloned();
                if before != after {
                    changes.push(ServiceChange { name: name.clone(), family, before, after });
                }
            }
        }
        changes
    }

    fn quarantine(&mut self, name: &ServiceName) {
        let good = self.last_good.remove(name).unwrap_or([None, None]);
        self.planner.quarantine(name, good);
    }

    /// Reads both tables. Large maps are left out, to be looked up, unless all
    /// are to be listed or the kernel does not tell how large they are.
    async fn read_kernel(&mut self, list_all: bool) -> Result<(PerFamily<KernelState>, LookedUp), NetlinkError> {
        let mut states = [KernelState::default(), KernelState::default()];
        let mut looked_up = LookedUp::default();
        for family in Family::ALL {
            if self.enabled[index(family)] {
                let largest = if list_all { u32::MAX } else { self.max_listed };
                (states[index(family)], looked_up[index(family)]) = self.read_table(family, largest).await?;
            }
        }
        Ok((states, looked_up))
    }

    async fn read_table(
        &mut self,
        family: Family,
        largest: u32,
    ) -> Result<(KernelState, HashMap<Map, u32>), NetlinkError> {
        let Some(table) = self.kernel.read_table(family).await? else {
            return Ok(Default::default());
        };
        if let Some(what) = incompatible(&table, family) {
            // Hooks and key types can't be changed in place.
            tracing::warn!(family = %family, "{what} is of another version of vmap-proxy: the table is made anew");
            self.kernel.delete_table(family)?;
            return Ok(Default::default());
        }
        let skeleton = self.planner.skeleton(self.store.node(), family);
        let mut state = KernelState { exists: true, ..KernelState::default() };
        for name in table.chain_names() {
            if let Some(chain) = Chain::parse(name) {
                state.chains.insert(chain, table.chain_matches(chain, family, &rules(&skeleton, chain)));
            }
        }
        let mut looked_up = HashMap::new();
        for map in Map::ALL.into_iter().filter(|map| table.map_matches(*map, family)) {
            state.maps.push(map);
            match table.count(map) {
                _ if map == Map::Affinity => {}
                Some(count) if count > largest && !map.is_interval() && !is_firewall(map) => {
                    looked_up.insert(map, count);
                }
                _ => state.elements = self.read_map(family, map, state.elements).await?,
            }
        }
        Ok((state, looked_up))
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

async fn look_up(kernel: &mut Kernel, keys: Vec<(Family, Map, Key)>) -> Result<Vec<(Family, Element)>, NetlinkError> {
    let mut by_map: HashMap<(Family, Map), Vec<Key>> = HashMap::new();
    for (family, map, key) in keys {
        by_map.entry((family, map)).or_default().push(key);
    }
    let mut elements = Vec::new();
    for ((family, map), keys) in by_map {
        let found = kernel.look_up(family, map, &keys).await?;
        elements.extend(found.into_iter().map(|state| (family, state.element)));
    }
    Ok(elements)
}

/// The firewall is compared as a whole, before anything else.
fn is_firewall(map: Map) -> bool {
    matches!(map, Map::FirewallIps | Map::NodePortIps)
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
