//! Determines stale flows from the changes alone, without reading any flow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use vmap_proxy_compiler::model::types::{Service, ServiceName};
use vmap_proxy_compiler::model::{Endpoint, NodeInfo, Protocol};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::plan::planner::ServiceChange;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::service::{Claim, CompiledPort, CompiledService, all_frontends};
use vmap_proxy_compiler::ruleset::target::{FrontendKey, Target};
use vmap_proxy_wire::conntrack::{DumpFilter, Flow};

use crate::sync::report::SyncReport;

/// Up to this number of frontends of one family and protocol, each is searched for separately; for more, one dump
/// contains all flows of the protocol. Each dump walks the kernel's whole table, which costs as much as copying some
/// of its entries out.
const MAX_NARROW_DUMPS: usize = 2;

/// Frontends whose flows may be stale, and where the flows of each may stay.
///
/// A flow belongs to a frontend if it was sent there (its original destination). Its endpoint is where the replies
/// come from. Flows of TCP are never stale: a peer that is gone shows itself there, and a connection may outlive its
/// endpoint's readiness.
///
/// * A **UDP** flow is stale if its endpoint doesn't serve the frontend any more: it was removed, it stopped serving,
///   it was the last one, or the frontend itself is gone (a Service, port, NodePort or address was removed). It may
///   stay with an endpoint that terminates but still serves, and with one that policies or topology hints would not
///   choose for a new flow; kube-proxy lets them stay too.
/// * An **SCTP** flow is stale only if its endpoint is in no EndpointSlice any more. Removing an established
///   association cuts it; but if its pod is gone it is dead already, and an INIT from the same port (SCTP clients tend
///   to have a fixed one) would follow it to nowhere until the entry expires. Nothing is done for a frontend that is
///   gone: such an association ends like one of TCP, with its endpoint.
/// * A flow that was **never translated** though a Service has the frontend is stale: it was made past the rules,
///   before they were there.
///
/// A flow tracked in a zone other than 0 is stale only if it was translated: in there it may well be tracked on its way
/// to the translation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StaleFlows {
    frontends: HashMap<FrontendKey, Frontend>,
}

/// The known state of one frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frontend {
    fate: Fate,
    /// Whether flows may be stale. If not, the entry only replaces an earlier state.
    look: bool,
}

/// The rule for the flows of a frontend.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// They may stay if their endpoint is one of these (sorted).
    StayWith(Arc<[Endpoint]>),
    /// No Service has the frontend now, but one had: all that were translated go.
    Gone,
}

impl StaleFlows {
    /// Returns the flows that a sync makes stale. `planner` has planned it, for `node`.
    pub fn of_sync(planner: &Planner, node: &NodeInfo, report: &SyncReport) -> Self {
        let mut stale = Self::of_changes(planner, node, &report.changed);
        if report.repaired || report.node_changed || report.removed_leftovers {
            // Frontends that are gone are known from the changes alone.
            stale.merge(Self::of_start(planner, node));
        }
        stale
    }

    /// Returns the flows that the changes of a plan make stale. `planner` has planned them, for `node`. The work
    /// depends on the changes alone.
    ///
    /// A change that only adds endpoints to a frontend makes nothing stale, and nothing is searched for. Merge it all
    /// the same, or flows to the new endpoints may be deleted because of an earlier state.
    pub fn of_changes(planner: &Planner, node: &NodeInfo, changes: &[ServiceChange]) -> Self {
        let mut stale = Self::default();
        let node_ports = NodePorts { planner, node };
        for change in changes.iter().filter(|change| may_make_stale(change)) {
            let Some(before) = &change.before else { continue };
            for (_, target) in frontends(before) {
                // For a served frontend, the endpoints of the serving Service decide.
                let is_served = planner.holder(change.family, &Claim::Serve(target)).is_some();
                if target.protocol() == Protocol::Udp && !is_served {
                    stale.insert(&node_ports, change.family, target, &Frontend { fate: Fate::Gone, look: true });
                }
            }
        }
        // Last, so that a frontend that went from one Service to another is not taken for gone.
        for change in changes {
            let Some(after) = &change.after else { continue };
            stale.stay_with_endpoints_of(&node_ports, &change.name, change.family, after, may_make_stale(change));
        }
        stale
    }

    /// Returns everything that may be stale of the state that `planner` has programmed: for the start, when earlier
    /// events are unknown; after a repair of the rules, or a removal of elements that were left over; and after a
    /// change of the node's addresses, on which NodePorts depend.
    pub fn of_start(planner: &Planner, node: &NodeInfo) -> Self {
        let mut stale = Self::default();
        let node_ports = NodePorts { planner, node };
        for family in Family::ALL {
            for (name, compiled) in planner.all_compiled(family) {
                stale.stay_with_endpoints_of(&node_ports, name, family, compiled, true);
            }
        }
        stale
    }

    /// Adds flows that became stale later. The later state of a frontend takes precedence.
    pub fn merge(&mut self, later: Self) {
        for (key, mut frontend) in later.frontends {
            frontend.look |= self.frontends.get(&key).is_some_and(|earlier| earlier.look);
            self.frontends.insert(key, frontend);
        }
    }

    /// Applies changes that arrive during the cleaning: the endpoints at which flows of the searched frontends may stay
    /// now.
    pub fn learn(&mut self, later: &Self) {
        for (key, frontend) in &mut self.frontends {
            if let Some(later) = later.frontends.get(key) {
                frontend.fate = later.fate.clone();
            }
        }
    }

    /// Returns whether nothing is known, not even about flows that are no
    /// longer stale.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }

    /// Returns the number of frontends to search for; with none, cleaning does nothing.
    pub fn to_look_for(&self) -> usize {
        self.looked_for().count()
    }

    fn looked_for(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.iter().filter(|(_, frontend)| frontend.look).map(|(key, _)| key)
    }

    /// Returns whether this flow must be deleted.
    pub(super) fn covers(&self, flow: &Flow<'_>) -> bool {
        if flow.in_zone && !flow.translated {
            return false;
        }
        match self.frontends.get(&flow.frontend).map(|frontend| &frontend.fate) {
            None => false,
            Some(Fate::Gone) => flow.translated,
            Some(Fate::StayWith(endpoints)) => endpoints.binary_search(&flow.endpoint).is_err(),
        }
    }

    /// The dumps that together hold every flow that may be stale, each no wider than need be.
    pub(super) fn dumps(&self) -> Vec<DumpFilter> {
        let mut wide: BTreeMap<DumpFilter, BTreeMap<DumpFilter, BTreeSet<IpAddr>>> = BTreeMap::new();
        for frontend in self.looked_for() {
            let family = Family::of(frontend.address);
            let all = DumpFilter { family, protocol: Some(frontend.protocol), port: None, address: None };
            let port = (frontend.protocol != Protocol::Sctp).then_some(frontend.port);
            let addresses = wide.entry(all).or_default().entry(DumpFilter { port, ..all }).or_default();
            // Only the difference between one and several matters.
            if addresses.len() < 2 {
                addresses.insert(frontend.address);
            }
        }
        let mut dumps = Vec::new();
        for (all, narrow) in wide {
            if narrow.len() > MAX_NARROW_DUMPS {
                dumps.push(all);
                continue;
            }
            dumps.extend(narrow.into_iter().map(|(filter, addresses)| {
                let address = match (addresses.first(), addresses.len()) {
                    (Some(IpAddr::V4(address)), 1) => Some(*address),
                    _ => None,
                };
                DumpFilter { address, ..filter }
            }));
        }
        dumps
    }

    /// The dumps for a kernel that can't filter.
    pub(super) fn unfiltered_dumps(&self) -> Vec<DumpFilter> {
        let families: BTreeSet<Family> = self.looked_for().map(|frontend| Family::of(frontend.address)).collect();
        families.into_iter().map(|family| DumpFilter { family, protocol: None, port: None, address: None }).collect()
    }

    fn stay_with_endpoints_of(
        &mut self,
        node_ports: &NodePorts<'_>,
        name: &ServiceName,
        family: Family,
        compiled: &CompiledService,
        look: bool,
    ) {
        let fate = |port: &CompiledPort| Fate::StayWith(port.keeping_flows.as_slice().into());
        let ports: Vec<Frontend> = compiled.ports.iter().map(|port| Frontend { fate: fate(port), look }).collect();
        for (position, target) in frontends(compiled) {
            let holder = node_ports.planner.holder(family, &Claim::Serve(target));
            let is_anothers = holder.is_some_and(|holder| holder != name);
            if let Some(frontend) = ports.get(position)
                && !is_anothers
            {
                self.insert(node_ports, family, target, frontend);
            }
        }
    }

    fn insert(&mut self, node_ports: &NodePorts<'_>, family: Family, target: Target, frontend: &Frontend) {
        match target {
            Target::Frontend(key) => {
                self.frontends.insert(key, frontend.clone());
            }
            Target::NodePort(node_port) => {
                for address in node_ports.addresses(family) {
                    let key = FrontendKey { address, protocol: node_port.protocol, port: node_port.port };
                    // A Service that has this very address and port goes before NodePorts.
                    if node_ports.planner.holder(family, &Claim::Serve(Target::Frontend(key))).is_none() {
                        self.frontends.insert(key, frontend.clone());
                    }
                }
            }
        }
    }
}

/// The addresses that serve NodePorts.
struct NodePorts<'a> {
    /// Has the configuration.
    planner: &'a Planner,
    /// This node.
    node: &'a NodeInfo,
}

impl NodePorts<'_> {
    /// Those of a family.
    fn addresses(&self, family: Family) -> Vec<IpAddr> {
        self.planner.config().every_node_port_ip(self.node, family)
    }
}

/// Every frontend of UDP and SCTP that the Service wants and no older one has, with the position of its port.
fn frontends(compiled: &CompiledService) -> impl Iterator<Item = (usize, Target)> {
    let service = &compiled.service;
    let all = if has_flows(service) { all_frontends(service) } else { Vec::new() };
    let of_flows = all.into_iter().filter(|frontend| frontend.target.protocol() != Protocol::Tcp);
    let held = of_flows.filter(|frontend| !compiled.is_denied(&Claim::Serve(frontend.target)));
    held.map(|frontend| (frontend.position, frontend.target))
}

/// Returns whether the Service has a port whose flows can be stale.
fn has_flows(service: &Service) -> bool {
    service.ports.iter().any(|port| port.protocol != Protocol::Tcp)
}

/// Returns whether any flow can be stale after the change that was not before.
fn may_make_stale(change: &ServiceChange) -> bool {
    let of_interest =
        |compiled: &Option<CompiledService>| compiled.as_ref().is_some_and(|compiled| has_flows(&compiled.service));
    if !of_interest(&change.before) && !of_interest(&change.after) {
        return false;
    }
    let (Some(before), Some(after)) = (&change.before, &change.after) else { return true };
    let keeps_all = |before: &CompiledPort, after: &CompiledPort| {
        let (before, after) = (&before.keeping_flows, &after.keeping_flows);
        before.is_empty() == after.is_empty() && before.iter().all(|endpoint| after.binary_search(endpoint).is_ok())
    };
    let same_frontends = before.service.ports == after.service.ports
        && before.denied == after.denied
        && all_frontends(&before.service) == all_frontends(&after.service);
    !same_frontends || !before.ports.iter().zip(&after.ports).all(|(before, after)| keeps_all(before, after))
}

#[cfg(test)]
mod tests;
