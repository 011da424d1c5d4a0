//! `healthCheckNodePort`: one small server per Service of type LoadBalancer
//! with `externalTrafficPolicy: Local`, by which load balancers learn whether
//! this node has endpoints for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use vmap_proxy_compiler::model::config::{NodeInfo, ProxyConfig};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::ruleset::Family;

use super::connection::{Bounded, Connections, Peer, most_connections};
use super::listen::{Stack, listener};
use super::proxy_server::JSON_HEADERS;
use super::state::HealthState;
use crate::k8s_events::Recorder;
use crate::process;

/// Descriptors that are left to others: netlink sockets, the API server,
/// manifests.
const RESERVE: usize = 128;

/// Load balancers may weigh nodes by this header.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The first pause after a failure to listen; each further one is twice as
/// long. Short, since a port may have just changed hands between two Services.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The port and answer of a Service's server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `spec.healthCheckNodePort`, not 0.
    pub port: u16,
    /// Distinct addresses of its ready IPv4 endpoints on this node; `None`: it
    /// has no IPv4.
    pub local_ipv4: Option<usize>,
    /// Distinct addresses of its ready IPv6 endpoints on this node; `None`: it
    /// has no IPv6.
    pub local_ipv6: Option<usize>,
}

/// The addresses that these servers listen on: those that serve NodePorts.
/// The unspecified address of a family stands for all of its addresses.
pub fn listen_addresses(config: &ProxyConfig, node: &NodeInfo, families: &[Family]) -> Vec<IpAddr> {
    let of_family = |family| match config.node_port_ranges(node, family) {
        Some(_) => config.node_port_ips(node, family),
        None => vec![match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }],
    };
    families.iter().copied().flat_map(of_family).collect()
}

/// The servers of all Services. Unlike kube-proxy's, a server that can't
/// listen tries again by itself, and addresses are followed as they change.
#[derive(Debug)]
pub struct ServiceHealthServers {
    health: HealthState,
    /// The runtime of the servers, which is not the committing thread.
    runtime: Handle,
    shared: Shared,
    state: Mutex<Servers>,
}

/// State shared by all listeners.
#[derive(Debug, Clone)]
struct Shared {
    open: watch::Sender<BTreeSet<SocketAddr>>,
    events: Option<Recorder>,
    /// The number of further listeners that are allowed.
    sockets: Arc<Semaphore>,
    connections: Arc<Connections>,
}

impl Shared {
    /// Creates the servers of a process with this limit of open files.
    fn new(descriptors: u64) -> Self {
        let connections = most_connections(descriptors);
        // There are as many connections to the health and metrics servers.
        let sockets = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(3 * connections + RESERVE);
        Self {
            open: watch::Sender::default(),
            events: None,
            sockets: Arc::new(Semaphore::new(sockets.clamp(8, Semaphore::MAX_PERMITS))),
            connections: Connections::new(connections),
        }
    }
}

#[derive(Debug, Default)]
struct Servers {
    addresses: Vec<IpAddr>,
    running: HashMap<ServiceName, Running>,
}

#[derive(Debug)]
struct Running {
    health: ServiceHealth,
    answer: Arc<Answer>,
    listeners: HashMap<Place, Listener>,
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Place {
    address: SocketAddr,
    stack: Stack,
}

/// Returns the addresses on which the server of a Service listens: those of its
/// families. One socket serves all addresses of both.
fn places(addresses: &[IpAddr], service: &ServiceHealth) -> BTreeSet<Place> {
    let has_family = |address: &&IpAddr| match address {
        IpAddr::V4(_) => service.local_ipv4.is_some(),
        IpAddr::V6(_) => service.local_ipv6.is_some(),
    };
    let of_its_families: Vec<IpAddr> = addresses.iter().filter(has_family).copied().collect();
    let is_unspecified =
        |is_ipv4: bool| move |address: &IpAddr| address.is_unspecified() && address.is_ipv4() == is_ipv4;
    let is_dual = of_its_families.iter().any(is_unspecified(true)) && of_its_families.iter().any(is_unspecified(false));
    let place = |address: &IpAddr| {
        let is_all = is_dual && address.is_unspecified();
        let (ip, stack) =
            if is_all { (IpAddr::V6(Ipv6Addr::UNSPECIFIED), Stack::Dual) } else { (*address, Stack::Single) };
        Place { address: SocketAddr::new(ip, service.port), stack }
    };
    of_its_families.iter().map(place).collect()
}

/// Stops listening when dropped.
#[derive(Debug)]
struct Listener(JoinHandle<()>);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// State shared by the listeners of one Service.
#[derive(Debug)]
struct Answer {
    service: ServiceName,
    health: HealthState,
    local_ipv4: AtomicUsize,
    local_ipv6: AtomicUsize,
}

impl ServiceHealthServers {
    /// No servers, and no addresses yet. `health` decides whether a node with
    /// endpoints may be used: 200 takes endpoints and a proxy that keeps up.
    /// `descriptors` bounds their number, together with all that the process opens
    /// for other purposes than this number leaves out. Called within the tokio runtime in which the servers are to run.
    pub fn new(health: HealthState, descriptors: u64) -> Self {
        let shared = Shared::new(descriptors);
        Self { health, runtime: Handle::current(), shared, state: Mutex::default() }
    }

    /// Reports the first of a series of failures as kube-proxy's Event about
    /// it.
    #[must_use]
    pub fn with_events(mut self, events: Recorder) -> Self {
        self.shared.events = Some(events);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Servers> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sockets that listen at this moment.
    pub fn open(&self) -> watch::Receiver<BTreeSet<SocketAddr>> {
        self.shared.open.subscribe()
    }

    /// The addresses to listen on, see [`listen_addresses`]. Listeners on
    /// addresses that stay are kept.
    pub fn set_addresses(&self, addresses: &[IpAddr]) {
        let mut servers = self.lock();
        if servers.addresses != addresses {
            servers.addresses = addresses.to_vec();
            let all: Vec<ServiceName> = servers.running.keys().cloned().collect();
            self.reconcile(&mut servers, &all);
        }
    }

    /// All Services that have a server; those left out are closed. Listeners
    /// whose port stays are kept, and answer by the new counts.
    pub fn set(&self, services: BTreeMap<ServiceName, ServiceHealth>) {
        let mut servers = self.lock();
        let mut changes: BTreeMap<_, _> = servers.running.keys().map(|name| (name.clone(), None)).collect();
        changes.extend(services.into_iter().map(|(name, service)| (name, Some(service))));
        self.apply(&mut servers, &changes);
    }

    /// The changes of some Services; `None` if a Service no longer has a server.
    /// All others stay as they are, and cost nothing.
    pub fn change(&self, services: &BTreeMap<ServiceName, Option<ServiceHealth>>) {
        self.apply(&mut self.lock(), services);
    }

    fn apply(&self, servers: &mut Servers, services: &BTreeMap<ServiceName, Option<ServiceHealth>>) {
        for (name, service) in services {
            let Some(service) = *service else {
                if let Some(running) = servers.running.remove(name) {
                    // Connections that are still open get the new answer, too.
                    running.answer.set(None, None);
                }
                continue;
            };
            let running = servers.running.entry(name.clone()).or_insert_with_key(|name| Running {
                health: service,
                answer: Arc::new(Answer::new(name.clone(), self.health.clone())),
                listeners: HashMap::new(),
            });
            running.health = service;
            running.answer.set(service.local_ipv4, service.local_ipv6);
        }
        self.reconcile(servers, services.keys());
    }

    fn reconcile<'a>(&self, servers: &mut Servers, names: impl IntoIterator<Item = &'a ServiceName> + Clone) {
        for name in names.clone() {
            if let Some(running) = servers.running.get_mut(name) {
                let wanted = places(&servers.addresses, &running.health);
                running.listeners.retain(|place, _| wanted.contains(place));
            }
        }
        // Only now, so that a port can change hands.
        for name in names {
            let Some(running) = servers.running.get_mut(name) else { continue };
            for place in places(&servers.addresses, &running.health) {
                running.listeners.entry(place).or_insert_with(|| {
                    Listener(self.runtime.spawn(listen(place, running.answer.clone(), self.shared.clone())))
                });
            }
        }
    }
}

/// Keeps a socket in the set of open ones for as long as it lives.
struct Open<'a> {
    address: SocketAddr,
    all: &'a watch::Sender<BTreeSet<SocketAddr>>,
}

impl<'a> Open<'a> {
    fn new(address: SocketAddr, all: &'a watch::Sender<BTreeSet<SocketAddr>>) -> Self {
        all.send_modify(|open| {
            open.insert(address);
        });
        Self { address, all }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.all.send_modify(|open| {
            open.remove(&self.address);
        });
    }
}

async fn listen(place: Place, answer: Arc<Answer>, shared: Shared) {
    let Place { address, stack } = place;
    if shared.sockets.available_permits() == 0 {
        tracing::warn!(
            "the health check of Service {} does not listen on {address} yet: too many others do for {} open files; \
             raise the limit (LimitNOFILE, ulimit -n)",
            answer.service,
            process::descriptor_limit()
        );
    }
    // The semaphore is never closed, so an error may count as a permit.
    let _permit = shared.sockets.acquire().await;
    let mut pause = FIRST_RETRY;
    loop {
        let error = match listener(address, stack) {
            Ok(listener) => {
                let _open = Open::new(address, &shared.open);
                pause = FIRST_RETRY;
                let listener = Bounded { listener, connections: shared.connections.clone() };
                let router = router(answer.clone()).into_make_service_with_connect_info::<Peer>();
                match axum::serve(listener, router).await {
                    Ok(()) => continue,
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        tracing::warn!(
            "the health check of Service {} cannot listen on {address}: {error}; next attempt in {pause:?}",
            answer.service
        );
        if let Some(events) = shared.events.as_ref().filter(|_| pause == FIRST_RETRY) {
            events.service_health_server_failed(&answer.service, &format!("cannot listen on {address}: {error}"));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Any path and any method are answered alike.
fn router(answer: Arc<Answer>) -> Router {
    Router::new().fallback(reply).with_state(answer)
}

async fn reply(State(answer): State<Arc<Answer>>, ConnectInfo(Peer(peer)): ConnectInfo<Peer>) -> Response {
    let family = Family::of(peer.ip().to_canonical());
    let local_endpoints = answer.local(family);
    let healthy = answer.health.is_healthy();
    let status = if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let weight = [(WEIGHT, local_endpoints.to_string())];
    (status, JSON_HEADERS, weight, body(&answer.service, local_endpoints, healthy)).into_response()
}

/// Laid out as kube-proxy does it.
fn body(service: &ServiceName, local_endpoints: usize, healthy: bool) -> String {
    // Quoted and escaped: with manifests nobody has checked the names.
    let [namespace, name] = [service.namespace(), service.name()].map(serde_json::Value::from);
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace},\n\t\t\"name\": {name}\n\t}},\n\
         \t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

impl Answer {
    fn new(service: ServiceName, health: HealthState) -> Self {
        Self { service, health, local_ipv4: AtomicUsize::new(0), local_ipv6: AtomicUsize::new(0) }
    }

    fn set(&self, local_ipv4: Option<usize>, local_ipv6: Option<usize>) {
        self.local_ipv4.store(local_ipv4.unwrap_or(0), Ordering::Relaxed);
        self.local_ipv6.store(local_ipv6.unwrap_or(0), Ordering::Relaxed);
    }

    fn local(&self, family: Family) -> usize {
        match family {
            Family::Ipv4 => self.local_ipv4.load(Ordering::Relaxed),
            Family::Ipv6 => self.local_ipv6.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;
