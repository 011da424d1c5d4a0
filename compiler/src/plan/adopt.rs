//! A restart takes over what the kernel holds: endpoints stay in their slots,
//! and lists keep their numbers.

use super::kernel_state::KernelElements;
use super::planner::FamilyState;
use super::slots;
use crate::model::Endpoint;
use crate::model::types::ServiceName;
use crate::ruleset::element::{Key, ListNumber};
use crate::ruleset::maps::Map;
use crate::ruleset::service::{Claim, CompiledService, all_frontends, list_comments};

/// Puts the endpoints into the slots that the kernel holds for each port, as
/// the first frontend that the Service holds has them, and gives the lists the
/// numbers that they have there.
pub(super) fn adopt(
    name: &ServiceName,
    compiled: &mut CompiledService,
    kernel: &KernelElements,
    state: &mut FamilyState,
) {
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
