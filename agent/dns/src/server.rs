//! The thread of the server, and the changes that it applies.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_dns_zone::{NameContent, Zone};

use crate::clients::Clients;
use crate::forward::{self, Forwarder};
use crate::metrics::{DnsMetrics, ListenerMetrics};
use crate::options::Options;
use crate::respond::{Responder, State};
use crate::tcp;
use crate::udp::UdpListener;

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
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("dns".to_owned()).spawn(move || {
            runtime.block_on(run(options, metrics, received, Arc::new(heard)));
            runtime.shutdown_background();
        })?;
        Ok(Self { updates, listening })
    }

    /// Hands a change on. It never waits. Returns false if the server has ended.
    pub fn update(&self, update: Update) -> bool {
        self.updates.send(update).is_ok()
    }

    /// Follows the addresses that the server listens on.
    pub fn listening(&self) -> watch::Receiver<Listening> {
        self.listening.clone()
    }
}

async fn run(
    options: Options,
    metrics: DnsMetrics,
    mut updates: mpsc::UnboundedReceiver<Update>,
    listening: Arc<watch::Sender<Listening>>,
) {
    let mut zone = Zone::new(options.zone.clone());
    zone.add_ranges(options.cluster_ranges.iter().copied());
    let ranges = options.cluster_ranges.iter().chain(&options.client_ranges).copied().collect();
    let state = Arc::new(RwLock::new(State { zone, clients: Clients::new(ranges) }));
    // The addresses of the node come first, and decide which upstream server is this one.
    let mut first = Vec::new();
    let mut addresses = Vec::new();
    while let Some(update) = updates.recv().await {
        if let Update::NodeAddresses(known) = &update {
            addresses.clone_from(known);
            first.push(update);
            break;
        }
        first.push(update);
    }
    first.into_iter().for_each(|update| apply(&state, update));
    let forwarder = forwarder(&options, &addresses, &metrics);
    let responder = Responder { state: state.clone(), ttl: options.ttl, serial: serial(), forwarder };
    for (index, address) in options.addresses.iter().copied().enumerate() {
        let counters = Arc::new(metrics.listener(address));
        tokio::spawn(listen(index, address, responder.clone(), counters, listening.clone()));
    }
    let mut warned = false;
    while let Some(update) = updates.recv().await {
        let complete = matches!(update, Update::Complete);
        apply(&state, update);
        if complete {
            log_complete(&state, &mut warned);
        }
    }
}

fn forwarder(options: &Options, own: &[IpAddr], metrics: &DnsMetrics) -> Option<Forwarder> {
    let servers = forward::servers(&options.upstream, &options.addresses, |address| own.contains(&address));
    if servers.is_empty() {
        tracing::warn!("DNS: there is no upstream server: names outside of {} are refused", options.zone.domain());
        return None;
    }
    let forwarder = Forwarder::new(&servers, metrics.clone());
    forwarder.inspect_err(|error| tracing::error!("DNS: nothing can be forwarded: {error}")).ok()
}

fn log_complete(state: &RwLock<State>, warned: &mut bool) {
    let state = state.read().unwrap_or_else(PoisonError::into_inner);
    tracing::info!("DNS: {} Services have names in {}", state.zone.service_count(), state.zone.domain());
    if !state.clients.knows_pods() && !std::mem::replace(warned, true) {
        tracing::warn!(
            "DNS: no range of pod addresses is known, so pods are refused: set clusterCIDR, or name their ranges with \
             --dns-client-cidrs"
        );
    }
}

fn apply(state: &RwLock<State>, update: Update) {
    let mut state = state.write().unwrap_or_else(PoisonError::into_inner);
    let State { zone, clients } = &mut *state;
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
    }
}

/// Serial numbers grow from start to start.
fn serial() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

/// Serves one address for ever.
async fn listen(
    index: usize,
    address: SocketAddr,
    responder: Responder,
    metrics: Arc<ListenerMetrics>,
    listening: Arc<watch::Sender<Listening>>,
) {
    let set = |to: Option<SocketAddr>| {
        listening.send_modify(|listening| {
            if let Some(place) = listening.get_mut(index) {
                *place = to;
            }
        });
    };
    loop {
        let error = match open(address) {
            Ok((udp, tcp, real)) => {
                tracing::info!("DNS: listening on {real}");
                set(Some(real));
                tokio::select! {
                    error = udp.serve(responder.clone(), metrics.clone()) => error,
                    error = tcp::serve(tcp, responder.clone(), metrics.clone()) => error,
                }
            }
            Err(error) => error,
        };
        set(None);
        tracing::error!(
            "DNS: cannot listen on {address}: {error}; stop what uses the port, give an interface the address, or change \
             --dns-bind-address; next attempt in {RETRY:?}"
        );
        tokio::time::sleep(RETRY).await;
    }
}

/// Opens both sockets of an address, on the same port.
fn open(address: SocketAddr) -> io::Result<(UdpListener, tokio::net::TcpListener, SocketAddr)> {
    let udp = socket(address, Type::DGRAM, Protocol::UDP)?;
    // The kernel's limit may be lower.
    if let Err(error) = udp.set_recv_buffer_size(RECEIVE_BUFFER) {
        tracing::debug!("DNS: the receive buffer stays as it is: {error}");
    }
    udp.bind(&address.into())?;
    let udp = UdpSocket::from(udp);
    let real = udp.local_addr()?;
    let tcp = socket(real, Type::STREAM, Protocol::TCP)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&real.into())?;
    tcp.listen(BACKLOG)?;
    let tcp = TcpListener::from(tcp);
    tcp.set_nonblocking(true)?;
    Ok((UdpListener::new(udp)?, tokio::net::TcpListener::from_std(tcp)?, real))
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    // The unspecified IPv6 address stands for its own family: answers to IPv4 clients have another source otherwise.
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) || address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
