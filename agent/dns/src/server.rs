//! The thread of the server, and the changes that it applies.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::words::count;
use vmap_proxy_dns_zone::{NameContent, Zone};

use crate::clients::Clients;
use crate::metrics::{DnsMetrics, ListenerMetrics};
use crate::options::{Options, PORT};
use crate::respond::{Responder, State};
use crate::take_over::TakeOver;
use crate::tcp;
use crate::udp::UdpListener;
use crate::upstream::Upstreams;

/// The name of the server's thread, and of all that it runs.
pub const THREAD: &str = "dns";

/// Time between attempts to listen, as for the health server.
const RETRY: Duration = Duration::from_secs(5);

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The bytes of questions that may wait: a burst of some thousand.
const RECEIVE_BUFFER: usize = 1 << 20;

/// A change for the server.
#[derive(Debug)]
pub enum Update {
    /// A complete list of a kind begins.
    ListStarted(Kind),
    /// It has been sent.
    ListCompleted(Kind),
    /// Changes of objects that become visible together.
    Changes(Vec<(ObjectRef, NameContent)>),
    /// Everything has been listed once.
    Complete,
    /// The addresses of this node.
    NodeAddresses(Vec<IpAddr>),
    /// `/etc/resolv.conf` may have changed.
    ResolvConf,
}

/// The server could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// No thread or event loop.
    #[error("the DNS server could not be started: {0}; names are not served until the next start")]
    Thread(#[from] io::Error),
}

/// The addresses on which the server listens, in the order of the options, with
/// the real port if it was 0. `None`: not yet.
pub type Listening = Vec<Option<SocketAddr>>;

/// A running server. It ends when this is dropped.
#[derive(Debug)]
pub struct DnsServer {
    updates: mpsc::UnboundedSender<Update>,
    listening: watch::Receiver<Listening>,
    taken_over: watch::Receiver<Vec<IpAddr>>,
}

impl DnsServer {
    /// Starts the thread. An address that cannot be listened on is logged, and
    /// tried again every 5 s.
    ///
    /// # Errors
    /// If there are no threads or descriptors left.
    pub fn start(options: Options, metrics: DnsMetrics) -> Result<Self, StartError> {
        let (updates, received) = mpsc::unbounded_channel();
        let (heard, listening) = watch::channel(vec![None; options.addresses.len()]);
        let (addresses, taken_over) = watch::channel(Vec::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
            runtime.block_on(run(options, metrics, received, Arc::new(heard), addresses));
            runtime.shutdown_background();
        })?;
        Ok(Self { updates, listening, taken_over })
    }

    /// Hands a change on. It never waits. Returns false if the server has ended.
    pub fn update(&self, update: Update) -> bool {
        self.updates.send(update).is_ok()
    }

    /// Follows the addresses that the server listens on.
    pub fn listening(&self) -> watch::Receiver<Listening> {
        self.listening.clone()
    }

    /// Follows the cluster IPs that the server listens on in place of the
    /// endpoints of [`Options::take_over`]. The sender is gone when the server has
    /// ended.
    pub fn taken_over(&self) -> watch::Receiver<Vec<IpAddr>> {
        self.taken_over.clone()
    }
}

async fn run(
    options: Options,
    metrics: DnsMetrics,
    mut updates: mpsc::UnboundedReceiver<Update>,
    listening: Arc<watch::Sender<Listening>>,
    taken_over: watch::Sender<Vec<IpAddr>>,
) {
    let mut zone = Zone::new(options.zone.clone());
    zone.add_ranges(options.cluster_ranges.iter().copied());
    let ranges = options.cluster_ranges.iter().chain(&options.client_ranges).copied().collect();
    let state = Arc::new(RwLock::new(State { zone, clients: Clients::new(ranges), forwarder: None, generation: 0 }));
    let responder = Responder { state: state.clone(), ttl: options.ttl, serial: serial(), cluster_ip: None };
    let mut upstreams = Upstreams::new(&options, metrics.clone());
    let mut take_over = options.take_over.clone().map(|service| TakeOver::new(service, taken_over, metrics.clone()));
    let at_cluster_ip = |address: IpAddr| {
        let responder = Responder { cluster_ip: Some(address), ..responder.clone() };
        let address = SocketAddr::new(address, PORT);
        listen(address, Origin::ClusterIp, responder, Arc::new(metrics.listener(address)), drop)
    };
    // The addresses of the node come first, and decide which upstream server is this one.
    let mut is_listening = false;
    let mut warned = false;
    while let Some(update) = updates.recv().await {
        let complete = matches!(update, Update::Complete);
        match &update {
            Update::NodeAddresses(addresses) => upstreams.set_own(addresses.clone()),
            Update::ResolvConf => upstreams.read(),
            _ => {}
        }
        let has_addresses = matches!(update, Update::NodeAddresses(_));
        apply(&state, update);
        if let Some(addresses) = take_over.as_mut().and_then(|take_over| take_over.follow(&state, at_cluster_ip)) {
            upstreams.set_taken_over(&addresses);
        }
        if has_addresses && !is_listening {
            is_listening = true;
            upstreams.read();
            for (index, address) in options.addresses.iter().copied().enumerate() {
                let listening = listening.clone();
                let report = move |real| set_listening(&listening, index, real);
                let counters = Arc::new(metrics.listener(address));
                tokio::spawn(listen(address, Origin::Own, responder.clone(), counters, report));
            }
        }
        if is_listening && let Some(forwarder) = upstreams.choose() {
            let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
            state.forwarder = forwarder;
            state.generation += 1;
        }
        if complete {
            log_complete(&state, &mut warned);
        }
    }
}

fn set_listening(listening: &watch::Sender<Listening>, index: usize, to: Option<SocketAddr>) {
    listening.send_modify(|listening| {
        if let Some(place) = listening.get_mut(index) {
            *place = to;
        }
    });
}

fn log_complete(state: &RwLock<State>, warned: &mut bool) {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    tracing::info!("DNS: names of {} in {}", count(state.zone.service_count(), "Service"), state.zone.domain());
    if !state.clients.knows_pods() && !std::mem::replace(warned, true) {
        tracing::warn!(
            "DNS: no range of pod addresses is known, so pods are refused: set clusterCIDR, or name their ranges with \
             --dns-client-cidrs"
        );
    }
}

fn apply(state: &RwLock<State>, update: Update) {
    let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
    state.generation += 1;
    let State { zone, clients, .. } = &mut *state;
    match update {
        Update::ListStarted(kind) => zone.begin_list(kind),
        Update::ListCompleted(kind) => zone.end_list(kind),
        Update::Changes(changes) => {
            for (object, content) in changes {
                zone.apply(&object, content);
            }
            clients.set_pod_ranges(zone.pod_ranges());
        }
        Update::Complete => zone.set_complete(),
        Update::NodeAddresses(addresses) => clients.set_addresses(addresses),
        Update::ResolvConf => {}
    }
}

/// Serial numbers grow from start to start.
fn serial() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

/// The owner of an address that the server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The node, which has it on an interface.
    Own,
    /// A Service; the node may not have it.
    ClusterIp,
}

/// Serves one address for ever. `report`: the real address and port once it
/// listens, `None` when it no longer does.
async fn listen(
    address: SocketAddr,
    origin: Origin,
    responder: Responder,
    metrics: Arc<ListenerMetrics>,
    report: impl Fn(Option<SocketAddr>),
) {
    loop {
        let error = match open(address, origin) {
            Ok((udp, tcp, real)) => {
                tracing::info!("DNS: listening on {real}");
                report(Some(real));
                serve(udp, tcp, &responder, &metrics).await
            }
            Err(error) => error,
        };
        report(None);
        tracing::error!(
            "DNS: cannot listen on {address}: {error}; stop what uses the port, give an interface the address, or change \
             --dns-bind-address; next attempt in {RETRY:?}"
        );
        tokio::time::sleep(RETRY).await;
    }
}

/// Serves both transports until one fails. Each is a separate task, so that a
/// panic ends in an error here, and the address is opened again.
async fn serve(
    udp: UdpListener,
    tcp: tokio::net::TcpListener,
    responder: &Responder,
    metrics: &Arc<ListenerMetrics>,
) -> io::Error {
    let mut transports = JoinSet::new();
    transports.spawn(udp.serve(responder.clone(), metrics.clone()));
    transports.spawn(tcp::serve(tcp, responder.clone(), metrics.clone()));
    first_end(transports).await
}

/// The error of the first task that ends; the others are ended.
async fn first_end(mut tasks: JoinSet<io::Error>) -> io::Error {
    match tasks.join_next().await {
        Some(Ok(error)) => error,
        Some(Err(panic)) => io::Error::other(panic),
        // Callers have tasks.
        None => io::ErrorKind::Other.into(),
    }
}

/// Opens both sockets of an address, on the same port.
fn open(address: SocketAddr, origin: Origin) -> io::Result<(UdpListener, tokio::net::TcpListener, SocketAddr)> {
    let udp = socket(address, Type::DGRAM, Protocol::UDP, origin)?;
    // The kernel's limit may be lower.
    if let Err(error) = udp.set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!("DNS: the receive buffer stays as it is: {error}");
    }
    udp.bind(&address.into())?;
    let udp = UdpSocket::from(udp);
    let real = udp.local_addr()?;
    let tcp = socket(real, Type::STREAM, Protocol::TCP, origin)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&real.into())?;
    tcp.listen(BACKLOG)?;
    let tcp = TcpListener::from(tcp);
    tcp.set_nonblocking(true)?;
    Ok((UdpListener::new(udp)?, tokio::net::TcpListener::from_std(tcp)?, real))
}

/// Makes a socket for an address.
pub(crate) fn socket(address: SocketAddr, kind: Type, protocol: Protocol, origin: Origin) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    // The unspecified IPv6 address stands for its own family: answers to IPv4 clients have another source otherwise.
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if origin == Origin::ClusterIp {
        if address.is_ipv6() {
            socket.set_freebind_v6(true)?;
        } else {
            socket.set_freebind_v4(true)?;
        }
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use std::future::pending;

    use super::*;

    #[test]
    fn a_panic_ends_the_listener_and_not_the_server() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let error = runtime.block_on(async {
            let mut tasks = JoinSet::new();
            tasks.spawn(pending());
            tasks.spawn(async { panic!("broken by a test") });
            first_end(tasks).await
        });
        assert!(error.to_string().contains("panic"), "{error}");
    }
}
