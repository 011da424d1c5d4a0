//! Very many changed Services, cut into plans of a bounded size.

use std::collections::VecDeque;

use super::planner::Planner;
use crate::limits::{MAX_ELEMENTS, elements_about, elements_at_most};
use crate::model::Store;
use crate::model::types::ServiceName;
use crate::ruleset::Family;
use crate::select::Joins;

/// How many elements one plan of many Services may be about. A plan is in
/// memory as a whole; and the kernel walks over all verdicts at every commit
/// that adds some, so the fewer there are the better (decision 27).
pub const PIECE: u64 = 32_768;

impl Planner {
    /// Takes so many names off the front that one [`Self::plan`] for them is of
    /// a bounded size: about so many elements, and at least one Service. What is
    /// programmed between two plans is as consistent as between two changes.
    pub fn take_piece(&self, store: &Store, names: &mut VecDeque<ServiceName>, size: u64) -> Vec<ServiceName> {
        let mut piece = Vec::new();
        let mut elements = 0;
        while let Some(name) = names.pop_front() {
            elements += if names.is_empty() { 0 } else { self.weight(store, &name) };
            piece.push(name);
            if elements >= size {
                break;
            }
        }
        piece
    }

    /// About how many elements the plan of a Service is about.
    fn weight(&self, store: &Store, name: &ServiceName) -> u64 {
        let of_family = |family: Family| {
            let state = &self.families[family];
            let before = state.services.get(name).map_or(0, elements_about);
            let entry = store.get(name);
            let after = entry.and_then(|entry| {
                let service = entry.service[family].as_ref()?;
                Some(elements_at_most(service, &Joins::new(family, &entry.slices)))
            });
            before.saturating_add(after.filter(|elements| *elements <= MAX_ELEMENTS).unwrap_or(0))
        };
        Family::ALL.into_iter().map(of_family).fold(0, u64::saturating_add)
    }
}
