//! The elements that one Service contributes to the maps of one family.
//!
//! A pure function of the compiled Service: the planner compares the results
//! before and after a change.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use arcstr::ArcStr;
use ipnet::IpNet;
use rustc_hash::FxHashSet;
use thin_vec::ThinVec;

use super::Family;
use super::chains::Chain;
use super::element::{Data, Element, Key, ListNumber, Verdict, fit_comment, port_comment};
use super::maps::Map;
use super::source_ranges::markers;
use super::spread::Spread;
use super::target::{FrontendKey, NodePortKey, Pool, Target};
use crate::model::types::{Service, ServiceName, ServicePort};
use crate::model::{Endpoint, EndpointList};

/// One Service of one family, ready to be emitted as elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompiledService {
    /// Addresses, ports and policies.
    pub service: Arc<Service>,
    /// The endpoints of each port, in the order of `service.ports`.
    pub ports: Box<[CompiledPort]>,
    /// Frontends that another Service claims as well, and has; sorted, so that
    /// each can be found without looking at all.
    pub denied: ThinVec<Claim>,
    /// Ready local endpoints, for the health check port.
    pub ready_local: u32,
    /// Whether the source ranges admit this node's own address. Then they also
    /// admit the Service's load balancer addresses: traffic of this node to an
    /// address that is bound to it has that address as its source.
    pub admits_node: bool,
}

impl CompiledService {
    /// Returns whether another Service holds the claimed frontend.
    pub fn is_denied(&self, claim: &Claim) -> bool {
        self.denied.binary_search(claim).is_ok()
    }
}

/// The endpoints of one service port, each list in the order of its slots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompiledPort {
    /// For traffic that may go anywhere in the cluster.
    pub cluster: EndpointList,
    /// For traffic that must stay on this node.
    pub local: EndpointList,
    /// The number under which clients of `cluster` are remembered; none without
    /// session affinity.
    pub cluster_number: ListNumber,
    /// The same for `local`.
    pub local_number: ListNumber,
    /// Those of either list that are on this node.
    pub on_this_node: ThinVec<Endpoint>,
    /// Whether any endpoint anywhere could serve.
    pub any: bool,
    /// The endpoints at which established flows may stay, sorted; empty for
    /// TCP: see [`crate::select::endpoints_keeping_flows`]. No element depends
    /// on it.
    pub keeping_flows: ThinVec<Endpoint>,
}

/// A frontend that two Services cannot both have. As in kube-proxy each map has
/// a separate winner: a Service without endpoints does not stop one that has
/// some from serving an address that both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Claim {
    /// To serve a frontend or node port.
    Serve(Target),
    /// To refuse or drop packets without a serving endpoint.
    NoEndpoint(Target),
    /// To filter by source ranges.
    Firewall(FrontendKey),
}

/// One of the two lists of a service port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum List {
    /// [`CompiledPort::cluster`]
    Cluster,
    /// [`CompiledPort::local`]
    Local,
}

impl CompiledPort {
    fn list(&self, list: List) -> (&EndpointList, ListNumber) {
        match list {
            List::Cluster => (&self.cluster, self.cluster_number),
            List::Local => (&self.local, self.local_number),
        }
    }
}

impl CompiledService {
    /// The lists that clients are remembered for, each with its number.
    pub fn numbered_lists(&self) -> impl Iterator<Item = (ListNumber, &EndpointList)> {
        let lists = self.ports.iter().flat_map(|port| [List::Cluster, List::Local].map(|list| port.list(list)));
        lists.map(|(endpoints, number)| (number, endpoints)).filter(|(number, _)| number.is_some())
    }
}

impl Claim {
    /// Returns whether this is the claim to serve a frontend or node port of
    /// `port`.
    pub fn serves_port(&self, port: &ServicePort) -> bool {
        match self {
            Claim::Serve(Target::Frontend(key)) => (key.protocol, key.port) == (port.protocol, port.port),
            Claim::Serve(Target::NodePort(key)) => (key.protocol, Some(key.port)) == (port.protocol, port.node_port),
            Claim::NoEndpoint(_) | Claim::Firewall(_) => false,
        }
    }
}

impl fmt::Display for Claim {
    /// Prints the claimed frontend for messages: `10.96.0.10 port 80/TCP`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Claim::Serve(target) | Claim::NoEndpoint(target) => target.fmt(f),
            Claim::Firewall(frontend) => write!(f, "the source ranges of {frontend}"),
        }
    }
}

/// The treatment of traffic to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// A cluster IP with `internalTrafficPolicy: Cluster`.
    Internal,
    /// A cluster IP with `internalTrafficPolicy: Local`.
    InternalLocal,
    /// An external address with `externalTrafficPolicy: Cluster`.
    External,
    /// An external address with `externalTrafficPolicy: Local`.
    ExternalLocal,
}

impl Policy {
    /// The lists that a frontend sends clients to.
    fn lists(self) -> &'static [List] {
        match self {
            Policy::Internal | Policy::External => &[List::Cluster],
            Policy::InternalLocal => &[List::Local],
            Policy::ExternalLocal => &[List::Cluster, List::Local],
        }
    }
}

/// Calls `wanted` for every frontend that a Service wants, with its port's
/// position and each only once: external addresses come first, because
/// kube-proxy writes them last over a cluster IP of the same value.
fn frontends(service: &Service, mut wanted: impl FnMut(usize, Target, Policy)) {
    let external = if service.external_policy_local { Policy::ExternalLocal } else { Policy::External };
    let internal = if service.internal_policy_local { Policy::InternalLocal } else { Policy::Internal };
    let externals = external_addresses(service);
    let cluster_ip_is_external = externals.contains(&service.cluster_ip);
    let mut node_ports = FxHashSet::default();
    for (position, port) in service.ports.iter().enumerate() {
        let frontend =
            |address: IpAddr| Target::Frontend(FrontendKey { address, protocol: port.protocol, port: port.port });
        for address in &externals {
            wanted(position, frontend(*address), external);
        }
        if !cluster_ip_is_external {
            wanted(position, frontend(service.cluster_ip), internal);
        }
        if let Some(node_port) = port.node_port
            && (service.ports.len() == 1 || node_ports.insert((port.protocol, node_port)))
        {
            wanted(position, Target::NodePort(NodePortKey { protocol: port.protocol, port: node_port }), external);
        }
    }
}

/// Load balancer addresses and external IPs, each once.
fn external_addresses(service: &Service) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = service.load_balancer_ips.iter().chain(&service.external_ips).copied().collect();
    if addresses.len() > 1 {
        let mut seen = FxHashSet::default();
        addresses.retain(|address| seen.insert(*address));
    }
    addresses
}

/// At how many addresses each port of this Service is served, at most: the
/// cluster IP and the external ones.
pub(crate) fn count_addresses(service: &Service) -> usize {
    external_addresses(service).len() + 1
}

/// A frontend or node port that a Service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServedFrontend {
    /// The position of its port in `service.ports`.
    pub position: usize,
    /// The frontend, or the node port.
    pub target: Target,
    /// Whether its main list is the one of local endpoints.
    pub is_local: bool,
}

/// Every frontend and node port that a Service has, served or not, in the
/// order of its ports.
pub fn all_frontends(service: &Service) -> Vec<ServedFrontend> {
    let mut all = Vec::new();
    frontends(service, |position, target, policy| {
        let is_local = matches!(policy, Policy::InternalLocal | Policy::ExternalLocal);
        all.push(ServedFrontend { position, target, is_local });
    });
    all
}

/// Returns the claims of a Service with its current endpoints.
pub fn claims(compiled: &CompiledService) -> Vec<Claim> {
    let mut claims = Vec::new();
    frontends(&compiled.service, |position, target, policy| {
        let Some(endpoints) = compiled.ports.get(position) else { return };
        if serves(policy, endpoints) {
            claims.push(Claim::Serve(target));
        }
        if no_endpoint(policy, endpoints).is_some() {
            claims.push(Claim::NoEndpoint(target));
        }
    });
    firewalled(&compiled.service, |frontend| claims.push(Claim::Firewall(frontend)));
    claims
}

/// Returns whether at least some clients have an endpoint.
fn serves(policy: Policy, endpoints: &CompiledPort) -> bool {
    match policy {
        Policy::Internal | Policy::External => !endpoints.cluster.is_empty(),
        Policy::InternalLocal => !endpoints.local.is_empty(),
        Policy::ExternalLocal => endpoints.any,
    }
}

/// Returns the fate of clients without an endpoint: dropped if there are
/// endpoints elsewhere, else refused; `None` if there are no such clients.
fn no_endpoint(policy: Policy, endpoints: &CompiledPort) -> Option<Verdict> {
    let (none, elsewhere) = match policy {
        Policy::Internal | Policy::External => (endpoints.cluster.is_empty(), false),
        Policy::InternalLocal | Policy::ExternalLocal => (endpoints.local.is_empty(), endpoints.any),
    };
    let verdict = if elsewhere { Verdict::Drop } else { Verdict::Goto(Chain::Reject) };
    none.then_some(verdict)
}

/// Emits the map elements for one Service.
pub fn elements(name: &ServiceName, compiled: &CompiledService, emit: &mut impl FnMut(Element)) {
    let service = &compiled.service;
    emit(plain(Map::ClusterIps, Key::Address(service.cluster_ip)));
    firewall(compiled, emit);
    for (port, endpoints) in service.ports.iter().zip(&compiled.ports) {
        for endpoint in &endpoints.on_this_node {
            emit(plain(Map::HairpinConnections, Key::Hairpin(*endpoint, port.protocol)));
        }
    }
    let comments: Vec<ArcStr> = service.ports.iter().map(|port| comment(name, port)).collect();
    affinity_timeouts(name, compiled, emit);
    frontends(service, |position, target, policy| {
        let (Some(endpoints), Some(comment)) = (compiled.ports.get(position), comments.get(position)) else {
            return;
        };
        let frontend = Frontend { target, endpoints, sticky: service.affinity.is_some(), comment };
        if serves(policy, endpoints) && !compiled.is_denied(&Claim::Serve(target)) {
            frontend.serve(policy, emit);
        }
        if let Some(verdict) = no_endpoint(policy, endpoints)
            && !compiled.is_denied(&Claim::NoEndpoint(target))
        {
            frontend.verdict(Map::NoEndpoints(target.domain()), verdict, emit);
        }
    });
}

/// Returns how long clients are remembered, once for each list that any
/// frontend of the Service uses. Frontends that the Service does not hold do
/// not count, because their elements are not in the kernel either.
fn affinity_timeouts(name: &ServiceName, compiled: &CompiledService, emit: &mut impl FnMut(Element)) {
    let service = &compiled.service;
    let Some(seconds) = service.affinity else { return };
    let mut used = vec![[false; 2]; service.ports.len()];
    frontends(service, |position, target, policy| {
        let (Some(endpoints), Some(used)) = (compiled.ports.get(position), used.get_mut(position)) else { return };
        if serves(policy, endpoints) && !compiled.is_denied(&Claim::Serve(target)) {
            for list in policy.lists() {
                used[*list as usize] |= !endpoints.list(*list).0.is_empty();
            }
        }
    });
    let learn = Data::Verdict(Verdict::Goto(Chain::LearnFor { seconds }));
    for ((port, endpoints), used) in service.ports.iter().zip(&compiled.ports).zip(used) {
        for list in [List::Cluster, List::Local].into_iter().filter(|list| used[*list as usize]) {
            let (_, number) = endpoints.list(list);
            if number.is_some() {
                let comment = Some(list_comment(name, port, list));
                emit(Element { map: Map::AffinityTimeouts, key: Key::List(number), data: learn, comment });
            }
        }
    }
}

/// Names the list of a number. An agent that restarts decides by this whether
/// it may keep the number.
fn list_comment(name: &ServiceName, port: &ServicePort, list: List) -> ArcStr {
    match list {
        List::Cluster => comment(name, port),
        List::Local => fit_comment(&format!("local endpoints of {}", comment(name, port))).into(),
    }
}

/// The comments of the numbers of a service port's two lists, cluster-wide and
/// local.
pub(crate) fn list_comments(name: &ServiceName, port: &ServicePort) -> [ArcStr; 2] {
    [List::Cluster, List::Local].map(|list| list_comment(name, port, list))
}

/// The namespace, the Service and the port (empty if it has no name) in the
/// comment of an element that leads to endpoints; `None` for any other text. The
/// end of a long comment is cut, see [`fit_comment`].
pub fn port_of_comment(comment: &str) -> Option<[&str; 3]> {
    let (namespace, rest) = comment.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    Some([namespace, service, port])
}

/// `namespace/name:port`, or without the port if it has no name; shortened to the
/// kernel's limit.
fn comment(name: &ServiceName, port: &ServicePort) -> ArcStr {
    port_comment(name.text(), &port.name).into()
}

fn plain(map: Map, key: Key) -> Element {
    Element { map, key, data: Data::Nothing, comment: None }
}

/// The source ranges of the load balancer addresses. They hold whether or not
/// the Service has endpoints.
///
/// No range of a frontend holds another: see `ruleset::source_ranges`.
pub fn firewall(compiled: &CompiledService, emit: &mut impl FnMut(Element)) {
    let service = &compiled.service;
    if service.source_ranges.is_empty() {
        return;
    }
    let family = Family::of(service.cluster_ip);
    let mut ranges = service.source_ranges.to_vec();
    if compiled.admits_node {
        ranges.extend(service.load_balancer_ips.iter().copied().map(IpNet::from));
        ranges = IpNet::aggregate(&ranges);
    }
    let markers = markers(family, &ranges);
    firewalled(service, |frontend| {
        if compiled.is_denied(&Claim::Firewall(frontend)) {
            return;
        }
        let search = Data::Verdict(Verdict::Goto(Chain::SourceRanges(family)));
        emit(Element {
            map: Map::FirewallIps,
            key: Key::Target(Target::Frontend(frontend)),
            data: search,
            comment: None,
        });
        for range in &ranges {
            emit(plain(Map::SourceRanges, Key::SourceRange(frontend, *range)));
        }
        for marker in &markers {
            emit(plain(Map::SourceRangeMarkers, Key::SourceRange(frontend, *marker)));
        }
    });
}

/// Calls `wanted` for every load balancer frontend that has source ranges.
fn firewalled(service: &Service, mut wanted: impl FnMut(FrontendKey)) {
    if service.source_ranges.is_empty() {
        return;
    }
    for port in &service.ports {
        for address in &service.load_balancer_ips {
            wanted(FrontendKey { address: *address, protocol: port.protocol, port: port.port });
        }
    }
}

/// One frontend or NodePort of one service port.
struct Frontend<'a> {
    target: Target,
    endpoints: &'a CompiledPort,
    sticky: bool,
    comment: &'a ArcStr,
}

impl Frontend<'_> {
    /// The elements that send clients to endpoints.
    fn serve(&self, policy: Policy, emit: &mut impl FnMut(Element)) {
        let domain = self.target.domain();
        match policy {
            Policy::Internal => self.balance(Map::Frontends(domain), Pool::Main, List::Cluster, emit),
            Policy::InternalLocal => self.balance(Map::Frontends(domain), Pool::Main, List::Local, emit),
            Policy::External => {
                emit(plain(Map::Masquerade(domain), Key::Target(self.target)));
                self.balance(Map::Frontends(domain), Pool::Main, List::Cluster, emit);
            }
            // The cluster's endpoints for pods of this node and the node itself,
            // the local ones for everybody else.
            Policy::ExternalLocal => {
                emit(plain(Map::LocalPolicy(domain), Key::Target(self.target)));
                self.balance(Map::ShortCircuit(domain), Pool::ShortCircuit, List::Cluster, emit);
                self.balance(Map::LocalFrontends(domain), Pool::Main, List::Local, emit);
                self.verdict(Map::Frontends(domain), Verdict::Goto(Chain::LocalPolicy(domain)), emit);
            }
        }
    }

    /// The endpoints of one list in their slots, and the verdict of `map` that
    /// spreads connections over them.
    fn balance(&self, map: Map, pool: Pool, list: List, emit: &mut impl FnMut(Element)) {
        let (endpoints, number) = self.endpoints.list(list);
        let Ok(count) = u32::try_from(endpoints.len()) else { return };
        if count == 0 {
            return;
        }
        let (domain, sticky) = (self.target.domain(), self.sticky);
        for (slot, endpoint) in (0..count).zip(endpoints.iter()) {
            let (key, data) = (Key::Slot(self.target, slot), Data::Endpoint(endpoint));
            emit(Element { map: Map::Endpoints(domain, pool), key, data, comment: None });
        }
        if sticky {
            let (key, data) = (Key::Target(self.target), Data::List(number));
            emit(Element { map: Map::AffinityLists(domain, pool), key, data, comment: None });
        }
        let chain = Chain::Balance { domain, pool, sticky, spread: Spread::of(count) };
        self.verdict(map, Verdict::Goto(chain), emit);
    }

    fn verdict(&self, map: Map, verdict: Verdict, emit: &mut impl FnMut(Element)) {
        let data = Data::Verdict(verdict);
        emit(Element { map, key: Key::Target(self.target), data, comment: Some(self.comment.clone()) });
    }
}
