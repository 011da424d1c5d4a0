//! From changed elements to transactions.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::{Action, Operation, Transaction};
use crate::ruleset::Family;
use crate::ruleset::element::{Data, Element, Key};
use crate::ruleset::maps::{DataKind, Map};

/// The most operations of one transaction. One commit blocks every other
/// nftables writer of the namespace: this many take well below 50 ms. And what
/// is sent is in memory twice meanwhile, as operations and as bytes: four times
/// as many cost 4 MiB more at a first sync.
pub const MAX_OPERATIONS: usize = 2048;

/// What an element holds besides its key.
pub(super) type Value = (Data, Option<Arc<str>>);

#[derive(Debug, Default)]
struct Net {
    before: Option<Value>,
    after: Option<Value>,
    owner: Option<Arc<str>>,
}

/// Elements that were and that should be; several Services may speak of the
/// same element, and only the net effect counts.
#[derive(Debug, Default)]
pub(super) struct Batch {
    elements: FxHashMap<(Family, Map, Key), Net>,
}

impl Batch {
    /// The kernel holds this element.
    pub(super) fn was(&mut self, family: Family, element: Element, owner: &Arc<str>) {
        let net = self.elements.entry((family, element.map, element.key)).or_default();
        net.before = Some((element.data, element.comment));
        net.owner.get_or_insert_with(|| owner.clone());
    }

    /// The kernel should hold this element.
    pub(super) fn should_be(&mut self, family: Family, element: Element, owner: &Arc<str>) {
        let net = self.elements.entry((family, element.map, element.key)).or_default();
        net.after = Some((element.data, element.comment));
        net.owner = Some(owner.clone());
    }

    /// Sorts the net changes into what grows and points, and what shrinks.
    pub(super) fn into_changes(self) -> ElementChanges {
        let mut changes = ElementChanges::default();
        let mut nets: Vec<_> = self.elements.into_iter().collect();
        nets.sort_unstable_by_key(|(place, _)| *place);
        for ((family, map, key), net) in nets {
            changes.add(family, map, key, net.before, net.after, net.owner.as_ref());
        }
        changes
    }
}

/// Element operations by when they may become visible.
#[derive(Debug, Default)]
pub(super) struct ElementChanges {
    /// What leaves interval sets: before what comes, since the kernel refuses
    /// overlaps, and both together.
    interval_removals: Vec<Operation>,
    /// What comes into interval sets.
    interval_additions: Vec<Operation>,
    /// New and replaced elements that nothing points to yet.
    grow: Vec<Operation>,
    /// Frontends that get a firewall: once its ranges are there, and before
    /// anything serves them.
    close: Vec<Operation>,
    /// New, replaced and removed verdicts.
    point: Vec<Operation>,
    /// Frontends that lose their firewall: once nothing serves them that it
    /// guarded, and before its ranges go.
    open: Vec<Operation>,
    /// What nothing points to any more.
    shrink: Vec<Operation>,
}

impl ElementChanges {
    /// Takes the difference at one key.
    pub(super) fn add(
        &mut self,
        family: Family,
        map: Map,
        key: Key,
        before: Option<Value>,
        after: Option<Value>,
        owner: Option<&Arc<str>>,
    ) {
        if before == after {
            return;
        }
        let operation = |action| Operation { family, action, owner: owner.cloned() };
        let element = |(data, comment): Value| Element { map, key, data, comment };
        let removed = before.map(|value| operation(Action::DeleteElement(element(value))));
        let added = after.map(|value| operation(Action::AddElement(element(value))));
        match (removed, added) {
            (removed, added) if map.is_interval() => {
                self.interval_removals.extend(removed);
                self.interval_additions.extend(added);
            }
            (Some(removed), None) if map == Map::FirewallIps => self.open.push(removed),
            (removed, added) if map == Map::FirewallIps => self.close.extend(removed.into_iter().chain(added)),
            (Some(removed), None) if !points(map) => self.shrink.push(removed),
            (removed, added) if map == Map::AffinityTimeouts => self.grow.extend(removed.into_iter().chain(added)),
            (removed, added) if map.data() == DataKind::Verdict => {
                self.point.extend(removed.into_iter().chain(added));
            }
            (removed, added) => self.grow.extend(removed.into_iter().chain(added)),
        }
    }

    /// How many operations there are.
    pub(super) fn len(&self) -> usize {
        let intervals = self.interval_removals.len() + self.interval_additions.len();
        intervals + self.grow.len() + self.close.len() + self.point.len() + self.open.len() + self.shrink.len()
    }

    /// The transactions, in order; the first begins with `rules`.
    pub(super) fn into_transactions(self, rules: Vec<Operation>) -> Vec<Transaction> {
        let mut transactions = Vec::new();
        let mut first = rules;
        first.extend(self.interval_removals);
        first.extend(self.interval_additions);
        first.extend(self.grow);
        first.extend(self.close);
        first.extend(self.point);
        push_chunks(first, &mut transactions);
        let mut last = self.open;
        last.extend(self.shrink);
        push_chunks(last, &mut transactions);
        transactions
    }
}

/// Whether removing an element of the map takes something away from packets
/// before what it leads to. What holds packets back that find no frontend goes
/// only after the frontend is there. And nobody is to be numbered whose number
/// leads nowhere any more: he would keep it as a priority.
fn points(map: Map) -> bool {
    let goes_later = matches!(map, Map::NoEndpointServices | Map::NoEndpointNodePorts | Map::AffinityTimeouts);
    map.data() == DataKind::Verdict && !goes_later
}

/// Cuts a long list of operations into about equal parts. A removal and the
/// addition that replaces it are neighbours and are not torn apart.
///
/// Each part has a list of its own size: `Vec::split_off` would leave every
/// part with the capacity of all that followed it, which is quadratic.
pub(super) fn push_chunks(operations: Vec<Operation>, transactions: &mut Vec<Transaction>) {
    let mut left = operations.len();
    let mut operations = operations.into_iter().peekable();
    // Lists are handed over when they are full or a little fuller: no commit
    // for the little.
    while left > MAX_OPERATIONS + MAX_OPERATIONS / 8 {
        let parts = left.div_ceil(MAX_OPERATIONS);
        let mut part: Vec<Operation> = operations.by_ref().take(left.div_ceil(parts)).collect();
        while let Some(next) = operations.next_if(|next| part.last().is_some_and(|last| replaces(last, next))) {
            part.push(next);
        }
        left -= part.len();
        transactions.push(Transaction { operations: part });
    }
    if left > 0 {
        transactions.push(Transaction { operations: operations.collect() });
    }
}

fn replaces(first: &Operation, second: &Operation) -> bool {
    let interval = |element: &Element| element.map.is_interval();
    match (&first.action, &second.action) {
        (Action::DeleteElement(old), Action::AddElement(new)) => {
            (old.map, old.key) == (new.map, new.key) || (interval(old) && interval(new))
        }
        (Action::DeleteElement(old), Action::DeleteElement(new)) => interval(old) && interval(new),
        _ => false,
    }
}
