//! The net effect of several Services on the elements they share.

use arcstr::ArcStr;
use rustc_hash::FxHashMap;

use super::phases::{Phases, Value};
use crate::ruleset::Family;
use crate::ruleset::element::{Element, Key};
use crate::ruleset::maps::Map;

#[derive(Debug, Default)]
struct NetChange {
    held: Option<Value>,
    wanted: Option<Value>,
    owner: Option<ArcStr>,
}

/// Elements that the kernel holds and that it should hold. Several Services may
/// name the same element, and only the net effect counts.
#[derive(Debug, Default)]
pub(super) struct NetChanges {
    elements: FxHashMap<(Family, Map, Key), NetChange>,
}

impl NetChanges {
    /// The kernel holds this element.
    pub(super) fn held(&mut self, family: Family, element: Element, owner: &ArcStr) {
        let net = self.elements.entry((family, element.map, element.key)).or_default();
        net.held = Some((element.data, element.comment));
        net.owner.get_or_insert_with(|| owner.clone());
    }

    /// The kernel should hold this element.
    pub(super) fn wanted(&mut self, family: Family, element: Element, owner: &ArcStr) {
        let net = self.elements.entry((family, element.map, element.key)).or_default();
        net.wanted = Some((element.data, element.comment));
        net.owner = Some(owner.clone());
    }

    /// Puts the net changes where they belong, in the order of their keys.
    pub(super) fn into_phases(self, phases: &mut Phases) {
        let mut nets: Vec<_> = self.elements.into_iter().collect();
        nets.sort_unstable_by_key(|(place, _)| *place);
        for ((family, map, key), net) in nets {
            phases.element(family, (map, key), net.held, net.wanted, net.owner.as_ref());
        }
    }
}
