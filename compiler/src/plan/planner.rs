//! The programmed state, and its changes.

use std::collections::{HashMap, HashSet};

use thin_vec::ThinVec;

use super::claims::Reason;
use super::compile::TooLarge;
use super::family_state::FamilyState;
use super::net::NetChanges;
use super::phases::{Phases, Sizes};
use super::pieces::PIECE;
use super::{Action, Operation, Transaction};
use crate::model::types::{NameMap, NameSet, Service, ServiceName};
use crate::model::{Endpoint, EndpointList, NodeInfo, PerFamily, ProxyConfig, Store};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Element, ListNumber};
use crate::ruleset::service::{Claim, CompiledService, all_frontends, claims, elements};
use crate::ruleset::skeleton::SkeletonConfig;
use crate::ruleset::table::{Ruleset, Table};

/// Knows the programmed state, and plans changes.
///
/// The planner believes that every plan it gave out was committed. If one was
/// not, the kernel is to be read and compared again ([`Planner::resync`]).
#[derive(Debug)]
pub struct Planner {
    pub(super) config: ProxyConfig,
    pub(super) families: PerFamily<FamilyState>,
    quarantined: NameSet<ServiceName>,
    pub(super) newly_too_large: Vec<TooLarge>,
    /// The approximate number of elements in one plan.
    pub(super) piece: u64,
    /// How large transactions may be.
    pub(super) sizes: Sizes,
    /// Chains of tables that are being [filled](Self::begin_fill), whose rules lead
    /// into the maps and are committed last.
    pub(super) unconnected: Vec<(Family, Chain)>,
}

/// Transactions from the programmed state to the desired one, and details about
/// them.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Plan {
    /// To be committed in order, each by itself atomic.
    pub transactions: Vec<Transaction>,
    /// The families in which an endpoint left a frontend with session affinity,
    /// so that learned entries may be wrong now: see [`Planner::list`] and
    /// [`Planner::forgotten`].
    pub unlearn: PerFamily<bool>,
    /// Each changed Service, before and after.
    pub changed: Vec<ServiceChange>,
    /// Frontends that a Service wants and an older one has.
    pub denied: Vec<Denied>,
    /// Whether it is for a node that changed: its addresses, zone, pod ranges,
    /// or the service ranges. Plans for all Services follow.
    pub node_changed: bool,
}

/// A Service that changed in one family.
#[derive(Debug, Clone)]
pub struct ServiceChange {
    /// The Service.
    pub name: ServiceName,
    /// The family.
    pub family: Family,
    /// The Service as programmed before; `None` if it was not.
    pub before: Option<CompiledService>,
    /// The Service as programmed after the plan; `None` if it is not.
    pub after: Option<CompiledService>,
}

/// A frontend that a Service wants and another one has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The Service that does not get it.
    pub name: ServiceName,
    /// The frontend.
    pub claim: Claim,
    /// The Service that has it.
    pub holder: ServiceName,
    /// Why that one has it.
    pub reason: Reason,
}

impl Planner {
    /// A planner that has programmed nothing yet.
    pub fn new(config: ProxyConfig, node: &NodeInfo) -> Self {
        let families = PerFamily::from_fn(|family| FamilyState::new(family, &config, node));
        let (quarantined, newly_too_large) = (NameSet::default(), Vec::new());
        Self {
            config,
            families,
            quarantined,
            newly_too_large,
            piece: PIECE,
            sizes: Sizes::default(),
            unconnected: Vec::new(),
        }
    }

    /// No transaction of elements will have more operations than this, however many
    /// there are: a batch that does not fit the socket's send buffer can't be sent.
    pub fn limit_transactions_to(&mut self, operations: usize) {
        self.sizes = Sizes::at_most(operations);
    }

    /// The configuration it plans for.
    pub fn config(&self) -> &ProxyConfig {
        &self.config
    }

    /// Returns the parameters for the rules of a family on this node.
    pub fn skeleton(&self, node: &NodeInfo, family: Family) -> SkeletonConfig {
        FamilyState::new(family, &self.config, node).skeleton
    }

    /// Plans the changes in the store since the last call; `None` if there are
    /// none. The work depends on the changed Services alone.
    ///
    /// After very many changes a plan covers only a part of them (decision 27):
    /// commit each plan, and call again until there is none.
    ///
    /// ```
    /// use vmap_proxy_compiler::model::{Change, Object, PerFamily, ProxyConfig, Store};
    /// use vmap_proxy_compiler::plan::Planner;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut store = Store::new("node-1");
    /// let mut planner = Planner::new(ProxyConfig::default(), store.node());
    /// // An empty kernel gets the tables first.
    /// for transaction in planner.resync(&mut store, PerFamily::default()) {
    ///     println!("{} operations to commit", transaction.operations.len());
    /// }
    /// assert!(planner.update(&mut store).is_none());
    ///
    /// let service: Object = serde_json::from_str(
    ///     r#"{ "kind": "Service", "metadata": { "namespace": "shop", "name": "cart" },
    ///          "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }] } }"#,
    /// )?;
    /// store.apply(Change::Apply(service));
    /// while let Some(plan) = planner.update(&mut store) {
    ///     assert_eq!(plan.changed[0].name.to_string(), "shop/cart");
    ///     assert_eq!(plan.transactions.len(), 1);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&mut self, store: &mut Store) -> Option<Plan> {
        if store.take_node_changed() {
            // Any Service may depend on it.
            store.mark_all_dirty();
            return Some(self.plan_node(store));
        }
        let names = self.take_piece(store);
        (!names.is_empty()).then(|| self.plan(store, &names))
    }

    /// Services that the kernel refused. They keep their programmed elements
    /// until they change or are [released](Self::release_quarantined).
    pub fn quarantined(&self) -> impl Iterator<Item = &ServiceName> {
        self.quarantined.iter()
    }

    /// Ends all quarantines, so that the next [`super::Resync`] tries these
    /// Services again; returns which they were.
    pub fn release_quarantined(&mut self) -> Vec<ServiceName> {
        std::mem::take(&mut self.quarantined).into_iter().collect()
    }

    /// Returns whether the kernel refused this Service.
    pub fn is_quarantined(&self, name: &ServiceName) -> bool {
        // Nearly always there is none, and nothing to look up.
        !self.quarantined.is_empty() && self.quarantined.contains(name)
    }

    /// Returns the programmed state of a Service.
    pub fn compiled(&self, name: &ServiceName, family: Family) -> Option<&CompiledService> {
        self.families[family].services.get(name)
    }

    /// The Service that has a frontend of a family.
    pub fn holder(&self, family: Family, claim: &Claim) -> Option<&ServiceName> {
        self.families[family].claims.holder(claim)
    }

    /// Everything that is programmed for all Services of a family, in no order.
    pub fn all_compiled(&self, family: Family) -> impl Iterator<Item = (&ServiceName, &CompiledService)> {
        self.families[family].services.iter()
    }

    /// Plans the change of these Services.
    fn plan(&mut self, store: &Store, names: &[ServiceName]) -> Plan {
        let mut plan = Plan::default();
        for name in names {
            self.quarantined.remove(name);
        }
        for family in Family::ALL {
            self.plan_family(store, names, family, &mut plan);
        }
        plan
    }

    fn plan_family(&mut self, store: &Store, names: &[ServiceName], family: Family, plan: &mut Plan) {
        // First compile each Service and register its claims, so that each is
        // emitted once, with all frontends that it won and lost.
        let mut queue: Vec<ServiceName> = names.to_vec();
        let mut compiled: NameMap<ServiceName, Option<CompiledService>> = NameMap::default();
        let mut position = 0;
        while let Some(name) = queue.get(position).cloned() {
            position += 1;
            if compiled.contains_key(&name) {
                continue;
            }
            let before = self.families[family].services.get(&name);
            let after = store.get(&name).map_or(Ok(None), |entry| self.compile(store, &name, entry, family, before));
            let after = self.admit(&name, family, after);
            queue.extend(self.claim(&name, family, after.as_ref()));
            compiled.insert(name, after);
        }
        let mut net = NetChanges::default();
        let mut phases = self.phases();
        for name in &queue {
            let Some(mut after) = compiled.remove(name) else { continue };
            if let Some(after) = &mut after {
                self.deny(name, family, after);
            }
            self.exchange(name, family, after, (&mut net, &mut phases), plan);
        }
        net.into_phases(&mut phases);
        self.hold_back(&phases.take_connections());
        plan.transactions.extend(phases.finish());
    }

    /// Registers the current claims of a Service, and returns the other
    /// affected Services.
    pub(super) fn claim(
        &mut self,
        name: &ServiceName,
        family: Family,
        after: Option<&CompiledService>,
    ) -> Vec<ServiceName> {
        let state = &mut self.families[family];
        let known = |compiled: Option<&CompiledService>| {
            compiled.map_or((Vec::new(), 0), |compiled| (claims(compiled), compiled.service.created))
        };
        let (before, now) = (known(state.services.get(name)), known(after));
        let mut affected = Vec::new();
        // A Service that was made again under its name has another age, and may
        // lose or win by that.
        if before != now {
            state.claims.replace(name, (&before.0, before.1), (&now.0, now.1), &mut affected);
        }
        affected
    }

    /// Notes which of its claims a Service lost.
    pub(super) fn deny(&self, name: &ServiceName, family: Family, compiled: &mut CompiledService) {
        let holders = &self.families[family].claims;
        // The usual case: uncontended claims are not looked up.
        if !holders.any_contested() {
            compiled.denied = ThinVec::new();
            return;
        }
        let mut denied: Vec<Claim> = claims(compiled);
        denied.retain(|claim| !holders.holds(claim, name));
        denied.sort_unstable();
        compiled.denied = denied.into();
    }

    /// Replaces the programmed state by `after`.
    fn exchange(
        &mut self,
        name: &ServiceName,
        family: Family,
        mut after: Option<CompiledService>,
        (net, phases): (&mut NetChanges, &mut Phases),
        plan: &mut Plan,
    ) {
        let state = &mut self.families[family];
        if let Some(after) = &mut after {
            state.number(name, after);
        }
        if state.services.get(name) == after.as_ref() {
            return;
        }
        let before = state.services.remove(name);
        let owner = name.text();
        let (gone, come) = differing(name, before.as_ref(), after.as_ref());
        // Additions are counted before removals, so an element that stays is
        // never counted down to zero.
        if let Some(after) = &after {
            come.into_iter().for_each(|element| {
                if state.count(&element, phases) {
                    net.wanted(family, element, owner);
                }
            });
            plan.denied.extend(state.denied(name, after));
        }
        if let Some(before) = &before {
            gone.into_iter().for_each(|element| {
                state.chains.remove(&element);
                if state.shared.remove(&element) {
                    net.held(family, element, owner);
                }
            });
            plan.unlearn[family] |= unlearns(before, after.as_ref());
            state.release(before, after.as_ref());
        }
        if let Some(after) = &after {
            state.services.insert(name.clone(), after.clone());
        }
        plan.changed.push(ServiceChange { name: name.clone(), family, before, after });
    }

    /// The kernel refused an element of this Service: it keeps its programmed
    /// state (`before`, from the plan that failed) until it changes or is
    /// planned again by a resync.
    pub fn quarantine(&mut self, name: &ServiceName, before: PerFamily<Option<CompiledService>>) {
        self.quarantined.insert(name.clone());
        for (_, (state, before)) in self.families.as_mut().zip(before) {
            match before {
                Some(before) => state.services.insert(name.clone(), before),
                None => state.services.remove(name),
            };
        }
    }

    /// The frontends to serve that a Service wants and another one has, in no
    /// order. The work depends on their number alone.
    pub fn contested(&self, family: Family) -> impl Iterator<Item = Denied> {
        let contested = self.families[family].claims.contested();
        contested
            .filter(|(_, claim, ..)| matches!(claim, Claim::Serve(_)))
            .map(|(name, claim, holder, reason)| Denied { name: name.clone(), claim, holder: holder.clone(), reason })
    }

    /// Every frontend that a Service wants and another one has. Looks at all
    /// Services: for the start and for repairs, plans name theirs themselves.
    pub fn all_denied(&self) -> Vec<Denied> {
        let of_family = |state: &FamilyState| -> Vec<Denied> {
            state.services.iter().flat_map(|(name, compiled)| state.denied(name, compiled)).collect()
        };
        self.families.values().flat_map(of_family).collect()
    }

    /// The endpoints of the list that has this number; `None` if no list has it.
    /// The affinity of clients to any other endpoint must be removed.
    pub fn list(&self, family: Family, number: ListNumber) -> Option<&EndpointList> {
        let state = &self.families[family];
        let mut lists = state.services.get(state.lists.owner(number)?)?.numbered_lists();
        lists.find(|(other, _)| *other == number).map(|(_, endpoints)| endpoints)
    }

    /// The learned entries of endpoints that are in no [list](Self::list) have
    /// been removed from the kernel: numbers that were given up can be used
    /// again.
    pub fn forgotten(&mut self) {
        self.families.values_mut().for_each(|state| state.lists.forgotten());
    }

    /// Deletes and forgets learning chains that nothing points to any longer;
    /// `None` if there are none. The kernel (before 6.2) may still refuse; then
    /// they stay until the next time.
    ///
    /// Balancing chains stay, once they were in use: when one is made, the
    /// kernel walks over all elements of the map that its rules look into, and
    /// the same numbers come again soon.
    pub fn collect_idle_chains(&mut self) -> Option<Transaction> {
        let mut operations = Vec::new();
        for state in self.families.values_mut() {
            let family = state.skeleton.family;
            for chain in state.chains.take_idle() {
                operations.push(Operation { family, action: Action::FlushChain(chain), owner: None });
                operations.push(Operation { family, action: Action::DeleteChain(chain), owner: None });
            }
        }
        (!operations.is_empty()).then_some(Transaction { operations })
    }

    /// Returns the number of chains that [`Self::collect_idle_chains`] would
    /// delete.
    pub fn idle_chains(&self) -> usize {
        self.families.values().map(|state| state.chains.idle()).sum()
    }

    /// The complete rule set, for listings, evaluation and tests.
    pub fn ruleset(&self) -> Ruleset {
        let tables = self.families.values().map(|state| {
            let mut all = state.node_elements.clone();
            let mut shared = HashSet::new();
            for (name, compiled) in &state.services {
                elements(name, compiled, &mut |element| {
                    if !element.map.is_shared() || shared.insert((element.map, element.key)) {
                        all.push(element);
                    }
                });
            }
            Table::new(state.skeleton.clone(), all)
        });
        Ruleset { tables: tables.collect() }
    }
}

/// The elements of a Service before and after, without those that both begin
/// and end with: of ten thousand endpoints usually one changes. What is left
/// may still hold elements that stay.
fn differing(
    name: &ServiceName,
    before: Option<&CompiledService>,
    after: Option<&CompiledService>,
) -> (Vec<Element>, Vec<Element>) {
    let all = |compiled: Option<&CompiledService>| {
        let mut all = Vec::new();
        if let Some(compiled) = compiled {
            elements(name, compiled, &mut |element| all.push(element));
        }
        all
    };
    let (mut gone, mut come) = (all(before), all(after));
    let same_end = gone.iter().rev().zip(come.iter().rev()).take_while(|(old, new)| old == new).count();
    gone.truncate(gone.len() - same_end);
    come.truncate(come.len() - same_end);
    let same_begin = gone.iter().zip(&come).take_while(|(old, new)| old == new).count();
    (gone.split_off(same_begin), come.split_off(same_begin))
}

/// Returns whether clients may have learned, under some number, an endpoint
/// that is no longer in that list.
fn unlearns(before: &CompiledService, after: Option<&CompiledService>) -> bool {
    if before.service.affinity.is_none() {
        return false;
    }
    let Some(after) = after else { return true };
    let lists: HashMap<ListNumber, &EndpointList> = after.numbered_lists().collect();
    let lost = |old: &EndpointList, new: &EndpointList| {
        let staying: HashSet<Endpoint> = new.iter().collect();
        old.iter().any(|endpoint| !staying.contains(&endpoint))
    };
    // A packet that is on its way while frontends go over to another list may
    // learn an endpoint of the one under the number of the other.
    let lists_of = |service: &Service| (service.internal_policy_local, service.external_policy_local);
    lists_of(&before.service) != lists_of(&after.service)
        || before.service.ports != after.service.ports
        || all_frontends(&before.service) != all_frontends(&after.service)
        || before.numbered_lists().any(|(number, old)| lists.get(&number).is_none_or(|new| lost(old, new)))
}
