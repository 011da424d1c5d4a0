//! Very many changed Services, cut into plans of a bounded size.

use super::phases::MAX_OPERATIONS;
use super::planner::Planner;
use crate::limits::{MAX_ELEMENTS, elements_about, elements_at_most};
use crate::model::Store;
use crate::model::types::ServiceName;
use crate::ruleset::Family;
use crate::select::Joins;

/// The approximate number of elements in one plan of many Services. A plan is
/// in memory as a whole, so it must not be too large. But the kernel walks over
/// all verdicts at every commit that adds some, and a plan needs one at least: so
/// few large plans are better than many small ones (decisions 27 and 93).
pub const PIECE: u64 = 98_304;

impl Planner {
    /// Plans of very many Services are cut at about this many elements instead
    /// of [`PIECE`].
    pub fn limit_plans_to(&mut self, elements: u64) {
        self.piece = elements;
    }

    /// Takes as many changed Services as one plan of a bounded size can be
    /// about, and at least one if any changed. What is programmed between two
    /// plans is as consistent as between two changes.
    pub(super) fn take_piece(&self, store: &mut Store) -> Vec<ServiceName> {
        let mut piece = Vec::new();
        let mut elements = 0;
        // The kernel walks over no verdicts of tables that are being filled.
        let most = if self.is_filling() { self.piece.min(MAX_OPERATIONS as u64) } else { self.piece };
        while elements < most
            && let Some(name) = store.next_dirty()
        {
            // The last one need not be weighed.
            elements += if store.has_dirty() { self.weight(store, &name) } else { 0 };
            piece.push(name);
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
                Some(elements_at_most(service, &Joins::new(family, entry.slices())))
            });
            before.saturating_add(after.filter(|elements| *elements <= MAX_ELEMENTS).unwrap_or(0))
        };
        Family::ALL.into_iter().map(of_family).fold(0, u64::saturating_add)
    }
}
