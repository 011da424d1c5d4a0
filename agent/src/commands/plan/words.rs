//! The changes of one Service in words, from the elements that change.

use std::collections::{BTreeMap, BTreeSet};

use vmap_proxy_compiler::model::Endpoint;
use vmap_proxy_compiler::plan::Action;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, Verdict};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::Target;

use crate::lists::some_of;

/// Frontends and endpoints of one kind that a sentence names.
const NAMED: usize = 4;

/// What changes of one Service, in both families.
#[derive(Debug, Default)]
pub(super) struct ServiceChanges {
    pub(super) added: usize,
    pub(super) removed: usize,
    /// Frontends that are in a map of verdicts afterwards or were before, by the
    /// kind of their treatment.
    treatments: BTreeMap<Target, BTreeMap<Treatment, Sides>>,
    endpoints: BTreeMap<Endpoint, Sides>,
    source_ranges: Sides,
    affinity: Sides,
}

/// The treatment of packets to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Treatment {
    Serve,
    Reject,
    Drop,
    Masquerade,
    LocalPolicy,
}

/// Elements added and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sides {
    added: usize,
    removed: usize,
}

impl Sides {
    fn count(&mut self, is_added: bool) {
        *(if is_added { &mut self.added } else { &mut self.removed }) += 1;
    }

    fn is_new(self) -> bool {
        self.added > 0 && self.removed == 0
    }

    fn is_gone(self) -> bool {
        self.removed > 0 && self.added == 0
    }
}

impl ServiceChanges {
    /// Counts an operation of this Service.
    pub(super) fn note(&mut self, action: &Action) {
        let (element, is_added) = match action {
            Action::AddElement(element) => (element, true),
            Action::DeleteElement(element) => (element, false),
            _ => return,
        };
        *(if is_added { &mut self.added } else { &mut self.removed }) += 1;
        if let Data::Endpoint(endpoint) = element.data {
            self.endpoints.entry(endpoint).or_default().count(is_added);
        }
        match element.map {
            Map::SourceRanges => self.source_ranges.count(is_added),
            Map::AffinityLists(..) => self.affinity.count(is_added),
            _ => {}
        }
        if let (Key::Target(target), Some(treatment)) = (element.key, treatment(element)) {
            self.treatments.entry(target).or_default().entry(treatment).or_default().count(is_added);
        }
    }

    /// Sentences without a subject: the Service is it.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for (treatment, is, is_no_longer) in [
            (Treatment::Serve, "serves", "no longer serves"),
            (Treatment::Reject, "refuses packets to", "no longer refuses packets to"),
            (Treatment::Drop, "drops packets to", "no longer drops packets to"),
            (Treatment::Masquerade, "masquerades connections to", "no longer masquerades connections to"),
            (Treatment::LocalPolicy, "follows the Local policy at", "no longer follows the Local policy at"),
        ] {
            let with = |holds: fn(Sides) -> bool| -> Vec<String> {
                let sides = |of: &BTreeMap<Treatment, Sides>| of.get(&treatment).copied().unwrap_or_default();
                self.treatments
                    .iter()
                    .filter(|(_, of)| holds(sides(of)))
                    .map(|(target, _)| target.to_string())
                    .collect()
            };
            words.extend(sentence(is, &with(Sides::is_new)));
            words.extend(sentence(is_no_longer, &with(Sides::is_gone)));
        }
        // One that moved to another slot is both.
        let endpoints = |holds: fn(Sides) -> bool| -> Vec<String> {
            let wanted = self.endpoints.iter().filter(|(_, sides)| holds(**sides));
            wanted.map(|(endpoint, _)| endpoint.to_string()).collect::<BTreeSet<_>>().into_iter().collect()
        };
        words.extend(sentence("gains", &endpoints(Sides::is_new)));
        words.extend(sentence("loses", &endpoints(Sides::is_gone)));
        let balanced = |of: &BTreeMap<Treatment, Sides>| {
            of.get(&Treatment::Serve).is_some_and(|sides| sides.added > 0 && sides.removed > 0)
        };
        if self.treatments.values().any(balanced) {
            words.push("spreads connections in another way (number of endpoints, affinity or policy)".to_owned());
        }
        if self.source_ranges != Sides::default() {
            let Sides { added, removed } = self.source_ranges;
            words.push(format!("source ranges: {added} added, {removed} removed"));
        }
        match (self.affinity.is_new(), self.affinity.is_gone()) {
            (true, _) => words.push("remembers clients (session affinity)".to_owned()),
            (_, true) => words.push("no longer remembers clients (session affinity)".to_owned()),
            _ => {}
        }
        if words.is_empty() {
            words.push("elements change that no frontend or endpoint depends on alone".to_owned());
        }
        words
    }
}

fn treatment(element: &Element) -> Option<Treatment> {
    match (element.map, element.data) {
        (Map::Frontends(_) | Map::LocalFrontends(_), _) => Some(Treatment::Serve),
        (Map::NoEndpoints(_), Data::Verdict(Verdict::Drop)) => Some(Treatment::Drop),
        (Map::NoEndpoints(_), _) => Some(Treatment::Reject),
        (Map::Masquerade(_), _) => Some(Treatment::Masquerade),
        (Map::LocalPolicy(_), _) => Some(Treatment::LocalPolicy),
        _ => None,
    }
}

fn sentence(verb: &str, objects: &[String]) -> Option<String> {
    (!objects.is_empty()).then(|| format!("{verb} {}", some_of(objects, NAMED)))
}
