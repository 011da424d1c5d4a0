//! The kernel's state, as far as a resync compares it.

use std::collections::{HashMap, HashSet};

use rustc_hash::FxHashMap;

use super::phases::Value;
use crate::model::Endpoint;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key, ListNumber};
use crate::ruleset::maps::Map;
use crate::ruleset::target::Target;

/// One table as the kernel holds it; the default is no table at all.
#[derive(Debug, Default)]
pub struct KernelState {
    /// Whether the table exists.
    pub exists: bool,
    /// Our chains, and whether their rules and hooks are correct.
    pub chains: HashMap<Chain, bool>,
    /// The maps that exist as they should be.
    pub maps: Vec<Map>,
    /// The elements.
    pub elements: KernelElements,
    /// The numbers of lists under which clients are remembered.
    pub learned: HashSet<ListNumber>,
    /// The elements of an earlier table that this one replaces, as far as they
    /// give numbers to lists: `affinity-timeouts` and the maps of lists. Clients
    /// are remembered there under these numbers. None of them is in this table.
    pub earlier: KernelElements,
}

/// The elements of one table as the kernel holds them, without `affinity`:
/// that map belongs to the packets.
#[derive(Debug, Default)]
pub struct KernelElements(FxHashMap<(Map, Key), Value>);

impl KernelElements {
    /// Adds an element that was read.
    pub fn insert(&mut self, element: Element) {
        self.0.insert((element.map, element.key), (element.data, element.comment));
    }

    /// Returns the number of the list that a frontend sends its clients to, if
    /// its comment names this owner.
    pub(super) fn list_number(&self, map: Map, target: Target, owner: &str) -> Option<ListNumber> {
        let Data::List(number) = self.0.get(&(map, Key::Target(target)))?.0 else { return None };
        let (_, comment) = self.0.get(&(Map::AffinityTimeouts, Key::List(number)))?;
        (comment.as_deref() == Some(owner)).then_some(number)
    }

    /// The numbers of all lists.
    pub(super) fn list_numbers(&self) -> impl Iterator<Item = ListNumber> {
        let numbers = |((_, key), (data, _)): (&(Map, Key), &Value)| match (key, data) {
            (Key::List(number), _) => Some(*number),
            (_, Data::List(number)) => Some(*number),
            _ => None,
        };
        self.0.iter().filter_map(numbers)
    }

    /// Removes and returns the element under a key.
    pub(super) fn take(&mut self, map: Map, key: Key) -> Option<Value> {
        self.0.remove(&(map, key))
    }

    /// Takes out all elements of the maps that are wanted, in order.
    pub(super) fn take_all(&mut self, wanted: impl Fn(Map) -> bool) -> Vec<((Map, Key), Value)> {
        let mut taken: Vec<_> = self.0.extract_if(|(map, _), _| wanted(*map)).collect();
        taken.sort_unstable_by_key(|(place, _)| *place);
        taken
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints in slots 0, 1, … of a frontend.
    pub(super) fn slots(&self, map: Map, target: Target) -> Vec<Endpoint> {
        let endpoint = |slot| match self.0.get(&(map, Key::Slot(target, slot)))?.0 {
            Data::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        };
        (0..).map_while(endpoint).collect()
    }
}
