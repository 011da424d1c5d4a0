//! Reference counts for shared elements and generated chains.

use std::hash::Hash;
use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::model::{Endpoint, Protocol};
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key, Verdict};
use crate::ruleset::maps::Map;

/// The elements of [shared](Map::is_shared) maps, and how many Services contribute
/// each.
///
/// Nearly every Service has a cluster IP, so they are keyed as small as can be.
#[derive(Debug, Default)]
pub(super) struct SharedElements {
    cluster_ips: Counts<IpAddr>,
    hairpins: Counts<(Endpoint, Protocol)>,
}

impl SharedElements {
    /// Returns whether any Service contributes it.
    pub(super) fn has(&self, element: &Element) -> bool {
        match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => self.cluster_ips.has(&address),
            (_, Key::Hairpin(endpoint, protocol)) => self.hairpins.has(&(endpoint, protocol)),
            _ => false,
        }
    }

    /// Counts one more; whether it is the first. Elements of one owner: always.
    pub(super) fn add(&mut self, element: &Element) -> bool {
        match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => self.cluster_ips.add(address),
            (_, Key::Hairpin(endpoint, protocol)) => self.hairpins.add((endpoint, protocol)),
            _ => true,
        }
    }

    /// Drops one reference. Returns true if it was the last; always true for
    /// elements that are never shared.
    pub(super) fn remove(&mut self, element: &Element) -> bool {
        match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => self.cluster_ips.remove(&address),
            (_, Key::Hairpin(endpoint, protocol)) => self.hairpins.remove(&(endpoint, protocol)),
            _ => true,
        }
    }
}

/// How often each key is wanted. Nearly all are wanted once, and have no number.
#[derive(Debug)]
struct Counts<K> {
    wanted: FxHashSet<K>,
    /// How often beyond the first time, never 0.
    more: FxHashMap<K, u32>,
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self { wanted: FxHashSet::default(), more: FxHashMap::default() }
    }
}

impl<K: Copy + Eq + Hash> Counts<K> {
    fn has(&self, key: &K) -> bool {
        self.wanted.contains(key)
    }

    /// Returns whether it is the first time.
    fn add(&mut self, key: K) -> bool {
        let is_first = self.wanted.insert(key);
        if !is_first {
            *self.more.entry(key).or_default() += 1;
        }
        is_first
    }

    /// Returns whether it was the last time.
    fn remove(&mut self, key: &K) -> bool {
        let Some(more) = self.more.get_mut(key) else { return self.wanted.remove(key) };
        *more -= 1;
        if *more == 0 {
            self.more.remove(key);
        }
        false
    }
}

/// Chains that are made when the first element points to them.
///
/// Chains that learn for a timeout are deleted some time after their last use,
/// because there may be one for every timeout that was ever used. All others
/// stay: their number is bounded ([`crate::ruleset::spread`]), the same counts
/// soon come again, and creating one makes the kernel walk over all elements of
/// its endpoint map.
#[derive(Debug, Default)]
pub(super) struct CountedChains {
    /// The number of elements that point to each learning chain.
    uses: FxHashMap<Chain, u32>,
    /// Those that the kernel holds, in use or not.
    present: FxHashSet<Chain>,
    /// Chains that learn and that nothing points to.
    idle: FxHashSet<Chain>,
}

/// The chain that an element points to, if it is one of those made for a
/// number.
fn made_for_number(element: &Element) -> Option<Chain> {
    match element.data {
        Data::Verdict(Verdict::Goto(
            chain @ (Chain::Balance { .. } | Chain::LearnFor { .. } | Chain::SourceRanges(_)),
        )) => Some(chain),
        _ => None,
    }
}

impl CountedChains {
    /// An element points here; returns the chains that have to be made, in
    /// order.
    pub(super) fn add(&mut self, element: &Element) -> Vec<Chain> {
        let Some(chain) = made_for_number(element) else { return Vec::new() };
        if let Chain::LearnFor { .. } = chain {
            *self.uses.entry(chain).or_default() += 1;
            self.idle.remove(&chain);
        }
        if !self.present.insert(chain) {
            return Vec::new();
        }
        let mut chains: Vec<Chain> = chain.needs().filter(|needed| self.present.insert(*needed)).collect();
        chains.push(chain);
        chains
    }

    /// An element that pointed here is gone.
    pub(super) fn remove(&mut self, element: &Element) {
        let Some(chain) = made_for_number(element) else { return };
        let Some(count) = self.uses.get_mut(&chain) else { return };
        *count -= 1;
        if *count == 0 {
            self.uses.remove(&chain);
            self.idle.insert(chain);
        }
    }

    /// The kernel holds this chain already.
    pub(super) fn adopt(&mut self, chain: Chain) {
        let is_new = self.present.insert(chain);
        if is_new && matches!(chain, Chain::LearnFor { .. }) && !self.uses.contains_key(&chain) {
            self.idle.insert(chain);
        }
    }

    /// Returns whether the kernel holds this chain.
    pub(super) fn has(&self, chain: Chain) -> bool {
        self.present.contains(&chain)
    }

    /// Returns the number of chains that could be deleted.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// The chains that can be deleted; forgets them.
    pub(super) fn take_idle(&mut self) -> FxHashSet<Chain> {
        let idle = std::mem::take(&mut self.idle);
        self.present.retain(|chain| !idle.contains(chain));
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_time_are_told_apart() {
        let mut counts = Counts::default();
        assert!(!counts.remove(&7) && !counts.has(&7));
        assert_eq!([counts.add(7), counts.add(7), counts.add(8), counts.add(7)], [true, false, true, false]);
        assert_eq!([counts.remove(&7), counts.remove(&8), counts.remove(&7)], [false, true, false]);
        assert_eq!((counts.has(&7), counts.has(&8), counts.more.len()), (true, false, 0));
        assert_eq!([counts.remove(&7), counts.remove(&7), counts.add(7)], [true, false, true]);
    }
}
