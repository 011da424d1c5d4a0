//! Selects the endpoints that may serve a service port from this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;

use super::address::{self, Family};
use super::services::ServicePort;
use super::{Protocol, ReferenceModel, json};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The endpoints chosen for a service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selection {
    /// For `Cluster` policies and for local clients of external addresses.
    pub(super) cluster: BTreeSet<SocketAddr>,
    /// For `Local` policies.
    pub(super) local: BTreeSet<SocketAddr>,
    /// Those of both lists that run on this node.
    pub(super) reachable_here: BTreeSet<SocketAddr>,
    /// Whether any endpoint, here or elsewhere, could take traffic.
    pub(super) has_any: bool,
    /// Whether a slice lists any endpoint, whatever its state.
    pub(super) is_listed: bool,
    /// How `cluster` was chosen.
    pub(super) cluster_choice: Choice,
    /// How `local` was chosen.
    pub(super) local_choice: Choice,
}

/// How the endpoints of a list were chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// All that are ready.
    #[default]
    Ready,
    /// Those with a hint of this node.
    HintOfNode,
    /// Those with a hint of its zone.
    HintOfZone,
    /// None is ready: those that still serve while they terminate.
    Terminating,
}

/// One endpoint and one port of a slice.
#[derive(Debug, Clone)]
struct Endpoint {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zone_hints: Vec<String>,
    node_hints: Vec<String>,
}

impl Endpoint {
    /// A draining endpoint that still answers: the last resort.
    fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }
}

/// How hints restrict the cluster list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameNode,
    SameZone,
}

/// Chooses the endpoints of a service port.
pub(super) fn select(model: &ReferenceModel, port: &ServicePort, family: Family) -> Selection {
    let endpoints = endpoints_of(model, port, family);
    let mut selection = Selection { is_listed: !endpoints.is_empty(), ..Selection::default() };
    if port.uses_cluster_endpoints() {
        (selection.cluster, selection.cluster_choice) = cluster_endpoints(model, &endpoints);
        selection.has_any = !selection.cluster.is_empty();
    }
    if port.uses_local_endpoints() {
        selection.has_any |= endpoints.values().any(|e| e.ready || e.is_fallback());
        (selection.local, selection.local_choice) = local_endpoints(&endpoints);
    }
    selection.reachable_here =
        selection.cluster.union(&selection.local).filter(|address| endpoints[*address].local).copied().collect();
    selection
}

/// Ready endpoints that fit the topology, else draining ones from anywhere.
fn cluster_endpoints(
    model: &ReferenceModel,
    endpoints: &BTreeMap<SocketAddr, Endpoint>,
) -> (BTreeSet<SocketAddr>, Choice) {
    let topology = topology(model, endpoints);
    let chosen = addresses(endpoints, |e| e.ready && fits(model, e, topology));
    let choice = match topology {
        Topology::Anywhere => Choice::Ready,
        Topology::SameNode => Choice::HintOfNode,
        Topology::SameZone => Choice::HintOfZone,
    };
    or_fallback(chosen, choice, || addresses(endpoints, Endpoint::is_fallback))
}

fn or_fallback(
    chosen: BTreeSet<SocketAddr>,
    choice: Choice,
    fallback: impl FnOnce() -> BTreeSet<SocketAddr>,
) -> (BTreeSet<SocketAddr>, Choice) {
    if chosen.is_empty() { (fallback(), Choice::Terminating) } else { (chosen, choice) }
}

/// Local ready endpoints, else local draining ones. Hints play no part.
fn local_endpoints(endpoints: &BTreeMap<SocketAddr, Endpoint>) -> (BTreeSet<SocketAddr>, Choice) {
    let chosen = addresses(endpoints, |e| e.local && e.ready);
    or_fallback(chosen, Choice::Ready, || addresses(endpoints, |e| e.local && e.is_fallback()))
}

/// A kind of hint counts only if every ready endpoint has one of that kind and
/// at least one of them names this node or its zone.
fn topology(model: &ReferenceModel, endpoints: &BTreeMap<SocketAddr, Endpoint>) -> Topology {
    let ready: Vec<&Endpoint> = endpoints.values().filter(|e| e.ready).collect();
    let works = |topology: Topology, hints: fn(&Endpoint) -> &[String]| {
        ready.iter().all(|e| !hints(e).is_empty()) && ready.iter().any(|e| fits(model, e, topology))
    };
    if works(Topology::SameNode, |e| &e.node_hints) {
        Topology::SameNode
    } else if works(Topology::SameZone, |e| &e.zone_hints) {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

fn fits(model: &ReferenceModel, endpoint: &Endpoint, topology: Topology) -> bool {
    match topology {
        Topology::Anywhere => true,
        Topology::SameNode => !model.node.name.is_empty() && endpoint.node_hints.contains(&model.node.name),
        Topology::SameZone => model.zone().is_some_and(|zone| endpoint.zone_hints.iter().any(|hint| hint == zone)),
    }
}

fn addresses(endpoints: &BTreeMap<SocketAddr, Endpoint>, wanted: impl Fn(&Endpoint) -> bool) -> BTreeSet<SocketAddr> {
    endpoints.iter().filter(|(_, e)| wanted(e)).map(|(address, _)| *address).collect()
}

/// The endpoints of all slices of a service port; of several entries for one
/// address and port, the best counts.
fn endpoints_of(model: &ReferenceModel, port: &ServicePort, family: Family) -> BTreeMap<SocketAddr, Endpoint> {
    let mut slices: Vec<&Value> =
        model.objects_of_kind("EndpointSlice").filter(|slice| belongs_to(slice, port, family)).collect();
    // Stable: slices of one age stay in the order of their names.
    slices.sort_by(|a, b| json::created(b).cmp(json::created(a)));

    let mut endpoints: BTreeMap<SocketAddr, Endpoint> = BTreeMap::new();
    for slice in slices {
        for (address, endpoint) in entries_of(model, slice, port, family) {
            let better = endpoints
                .get(&address)
                .is_none_or(|present| (!endpoint.terminating, endpoint.ready) > (!present.terminating, present.ready));
            if better {
                endpoints.insert(address, endpoint);
            }
        }
    }
    endpoints
}

fn belongs_to(slice: &Value, port: &ServicePort, family: Family) -> bool {
    json::label(slice, HEADLESS_LABEL).is_none()
        && json::text(slice, "/addressType") == Some(family.name())
        && json::text(slice, "/metadata/namespace").unwrap_or_default() == port.namespace
        && json::label(slice, SERVICE_NAME_LABEL) == Some(&port.service)
}

fn entries_of(
    model: &ReferenceModel,
    slice: &Value,
    port: &ServicePort,
    family: Family,
) -> Vec<(SocketAddr, Endpoint)> {
    let numbers: BTreeSet<u16> = json::list(slice, "/ports")
        .iter()
        // A name of null is not the empty name: it joins nothing.
        .filter(|entry| json::text(entry, "/name") == Some(&port.port_name))
        .filter(|entry| {
            let protocol = json::text(entry, "/protocol").unwrap_or("TCP");
            Protocol::from_name(protocol) == Some(port.protocol)
        })
        .filter_map(|entry| json::port(entry, "/port"))
        .collect();
    let mut entries = Vec::new();
    for endpoint in json::list(slice, "/endpoints") {
        let address =
            json::texts(endpoint, "/addresses").first().and_then(|text| address::parse_of_family(text, family));
        let Some(address) = address else { continue };
        for number in &numbers {
            entries.push((SocketAddr::new(address, *number), read_endpoint(model, endpoint)));
        }
    }
    entries
}

fn read_endpoint(model: &ReferenceModel, endpoint: &Value) -> Endpoint {
    let hints = |pointer| {
        json::list(endpoint, pointer).iter().filter_map(|hint| Some(json::text(hint, "/name")?.to_owned())).collect()
    };
    let node_name = json::text(endpoint, "/nodeName").unwrap_or_default();
    Endpoint {
        ready: json::flag(endpoint, "/conditions/ready").unwrap_or(true),
        serving: json::flag(endpoint, "/conditions/serving").unwrap_or(true),
        terminating: json::flag(endpoint, "/conditions/terminating").unwrap_or(false),
        local: !node_name.is_empty() && node_name == model.node.name,
        zone_hints: hints("/hints/forZones"),
        node_hints: hints("/hints/forNodes"),
    }
}
