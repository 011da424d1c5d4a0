//! Removal of learned affinity entries.

use std::collections::{HashMap, HashSet};

use vmap_proxy_compiler::model::Endpoint;
use vmap_proxy_compiler::plan::{Action, Operation};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber};
use vmap_proxy_compiler::ruleset::maps::Map;

use super::Syncer;
use crate::netlink::NetlinkError;

impl Syncer {
    /// Removes every affinity entry whose endpoint is no longer in its list,
    /// and those of lists that are gone. Removing one that expires meanwhile is
    /// no error.
    pub(super) fn stale_affinity(&mut self) -> Result<Vec<Operation>, NetlinkError> {
        let mut operations = Vec::new();
        for family in Family::ALL {
            if !self.enabled[family] {
                continue;
            }
            let learned = self.kernel.read_elements(family, Map::Affinity)?;
            // A list may be long, and many clients may be remembered in it.
            let mut lists: HashMap<ListNumber, HashSet<Endpoint>> = HashMap::new();
            for element in learned.into_iter().map(|state| state.element) {
                let Some((number, endpoint)) = learned_of(&element) else { continue };
                let list = lists
                    .entry(number)
                    .or_insert_with(|| self.planner.list(family, number).unwrap_or_default().iter().copied().collect());
                if !list.contains(&endpoint) {
                    operations.push(Operation { family, action: Action::DeleteElement(element), owner: None });
                }
            }
        }
        Ok(operations)
    }
}

/// In which list a client was placed, and where.
pub(super) fn learned_of(element: &Element) -> Option<(ListNumber, Endpoint)> {
    match (element.key, element.data) {
        (Key::Affinity(_, number), Data::Endpoint(endpoint)) => Some((number, endpoint)),
        _ => None,
    }
}
