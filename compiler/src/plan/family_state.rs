//! The programmed state of one family.

use std::collections::HashSet;
use std::net::IpAddr;

use super::claims::Claims;
use super::counted::{CountedChains, SharedElements};
use super::lists::ListNumbers;
use super::phases::Phases;
use super::planner::Denied;
use crate::model::types::{NameMap, Service, ServiceName};
use crate::model::{NodeInfo, ProxyConfig};
use crate::ruleset::Family;
use crate::ruleset::element::{Element, ListNumber};
use crate::ruleset::service::CompiledService;
use crate::ruleset::skeleton::SkeletonConfig;

/// The programmed state of one family.
#[derive(Debug)]
pub(super) struct FamilyState {
    pub(super) skeleton: SkeletonConfig,
    pub(super) services: NameMap<ServiceName, CompiledService>,
    pub(super) claims: Claims,
    /// Services that are not programmed because they ask for too much.
    pub(super) too_large: NameMap<ServiceName, u64>,
    pub(super) shared: SharedElements,
    pub(super) chains: CountedChains,
    pub(super) lists: ListNumbers,
    /// Elements of the node: `nodeport-ips` and `service-cidrs`.
    pub(super) node_elements: Vec<Element>,
    /// True until slot assignments have been read back from the kernel, which
    /// ends with the first resync.
    pub(super) slots_unknown: bool,
    /// The node's own address, which source ranges may admit.
    pub(super) primary_address: Option<IpAddr>,
}

impl FamilyState {
    /// Counts an element that a Service contributes, and makes the chains that it
    /// points to. Returns whether the Service is the first to contribute it.
    pub(super) fn count(&mut self, element: &Element, phases: &mut Phases) -> bool {
        for chain in self.chains.add(element) {
            phases.make_chain(&self.skeleton, chain);
        }
        self.shared.add(element)
    }

    /// Gives a number to every list that clients stick to and that has none.
    pub(super) fn number(&mut self, name: &ServiceName, compiled: &mut CompiledService) {
        if compiled.service.affinity.is_none() {
            return;
        }
        let mut numbered = HashSet::new();
        for port in &mut compiled.ports {
            for (endpoints, number) in
                [(&port.cluster, &mut port.cluster_number), (&port.local, &mut port.local_number)]
            {
                // Two ports of one name keep the number of the one there was.
                if !endpoints.is_empty() && (!number.is_some() || numbered.contains(number)) {
                    *number = self.lists.take(name);
                }
                numbered.insert(*number);
            }
        }
    }

    /// Gives up the numbers of lists that no longer exist.
    pub(super) fn release(&mut self, before: &CompiledService, after: Option<&CompiledService>) {
        let kept: HashSet<ListNumber> =
            after.into_iter().flat_map(CompiledService::numbered_lists).map(|(number, _)| number).collect();
        for (number, _) in before.numbered_lists() {
            if !kept.contains(&number) {
                self.lists.release(number);
            }
        }
    }

    /// Returns whether the source ranges of a Service admit this node.
    pub(super) fn admits_node(&self, service: &Service) -> bool {
        let admits = |address| service.source_ranges.iter().any(|range| range.contains(&address));
        self.primary_address.is_some_and(admits)
    }

    pub(super) fn denied(&self, name: &ServiceName, compiled: &CompiledService) -> Vec<Denied> {
        let denied = compiled.denied.iter().filter_map(|claim| {
            let (holder, reason) = self.claims.holder_before(claim, compiled.service.created)?;
            Some(Denied { name: name.clone(), claim: *claim, holder: holder.clone(), reason })
        });
        denied.collect()
    }

    pub(super) fn new(family: Family, config: &ProxyConfig, node: &NodeInfo) -> Self {
        let skeleton = SkeletonConfig {
            family,
            detector: config.detector(node, family),
            masquerade_all: config.masquerade_all,
            nodeports_on_all_addresses: config.node_port_ranges(node, family).is_none(),
        };
        let primary_address = config.primary_address(node, family);
        Self {
            skeleton,
            services: NameMap::default(),
            claims: Claims::default(),
            too_large: NameMap::default(),
            shared: SharedElements::default(),
            chains: CountedChains::default(),
            lists: ListNumbers::default(),
            node_elements: Vec::new(),
            slots_unknown: true,
            primary_address,
        }
    }
}
