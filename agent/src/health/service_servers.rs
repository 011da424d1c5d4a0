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
    /// Called within the tokio runtime in which the servers are to run.
    pub fn new(health: HealthState) -> Self {
        let shared = Shared::new(process::descriptor_limit());
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
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::sync::atomic::{AtomicU16, Ordering};

    use tokio::io::AsyncReadExt;
    use vmap_proxy_compiler::model::config::NodePortAddresses;

    use super::*;
    use crate::health::state::tests::HandClock;
    use crate::health::test_client::{get, request, run};

    const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    struct Node {
        clock: HandClock,
        health: HealthState,
        servers: ServiceHealthServers,
    }

    impl Node {
        fn new() -> Self {
            let clock = HandClock::default();
            let health = HealthState::new(clock.clock(), Duration::from_secs(60));
            let servers = ServiceHealthServers::new(health.clone());
            servers.set_addresses(&[LOCALHOST]);
            Self { clock, health, servers }
        }

        fn set(&self, services: &[(&str, u16, usize)]) {
            self.servers.set(services.iter().map(|&(name, port, count)| (named(name), health(port, count))).collect());
        }

        async fn wait_open(&self, ports: &[u16]) {
            let ports: BTreeSet<SocketAddr> = ports.iter().map(|&port| SocketAddr::new(LOCALHOST, port)).collect();
            self.servers.open().wait_for(|open| *open == ports).await.unwrap();
        }
    }

    fn named(name: &str) -> ServiceName {
        ServiceName::new("default", name)
    }

    fn health(port: u16, local_ipv4: usize) -> ServiceHealth {
        ServiceHealth { port, local_ipv4: Some(local_ipv4), local_ipv6: None }
    }

    #[test]
    fn a_service_listens_on_the_addresses_of_its_families_alone() {
        let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let shown = |addresses: &[IpAddr], local_ipv4, local_ipv6| {
            let places = places(addresses, &ServiceHealth { port: 9, local_ipv4, local_ipv6 });
            places.iter().map(|place| format!("{} {:?}", place.address, place.stack)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&all, Some(1), None), ["0.0.0.0:9 Single"]);
        assert_eq!(shown(&all, None, Some(1)), ["[::]:9 Single"]);
        assert_eq!(shown(&all, Some(0), Some(1)), ["[::]:9 Dual"]);
        let some: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(shown(&some, Some(1), None), ["192.0.2.1:9 Single"]);
        assert_eq!(shown(&some, Some(1), Some(1)), ["192.0.2.1:9 Single", "[2001:db8::1]:9 Single"]);
    }

    #[test]
    fn one_socket_answers_each_client_for_its_family() {
        run(async {
            if std::net::TcpListener::bind("[::1]:0").is_err() {
                assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6 loopback");
                eprintln!("SKIPPED: this machine has no IPv6 loopback");
                return;
            }
            let (node, port) = (Node::new(), free_port());
            node.servers.set_addresses(&[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
            let dual = ServiceHealth { port, local_ipv4: Some(2), local_ipv6: Some(0) };
            node.servers.set([(named("web"), dual)].into());
            let place = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
            node.servers.open().wait_for(|open| *open == [place].into()).await.unwrap();
            assert_eq!(get(SocketAddr::new(LOCALHOST, port), "/").await.status, 200);
            assert_eq!(get(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), "/").await.status, 503);
        });
    }

    #[test]
    fn names_are_escaped() {
        let name = ServiceName::new("a\"b", "c\nd");
        let body: serde_json::Value = serde_json::from_str(&body(&name, 1, true)).unwrap();
        assert_eq!(
            (body["service"]["namespace"].as_str(), body["service"]["name"].as_str()),
            (Some("a\"b"), Some("c\nd"))
        );
    }

    #[test]
    fn more_ports_than_descriptors_leave_some_to_the_others() {
        run(async {
            let mut node = Node::new();
            node.servers.shared.sockets = Arc::new(Semaphore::new(1));
            let ports = [free_port(), free_port()];
            node.set(&[("a", ports[0], 1), ("b", ports[1], 1)]);
            let mut open = node.servers.open();
            let first = open.wait_for(|open| !open.is_empty()).await.unwrap().clone();
            assert_eq!(first.len(), 1);
            // The other one has its turn once the first is gone.
            let stays = usize::from(first.iter().next().unwrap().port() == ports[0]);
            node.set(&[(["a", "b"][stays], ports[stays], 1)]);
            node.wait_open(&[ports[stays]]).await;
        });
    }

    /// A port that nobody else takes between now and the moment the server binds it: below those that the kernel hands
    /// out by itself, and each test process looks in another part.
    fn free_port() -> u16 {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        const FIRST: u32 = 10_000;
        const PARTS: u32 = 1_000;
        const PART: u16 = 20;
        let start = FIRST + std::process::id() % PARTS * u32::from(PART);
        loop {
            let port = u16::try_from(start).unwrap() + NEXT.fetch_add(1, Ordering::Relaxed);
            if std::net::TcpListener::bind((LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    }

    #[test]
    fn a_service_with_local_endpoints_answers_as_kube_proxy_does() {
        run(async {
            let (node, port) = (Node::new(), free_port());
            let address = SocketAddr::new(LOCALHOST, port);
            node.set(&[("web", port, 2)]);
            node.wait_open(&[port]).await;
            let reply = request(address, "POST", "/any/path", "content-length: 0\r\n").await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("content-type"), Some("application/json"));
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(reply.header("x-load-balancing-endpoint-weight"), Some("2"));
            let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
                            \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
            assert_eq!(reply.body, expected);

            node.set(&[("web", port, 0)]);
            let reply = get(address, "/").await;
            assert_eq!((reply.status, reply.header("x-load-balancing-endpoint-weight")), (503, Some("0")));
        });
    }

    #[test]
    fn a_proxy_that_does_not_keep_up_is_503() {
        run(async {
            let (node, port) = (Node::new(), free_port());
            node.set(&[("web", port, 2)]);
            node.wait_open(&[port]).await;
            node.health.initialized(&[Family::Ipv4]);
            node.clock.forward(60_000);
            let reply = get(SocketAddr::new(LOCALHOST, port), "/").await;
            assert_eq!(reply.status, 503);
            assert!(reply.body.contains("\"serviceProxyHealthy\": false"));
        });
    }

    #[test]
    fn an_unchanged_listener_is_kept_and_the_others_follow() {
        run(async {
            let (node, kept, old, new) = (Node::new(), free_port(), free_port(), free_port());
            node.set(&[("kept", kept, 1), ("moved", old, 1)]);
            node.wait_open(&BTreeSet::from([kept, old]).into_iter().collect::<Vec<_>>()).await;
            // A listener that was closed and opened again would not accept the connection.
            let mut idle = tokio::net::TcpStream::connect((LOCALHOST, kept)).await.unwrap();
            node.set(&[("kept", kept, 3), ("moved", new, 1)]);
            node.wait_open(&BTreeSet::from([kept, new]).into_iter().collect::<Vec<_>>()).await;
            tokio::io::AsyncWriteExt::write_all(&mut idle, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
            let mut text = String::new();
            idle.read_to_string(&mut text).await.unwrap();
            assert!(text.contains("\"localEndpoints\": 3"), "{text}");
            assert!(tokio::net::TcpStream::connect((LOCALHOST, old)).await.is_err());
            node.set(&[]);
            node.wait_open(&[]).await;
        });
    }

    #[test]
    fn a_change_of_one_service_leaves_the_others_alone() {
        run(async {
            let (node, kept, old, new) = (Node::new(), free_port(), free_port(), free_port());
            node.set(&[("kept", kept, 1), ("moved", old, 1)]);
            node.wait_open(&[kept, old]).await;
            node.servers.change(&[(named("moved"), Some(health(new, 2))), (named("unknown"), None)].into());
            node.wait_open(&[kept, new]).await;
            assert!(get(SocketAddr::new(LOCALHOST, kept), "/").await.body.contains("\"localEndpoints\": 1"));
            node.servers.change(&[(named("moved"), None)].into());
            node.wait_open(&[kept]).await;
        });
    }

    #[test]
    fn a_port_can_change_hands() {
        run(async {
            let (node, port) = (Node::new(), free_port());
            node.set(&[("first", port, 1)]);
            node.wait_open(&[port]).await;
            let mut open = node.servers.open();
            open.mark_unchanged();
            node.set(&[("second", port, 1)]);
            // The first one's socket goes, then the second one's comes.
            open.changed().await.unwrap();
            node.wait_open(&[port]).await;
            assert!(get(SocketAddr::new(LOCALHOST, port), "/").await.body.contains("second"));
        });
    }

    #[test]
    fn a_port_in_use_is_tried_again() {
        run(async {
            let other = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
            let (node, port) = (Node::new(), other.local_addr().unwrap().port());
            node.set(&[("web", port, 1)]);
            // Let the first attempt fail before the port is free.
            tokio::task::yield_now().await;
            assert!(node.servers.open().borrow().is_empty());
            drop(other);
            node.wait_open(&[port]).await;
        });
    }

    #[test]
    fn without_addresses_nothing_listens() {
        run(async {
            let (node, port) = (Node::new(), free_port());
            node.set(&[("web", port, 1)]);
            node.wait_open(&[port]).await;
            node.servers.set_addresses(&[]);
            node.wait_open(&[]).await;
        });
    }

    #[test]
    fn they_listen_where_node_ports_are_served() {
        let node = NodeInfo {
            addresses: vec!["192.0.2.1".parse().unwrap()],
            interface_addresses: ["127.0.0.1", "192.0.2.1", "198.51.100.1"].map(|ip| ip.parse().unwrap()).to_vec(),
            ..NodeInfo::default()
        };
        let mut config = ProxyConfig::default();
        let primary: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
        assert_eq!(listen_addresses(&config, &node, &[Family::Ipv4]), primary);
        config.node_port_addresses = NodePortAddresses::Ranges(vec!["0.0.0.0/0".parse().unwrap()]);
        let all: Vec<IpAddr> = vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
        assert_eq!(listen_addresses(&config, &node, &Family::ALL), all);
    }
}
