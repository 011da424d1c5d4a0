//! A restart adopts the kernel's state: endpoints stay in their slots, and
//! lists keep their numbers.

use super::family_state::FamilyState;
use super::kernel_state::KernelElements;
use super::slots;
use crate::model::Endpoint;
use crate::model::types::ServiceName;
use crate::ruleset::element::ListNumber;
use crate::ruleset::maps::Map;
use crate::ruleset::service::{Claim, CompiledService, all_frontends, list_comments};
use crate::ruleset::target::Pool;

/// The kernel's content of one endpoint list.
#[derive(Debug, Clone, Default)]
struct Held {
    slots: Vec<Endpoint>,
    number: Option<ListNumber>,
}

/// Puts the endpoints into the slots that the kernel holds for each port, as
/// the first frontend that the Service holds has them, and gives the lists the
/// numbers that they have there, or in an earlier table.
pub(super) fn adopt(
    name: &ServiceName,
    compiled: &mut CompiledService,
    kernel: &KernelElements,
    earlier: &KernelElements,
    state: &mut FamilyState,
) {
    let service = compiled.service.clone();
    let owners: Vec<_> = service.ports.iter().map(|port| list_comments(name, port)).collect();
    // The cluster-wide and the local list of each port.
    let mut held = vec![<[Held; 2]>::default(); compiled.ports.len()];
    for frontend in all_frontends(&service) {
        let (Some(lists), Some(owners)) = (held.get_mut(frontend.position), owners.get(frontend.position)) else {
            continue;
        };
        let (target, domain) = (frontend.target, frontend.target.domain());
        if !state.claims.holds(&Claim::Serve(target), name) {
            continue;
        }
        // The frontend's policy determines the pool of each list.
        for (list, pool) in [(usize::from(frontend.is_local), Pool::Main), (0, Pool::ShortCircuit)] {
            let held = &mut lists[list];
            if held.slots.is_empty() {
                held.slots = kernel.slots(Map::Endpoints(domain, pool), target);
            }
            let number = |elements: &KernelElements| {
                elements.list_number(Map::AffinityLists(domain, pool), target, &owners[list])
            };
            held.number = held.number.or_else(|| number(kernel)).or_else(|| number(earlier));
        }
    }
    for (endpoints, [cluster, local]) in compiled.ports.iter_mut().zip(held) {
        for (list, held) in [(&mut endpoints.cluster, &cluster.slots), (&mut endpoints.local, &local.slots)] {
            let wanted: Vec<Endpoint> = list.iter().collect();
            *list = slots::assign(held.iter().copied(), &wanted);
        }
        if service.affinity.is_none() {
            continue;
        }
        let lists =
            [(&endpoints.cluster, &mut endpoints.cluster_number), (&endpoints.local, &mut endpoints.local_number)];
        for ((list, number), held) in lists.into_iter().zip([cluster.number, local.number]) {
            if let Some(held) = held.filter(|held| !list.is_empty() && state.lists.adopt(*held, name)) {
                *number = held;
            }
        }
    }
}
