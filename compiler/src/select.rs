//! Which endpoints serve a service port: readiness, traffic policies, topology
//! and their fallbacks, as kube-proxy decides (`pkg/proxy/topology.go`, 1.36).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::model::Family;
use crate::model::convert::{Slice, SlicePort};
use crate::model::store::NamedSlice;
use crate::model::types::{Service, ServicePort, SliceEndpoint};
use crate::model::{Endpoint, Protocol};

/// The node that selection is done for.
#[derive(Debug, Clone, Copy)]
pub struct Viewpoint<'a> {
    /// The node's name; node hints are compared with it.
    pub node_name: &'a str,
    /// The node's zone, if it has one; zone hints are compared with it.
    pub zone: Option<&'a str>,
}

/// The endpoints that serve one service port on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// For traffic that may go anywhere in the cluster; sorted.
    pub cluster: Vec<Endpoint>,
    /// For traffic that must stay on this node; sorted.
    pub local: Vec<Endpoint>,
    /// Those of either list that are on this node; sorted.
    pub on_this_node: Vec<Endpoint>,
    /// Whether any endpoint anywhere could serve: tells "none here" (drop) from
    /// "none at all" (reject).
    pub any: bool,
}

/// Topology that restricts the cluster-wide list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    None,
    SameNode,
    SameZone,
}

/// The ports of a Service's slices, of one family, by what joins them to a
/// service port: name and protocol. Made once for all ports of the Service:
/// looking through all slices for each of them would be quadratic.
#[derive(Debug)]
pub struct Joins<'a>(Vec<Join<'a>>);

#[derive(Debug)]
struct Join<'a> {
    name: &'a str,
    protocol: Protocol,
    slice: &'a Slice,
    port: u16,
}

impl<'a> Joins<'a> {
    /// The ports of the slices that are of this family.
    pub fn new(family: Family, slices: &'a [NamedSlice]) -> Self {
        let slices = slices.iter().map(|named| &named.slice).filter(|slice| slice.family == family);
        let ports = slices.flat_map(|slice| slice.ports.iter().map(move |port| (slice, port)));
        let join = |(slice, port): (&'a Slice, &'a SlicePort)| Join {
            name: &port.name,
            protocol: port.protocol,
            slice,
            port: port.port,
        };
        let mut joins: Vec<Join<'a>> = ports.map(join).collect();
        // Stable: the slices of one port stay in their order.
        joins.sort_by_key(|join| (join.name, join.protocol));
        Self(joins)
    }

    fn of(&self, port: &ServicePort) -> &[Join<'a>] {
        let wanted = (&*port.name, port.protocol);
        let begin = self.0.partition_point(|join| (join.name, join.protocol) < wanted);
        let rest = self.0.get(begin..).unwrap_or_default();
        let count = rest.partition_point(|join| (join.name, join.protocol) == wanted);
        rest.get(..count).unwrap_or_default()
    }

    /// How many endpoints join a service port, whatever their state, and those
    /// that are in several slices several times.
    pub fn endpoints(&self, port: &ServicePort) -> usize {
        self.of(port).iter().map(|join| join.slice.endpoints.len()).sum()
    }
}

/// Selects the endpoints of one service port.
pub fn select(service: &Service, port: &ServicePort, joins: &Joins<'_>, viewpoint: Viewpoint<'_>) -> Selection {
    let candidates = candidates(port, joins);
    if candidates.is_empty() {
        return Selection::default();
    }
    let mut selection = Selection::default();
    if service.uses_cluster_endpoints(port) {
        selection.cluster = cluster_endpoints(&candidates, viewpoint);
        selection.any = !selection.cluster.is_empty();
    }
    if service.uses_local_endpoints(port) {
        selection.local = local_endpoints(&candidates);
        selection.any |= candidates.iter().any(|(_, endpoint)| endpoint.ready || is_fallback(endpoint));
    }
    // Both lists are sorted.
    let reachable = |address: &Endpoint| {
        selection.cluster.binary_search(address).is_ok() || selection.local.binary_search(address).is_ok()
    };
    selection.on_this_node = candidates
        .iter()
        .filter(|(address, endpoint)| endpoint.local && reachable(address))
        .map(|(address, _)| *address)
        .collect();
    selection
}

/// How many distinct addresses of this node are ready for any port of the
/// Service: what the health check port of a load balancer is told. Endpoints
/// that only serve while they terminate do not count.
pub fn ready_local_addresses(service: &Service, joins: &Joins<'_>) -> usize {
    let mut addresses = BTreeSet::new();
    for port in &service.ports {
        let ready = candidates(port, joins).into_iter().filter(|(_, endpoint)| endpoint.ready && endpoint.local);
        addresses.extend(ready.map(|(address, _)| address.address));
    }
    addresses.len()
}

/// The endpoints that flows of this port may stay with, sorted; empty for TCP,
/// whose connections are never cut.
///
/// For UDP those that serve, whatever policies and topology say of new flows
/// (kube-proxy: `pkg/proxy/conntrack/cleanup.go`), and those that are ready,
/// since new flows go there. For SCTP all that exist: an association is cut
/// only when its endpoint is gone.
pub fn endpoints_keeping_flows(port: &ServicePort, joins: &Joins<'_>) -> Vec<Endpoint> {
    let keeps: fn(&SliceEndpoint) -> bool = match port.protocol {
        Protocol::Tcp => return Vec::new(),
        Protocol::Udp => |endpoint| endpoint.serving || endpoint.ready,
        Protocol::Sctp => |_| true,
    };
    addresses(&candidates(port, joins), keeps)
}

/// All endpoints that join the service port, each address and port once, in
/// order. Of several entries for one, one that runs beats one that terminates
/// (a pod's address can be reused while the old slice still lists it), a ready
/// one beats one that isn't, then the one in the newest slice counts. (Beyond
/// the first of these, kube-proxy leaves it to chance.)
fn candidates<'a>(port: &ServicePort, joins: &Joins<'a>) -> Vec<(Endpoint, &'a SliceEndpoint)> {
    let mut found = Vec::with_capacity(joins.endpoints(port));
    for join in joins.of(port) {
        let address = |entry: &SliceEndpoint| Endpoint { address: entry.address, port: join.port };
        found.extend(join.slice.endpoints.iter().map(|entry| (address(entry), join.slice.created, entry)));
    }
    found.sort_by_key(|(address, created, entry)| (*address, entry.terminating, !entry.ready, Reverse(*created)));
    found.dedup_by_key(|(address, ..)| *address);
    found.into_iter().map(|(address, _, entry)| (address, entry)).collect()
}

/// Serves although it is going away; used where nothing is ready.
fn is_fallback(endpoint: &SliceEndpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Ready endpoints that fit the topology; if nothing is ready, those that
/// still serve while they terminate, wherever they are.
fn cluster_endpoints(candidates: &[(Endpoint, &SliceEndpoint)], viewpoint: Viewpoint<'_>) -> Vec<Endpoint> {
    let topology = topology(candidates, viewpoint);
    let fits = |endpoint: &SliceEndpoint| match topology {
        Topology::None => true,
        Topology::SameNode => hinted_to_node(endpoint, viewpoint),
        Topology::SameZone => hinted_to_zone(endpoint, viewpoint),
    };
    let ready = addresses(candidates, |endpoint| endpoint.ready && fits(endpoint));
    if ready.is_empty() { addresses(candidates, is_fallback) } else { ready }
}

/// Ready endpoints of this node; if none is ready, those that still serve.
/// Topology does not matter here.
fn local_endpoints(candidates: &[(Endpoint, &SliceEndpoint)]) -> Vec<Endpoint> {
    let ready = addresses(candidates, |endpoint| endpoint.local && endpoint.ready);
    if ready.is_empty() { addresses(candidates, |endpoint| endpoint.local && is_fallback(endpoint)) } else { ready }
}

fn addresses(candidates: &[(Endpoint, &SliceEndpoint)], wanted: impl Fn(&SliceEndpoint) -> bool) -> Vec<Endpoint> {
    candidates.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(address, _)| *address).collect()
}

/// Hints count only if *every* ready endpoint has them and at least one names
/// this node (or zone). Node hints come before zone hints. Conditions other
/// than ready, and `spec.trafficDistribution`, play no part.
fn topology(candidates: &[(Endpoint, &SliceEndpoint)], viewpoint: Viewpoint<'_>) -> Topology {
    let ready = || candidates.iter().map(|(_, endpoint)| *endpoint).filter(|endpoint| endpoint.ready);
    let has_node_hints =
        |endpoint: &SliceEndpoint| endpoint.hints.as_ref().is_some_and(|hints| !hints.nodes.is_empty());
    let has_zone_hints =
        |endpoint: &SliceEndpoint| endpoint.hints.as_ref().is_some_and(|hints| !hints.zones.is_empty());
    if ready().all(has_node_hints) && ready().any(|endpoint| hinted_to_node(endpoint, viewpoint)) {
        return Topology::SameNode;
    }
    if ready().all(has_zone_hints) && ready().any(|endpoint| hinted_to_zone(endpoint, viewpoint)) {
        return Topology::SameZone;
    }
    Topology::None
}

fn hinted_to_node(endpoint: &SliceEndpoint, viewpoint: Viewpoint<'_>) -> bool {
    let hints = endpoint.hints.as_ref();
    !viewpoint.node_name.is_empty()
        && hints.is_some_and(|hints| hints.nodes.iter().any(|node| node == viewpoint.node_name))
}

fn hinted_to_zone(endpoint: &SliceEndpoint, viewpoint: Viewpoint<'_>) -> bool {
    let hints = endpoint.hints.as_ref();
    viewpoint.zone.is_some_and(|own| hints.is_some_and(|hints| hints.zones.iter().any(|zone| zone == own)))
}
