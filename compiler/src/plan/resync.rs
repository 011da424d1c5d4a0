//! The start, and the repair: what the kernel holds against what it should
//! hold. A restart with nothing changed sends nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::batch::{ElementChanges, MAX_OPERATIONS, Value, push_chunks};
use super::claims::Claims;
use super::counted::{CountedChains, SharedElements, chains_ahead, make_chain};
use super::lists::ListNumbers;
use super::planner::{FamilyState, Planner, node_elements, node_owner};
use super::{Action, Operation, Transaction, slots};
use crate::limits::{MAX_ELEMENTS, elements_at_most};
use crate::model::store::ServiceEntry;
use crate::model::types::{Service, ServiceName};
use crate::model::{Endpoint, PerFamily, Store};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key, ListNumber};
use crate::ruleset::maps::{DataKind, Map};
use crate::ruleset::service::{Claim, CompiledService, all_frontends, claims, elements, firewall, list_comments};
use crate::ruleset::skeleton::{SkeletonConfig, rules};
use crate::select::Joins;

/// The elements of one table as the kernel holds them, without `affinity`:
/// that map belongs to the packets.
#[derive(Debug, Default)]
pub struct KernelElements(FxHashMap<(Map, Key), Value>);

impl KernelElements {
    /// Adds an element that was read.
    pub fn insert(&mut self, element: Element) {
        self.0.insert((element.map, element.key), (element.data, element.comment));
    }

    /// The number of the list that a frontend sends its clients to, if its
    /// comment tells that it is the list of this owner.
    fn list_number(&self, map: Map, key: Key, owner: &str) -> Option<ListNumber> {
        let Data::List(number) = self.0.get(&(map, key))?.0 else { return None };
        let (_, comment) = self.0.get(&(Map::AffinityTimeouts, Key::List(number)))?;
        (comment.as_deref() == Some(owner)).then_some(number)
    }

    /// The numbers of all lists.
    fn list_numbers(&self) -> impl Iterator<Item = ListNumber> {
        let numbers = |((_, key), (data, _)): (&(Map, Key), &Value)| match (key, data) {
            (Key::List(number), _) => Some(*number),
            (_, Data::List(number)) => Some(*number),
            _ => None,
        };
        self.0.iter().filter_map(numbers)
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The endpoints in slots 0, 1, … of a frontend.
    fn slots(&self, map: Map, key: impl Fn(u32) -> Key) -> Vec<Endpoint> {
        let endpoint = |slot| match self.0.get(&(map, key(slot)))?.0 {
            Data::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        };
        (0..).map_while(endpoint).collect()
    }
}

/// One table as the kernel holds it; the default is no table at all.
#[derive(Debug, Default)]
pub struct KernelState {
    /// Whether the table exists.
    pub exists: bool,
    /// Our chains, and whether their rules and hooks are what they should be.
    pub chains: HashMap<Chain, bool>,
    /// The maps that exist as they should be.
    pub maps: Vec<Map>,
    /// The elements.
    pub elements: KernelElements,
    /// The numbers of lists under which clients are remembered.
    pub learned: HashSet<ListNumber>,
}

/// Plans, piece by piece, from what the kernel holds to what it should hold.
///
/// Nothing is pointed at before it is there, and what is left over goes last.
#[derive(Debug)]
pub struct Resync<'a> {
    store: &'a Store,
    /// All Services, those that win a contended frontend before those that lose
    /// it: so each can be compiled and said before the next is looked at.
    services: Vec<(&'a ServiceName, &'a ServiceEntry)>,
    /// How many of them are compiled.
    compiled: usize,
    /// How many of them are said in elements.
    said: usize,
    kernel: PerFamily<KernelElements>,
    chains: Vec<Operation>,
    grow: Vec<Operation>,
    point: Vec<Operation>,
    /// The rules of a table that was not there: they go last, so that the
    /// kernel need not follow them into the verdict maps at every commit that
    /// fills these, and all Services begin to work at once.
    rules: Vec<Operation>,
    /// Which tables were not there.
    new_tables: PerFamily<bool>,
    ready: std::collections::VecDeque<Transaction>,
    finished: bool,
}

impl<'a> Resync<'a> {
    /// Begins: looks at the skeleton and the firewall; the Services follow.
    pub fn begin(planner: &mut Planner, store: &'a Store, mut kernel: PerFamily<KernelState>) -> Self {
        let services = planner.by_precedence(store);
        let new_tables = kernel.as_ref().map(|state| !state.exists);
        let mut ready = Vec::new();
        let mut last = Vec::new();
        for family in Family::ALL {
            planner.reset(store, family, &kernel[family]);
            let state = &planner.families[family];
            let mut skeleton = skeleton_operations(&state.skeleton, &kernel[family]);
            if !kernel[family].exists {
                last.extend(skeleton.extract_if(.., |operation| matches!(operation.action, Action::AddRule(..))));
            }
            push_skeleton(skeleton, &mut ready);
        }
        for family in Family::ALL {
            let kernel = &mut kernel[family].elements;
            let (chains, changes) = firewall_changes(planner, store, &services, family, kernel);
            ready.extend(chains_ahead(chains));
            if changes.len() > 0 {
                ready.extend(changes.into_transactions(Vec::new()));
            }
        }
        Self {
            store,
            services,
            compiled: 0,
            said: 0,
            kernel: kernel.map(|state| state.elements),
            chains: Vec::new(),
            grow: Vec::new(),
            point: Vec::new(),
            rules: last,
            new_tables,
            ready: ready.into(),
            finished: false,
        }
    }

    /// The next transaction to commit, or `None` when the kernel holds what it
    /// should hold. `planner` must be the one it began with, and must not have
    /// changed in between.
    pub fn next(&mut self, planner: &mut Planner) -> Option<Transaction> {
        while self.ready.is_empty() && !self.finished {
            self.advance(planner, 1);
        }
        self.ready.pop_front()
    }

    /// As [`Self::next`], but looks at no more than this many further Services:
    /// what is ready by then, and nothing may be ready although more is to come
    /// ([`Self::is_finished`]). For kernels whose elements are supplied as they
    /// are needed.
    pub fn next_chunk(&mut self, planner: &mut Planner, services: usize) -> Vec<Transaction> {
        self.advance(planner, services);
        self.ready.drain(..).collect()
    }

    /// Whether there is nothing more to come.
    pub fn is_finished(&self) -> bool {
        self.finished && self.ready.is_empty()
    }

    /// Where the next Services expect elements in these maps: to be looked up
    /// in the kernel and [supplied](Self::supply), for maps that are too large
    /// to be listed. What another Service has brought in already is left out.
    pub fn keys_ahead(
        &mut self,
        planner: &mut Planner,
        maps: &PerFamily<HashSet<Map>>,
        services: usize,
    ) -> Vec<(Family, Map, Key)> {
        if maps.values().all(HashSet::is_empty) {
            return Vec::new();
        }
        let ahead = self.said..self.services.len().min(self.said + services);
        self.compile_up_to(planner, ahead.end);
        let mut keys = Vec::new();
        let mut seen = HashSet::new();
        for family in Family::ALL {
            for (name, _) in &self.services[ahead.clone()] {
                let (state, wanted) = (&planner.families[family], &maps[family]);
                let Some(compiled) = state.services.get(*name).filter(|_| !wanted.is_empty()) else { continue };
                elements(name, compiled, &mut |element| {
                    let place = (element.map, element.key);
                    let shared = SharedElements::covers(element.map);
                    if wanted.contains(&element.map)
                        && !(shared && (state.shared.has(&element) || !seen.insert((family, place))))
                    {
                        keys.push((family, element.map, element.key));
                    }
                });
            }
        }
        keys
    }

    /// The kernel holds this element.
    pub fn supply(&mut self, family: Family, element: Element) {
        self.kernel[family].insert(element);
    }

    fn advance(&mut self, planner: &mut Planner, services: usize) {
        for _ in 0..services {
            match self.services.get(self.said).copied() {
                Some((name, _)) => {
                    self.said += 1;
                    self.compile_up_to(planner, self.said);
                    for family in Family::ALL {
                        self.service(planner, name, family);
                    }
                    self.flush_full();
                }
                None if self.finished => return,
                None => {
                    self.flush_all();
                    self.connect();
                    self.leftovers();
                    self.finished = true;
                    planner.families.values_mut().for_each(|state| state.fresh = false);
                }
            }
        }
    }

    /// The rules of a fresh table. The kernel walks through a map once for
    /// every rule that is bound to it, and once for every base chain that leads
    /// there: two commits, so that none holds the lock for both.
    fn connect(&mut self) {
        let mut inner = std::mem::take(&mut self.rules);
        let is_base =
            |operation: &mut Operation| matches!(operation.action, Action::AddRule(chain, _) if chain.base().is_some());
        let base: Vec<Operation> = inner.extract_if(.., is_base).collect();
        let mut rules = Vec::new();
        push_skeleton(inner, &mut rules);
        push_skeleton(base, &mut rules);
        self.ready.extend(rules);
    }

    fn compile_up_to(&mut self, planner: &mut Planner, end: usize) {
        for (name, entry) in self.services.get(self.compiled..end).unwrap_or_default() {
            for family in Family::ALL {
                planner.compile_anew(self.store, name, entry, family);
            }
        }
        self.compiled = self.compiled.max(end);
    }

    /// One Service: whatever the kernel does not hold as it should.
    fn service(&mut self, planner: &mut Planner, name: &ServiceName, family: Family) {
        let kernel = &mut self.kernel[family];
        let Some(mut compiled) = planner.families[family].services.remove(name) else { return };
        let state = &mut planner.families[family];
        if state.fresh && !kernel.is_empty() {
            adopt(name, &mut compiled, kernel, state);
        }
        state.number(name, &mut compiled);
        let (chains, grow, point) = (&mut self.chains, &mut self.grow, &mut self.point);
        let (rules, is_new_table) = (&mut self.rules, self.new_tables[family]);
        elements(name, &compiled, &mut |element| {
            for chain in state.chains.add(&element) {
                let begin = chains.len();
                make_chain(&state.skeleton, chain, chains);
                if is_new_table && Chain::LEARNING.contains(&chain) {
                    rules.extend(
                        chains.extract_if(begin.., |operation| matches!(operation.action, Action::AddRule(..))),
                    );
                }
            }
            if !state.shared.add(&element) || is_firewall(element.map) {
                return;
            }
            let held = kernel.0.remove(&(element.map, element.key));
            if held.as_ref().is_some_and(|(data, comment)| (data, comment) == (&element.data, &element.comment)) {
                return;
            }
            let target = if element.map.data() == DataKind::Verdict { &mut *point } else { &mut *grow };
            let operation = |action| Operation { family, action, owner: Some(name.text().clone()) };
            if let Some((data, comment)) = held {
                target.push(operation(Action::DeleteElement(Element { data, comment, ..element.clone() })));
            }
            target.push(operation(Action::AddElement(element)));
        });
        state.services.insert(name.clone(), compiled);
    }

    /// Hands on what has piled up. Verdicts are collected for longer: the
    /// kernel checks the whole graph of jumps at every commit that adds one.
    fn flush_full(&mut self) {
        if self.point.len() >= MAX_OPERATIONS {
            self.flush_all();
        } else if self.grow.len() >= MAX_OPERATIONS {
            self.flush_grow();
        }
    }

    fn flush_grow(&mut self) {
        let mut chunks = Vec::new();
        push_chunks(std::mem::take(&mut self.grow), &mut chunks);
        self.ready.extend(chunks);
    }

    fn flush_all(&mut self) {
        self.flush_grow();
        self.ready.extend(chains_ahead(std::mem::take(&mut self.chains)));
        let mut chunks = Vec::new();
        push_chunks(std::mem::take(&mut self.point), &mut chunks);
        self.ready.extend(chunks);
    }

    /// What the kernel holds and nobody wants: verdicts first.
    fn leftovers(&mut self) {
        let mut changes = ElementChanges::default();
        for family in Family::ALL {
            for ((map, key), value) in std::mem::take(&mut self.kernel[family].0) {
                changes.add(family, map, key, Some(value), None, None);
            }
        }
        self.ready.extend(changes.into_transactions(Vec::new()));
    }
}

fn is_firewall(map: Map) -> bool {
    matches!(map, Map::FirewallIps | Map::SourceRanges | Map::SourceRangeMarkers)
}

/// Puts the endpoints into the slots that the kernel holds for each port, as
/// the first frontend that the Service holds has them, and gives the lists the
/// numbers that they have there.
fn adopt(name: &ServiceName, compiled: &mut CompiledService, kernel: &KernelElements, state: &mut FamilyState) {
    let service = compiled.service.clone();
    let owners: Vec<_> = service.ports.iter().map(|port| list_comments(name, port)).collect();
    // The cluster-wide and the local list of each port, and their numbers.
    let mut known = vec![<[(Vec<Endpoint>, Option<ListNumber>); 2]>::default(); compiled.ports.len()];
    for frontend in all_frontends(&service) {
        let (Some(lists), Some(owners)) = (known.get_mut(frontend.position), owners.get(frontend.position)) else {
            continue;
        };
        if !state.claims.holds(&frontend.claim, name) {
            continue;
        }
        // Which of a frontend's maps holds which list follows from its policy.
        let of = Held { claim: &frontend.claim, kernel };
        let main = usize::from(frontend.is_local);
        let (slots, number) = &mut lists[main];
        if slots.is_empty() {
            *slots = of.slots(Map::Endpoints, Map::NodePortEndpoints);
        }
        *number = number.or_else(|| of.number(Map::AffinityLists, Map::NodePortAffinityLists, &owners[main]));
        let (slots, number) = &mut lists[0];
        if slots.is_empty() {
            *slots = of.slots(Map::ShortCircuitEndpoints, Map::NodePortShortCircuitEndpoints);
        }
        *number = number
            .or_else(|| of.number(Map::ShortCircuitAffinityLists, Map::NodePortShortCircuitAffinityLists, &owners[0]));
    }
    for (endpoints, [cluster, local]) in compiled.ports.iter_mut().zip(known) {
        endpoints.cluster = slots::assign(&cluster.0, &endpoints.cluster);
        endpoints.local = slots::assign(&local.0, &endpoints.local);
        if service.affinity.is_none() {
            continue;
        }
        let lists =
            [(&endpoints.cluster, &mut endpoints.cluster_number), (&endpoints.local, &mut endpoints.local_number)];
        for ((list, number), held) in lists.into_iter().zip([cluster.1, local.1]) {
            if let Some(held) = held.filter(|held| !list.is_empty() && state.lists.adopt(*held, name)) {
                *number = held;
            }
        }
    }
}

/// What the kernel holds for one frontend. Which of its maps holds which list
/// follows from its policy.
struct Held<'a> {
    claim: &'a Claim,
    kernel: &'a KernelElements,
}

impl Held<'_> {
    fn slots(&self, services: Map, node_ports: Map) -> Vec<Endpoint> {
        match *self.claim {
            Claim::Frontend(key) => self.kernel.slots(services, |slot| Key::FrontendSlot(key, slot)),
            Claim::NodePort(key) => self.kernel.slots(node_ports, |slot| Key::NodePortSlot(key, slot)),
            Claim::NoEndpoint(_) | Claim::NoEndpointNodePort(_) | Claim::Firewall(_) => Vec::new(),
        }
    }

    fn number(&self, services: Map, node_ports: Map, owner: &str) -> Option<ListNumber> {
        match *self.claim {
            Claim::Frontend(key) => self.kernel.list_number(services, Key::Frontend(key), owner),
            Claim::NodePort(key) => self.kernel.list_number(node_ports, Key::NodePort(key), owner),
            Claim::NoEndpoint(_) | Claim::NoEndpointNodePort(_) | Claim::Firewall(_) => None,
        }
    }
}

/// Makes what is missing of the table, its maps and chains, and rewrites
/// chains whose rules differ.
fn skeleton_operations(skeleton: &SkeletonConfig, kernel: &KernelState) -> Vec<Operation> {
    let family = skeleton.family;
    let mut actions = Vec::new();
    if !kernel.exists {
        actions.push(Action::AddTable);
    }
    actions.extend(Map::ALL.into_iter().filter(|map| !kernel.maps.contains(map)).map(Action::AddMap));
    let missing = |chain: &Chain| !kernel.chains.contains_key(chain);
    actions.extend(Chain::FIXED.into_iter().filter(missing).map(Action::AddChain));
    let counted = kernel.chains.iter().filter(|(chain, right)| !**right && !Chain::FIXED.contains(chain));
    let mut wrong: Vec<Chain> = counted.map(|(chain, _)| *chain).collect();
    // What a chain needs may be gone: somebody deleted it.
    let lost: BTreeSet<Chain> = kernel.chains.keys().flat_map(|chain| chain.needs()).filter(missing).collect();
    actions.extend(lost.iter().copied().map(Action::AddChain));
    wrong.extend(lost);
    wrong.sort_unstable();
    let fixed = Chain::FIXED.into_iter().filter(|chain| kernel.chains.get(chain) != Some(&true));
    for chain in fixed.chain(wrong) {
        if kernel.chains.contains_key(&chain) {
            actions.push(Action::FlushChain(chain));
        }
        actions.extend(rules(skeleton, chain).into_iter().map(|rule| Action::AddRule(chain, rule)));
    }
    actions.into_iter().map(|action| Operation { family, action, owner: None }).collect()
}

fn push_skeleton(operations: Vec<Operation>, ready: &mut Vec<Transaction>) {
    if !operations.is_empty() {
        ready.push(Transaction { operations });
    }
}

/// What an element should hold, and for whom.
type Owned = (Value, Option<Arc<str>>);

/// Source ranges and the node's elements, and the chains that the firewall
/// needs: it must stand before anything points behind it.
fn firewall_changes(
    planner: &mut Planner,
    store: &Store,
    services: &[(&ServiceName, &ServiceEntry)],
    family: Family,
    kernel: &mut KernelElements,
) -> (Vec<Operation>, ElementChanges) {
    let mut chains = Vec::new();
    let mut desired: HashMap<(Map, Key), Owned> = HashMap::new();
    let mut holders: HashMap<Claim, &ServiceName> = HashMap::new();
    for (name, entry) in services {
        let Some(mut filtered) = planner.source_ranges(name, entry, family) else { continue };
        let claims = claims(&filtered).into_iter();
        filtered.denied = claims.filter(|claim| holders.entry(*claim).or_insert(name) != name).collect();
        filtered.denied.sort_unstable();
        firewall(&filtered, &mut |element| {
            let owner = Some(name.text().clone());
            let state = &mut planner.families[family];
            for chain in state.chains.add(&element) {
                make_chain(&state.skeleton, chain, &mut chains);
            }
            desired.insert((element.map, element.key), ((element.data, element.comment), owner));
        });
    }
    let node = node_elements(&planner.config, store, family);
    for element in &node {
        desired.insert((element.map, element.key), ((element.data, None), Some(node_owner())));
    }
    planner.families[family].node_elements = node;

    let mut changes = ElementChanges::default();
    let ours = |map: Map| is_firewall(map) || matches!(map, Map::NodePortIps | Map::ServiceCidrs);
    let held: Vec<(Map, Key)> = kernel.0.keys().filter(|(map, _)| ours(*map)).copied().collect();
    for (map, key) in held {
        let held = kernel.0.remove(&(map, key));
        let (wanted, owner) = desired.remove(&(map, key)).map_or((None, None), |(value, owner)| (Some(value), owner));
        changes.add(family, map, key, held, wanted, owner.as_ref());
    }
    let mut desired: Vec<_> = desired.into_iter().collect();
    desired.sort_unstable_by_key(|(place, _)| *place);
    for ((map, key), (value, owner)) in desired {
        changes.add(family, map, key, None, Some(value), owner.as_ref());
    }
    (chains, changes)
}

impl Planner {
    /// Forgets what is counted; the Services are said again one by one.
    fn reset(&mut self, store: &Store, family: Family, kernel: &KernelState) {
        let config = self.config.clone();
        let state = &mut self.families[family];
        let fresh = super::planner::FamilyState::new(family, &config, store.node());
        state.skeleton = fresh.skeleton;
        state.primary_address = fresh.primary_address;
        state.services.retain(|name, _| store.get(name).is_some());
        state.too_large.retain(|name, _| store.get(name).is_some());
        state.claims = Claims::default();
        state.shared = SharedElements::default();
        state.chains = CountedChains::default();
        let found = kernel.elements.list_numbers().chain(kernel.learned.iter().copied());
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
        services.sort_unstable_by_key(|(created, name, _)| (*created, *name));
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

    /// As much of a Service as its source ranges depend on; `None` if it has
    /// none.
    fn source_ranges(&self, name: &ServiceName, entry: &ServiceEntry, family: Family) -> Option<CompiledService> {
        let service = self.effective(name, entry, family).filter(|service| !service.source_ranges.is_empty())?;
        let joins = Joins::new(family, &entry.slices);
        if elements_at_most(service, &joins) > MAX_ELEMENTS {
            return None;
        }
        let admits_node = self.families[family].admits_node(service);
        let ports = Box::default();
        Some(CompiledService { service: service.clone(), ports, denied: Box::default(), ready_local: 0, admits_node })
    }

    /// Compiles one Service in the place of what was programmed. Those that win
    /// over it must have been compiled before it.
    fn compile_anew(&mut self, store: &Store, name: &ServiceName, entry: &ServiceEntry, family: Family) {
        let before = self.families[family].services.remove(name);
        let compiled = self.compile(store, name, entry, family, before.as_ref());
        let compiled = self.admit(name, family, compiled);
        if let Some(before) = &before {
            self.families[family].release(before, compiled.as_ref());
        }
        let Some(mut compiled) = compiled else { return };
        let affected = self.claim(name, family, Some(&compiled));
        debug_assert!(affected.is_empty(), "{name} takes frontends of {affected:?}");
        self.deny(name, family, &mut compiled);
        self.families[family].services.insert(name.clone(), compiled);
    }
}
