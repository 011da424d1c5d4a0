//! A slow comparison of the kernel with the programmed state, a piece at a time, between syncs.
//!
//! It finds differences of which no notification came: an answer of the kernel that was wrong when it was read, a change
//! while nobody watched, an error of ours. It only finds them. The repair is that of every other difference: the next
//! sync compares everything. A pass begins with the tables (rules, declarations, the number of elements in each map, the
//! node's elements) and then looks up the elements of the Services in the order of their names.

use std::collections::{BTreeSet, HashMap};

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::plan::{Action, Transaction};
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_compiler::words::count;

use super::Syncer;
use crate::netlink::{Kernel, NetlinkError, OwnTable, TableState};

/// The approximate number of elements in one piece: about 10 ms, for which a change may have to wait.
pub(crate) const PIECE_ELEMENTS: usize = 2_048;

/// The most Services in one piece, with elements or without.
const PIECE_SERVICES: usize = 1_024;

/// The number of elements of each map.
pub(super) type Counts = PerFamily<HashMap<Map, i64>>;

/// The state of the comparison.
#[derive(Debug, Default)]
pub(super) struct Background {
    /// The last piece ended here; `None` before a pass.
    position: Option<Position>,
    /// The number of elements that our maps should have: read after each comparison with the whole kernel, and changed by
    /// each commit. `None` if it is not known.
    counts: Option<Counts>,
}

/// How far a pass has come.
#[derive(Debug, Clone, Default)]
struct Position {
    /// The Service that was compared last.
    after: Option<ServiceName>,
    /// The number of elements of the Service behind it that were compared.
    skip: usize,
}

/// The result of one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The first difference, in words. The pass begins anew then.
    pub difference: Option<String>,
    /// Whether it was the last one of a pass.
    pub is_last: bool,
}

impl Background {
    /// The whole kernel was compared, or a sync failed: a pass begins anew, with these numbers of elements.
    pub(super) fn restart(&mut self, counts: Option<Counts>) {
        *self = Self { position: None, counts };
    }

    /// A transaction was committed.
    pub(super) fn committed(&mut self, balance: &Balance) {
        let Some(counts) = &mut self.counts else { return };
        for ((family, map), change) in &balance.0 {
            *counts[*family].entry(*map).or_default() += change;
        }
    }
}

/// How many elements transactions have added to each map, less those that they deleted.
#[derive(Debug, Default)]
pub(crate) struct Balance(HashMap<(Family, Map), i64>);

impl Balance {
    /// Counts a transaction.
    pub(super) fn add(&mut self, transaction: &Transaction) {
        for operation in &transaction.operations {
            let (map, change) = match &operation.action {
                Action::AddElement(element) => (element.map, 1),
                Action::DeleteElement(element) => (element.map, -1),
                _ => continue,
            };
            *self.0.entry((operation.family, map)).or_default() += change;
        }
    }
}

impl Syncer {
    /// Compares the next piece of the kernel with what is programmed, and changes nothing. Nothing may
    /// [wait](Self::is_pending) to be programmed or be [left over](Self::seeks_leftovers).
    ///
    /// # Errors
    /// If the kernel can't be read. The next call compares the same piece.
    pub fn compare_piece(&mut self) -> Result<Piece, NetlinkError> {
        let Some(position) = self.background.position.clone() else {
            let difference = self.compare_tables()?;
            self.background.position = difference.is_none().then(Position::default);
            return Ok(Piece { difference, is_last: false });
        };
        let (difference, position) = self.compare_services(position)?;
        let is_last = position.is_none();
        self.background.position = position.filter(|_| difference.is_none());
        Ok(Piece { difference, is_last })
    }

    /// The numbers of elements that the kernel has.
    pub(super) fn read_counts(&mut self) -> Result<Counts, NetlinkError> {
        let mut counts = Counts::default();
        for family in self.compared() {
            let Some(table) = self.kernel.read_table(OwnTable::Main, family)? else { continue };
            counts[family] = Map::all().filter_map(|map| Some((map, table.count(map)?.into()))).collect();
        }
        Ok(counts)
    }

    fn compared(&self) -> Vec<Family> {
        self.writable().into_iter().filter(|(_, writable)| *writable).map(|(family, _)| family).collect()
    }

    fn compare_tables(&mut self) -> Result<Option<String>, NetlinkError> {
        for family in self.compared() {
            let name = || format!("table {} {TABLE}", family.keyword());
            let Some(table) = self.kernel.read_table(OwnTable::Main, family)? else {
                return Ok(Some(format!("{} is missing", name())));
            };
            if self.kernel.read_table(OwnTable::StandIn, family)?.is_some() {
                return Ok(Some(format!("{} has a stand-in that nobody deleted", name())));
            }
            let difference = self.wrong_object(family, &table).or_else(|| self.wrong_count(family, &table));
            if let Some(what) = difference.or(self.wrong_node_element(family)?) {
                return Ok(Some(format!("{}: {what}", name())));
            }
        }
        Ok(None)
    }

    fn wrong_object(&self, family: Family, table: &TableState) -> Option<String> {
        if table.is_dormant() {
            return Some("the flag dormant switches it off".to_owned());
        }
        if let Some(object) = table.foreign().first() {
            return Some(format!("{object} is not ours"));
        }
        if let Some(chain) = table.wrong_policies().first() {
            return Some(format!("chain {chain} has another policy"));
        }
        let skeleton = self.planner.skeleton(self.store.node(), family);
        if let Some((chain, fault)) = table.wrong_chains(&skeleton).next() {
            return Some(format!("chain {chain} {fault}"));
        }
        let map = Map::all().find(|map| !table.map_matches(*map, family));
        map.map(|map| format!("map {map} is missing or declared otherwise"))
    }

    /// Packets add elements to one map, and the kernel counts both ends of an interval.
    fn wrong_count(&self, family: Family, table: &TableState) -> Option<String> {
        let counts = &self.background.counts.as_ref()?[family];
        for map in Map::all().filter(|map| !map.is_dynamic() && !map.is_interval()) {
            let wanted = counts.get(&map).copied().unwrap_or_default();
            if let Some(found) = table.count(map).filter(|found| i64::from(*found) != wanted) {
                return Some(format!("map {map} has {}, and {wanted} wanted", count(found, "element")));
            }
        }
        None
    }

    fn wrong_node_element(&mut self, family: Family) -> Result<Option<String>, NetlinkError> {
        let elements = self.planner.elements_of_node(family).to_vec();
        let (intervals, others): (Vec<Element>, Vec<Element>) =
            elements.into_iter().partition(|element| element.map.is_interval());
        let (listed, foreign) = self.kernel.read_contents(family, Map::ServiceCidrs)?;
        let listed: BTreeSet<Key> = listed.into_iter().map(|state| state.element.key).collect();
        if !foreign.is_empty() || listed != intervals.iter().map(|element| element.key).collect() {
            return Ok(Some(format!("map {} has other elements", Map::ServiceCidrs)));
        }
        wrong_element(&mut self.kernel, family, &others)
    }

    fn compare_services(&mut self, from: Position) -> Result<(Option<String>, Option<Position>), NetlinkError> {
        let Position { mut after, mut skip } = from;
        let names: Vec<ServiceName> =
            self.store.after(after.as_ref()).map(|(name, _)| name.clone()).take(PIECE_SERVICES + 1).collect();
        let mut left = PIECE_ELEMENTS;
        for name in names.iter().take(PIECE_SERVICES) {
            if left == 0 {
                return Ok((None, Some(Position { after, skip: 0 })));
            }
            let mut all: Vec<(Family, Vec<Element>)> = Vec::new();
            for family in self.compared() {
                all.push((family, self.planner.elements_of(name, family)));
            }
            let count: usize = all.iter().map(|(_, elements)| elements.len()).sum();
            let end = count.min(skip.saturating_add(left));
            let mut begin = 0;
            for (family, elements) in all {
                let part = |bound: usize| bound.saturating_sub(begin).min(elements.len());
                if let Some(what) = wrong_element(&mut self.kernel, family, &elements[part(skip)..part(end)])? {
                    return Ok((Some(format!("Service {name}, table {} {TABLE}: {what}", family.keyword())), None));
                }
                begin += elements.len();
            }
            if end < count {
                return Ok((None, Some(Position { after, skip: end })));
            }
            left = left.saturating_sub(end.saturating_sub(skip));
            skip = 0;
            after = Some(name.clone());
        }
        Ok((None, (names.len() > PIECE_SERVICES).then_some(Position { after, skip: 0 })))
    }
}

/// Looks up these elements, and describes the first that is missing or differs.
fn wrong_element(kernel: &mut Kernel, family: Family, elements: &[Element]) -> Result<Option<String>, NetlinkError> {
    let mut by_map: HashMap<Map, Vec<&Element>> = HashMap::new();
    for element in elements {
        by_map.entry(element.map).or_default().push(element);
    }
    for (map, elements) in by_map {
        let keys: Vec<Key> = elements.iter().map(|element| element.key).collect();
        let (found, _) = kernel.look_up(family, map, &keys)?;
        let found: HashMap<Key, Element> = found.into_iter().map(|state| (state.element.key, state.element)).collect();
        for element in elements {
            let has = match found.get(&element.key) {
                Some(other) if other == element => continue,
                Some(other) => format!("map {map} has {}", render::element(other)),
                None => format!("map {map} does not have it"),
            };
            return Ok(Some(format!("{} is wanted, and {has}", render::element(element))));
        }
    }
    Ok(None)
}
