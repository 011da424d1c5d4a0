//! Selects the endpoints that serve a service port: readiness, traffic
//! policies, topology and their fallbacks, as in kube-proxy
//! (`pkg/proxy/topology.go`, 1.36).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::model::Family;
use crate::model::slice::{Slice, SliceEndpoint, SlicePort};
use crate::model::types::{Service, ServicePort};
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
    /// Whether any endpoint anywhere could serve: distinguishes "none here"
    /// (drop) from "none at all" (reject).
    pub any: bool,
}

/// Topology that restricts the cluster-wide list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    None,
    SameNode,
    SameZone,
}

/// The ports of a Service's slices, of one family, by the attributes that join
/// them to a service port: name and protocol. Created once for all ports of the
/// Service, because searching all slices for each port would be quadratic.
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
    /// The ports of the slices that are of this family. Slices of another family
    /// are left out.
    pub fn new(family: Family, slices: impl IntoIterator<Item = &'a Slice>) -> Self {
        let slices = slices.into_iter().filter(|slice| slice.family() == family);
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

    /// Returns the number of endpoints of a service port, whatever their state.
    /// Endpoints in several slices count several times.
    pub fn endpoints(&self, port: &ServicePort) -> usize {
        self.of(port).iter().map(|join| join.slice.endpoints.len()).sum()
    }
}

/// Selects the endpoints of one service port.
///
/// ```
/// use vmap_proxy_compiler::model::{Family, convert};
/// use vmap_proxy_compiler::select::{Joins, Viewpoint, select};
/// use serde_json::{from_value, json};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (services, _problems) = convert::service(&from_value(json!({
///     "metadata": { "namespace": "shop", "name": "cart" },
///     "spec": { "clusterIP": "10.96.0.10", "ports": [{ "port": 80 }], "internalTrafficPolicy": "Local" },
/// }))?);
/// let (slice, _problems) = convert::slice(&from_value(json!({
///     "metadata": { "namespace": "shop", "name": "cart-1" },
///     "addressType": "IPv4",
///     "endpoints": [
///         { "addresses": ["10.244.1.7"], "nodeName": "node-1" },
///         { "addresses": ["10.244.2.9"], "nodeName": "node-2" },
///     ],
///     "ports": [{ "name": "", "port": 8080 }],
/// }))?, "node-1");
///
/// let service = services.ipv4.ok_or("the Service has no IPv4 address")?;
/// let joins = Joins::new(Family::Ipv4, &slice);
/// let selected = select(&service, &service.ports[0], &joins, Viewpoint { node_name: "node-1", zone: None });
/// assert_eq!(selected.local.len(), 1);
/// assert_eq!(selected.local[0].to_string(), "10.244.1.7:8080");
/// # Ok(())
/// # }
/// ```
pub fn select(service: &Service, port: &ServicePort, joins: &Joins<'_>, viewpoint: Viewpoint<'_>) -> Selection {
    let candidates = candidates(port, joins);
    if candidates.is_empty() {
        return Selection::default();
    }
    let mut selection = Selection::default();
    let policy = Policy::new(&candidates, viewpoint);
    if service.uses_cluster_endpoints(port) {
        selection.cluster = addresses(&candidates, |endpoint| policy.cluster(endpoint).is_ok());
        selection.any = !selection.cluster.is_empty();
    }
    if service.uses_local_endpoints(port) {
        selection.local = addresses(&candidates, |endpoint| policy.local(endpoint).is_ok());
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

/// Why an endpoint serves a list of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Used {
    /// It is ready, and nothing excludes it.
    Ready,
    /// It is ready, and its hints name this node.
    HintOfNode,
    /// It is ready, and its hints name this node's zone.
    HintOfZone,
    /// It still serves while it terminates, and none is ready.
    Terminating,
}

/// Why an endpoint does not serve a list of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unused {
    /// It is not ready, and does not serve while it terminates either.
    NotReady,
    /// It terminates and still serves, but others are ready.
    Terminating,
    /// It is on another node, and the list is that of this node.
    OtherNode,
    /// Every ready endpoint has hints of nodes; its own do not name this node.
    HintOfOtherNode,
    /// Every ready endpoint has hints of zones; its own do not name this node's
    /// zone.
    HintOfOtherZone,
    /// Another entry of the same address and port counts.
    Duplicate,
}

/// One entry of a slice that joins a service port, with the verdict of each list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged<'a> {
    /// Its address and port.
    pub address: Endpoint,
    /// The slice that lists it.
    pub slice: &'a Slice,
    /// The entry.
    pub entry: SliceEndpoint<'a>,
    /// Whether it serves the list of the cluster, [`Selection::cluster`].
    pub cluster: Result<Used, Unused>,
    /// Whether it serves the list of this node, [`Selection::local`].
    pub local: Result<Used, Unused>,
}

/// Judges every entry that joins a service port, in the order of addresses,
/// those that count first. [`select()`] keeps the addresses for which this is
/// `Ok`, as far as the Service uses the list.
pub fn judge<'a>(port: &ServicePort, joins: &Joins<'a>, viewpoint: Viewpoint<'_>) -> Vec<Judged<'a>> {
    let candidates = candidates(port, joins);
    let policy = Policy::new(&candidates, viewpoint);
    let mut previous = None;
    let judge = |(address, slice, entry): (Endpoint, &'a Slice, SliceEndpoint<'a>)| {
        let is_first = previous.replace(address) != Some(address);
        let counts = |verdict| if is_first { verdict } else { Err(Unused::Duplicate) };
        let (cluster, local) = (counts(policy.cluster(&entry)), counts(policy.local(&entry)));
        Judged { address, slice, entry, cluster, local }
    };
    ranked(port, joins).into_iter().map(judge).collect()
}

/// Returns the number of distinct addresses of this node that are ready for any
/// port of the Service, for the health check port of load balancers. Endpoints
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
/// For UDP those that serve, whatever policies and topology mean for new flows
/// (kube-proxy: `pkg/proxy/conntrack/cleanup.go`), and those that are ready,
/// because new flows go there. For SCTP all that exist: an association is cut
/// only when its endpoint is gone.
pub fn endpoints_keeping_flows(port: &ServicePort, joins: &Joins<'_>) -> Vec<Endpoint> {
    let keeps: fn(&SliceEndpoint<'_>) -> bool = match port.protocol {
        Protocol::Tcp => return Vec::new(),
        Protocol::Udp => |endpoint| endpoint.serving || endpoint.ready,
        Protocol::Sctp => |_| true,
    };
    addresses(&candidates(port, joins), keeps)
}

/// All entries that join the service port, in the order of addresses. Of several
/// entries for one address and port the first counts: one that runs beats one
/// that terminates (a pod's address can be reused while the old slice still lists
/// it), a ready one beats one that isn't, then the one in the newest slice counts.
/// (Beyond the first of these, kube-proxy leaves it to chance.)
fn ranked<'a>(port: &ServicePort, joins: &Joins<'a>) -> Vec<(Endpoint, &'a Slice, SliceEndpoint<'a>)> {
    let mut found = Vec::with_capacity(joins.endpoints(port));
    for join in joins.of(port) {
        let address = |entry: &SliceEndpoint<'_>| Endpoint { address: entry.address, port: join.port };
        found.extend(join.slice.endpoints.iter().map(|entry| (address(&entry), join.slice, entry)));
    }
    found.sort_by_key(|(address, slice, entry)| (*address, entry.terminating, !entry.ready, Reverse(slice.created)));
    found
}

/// All endpoints that join the service port, each address and port once, in
/// order.
fn candidates<'a>(port: &ServicePort, joins: &Joins<'a>) -> Vec<(Endpoint, SliceEndpoint<'a>)> {
    let mut found = ranked(port, joins);
    found.dedup_by_key(|(address, ..)| *address);
    found.into_iter().map(|(address, _, entry)| (address, entry)).collect()
}

/// Serves although it is going away; used where nothing is ready.
fn is_fallback(endpoint: &SliceEndpoint<'_>) -> bool {
    endpoint.serving && endpoint.terminating
}

/// The rules by which the endpoints of one service port are chosen.
struct Policy<'v> {
    viewpoint: Viewpoint<'v>,
    topology: Topology,
    /// Whether any endpoint is ready that fits the topology.
    any_ready: bool,
    /// Whether any endpoint of this node is ready.
    any_local_ready: bool,
}

impl<'v> Policy<'v> {
    fn new(candidates: &[(Endpoint, SliceEndpoint<'_>)], viewpoint: Viewpoint<'v>) -> Self {
        let topology = topology(candidates, viewpoint);
        let mut policy = Self { viewpoint, topology, any_ready: false, any_local_ready: false };
        let ready = || candidates.iter().map(|(_, endpoint)| endpoint).filter(|endpoint| endpoint.ready);
        policy.any_ready = ready().any(|endpoint| policy.fits(endpoint).is_ok());
        policy.any_local_ready = ready().any(|endpoint| endpoint.local);
        policy
    }

    /// Ready endpoints that fit the topology; if nothing is ready, those that
    /// still serve while they terminate, wherever they are.
    fn cluster(&self, endpoint: &SliceEndpoint<'_>) -> Result<Used, Unused> {
        if endpoint.ready { self.fits(endpoint) } else { fallback(endpoint, self.any_ready) }
    }

    /// Ready endpoints of this node; if none is ready, those that still serve.
    /// Topology does not matter here.
    fn local(&self, endpoint: &SliceEndpoint<'_>) -> Result<Used, Unused> {
        match (endpoint.local, endpoint.ready) {
            (false, _) => Err(Unused::OtherNode),
            (true, true) => Ok(Used::Ready),
            (true, false) => fallback(endpoint, self.any_local_ready),
        }
    }

    /// Whether the hints of a ready endpoint let it serve this node.
    fn fits(&self, endpoint: &SliceEndpoint<'_>) -> Result<Used, Unused> {
        match self.topology {
            Topology::None => Ok(Used::Ready),
            Topology::SameNode if hinted_to_node(endpoint, self.viewpoint) => Ok(Used::HintOfNode),
            Topology::SameNode => Err(Unused::HintOfOtherNode),
            Topology::SameZone if hinted_to_zone(endpoint, self.viewpoint) => Ok(Used::HintOfZone),
            Topology::SameZone => Err(Unused::HintOfOtherZone),
        }
    }
}

/// An endpoint that isn't ready.
fn fallback(endpoint: &SliceEndpoint<'_>, any_ready: bool) -> Result<Used, Unused> {
    match (is_fallback(endpoint), any_ready) {
        (true, false) => Ok(Used::Terminating),
        (true, true) => Err(Unused::Terminating),
        (false, _) => Err(Unused::NotReady),
    }
}

fn addresses(
    candidates: &[(Endpoint, SliceEndpoint<'_>)],
    wanted: impl Fn(&SliceEndpoint<'_>) -> bool,
) -> Vec<Endpoint> {
    candidates.iter().filter(|(_, endpoint)| wanted(endpoint)).map(|(address, _)| *address).collect()
}

/// Hints count only if *every* ready endpoint has them and at least one names
/// this node (or zone). Node hints come before zone hints. Conditions other
/// than ready, and `spec.trafficDistribution`, play no part.
fn topology(candidates: &[(Endpoint, SliceEndpoint<'_>)], viewpoint: Viewpoint<'_>) -> Topology {
    let ready = || candidates.iter().map(|(_, endpoint)| endpoint).filter(|endpoint| endpoint.ready);
    let has_node_hints = |endpoint: &SliceEndpoint<'_>| endpoint.hints.is_some_and(|hints| !hints.nodes.is_empty());
    let has_zone_hints = |endpoint: &SliceEndpoint<'_>| endpoint.hints.is_some_and(|hints| !hints.zones.is_empty());
    if ready().all(has_node_hints) && ready().any(|endpoint| hinted_to_node(endpoint, viewpoint)) {
        return Topology::SameNode;
    }
    if ready().all(has_zone_hints) && ready().any(|endpoint| hinted_to_zone(endpoint, viewpoint)) {
        return Topology::SameZone;
    }
    Topology::None
}

fn hinted_to_node(endpoint: &SliceEndpoint<'_>, viewpoint: Viewpoint<'_>) -> bool {
    let hints = endpoint.hints;
    !viewpoint.node_name.is_empty()
        && hints.is_some_and(|hints| hints.nodes.iter().any(|node| node == viewpoint.node_name))
}

fn hinted_to_zone(endpoint: &SliceEndpoint<'_>, viewpoint: Viewpoint<'_>) -> bool {
    let hints = endpoint.hints;
    viewpoint.zone.is_some_and(|own| hints.is_some_and(|hints| hints.zones.iter().any(|zone| zone == own)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;
    use crate::model::convert;

    const HERE: Viewpoint<'_> = Viewpoint { node_name: "here", zone: Some("a") };

    fn slice(endpoints: Value) -> Slice {
        let object = json!({"metadata": {"name": "cart-1", "namespace": "shop"}, "addressType": "IPv4",
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080}]});
        convert::slice(&from_value(object).unwrap(), HERE.node_name).0.unwrap()
    }

    /// The last bytes of the addresses selected for the cluster and for this node.
    fn selected(internal_policy: &str, slices: &[Slice]) -> (Vec<u8>, Vec<u8>, bool) {
        let object = json!({"metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "internalTrafficPolicy": internal_policy}});
        let service = convert::service(&from_value(object).unwrap()).0.ipv4.unwrap();
        let selection = select(&service, &service.ports[0], &Joins::new(Family::Ipv4, slices), HERE);
        let last = |endpoint: &Endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3],
            std::net::IpAddr::V6(_) => 0,
        };
        (selection.cluster.iter().map(last).collect(), selection.local.iter().map(last).collect(), selection.any)
    }

    fn endpoint(host: u8, node: &str, ready: bool) -> Value {
        json!({"addresses": [format!("10.244.0.{host}")], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
    }

    #[test]
    fn terminating_endpoints_serve_where_none_is_ready() {
        let ending = slice(json!([endpoint(1, "here", false), endpoint(2, "there", false)]));
        assert_eq!(selected("Cluster", std::slice::from_ref(&ending)), (vec![1, 2], vec![], true));
        assert_eq!(selected("Local", std::slice::from_ref(&ending)), (vec![], vec![1], true));
        let running = slice(json!([endpoint(3, "there", true)]));
        assert_eq!(selected("Cluster", &[ending, running]), (vec![3], vec![], true));
    }

    #[test]
    fn an_address_that_runs_in_one_slice_is_not_ending() {
        let (old, new) = (slice(json!([endpoint(1, "here", false)])), slice(json!([endpoint(1, "here", true)])));
        assert_eq!(selected("Local", &[old, new]), (vec![], vec![1], true));
    }

    #[test]
    fn hints_count_if_every_ready_endpoint_has_them() {
        let hinted = |host, zone: &str| {
            let mut endpoint = endpoint(host, "there", true);
            endpoint["hints"] = json!({"forZones": [{"name": zone}]});
            endpoint
        };
        let all = slice(json!([hinted(1, "a"), hinted(2, "b")]));
        assert_eq!(selected("Cluster", std::slice::from_ref(&all)).0, [1]);
        let one_without = slice(json!([endpoint(3, "there", true)]));
        assert_eq!(selected("Cluster", &[all, one_without]).0, [1, 2, 3]);
    }
}
