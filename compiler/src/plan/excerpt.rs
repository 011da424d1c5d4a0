//! The part of the rule set that decides about one packet: the answer to a
//! question costs one Service, however many there are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::family_state::FamilyState;
use super::planner::Planner;
use crate::model::types::ServiceName;
use crate::model::{Endpoint, Protocol};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key};
use crate::ruleset::maps::Map;
use crate::ruleset::service::{Claim, elements};
use crate::ruleset::table::{Ruleset, Table};
use crate::ruleset::target::{FrontendKey, NodePortKey, Target};

/// The addresses and the port of a packet, which select the elements that can
/// decide about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The source address.
    pub source: IpAddr,
    /// The destination that the sender chose.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

impl Flow {
    /// The frontend and the NodePort that the packet may be for.
    pub fn targets(&self) -> [Target; 2] {
        targets(self.destination, self.protocol, self.port)
    }
}

fn targets(address: IpAddr, protocol: Protocol, port: u16) -> [Target; 2] {
    let frontend = Target::Frontend(FrontendKey { address, protocol, port });
    [frontend, Target::NodePort(NodePortKey { protocol, port })]
}

impl Planner {
    /// The part of the programmed rule set that can decide about a packet: all
    /// chains that it may meet, the elements of the Services that hold its
    /// frontend or NodePort, and the shared elements about its addresses. It
    /// evaluates to the same as the whole rule set.
    ///
    /// Elements that packets add (`affinity`) are unknown here.
    pub fn excerpt(&self, flow: &Flow) -> Ruleset {
        let family = Family::of(flow.destination);
        let state = &self.families[family];
        let mut found = state.node_elements.clone();
        state.elements_for(&flow.targets(), &mut found);
        found.extend(state.shared_element(Map::ClusterIps, Key::Address(flow.destination)));

        let reached: BTreeSet<Endpoint> = found
            .iter()
            .filter_map(|element| match element.data {
                Data::Endpoint(endpoint) => Some(endpoint),
                _ => None,
            })
            .collect();
        for endpoint in reached {
            state.elements_behind(endpoint, flow.protocol, &mut found);
            if endpoint.address == flow.source {
                found.extend(state.shared_element(Map::HairpinConnections, Key::Hairpin(endpoint, flow.protocol)));
            }
        }
        found.sort_unstable_by_key(|element| (element.map, element.key));
        found.dedup_by_key(|element| (element.map, element.key));
        // Every packet passes these while any Service has source ranges.
        let firewall = Chain::FIREWALL.into_iter().filter(|chain| state.chains.has(*chain));
        Ruleset { tables: vec![Table::new(state.skeleton.clone(), found).with_chains(firewall)] }
    }

    /// The programmed elements of one Service in a family. Shared elements are
    /// among them, whoever else contributes them.
    pub fn elements_of(&self, name: &ServiceName, family: Family) -> Vec<Element> {
        let mut found = Vec::new();
        if let Some(compiled) = self.families[family].services.get(name) {
            elements(name, compiled, &mut |element| found.push(element));
        }
        found
    }

    /// The programmed elements that belong to the node itself.
    pub fn elements_of_node(&self, family: Family) -> &[Element] {
        &self.families[family].node_elements
    }

    /// The Services that want a frontend while another one holds it.
    pub fn waiting(&self, family: Family, claim: &Claim) -> impl Iterator<Item = &ServiceName> {
        self.families[family].claims.waiting(claim)
    }

    /// The number of elements that a Service may need, if that is too many for it
    /// to be programmed in this family.
    pub fn too_many_elements(&self, name: &ServiceName, family: Family) -> Option<u64> {
        self.families[family].too_large.get(name).copied()
    }
}

impl FamilyState {
    /// Adds the elements of these targets, of whichever Services hold them.
    fn elements_for(&self, targets: &[Target], found: &mut Vec<Element>) {
        let claims = targets.iter().flat_map(|target| {
            let firewall = match target {
                Target::Frontend(key) => Some(Claim::Firewall(*key)),
                Target::NodePort(_) => None,
            };
            [Some(Claim::Serve(*target)), Some(Claim::NoEndpoint(*target)), firewall]
        });
        let holders: BTreeSet<&ServiceName> = claims.flatten().filter_map(|claim| self.claims.holder(&claim)).collect();
        let is_about = |element: &Element| match element.key {
            Key::Target(target) | Key::Slot(target, _) => targets.contains(&target),
            Key::SourceRange(frontend, _) => targets.contains(&Target::Frontend(frontend)),
            Key::List(_) => true,
            Key::Address(_) | Key::Prefix(_) | Key::Hairpin(..) | Key::Affinity(..) => false,
        };
        for name in holders {
            let Some(compiled) = self.services.get(name) else { continue };
            elements(name, compiled, &mut |element| {
                if is_about(&element) {
                    found.push(element);
                }
            });
        }
    }

    /// Adds the elements that can stop a packet on its way to an endpoint: the
    /// filter hooks see the translated destination.
    fn elements_behind(&self, endpoint: Endpoint, protocol: Protocol, found: &mut Vec<Element>) {
        found.extend(self.shared_element(Map::ClusterIps, Key::Address(endpoint.address)));
        for target in targets(endpoint.address, protocol, endpoint.port) {
            if self.claims.holder(&Claim::NoEndpoint(target)).is_some() {
                let mut all = Vec::new();
                self.elements_for(&[target], &mut all);
                found.extend(all.into_iter().filter(|element| matches!(element.map, Map::NoEndpoints(_))));
            }
        }
    }

    /// An element that several Services may contribute, if any does.
    fn shared_element(&self, map: Map, key: Key) -> Option<Element> {
        let element = Element { map, key, data: Data::Nothing, comment: None };
        self.shared.has(&element).then_some(element)
    }
}
