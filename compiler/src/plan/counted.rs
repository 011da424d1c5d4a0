//! What is there for as long as somebody needs it: elements that several
//! Services contribute, and chains that elements point to.

use std::net::IpAddr;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{Action, Operation, Transaction};
use crate::model::{Endpoint, Protocol};
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key, Verdict};
use crate::ruleset::maps::Map;
use crate::ruleset::rule::Statement;
use crate::ruleset::skeleton::{SkeletonConfig, rules};

/// Elements that several Services may contribute, and how many do.
///
/// Nearly every Service has a cluster IP, so they are keyed as small as can be.
#[derive(Debug, Default)]
pub(super) struct SharedElements {
    cluster_ips: FxHashMap<IpAddr, u32>,
    hairpins: FxHashMap<(Endpoint, Protocol), u32>,
}

impl SharedElements {
    /// Whether elements of this map are counted at all.
    pub(super) fn covers(map: Map) -> bool {
        matches!(map, Map::ClusterIps | Map::HairpinConnections)
    }

    /// Whether anybody contributes it.
    pub(super) fn has(&self, element: &Element) -> bool {
        match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => self.cluster_ips.contains_key(&address),
            (_, Key::Hairpin(endpoint, protocol)) => self.hairpins.contains_key(&(endpoint, protocol)),
            _ => false,
        }
    }

    /// Counts one more; whether it is the first. Elements of one owner: always.
    pub(super) fn add(&mut self, element: &Element) -> bool {
        let count = match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => self.cluster_ips.entry(address).or_default(),
            (_, Key::Hairpin(endpoint, protocol)) => self.hairpins.entry((endpoint, protocol)).or_default(),
            _ => return true,
        };
        *count += 1;
        *count == 1
    }

    /// Counts one less; whether it was the last. Elements of one owner: always.
    pub(super) fn remove(&mut self, element: &Element) -> bool {
        match (element.map, element.key) {
            (Map::ClusterIps, Key::Address(address)) => one_less(&mut self.cluster_ips, address),
            (_, Key::Hairpin(endpoint, protocol)) => one_less(&mut self.hairpins, (endpoint, protocol)),
            _ => true,
        }
    }
}

fn one_less<K: std::hash::Hash + Eq>(counts: &mut FxHashMap<K, u32>, key: K) -> bool {
    let Some(count) = counts.get_mut(&key) else { return false };
    *count -= 1;
    *count == 0 && counts.remove(&key).is_some()
}

/// Chains that are made when the first element points to them.
///
/// Those that learn for a timeout are deleted again some time after the last
/// did: there may be one for every timeout that was ever used. All others stay.
/// There are only so many ([`crate::ruleset::spread`]), the numbers come again
/// soon, and making one lets the kernel walk over all elements of its endpoint
/// map.
#[derive(Debug, Default)]
pub(super) struct CountedChains {
    /// How many elements point to each chain that learns.
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

    /// Whether the kernel holds this chain.
    pub(super) fn has(&self, chain: Chain) -> bool {
        self.present.contains(&chain)
    }

    /// How many chains could be deleted.
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

/// The operations that make a chain with its rules.
pub(super) fn make_chain(skeleton: &SkeletonConfig, chain: Chain, operations: &mut Vec<Operation>) {
    let family = skeleton.family;
    let mut push = |action| operations.push(Operation { family, action, owner: None });
    push(Action::AddChain(chain));
    for rule in rules(skeleton, chain) {
        push(Action::AddRule(chain, rule));
    }
}

/// New chains get transactions of their own, before anything points to them.
///
/// A packet keeps the generation of *rules* in which it entered a base chain,
/// but sees *elements* of the newest generation at every lookup. One that is on
/// its way while a transaction adds both would follow the new verdict into a
/// chain that is still empty for it, fall out of it and go on untranslated: see
/// decision 13.
///
/// Each rule that looks endpoints up ends a transaction: the kernel walks over
/// all elements of the map when it takes the rule, and no other writer should
/// wait for more than one such walk.
pub(super) fn chains_ahead(chains: Vec<Operation>) -> Vec<Transaction> {
    let walks = |operation: &Operation| match &operation.action {
        Action::AddRule(_, rule) => rule.0.iter().any(|statement| matches!(statement, Statement::Dnat(..))),
        _ => false,
    };
    let mut transactions = Vec::new();
    let mut operations = Vec::new();
    for operation in chains {
        let is_last = walks(&operation);
        operations.push(operation);
        if is_last {
            transactions.push(Transaction { operations: std::mem::take(&mut operations) });
        }
    }
    if !operations.is_empty() {
        transactions.push(Transaction { operations });
    }
    transactions
}
