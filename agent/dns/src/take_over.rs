//! The cluster IPs of another DNS Service: this server listens on them as well,
//! and proves all the time that it answers there.
//!
//! Whether packets get here is up to the kernel. The caller has a rule for that,
//! which ends some seconds after the last answer to a question of our own.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::RwLock;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use socket2::{Protocol, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmap_proxy_compiler::model::types::ServiceName;

use crate::metrics::DnsMetrics;
use crate::options::PORT;
use crate::respond::State;
use crate::server::{Origin, socket};

/// Time between two questions of our own to a cluster IP.
const INTERVAL: Duration = Duration::from_secs(1);

/// The listeners on cluster IPs.
pub(crate) struct TakeOver {
    service: ServiceName,
    running: BTreeMap<IpAddr, JoinSet<()>>,
    addresses: watch::Sender<Vec<IpAddr>>,
    metrics: DnsMetrics,
}

impl TakeOver {
    pub(crate) fn new(service: ServiceName, addresses: watch::Sender<Vec<IpAddr>>, metrics: DnsMetrics) -> Self {
        Self { service, running: BTreeMap::new(), addresses, metrics }
    }

    /// Starts and ends listeners, so that they are those of the Service's cluster
    /// IPs, and returns these if they have changed. `listen` serves one of them for
    /// ever.
    pub(crate) fn follow<L>(&mut self, state: &RwLock<State>, listen: impl Fn(IpAddr) -> L) -> Option<Vec<IpAddr>>
    where
        L: Future<Output = ()> + Send + 'static,
    {
        let (wanted, domain) = {
            let state = state.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            // An incomplete zone answers SERVFAIL: the endpoints can do better.
            let known = if state.zone.is_complete() { state.zone.cluster_ips(&self.service) } else { &[] };
            if known.len() == self.running.len() && known.iter().all(|address| self.running.contains_key(address)) {
                return None;
            }
            (known.to_vec(), state.zone.domain().to_owned())
        };
        for address in self.running.keys().filter(|address| !wanted.contains(address)) {
            self.metrics.taken_over(*address, None);
        }
        self.running.retain(|address, _| wanted.contains(address));
        for address in &wanted {
            self.running.entry(*address).or_insert_with(|| {
                let mut tasks = JoinSet::new();
                tasks.spawn(listen(*address));
                tasks.spawn(prove(*address, domain.clone(), self.metrics.clone()));
                tasks
            });
        }
        tracing::info!("DNS: {} has the cluster IPs {wanted:?}, on which this server answers", self.service);
        self.addresses.send_replace(wanted.clone());
        Some(wanted)
    }
}

/// Asks this server at a cluster IP, from that address, for ever.
async fn prove(address: IpAddr, domain: String, metrics: DnsMetrics) {
    let mut answered = None;
    loop {
        let outcome =
            timeout(INTERVAL, ask(address, &domain)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let was = answered.replace(outcome.is_ok());
        metrics.taken_over(address, Some(outcome.is_ok()));
        match outcome {
            Ok(()) if was != Some(true) => tracing::info!("DNS: questions to {address} are answered here"),
            Err(error) if was == Some(true) => {
                tracing::warn!("DNS: this server does not answer at {address}: {error}; the Service's endpoints do");
            }
            Err(error) => tracing::debug!("DNS: no answer at {address}: {error}"),
            Ok(()) => {}
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Asks one question. The source is the cluster IP itself, by which the kernel's
/// rule knows the answer.
async fn ask(address: IpAddr, domain: &str) -> io::Result<()> {
    let id = rand::random();
    let mut question = Message::new(id, MessageType::Query, OpCode::Query);
    let name = Name::from_ascii(format!("dns-version.{domain}.")).map_err(io::Error::other)?;
    question.add_query(Query::query(name, RecordType::TXT));
    let question = question.to_vec().map_err(io::Error::other)?;
    let socket = socket(SocketAddr::new(address, 0), Type::DGRAM, Protocol::UDP, Origin::ClusterIp)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(address, 0).into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send_to(&question, SocketAddr::new(address, PORT)).await?;
    let mut answer = [0; 512];
    loop {
        let (length, _) = socket.recv_from(&mut answer).await?;
        if answer
            .get(..length)
            .and_then(|answer| Message::from_vec(answer).ok())
            .is_some_and(|answer| answer.metadata.id == id)
        {
            return Ok(());
        }
    }
}
