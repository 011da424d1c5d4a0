//! The plan for a node that changed: the rules, and the node's own elements.

use super::family_state::FamilyState;
use super::net::NetChanges;
use super::{Action, Operation, Plan, Planner};
use crate::model::{ProxyConfig, Store};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{Data, Element, Key};
use crate::ruleset::maps::Map;
use crate::ruleset::skeleton::rules;
use arcstr::ArcStr;

impl Planner {
    /// Plans for a node that changed: the rules and the node's own elements.
    pub(super) fn plan_node(&mut self, store: &Store) -> Plan {
        let mut plan = Plan { node_changed: true, ..Plan::default() };
        for family in Family::ALL {
            self.plan_skeleton(store, family, &mut plan);
        }
        plan
    }

    /// Plans for changed rules of the skeleton, and for the node's elements.
    fn plan_skeleton(&mut self, store: &Store, family: Family, plan: &mut Plan) {
        let wanted = FamilyState::new(family, &self.config, store.node());
        let mut phases = self.phases();
        let state = &mut self.families[family];
        let mut operations = Vec::new();
        let present = Chain::LEARNING.into_iter().chain(Chain::FIREWALL).filter(|chain| state.chains.has(*chain));
        for chain in Chain::FIXED.into_iter().chain(present) {
            let new = rules(&wanted.skeleton, chain);
            if !self.unconnected.contains(&(family, chain)) && rules(&state.skeleton, chain) != new {
                operations.push(Operation { family, action: Action::FlushChain(chain), owner: None });
                let add =
                    new.into_iter().map(|rule| Operation { family, action: Action::AddRule(chain, rule), owner: None });
                operations.extend(add);
            }
        }
        phases.change_rules(operations);
        let mut net = NetChanges::default();
        let owner = node_owner();
        let now = node_elements(&self.config, store, family);
        for element in std::mem::replace(&mut state.node_elements, now.clone()) {
            net.held(family, element, &owner);
        }
        for element in now {
            net.wanted(family, element, &owner);
        }
        state.skeleton = wanted.skeleton;
        state.primary_address = wanted.primary_address;
        net.into_phases(&mut phases);
        plan.transactions.extend(phases.finish());
    }
}

/// The elements that belong to the node.
pub(super) fn node_elements(config: &ProxyConfig, store: &Store, family: Family) -> Vec<Element> {
    let element = |map, key| Element { map, key, data: Data::Nothing, comment: None };
    let addresses = config.node_port_ips(store.node(), family).into_iter();
    let ranges: Vec<_> = store.service_cidrs().filter(|range| Family::of(range.addr()) == family).collect();
    let ranges = ipnet::IpNet::aggregate(&ranges).into_iter();
    addresses
        .map(|address| element(Map::NodePortIps, Key::Address(address)))
        .chain(ranges.map(|range| element(Map::ServiceCidrs, Key::Prefix(range))))
        .collect()
}

/// The owner of elements that belong to the node.
pub(super) fn node_owner() -> ArcStr {
    "node".into()
}
