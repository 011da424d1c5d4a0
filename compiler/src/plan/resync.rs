//! Start and repair: compares the kernel's state with the desired one. A
//! restart without changes sends nothing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashSet;
use thin_vec::ThinVec;

use super::adopt::adopt;
use super::claims::{Claims, precedence};
use super::counted::{CountedChains, SharedElements};
use super::family_state::FamilyState;
use super::kernel_state::KernelState;
use super::lists::ListNumbers;
use super::node::{node_elements, node_owner};
use super::phases::{Phases, transaction};
use super::planner::Planner;
use super::{Action, Operation, Transaction};
use crate::limits::{MAX_ELEMENTS, elements_at_most};
use crate::model::store::ServiceEntry;
use crate::model::types::{Service, ServiceName};
use crate::model::{Family, PerFamily, Store};
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Element, Key};
use crate::ruleset::maps::Map;
use crate::ruleset::service::{CompiledService, claims, elements, firewall};
use crate::ruleset::skeleton::{SkeletonConfig, rules};
use crate::select::Joins;

/// Plans, piece by piece, from the kernel's state to the desired one: see
/// [`Planner::resync`].
///
/// It is an iterator over the transactions to commit, in order. They obey the
/// same law of visibility as those of a change.
#[derive(Debug)]
pub struct Resync<'a> {
    planner: &'a mut Planner,
    store: &'a Store,
    /// All Services, those that win a contended frontend before those that lose
    /// it. Each can therefore be compiled and emitted before the next.
    services: Vec<(&'a ServiceName, &'a ServiceEntry)>,
    /// The number of compiled ones, whose keys were [given](Self::keys_ahead) if maps are looked up.
    compiled: usize,
    /// The number of emitted ones.
    emitted: usize,
    /// Shared keys that were given last. Their elements are perhaps not emitted yet.
    shared_asked: FxHashSet<(Family, Map, Key)>,
    kernel: PerFamily<KernelState>,
    phases: Phases,
    ready: VecDeque<Transaction>,
    finished: bool,
    left_out: Vec<ServiceName>,
}

impl Planner {
    /// Compares the kernel with the whole store: at a start, after a refusal,
    /// and after others changed our tables.
    ///
    /// It deals with everything that changed in the store, so that nothing is
    /// left for [`Self::update`]. If the resync is dropped before its end, or one
    /// of its transactions is not committed, the kernel must be read and compared
    /// again before the next update.
    pub fn resync<'a>(&'a mut self, store: &'a mut Store, kernel: PerFamily<KernelState>) -> Resync<'a> {
        store.mark_clean();
        let services = self.by_precedence(store);
        Resync::begin(self, store, services, kernel)
    }

    /// Plans the removal of elements that the kernel has and nothing wants, for
    /// those that a resync could not see. They leave in the order of every other
    /// removal.
    pub fn removal(&self, elements: impl IntoIterator<Item = (Family, Element)>) -> Vec<Transaction> {
        let mut phases = Phases::new(PerFamily::default(), self.sizes);
        for (family, Element { map, key, data, comment }) in elements {
            phases.element(family, (map, key), Some((data, comment)), None, None);
        }
        phases.finish()
    }

    /// A resync that makes tables which the kernel does not have, with the node's
    /// elements. No Service goes into them, and no rule leads into them yet.
    pub(super) fn empty_tables(&mut self, store: &mut Store) -> (Vec<Transaction>, Vec<Operation>) {
        store.take_node_changed();
        let Resync { ready, mut phases, .. } = Resync::begin(self, store, Vec::new(), PerFamily::default());
        let connections = phases.take_connections();
        self.families.values_mut().for_each(|state| state.slots_unknown = false);
        (ready.into(), connections)
    }
}

impl<'a> Resync<'a> {
    /// Begins with the skeleton and the firewall; the Services follow.
    fn begin(
        planner: &'a mut Planner,
        store: &'a Store,
        services: Vec<(&'a ServiceName, &'a ServiceEntry)>,
        mut kernel: PerFamily<KernelState>,
    ) -> Self {
        planner.unconnected.clear();
        let mut phases = Phases::new(kernel.as_ref().map(|state| !state.exists), planner.sizes);
        let mut ready = VecDeque::new();
        for family in Family::ALL {
            let kernel = &mut kernel[family];
            let needless = take_needless(kernel);
            planner.reset(store, family, kernel);
            let mut skeleton = skeleton_operations(&planner.families[family].skeleton, kernel);
            let actions =
                needless.into_iter().flat_map(|chain| [Action::FlushChain(chain), Action::DeleteChain(chain)]);
            skeleton.extend(actions.map(|action| Operation { family, action, owner: None }));
            if !kernel.exists {
                // Chains that spread connections lead to no verdicts, and are cheaper to fill before the endpoints come.
                let leads_on = |operation: &mut Operation| match operation.action {
                    Action::AddRule(chain, _) => !Chain::AHEAD.contains(&chain),
                    _ => false,
                };
                phases.connect(skeleton.extract_if(.., leads_on));
            }
            ready.extend(transaction(skeleton));
        }
        let (finished, left_out, shared_asked) = (false, Vec::new(), FxHashSet::default());
        let mut resync = Self {
            planner,
            store,
            services,
            compiled: 0,
            emitted: 0,
            shared_asked,
            kernel,
            phases,
            ready,
            finished,
            left_out,
        };
        for family in Family::ALL {
            resync.node(family);
            resync.firewall(family);
        }
        let first = resync.phases.take_pointed();
        resync.ready.extend(first);
        resync
    }

    /// Like [`Iterator::next`], but processes at most this many more Services.
    /// The list may be empty before the end; check [`Self::is_finished`]. For
    /// kernels whose elements are [supplied](Self::supply) as they are needed.
    pub fn next_chunk(&mut self, services: usize) -> Vec<Transaction> {
        self.advance(services);
        self.ready.drain(..).collect()
    }

    /// Returns whether the resync has ended.
    pub fn is_finished(&self) -> bool {
        self.finished && self.ready.is_empty()
    }

    /// Services that were left out because they would take frontends from others
    /// that had their turn before them. That can only happen to a Service in
    /// quarantine that was made again for one family and not for the other. Mark
    /// them ([`Store::mark_dirty`]), and the next [`Planner::update`] decides.
    pub fn take_left_out(&mut self) -> Vec<ServiceName> {
        std::mem::take(&mut self.left_out)
    }

    /// Returns the keys at which the next Services expect elements in these
    /// maps, for maps that are too large to be listed: look them up in the
    /// kernel and [supply](Self::supply) them before these Services are
    /// [planned](Self::next_chunk). Each call goes on where the last one ended, and
    /// may be one ahead of the planning: the kernel can look up keys while the
    /// Services before them are planned.
    ///
    /// A key that several Services share is given once.
    pub fn keys_ahead(&mut self, maps: &PerFamily<BTreeSet<Map>>, services: usize) -> Vec<(Family, Map, Key)> {
        if maps.values().all(BTreeSet::is_empty) {
            return Vec::new();
        }
        let ahead = self.compiled..self.services.len().min(self.compiled + services);
        self.compile_up_to(ahead.end);
        let mut keys = Vec::new();
        let before = std::mem::take(&mut self.shared_asked);
        for (family, wanted) in maps.iter().filter(|(_, maps)| !maps.is_empty()) {
            let state = &self.planner.families[family];
            for (name, _) in &self.services[ahead.clone()] {
                let Some(compiled) = state.services.get(*name) else { continue };
                elements(name, compiled, &mut |element| {
                    if !wanted.contains(&element.map) {
                        return;
                    }
                    let key = (family, element.map, element.key);
                    let is_known = element.map.is_shared()
                        && (state.shared.has(&element) || before.contains(&key) || !self.shared_asked.insert(key));
                    if !is_known {
                        keys.push(key);
                    }
                });
            }
        }
        keys
    }

    /// The kernel holds this element.
    pub fn supply(&mut self, family: Family, element: Element) {
        self.kernel[family].elements.insert(element);
    }

    fn advance(&mut self, services: usize) {
        for _ in 0..services {
            match self.services.get(self.emitted).copied() {
                Some((name, _)) => {
                    self.emitted += 1;
                    self.compile_up_to(self.emitted);
                    for family in Family::ALL {
                        self.service(name, family);
                    }
                    let full = self.phases.take_full();
                    self.ready.extend(full);
                }
                None if self.finished => return,
                None => self.finish(),
            }
        }
    }

    fn compile_up_to(&mut self, end: usize) {
        for (name, entry) in self.services.get(self.compiled..end).unwrap_or_default() {
            for family in Family::ALL {
                if !self.planner.compile_anew(self.store, name, entry, family) {
                    self.left_out.push((*name).clone());
                }
            }
        }
        self.compiled = self.compiled.max(end);
    }

    /// The node's elements. Unwanted ranges are removed now, because new ones
    /// may overlap with them.
    fn node(&mut self, family: Family) {
        let elements = node_elements(&self.planner.config, self.store, family);
        let mut desired: HashMap<(Map, Key), Element> =
            elements.iter().map(|element| ((element.map, element.key), element.clone())).collect();
        self.planner.families[family].node_elements = elements;
        let owner = node_owner();
        for (place, held) in self.kernel[family].elements.take_all(is_of_node) {
            let wanted = desired.remove(&place).map(|element| (element.data, element.comment));
            self.phases.element(family, place, Some(held), wanted, Some(&owner));
        }
        let mut missing: Vec<_> = desired.into_iter().collect();
        missing.sort_unstable_by_key(|(place, _)| *place);
        for (place, element) in missing {
            self.phases.element(family, place, None, Some((element.data, element.comment)), Some(&owner));
        }
    }

    /// The source ranges of all Services: they must be in place before anything
    /// points behind them. Unwanted ones are removed last, like all leftovers.
    fn firewall(&mut self, family: Family) {
        for (name, entry) in &self.services {
            let Some(mut filtered) = self.planner.source_ranges(name, entry, family) else { continue };
            // No Service loses a frontend, because those that win are processed
            // first.
            self.planner.families[family].claims.add(name, &claims(&filtered), filtered.service.created);
            self.planner.deny(name, family, &mut filtered);
            let state = &mut self.planner.families[family];
            let held = &mut self.kernel[family].elements;
            firewall(&filtered, &mut |element| {
                state.count(&element, &mut self.phases);
                let (place, held) = ((element.map, element.key), held.take(element.map, element.key));
                let wanted = Some((element.data, element.comment));
                self.phases.element(family, place, held, wanted, Some(name.text()));
            });
        }
    }

    /// One Service: whatever the kernel does not hold as it should.
    fn service(&mut self, name: &ServiceName, family: Family) {
        let KernelState { elements: kernel, earlier, .. } = &mut self.kernel[family];
        let state = &mut self.planner.families[family];
        let Some(mut compiled) = state.services.remove(name) else { return };
        if state.slots_unknown && !(kernel.is_empty() && earlier.is_empty()) {
            adopt(name, &mut compiled, kernel, earlier, state);
        }
        state.number(name, &mut compiled);
        elements(name, &compiled, &mut |element| {
            if !state.count(&element, &mut self.phases) || is_firewall(element.map) {
                return;
            }
            let (place, held) = ((element.map, element.key), kernel.take(element.map, element.key));
            let wanted = Some((element.data, element.comment));
            self.phases.element(family, place, held, wanted, Some(name.text()));
        });
        state.services.insert(name.clone(), compiled);
    }

    /// Removes unwanted elements of the kernel, and adds the rules of new
    /// tables.
    fn finish(&mut self) {
        for family in Family::ALL {
            for (place, held) in self.kernel[family].elements.take_all(|_| true) {
                self.phases.element(family, place, Some(held), None, None);
            }
        }
        let last = self.phases.finish();
        self.ready.extend(last);
        self.finished = true;
        self.planner.families.values_mut().for_each(|state| state.slots_unknown = false);
    }
}

impl Iterator for Resync<'_> {
    type Item = Transaction;

    /// The next transaction to commit, or `None` when the kernel has the
    /// desired state.
    fn next(&mut self) -> Option<Transaction> {
        while self.ready.is_empty() && !self.finished {
            self.advance(1);
        }
        self.ready.pop_front()
    }
}

fn is_firewall(map: Map) -> bool {
    matches!(map, Map::FirewallIps | Map::SourceRanges | Map::SourceRangeMarkers)
}

fn is_of_node(map: Map) -> bool {
    matches!(map, Map::NodePortIps | Map::ServiceCidrs)
}

/// Forgets the base chains of the firewall where nothing needs them, and returns
/// them: earlier versions always had them, and every packet passed them.
fn take_needless(kernel: &mut KernelState) -> Vec<Chain> {
    let is_needed = kernel.chains.keys().any(|chain| matches!(chain, Chain::SourceRanges(_)));
    let needless = Chain::FIREWALL.into_iter().filter(|chain| !is_needed && kernel.chains.remove(chain).is_some());
    needless.collect()
}

/// Creates the missing parts of the table, its maps and chains, and rewrites
/// chains whose rules differ.
fn skeleton_operations(skeleton: &SkeletonConfig, kernel: &KernelState) -> Vec<Operation> {
    let family = skeleton.family;
    let mut actions = Vec::new();
    if !kernel.exists {
        actions.push(Action::AddTable);
    }
    actions.extend(Map::all().filter(|map| !kernel.maps.contains(map)).map(Action::AddMap));
    let mut missing = Chain::missing(&kernel.chains.keys().copied().collect());
    if !kernel.exists {
        missing.extend(Chain::AHEAD);
    }
    actions.extend(missing.iter().copied().map(Action::AddChain));
    let wrong = kernel.chains.iter().filter(|(_, right)| !**right).map(|(chain, _)| *chain);
    // The order shows in listings.
    let to_fill: BTreeSet<Chain> = wrong.chain(missing).collect();
    for chain in to_fill {
        if kernel.chains.contains_key(&chain) {
            actions.push(Action::FlushChain(chain));
        }
        actions.extend(rules(skeleton, chain).into_iter().map(|rule| Action::AddRule(chain, rule)));
    }
    actions.into_iter().map(|action| Operation { family, action, owner: None }).collect()
}

impl Planner {
    /// Resets the counts; the Services are emitted again one by one.
    fn reset(&mut self, store: &Store, family: Family, kernel: &KernelState) {
        let config = self.config.clone();
        let state = &mut self.families[family];
        let new = FamilyState::new(family, &config, store.node());
        state.skeleton = new.skeleton;
        state.primary_address = new.primary_address;
        state.services.retain(|name, _| store.get(name).is_some());
        state.too_large.retain(|name, _| store.get(name).is_some());
        state.claims = Claims::default();
        state.shared = SharedElements::default();
        state.chains = CountedChains::default();
        let ahead = Chain::AHEAD.into_iter().filter(|_| !kernel.exists);
        ahead.for_each(|chain| state.chains.adopt(chain));
        let found = kernel.elements.list_numbers().chain(kernel.earlier.list_numbers());
        let found = found.chain(kernel.learned.iter().copied());
        state.lists = ListNumbers::reset(state.services.iter(), found);
        for chain in kernel.chains.keys() {
            state.chains.adopt(*chain);
            // If it is not there, [`skeleton_operations`] makes it.
            chain.needs().for_each(|needed| state.chains.adopt(needed));
        }
    }

    /// All Services, in the order in which they win contended frontends.
    fn by_precedence<'a>(&self, store: &'a Store) -> Vec<(&'a ServiceName, &'a ServiceEntry)> {
        let created = |name: &ServiceName, entry: &ServiceEntry| {
            let service = Family::ALL.into_iter().filter_map(|family| self.effective(name, entry, family)).next();
            service.map_or(0, |service| service.created)
        };
        let mut services: Vec<_> = store.iter().map(|(name, entry)| (created(name, entry), name, entry)).collect();
        services.sort_unstable_by(|(one, name, _), (other, other_name, _)| {
            precedence(*one, name).cmp(&precedence(*other, other_name))
        });
        services.into_iter().map(|(_, name, entry)| (name, entry)).collect()
    }

    /// The Service that is to be programmed in a family: while it is in
    /// quarantine, the one that was programmed last.
    fn effective<'a>(
        &'a self,
        name: &ServiceName,
        entry: &'a ServiceEntry,
        family: Family,
    ) -> Option<&'a Arc<Service>> {
        let service = entry.service[family].as_ref()?;
        if self.is_quarantined(name) {
            return self.families[family].services.get(name).map(|compiled| &compiled.service);
        }
        Some(service)
    }

    /// Returns the part of a Service that its source ranges depend on; `None`
    /// if it has none.
    fn source_ranges(&self, name: &ServiceName, entry: &ServiceEntry, family: Family) -> Option<CompiledService> {
        let service = self.effective(name, entry, family).filter(|service| !service.source_ranges.is_empty())?;
        let joins = Joins::new(family, entry.slices());
        if elements_at_most(service, &joins) > MAX_ELEMENTS {
            return None;
        }
        let admits_node = self.families[family].admits_node(service);
        let ports = Box::default();
        Some(CompiledService { service: service.clone(), ports, denied: ThinVec::new(), ready_local: 0, admits_node })
    }

    /// Compiles one Service and replaces its programmed state. Services that
    /// win over it must have been compiled before. If they have not, it is left
    /// out, and the result is false.
    pub(super) fn compile_anew(
        &mut self,
        store: &Store,
        name: &ServiceName,
        entry: &ServiceEntry,
        family: Family,
    ) -> bool {
        let before = self.families[family].services.remove(name);
        let compiled = self.compile(store, name, entry, family, before.as_ref());
        let mut compiled = self.admit(name, family, compiled);
        let affected = self.claim(name, family, compiled.as_ref());
        if let Some(loser) = compiled.take_if(|_| !affected.is_empty()) {
            let held = &mut self.families[family].claims;
            held.remove(name, &claims(&loser), loser.service.created);
        }
        let state = &mut self.families[family];
        if let Some(before) = &before {
            state.release(before, compiled.as_ref());
        }
        if let Some(mut compiled) = compiled {
            self.deny(name, family, &mut compiled);
            self.families[family].services.insert(name.clone(), compiled);
        }
        affected.is_empty()
    }
}
