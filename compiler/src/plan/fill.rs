//! A first sync that begins before everything is known: new tables fill while
//! the lists still arrive (decision 94). No rule leads into them until the lists
//! are complete, so no packet meets a part of the Services.

use super::family_state::FamilyState;
use super::phases::{Phases, connections};
use super::planner::Planner;
use super::{Action, Operation, Transaction};
use crate::model::types::ServiceName;
use crate::model::{PerFamily, Store};
use crate::ruleset::Family;
use crate::ruleset::service::elements;
use crate::ruleset::skeleton::rules;

impl Planner {
    /// Begins to fill tables that the kernel does not have: makes them with their
    /// maps and chains, without the rules that lead into them. Of the store it
    /// reads the node and the service ranges alone.
    ///
    /// [`Self::fill`] follows any number of times, then [`Self::update`] until it
    /// returns `None`, and [`Self::connect`]. A [resync](Self::resync) ends it, too,
    /// for instance if a transaction was not committed.
    pub fn begin_fill(&mut self, store: &mut Store) -> Vec<Transaction> {
        let (transactions, connections) = self.empty_tables(store);
        self.hold_back(&connections);
        transactions
    }

    /// Plans these Services, as far as they are new. What is left is for
    /// [`Self::update`]: Services that have changed since they were planned, and those
    /// that take a frontend from one that was planned before.
    pub fn fill(&mut self, store: &mut Store, names: &[ServiceName]) -> Vec<Transaction> {
        let mut phases = self.phases();
        for name in names {
            let is_known = self.families.values().any(|state| state.services.contains_key(name));
            if !is_known && self.fill_one(store, name, &mut phases) {
                store.forget_dirty(name);
            }
        }
        self.hold_back(&phases.take_connections());
        phases.finish()
    }

    /// Returns whether it is planned for all families.
    fn fill_one(&mut self, store: &Store, name: &ServiceName, phases: &mut Phases) -> bool {
        let Some(entry) = store.get(name) else { return false };
        let mut all = true;
        for family in Family::ALL {
            all &= self.compile_anew(store, name, entry, family);
            self.families[family].add_new(name, phases);
        }
        all
    }

    /// Plans the rules that lead into the filled tables: from the last of these
    /// transactions on, all Services work.
    pub fn connect(&mut self) -> Vec<Transaction> {
        let unconnected = std::mem::take(&mut self.unconnected);
        let rules = unconnected.into_iter().flat_map(|(family, chain)| {
            let rules = rules(&self.families[family].skeleton, chain);
            rules.into_iter().map(move |rule| Operation { family, action: Action::AddRule(chain, rule), owner: None })
        });
        connections(rules.collect()).collect()
    }

    /// Returns whether no rule leads into the tables yet.
    pub(super) fn is_filling(&self) -> bool {
        !self.unconnected.is_empty()
    }

    /// Phases for the plan of a change.
    pub(super) fn phases(&self) -> Phases {
        let is_filling = self.is_filling();
        Phases::new(PerFamily::from_fn(|_: Family| is_filling), self.sizes)
    }

    /// The rules of these chains come with [`Self::connect`].
    pub(super) fn hold_back(&mut self, rules: &[Operation]) {
        for operation in rules {
            let Action::AddRule(chain, _) = operation.action else { continue };
            if self.unconnected.last() != Some(&(operation.family, chain)) {
                self.unconnected.push((operation.family, chain));
            }
        }
    }
}

impl FamilyState {
    /// A Service that was compiled and had no elements so far.
    fn add_new(&mut self, name: &ServiceName, phases: &mut Phases) {
        let Some(mut compiled) = self.services.remove(name) else { return };
        self.number(name, &mut compiled);
        elements(name, &compiled, &mut |element| {
            if self.count(&element, phases) {
                let (place, wanted) = ((element.map, element.key), (element.data, element.comment));
                phases.element(self.skeleton.family, place, None, Some(wanted), Some(name.text()));
            }
        });
        self.services.insert(name.clone(), compiled);
    }
}
