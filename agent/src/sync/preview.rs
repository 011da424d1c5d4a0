//! What a first sync would commit, without a commit: for `vmap-proxy plan`.

use std::collections::{BTreeMap, BTreeSet};

use vmap_proxy_compiler::model::{PerFamily, Store};
use vmap_proxy_compiler::plan::{KernelState, Planner, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::skeleton::rules;

use super::MAX_LISTED;
use super::compare::{incompatible, note_table};
use super::look_up::{SERVICES_AT_ONCE, by_map};
use crate::netlink::{Kernel, NetlinkError, OwnTable, TableState};

/// A number of elements of each map.
type Counted = PerFamily<BTreeMap<Map, u32>>;

/// The kernel's tables, as far as a plan starts from them.
#[derive(Debug, Default)]
pub struct Found {
    /// The tables.
    pub states: PerFamily<KernelState>,
    /// Why the table of a family would be replaced as a whole.
    pub replaced: PerFamily<Option<String>>,
    /// Objects in our tables that are not ours, and would be removed.
    pub foreign: Vec<String>,
    looked_up: Counted,
}

/// Reads our tables, and changes nothing. The rules are compared with those of
/// `planner`.
///
/// # Errors
/// If the kernel can't be read.
pub fn read(
    kernel: &mut Kernel,
    planner: &Planner,
    store: &Store,
    families: &[Family],
    flush_proof: bool,
) -> Result<Found, NetlinkError> {
    let mut found = Found::default();
    for family in families {
        let Some(table) = kernel.read_table(OwnTable::Main, *family)? else { continue };
        let keyword = family.keyword();
        found.foreign.extend(table.foreign().iter().map(|object| format!("{object} in table {keyword} vmap-proxy")));
        found.replaced[*family] = incompatible(&table, *family, flush_proof);
        if found.replaced[*family].is_none() {
            read_table(kernel, *family, &table, (planner, store), &mut found)?;
        }
    }
    Ok(found)
}

fn read_table(
    kernel: &mut Kernel,
    family: Family,
    table: &TableState,
    (planner, store): (&Planner, &Store),
    found: &mut Found,
) -> Result<(), NetlinkError> {
    let skeleton = planner.skeleton(store.node(), family);
    let state = &mut found.states[family];
    let to_list = note_table(table, family, &skeleton, MAX_LISTED, (state, &mut found.looked_up[family]));
    for map in to_list.into_iter().filter(|map| !map.is_dynamic()) {
        let (states, _) = kernel.read_contents(family, map)?;
        states.into_iter().for_each(|listed| state.elements.insert(listed.element));
    }
    Ok(())
}

/// Calls `each` with every transaction that a first sync would commit. Returns
/// for how many elements of large maps, which are looked up and not listed, no
/// object is known: they would be removed.
///
/// # Errors
/// If the kernel can't be read.
pub fn transactions(
    kernel: Option<&mut Kernel>,
    planner: &mut Planner,
    store: &mut Store,
    found: Found,
    mut each: impl FnMut(Transaction),
) -> Result<u32, NetlinkError> {
    let Found { states, looked_up, .. } = found;
    let mut resync = planner.resync(store, states);
    let Some(kernel) = kernel.filter(|_| looked_up.values().any(|maps| !maps.is_empty())) else {
        resync.for_each(each);
        return Ok(0);
    };
    let maps = looked_up.as_ref().map(|maps| maps.keys().copied().collect::<BTreeSet<Map>>());
    let mut seen = Counted::default();
    while !resync.is_finished() {
        for ((family, map), keys) in by_map(resync.keys_ahead(&maps, SERVICES_AT_ONCE)) {
            for state in kernel.look_up(family, map, &keys)?.0 {
                *seen[family].entry(map).or_default() += 1;
                resync.supply(family, state.element);
            }
        }
        resync.next_chunk(SERVICES_AT_ONCE).into_iter().for_each(&mut each);
    }
    let surplus = looked_up.iter().flat_map(|(family, maps)| {
        let seen = &seen;
        maps.iter().map(move |(map, count)| count.saturating_sub(seen[family].get(map).copied().unwrap_or(0)))
    });
    Ok(surplus.sum())
}

/// The state that another planner has programmed, as if a kernel had it. The
/// rules are compared with those of `planner`.
pub fn of_planner(programmed: &Planner, planner: &Planner, store: &Store) -> Found {
    let mut found = Found::default();
    for table in programmed.ruleset().tables {
        let family = table.family;
        let skeleton = planner.skeleton(store.node(), family);
        let state = &mut found.states[family];
        state.exists = true;
        state.maps = Map::all().collect();
        let chains = table.chains.into_iter();
        state.chains = chains.map(|(chain, had)| (chain, had == rules(&skeleton, chain))).collect();
        table.elements.into_iter().for_each(|element| state.elements.insert(element));
    }
    found
}
