//! The limit on the elements of one Service.
//!
//! The elements of a Service are a product: its addresses times its ports times
//! their endpoints. An object of 60 kB may ask for hundreds of millions, on
//! every node, and anyone who may create a Service could exhaust the memory of
//! all nodes. kube-proxy has no such limit. Here a Service that asks for more
//! than [`MAX_ELEMENTS`] is not programmed, and nothing else is affected.

use crate::model::types::Service;
use crate::ruleset::Family;
use crate::ruleset::service::{CompiledService, count_addresses};
use crate::ruleset::source_ranges::{markers_at_most, most_markers};
use crate::select::Joins;

/// The most elements that one Service may ask for in one family, as
/// [`elements_at_most`] counts them.
///
/// That is about the total of a cluster of 70,000 ordinary Services with 5
/// endpoints each. It is enough for 100,000 endpoints at one port of a load
/// balancer (cluster IP, node port, one address), or 5,000 ports with 40
/// endpoints each. Planning 300,000 of them takes about 160 MiB while it runs
/// (decision 26).
pub const MAX_ELEMENTS: u64 = 500_000;

/// Elements of a frontend other than slots, for each of its lists: verdicts,
/// masquerading or policy, affinity, no endpoints.
const BESIDE_THE_SLOTS: u64 = 3;

/// The lists of a service port that can have a number, and with it a timeout of
/// session affinity: the one of the cluster and the one of this node.
const TIMEOUTS: u64 = 2;

/// Returns the maximum number of elements that a Service may need in the family
/// of its slices.
///
/// Counted from the sizes alone, as if every endpoint were ready and on this
/// node. The result therefore does not change when a pod becomes ready, and
/// nothing has to be multiplied out to be counted. The work is linear in the
/// size of the objects.
pub fn elements_at_most(service: &Service, joins: &Joins<'_>) -> u64 {
    let addresses = count(count_addresses(service));
    // Frontends with the external policy Local have a list for the cluster and
    // one for this node.
    let lists = if service.external_policy_local { 2 } else { 1 };
    let timeouts = if service.affinity.is_some() { TIMEOUTS } else { 0 };
    let per_port = service.ports.iter().map(|port| {
        let endpoints = count(joins.endpoints(port));
        let frontends = addresses.saturating_add(u64::from(port.node_port.is_some()));
        let of_a_frontend = endpoints.saturating_add(BESIDE_THE_SLOTS).saturating_mul(lists);
        // Each endpoint may be against itself once more: hairpin connections.
        frontends.saturating_mul(of_a_frontend).saturating_add(endpoints).saturating_add(timeouts)
    });
    per_port.fold(firewall_at_most(service), u64::saturating_add)
}

/// Returns the maximum number of elements for the source ranges of a Service:
/// for each load balancer frontend a verdict, the ranges, its own addresses as
/// ranges, and the markers of all these.
fn firewall_at_most(service: &Service) -> u64 {
    if service.source_ranges.is_empty() {
        return 0;
    }
    let family = Family::of(service.cluster_ip);
    let addresses = count(service.load_balancer_ips.len());
    // An address may be merged with ranges: to one of any length.
    let of_addresses = addresses.saturating_mul(1 + count(most_markers(family)));
    let of_ranges = count(service.source_ranges.len()) + count(markers_at_most(family, &service.source_ranges));
    let per_frontend = of_ranges.saturating_add(of_addresses).saturating_add(1);
    count(service.ports.len()).saturating_mul(addresses).saturating_mul(per_frontend)
}

/// About how many elements a compiled Service has; the work is linear in the
/// number of its ports and addresses.
pub(crate) fn elements_about(compiled: &CompiledService) -> u64 {
    let addresses = count(count_addresses(&compiled.service));
    let ports = compiled.ports.iter();
    ports.map(|port| addresses * (count(port.cluster.len()) + count(port.local.len()) + BESIDE_THE_SLOTS)).sum::<u64>()
        + firewall_at_most(&compiled.service)
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
