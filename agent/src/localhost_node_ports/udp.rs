//! UDP flows, relayed to an endpoint.
//!
//! A flow is a client's address and port, as for conntrack. It has a socket of its
//! own that is connected to one endpoint, and ends when it was idle for as long as
//! conntrack would remember it, or when its endpoint is gone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::limits::Limits;
use super::port::Port;
use crate::metrics::Refusal;

/// The age from which on a flow with answers counts as a stream, as in conntrack
/// (`net/netfilter/nf_conntrack_proto_udp.c`).
pub(super) const STREAM_AGE: Duration = Duration::from_secs(2);

/// The longest datagram.
const LONGEST: usize = 65_535;

/// Datagrams of one socket that are forwarded before other tasks have their turn.
const BATCH: usize = 32;

thread_local! {
    /// For one datagram between two system calls.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; LONGEST].into());
}

/// Forwards datagrams until the socket fails. All flows end when this is dropped.
pub(super) async fn serve(socket: UdpSocket, port: &Rc<Port>) -> io::Error {
    let socket = Rc::new(socket);
    let mut flows = Flows::new(port.clone(), Rc::downgrade(&socket));
    loop {
        tokio::select! {
            ready = socket.readable() => {
                match ready.and_then(|()| flows.forward(&socket)) {
                    Ok(is_drained) => give_way(is_drained).await,
                    Err(error) => return error,
                }
            }
            Some(ended) = flows.tasks.join_next(), if !flows.tasks.is_empty() => {
                // A flow that was ended here is forgotten, and a panic ends the process (decision 67).
                if let Ok((client, number)) = ended {
                    flows.forget(client, number);
                }
            }
            () = port.changed.notified() => flows.end_those_that_may_not_stay(),
        }
    }
}

/// Lets other tasks have their turn while datagrams still wait.
async fn give_way(is_drained: bool) {
    if !is_drained {
        tokio::task::yield_now().await;
    }
}

/// One flow.
#[derive(Debug)]
struct Flow {
    number: u64,
    endpoint: SocketAddr,
    socket: Rc<UdpSocket>,
    activity: Rc<RefCell<Activity>>,
    task: AbortHandle,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The flows of one port.
#[derive(Debug)]
struct Flows {
    port: Rc<Port>,
    /// The socket that clients send to. Weak, so that it closes at once when the
    /// port does.
    clients: Weak<UdpSocket>,
    by_client: HashMap<SocketAddr, Flow>,
    /// The tasks that wait for answers. Each returns its client and number.
    tasks: JoinSet<(SocketAddr, u64)>,
    next_number: u64,
}

impl Flows {
    fn new(port: Rc<Port>, clients: Weak<UdpSocket>) -> Self {
        Self { port, clients, by_client: HashMap::new(), tasks: JoinSet::new(), next_number: 0 }
    }

    /// Forwards the datagrams that wait, or the first of them. Returns whether
    /// these were all.
    fn forward(&mut self, socket: &UdpSocket) -> io::Result<bool> {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                match socket.try_recv_from(buffer) {
                    Ok((length, client)) => self.send(client, buffer.get(..length).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        })
    }

    /// Sends a datagram on the client's flow, which begins with it if there is
    /// none.
    fn send(&mut self, client: SocketAddr, datagram: &[u8]) {
        if !client.ip().is_loopback() {
            return self.port.count_refused(Refusal::Source);
        }
        // A second time if the endpoint refused an earlier datagram: then another
        // one may be chosen.
        for _ in 0..2 {
            let Some(flow) = self.flow(client) else { return };
            // Not by tokio, which holds a new socket to be full until it was waited for.
            match SockRef::from(&*flow.socket).send(datagram) {
                Ok(_) => return flow.activity.borrow_mut().sent(Instant::now()),
                // Full: the datagram is lost, as it may be anywhere.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.log_failure(client, &error),
            }
            self.by_client.remove(&client);
        }
        self.port.count_refused(Refusal::Endpoint);
    }

    fn flow(&mut self, client: SocketAddr) -> Option<&Flow> {
        if !self.by_client.contains_key(&client) {
            let flow = self.begin(client)?;
            self.by_client.insert(client, flow);
        }
        self.by_client.get(&client)
    }

    fn begin(&mut self, client: SocketAddr) -> Option<Flow> {
        let endpoint = self.port.choose()?;
        let Some(permit) = self.room() else {
            self.port.refuse_by_limit();
            return None;
        };
        let socket = match connected(endpoint) {
            Ok(socket) => Rc::new(socket),
            Err(error) => {
                self.port.count_refused(Refusal::Endpoint);
                tracing::debug!("{} on localhost: no socket to {endpoint}: {error}", self.port);
                return None;
            }
        };
        self.port.count_connected();
        let number = self.next_number;
        self.next_number += 1;
        let activity = Rc::new(RefCell::new(Activity::new(Instant::now())));
        let answers = Answers {
            client,
            clients: self.clients.clone(),
            endpoint: socket.clone(),
            activity: activity.clone(),
            limits: self.port.shared.limits.clone(),
        };
        let task = self.tasks.spawn_local(async move {
            answers.forward().await;
            (client, number)
        });
        Some(Flow { number, endpoint, socket, activity, task, _permit: permit })
    }

    /// Makes room for one more flow: if there are too many, the one that was idle
    /// for longest ends.
    fn room(&mut self) -> Option<OwnedSemaphorePermit> {
        if self.by_client.len() >= self.port.shared.limits.sockets_of_a_port {
            self.end_longest_idle();
        }
        self.port.take_sockets(1).or_else(|| {
            self.end_longest_idle();
            self.port.take_sockets(1)
        })
    }

    fn end_longest_idle(&mut self) {
        let idle = self.by_client.iter().min_by_key(|(_, flow)| flow.activity.borrow().last).map(|(client, _)| *client);
        idle.and_then(|client| self.by_client.remove(&client));
    }

    fn end_those_that_may_not_stay(&mut self) {
        self.by_client.retain(|_, flow| self.port.keeps_flows(flow.endpoint));
    }

    /// Forgets a flow whose task has ended, unless the client has a later one.
    fn forget(&mut self, client: SocketAddr, number: u64) {
        if self.by_client.get(&client).is_some_and(|flow| flow.number == number) {
            self.by_client.remove(&client);
        }
    }

    fn log_failure(&self, client: SocketAddr, error: &io::Error) {
        tracing::debug!("{} on localhost: the flow of {client} ends: {error}", self.port);
    }
}

/// Forwards the answers of one flow.
struct Answers {
    client: SocketAddr,
    clients: Weak<UdpSocket>,
    endpoint: Rc<UdpSocket>,
    activity: Rc<RefCell<Activity>>,
    limits: Limits,
}

impl Answers {
    /// Returns when the flow was idle for too long, the endpoint refuses, or the
    /// port is closed.
    async fn forward(&self) {
        loop {
            let deadline = self.activity.borrow().deadline(&self.limits);
            match timeout_at(deadline, self.endpoint.readable()).await {
                Ok(Ok(())) => match self.forward_waiting() {
                    Ok(is_drained) => give_way(is_drained).await,
                    Err(_) => return,
                },
                Ok(Err(_)) => return,
                // The client may have sent meanwhile.
                Err(_) if self.activity.borrow().deadline(&self.limits) > Instant::now() => {}
                Err(_) => return,
            }
        }
    }

    /// Forwards the answers that wait, or the first of them. Returns whether these
    /// were all.
    fn forward_waiting(&self) -> io::Result<bool> {
        BUFFER.with_borrow_mut(|buffer| {
            for _ in 0..BATCH {
                let length = match self.endpoint.try_recv(buffer) {
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                    Err(error) => return Err(error),
                };
                let clients = self.clients.upgrade().ok_or(io::ErrorKind::NotConnected)?;
                self.activity.borrow_mut().answered(Instant::now());
                // A client that is gone, or that does not read, loses it.
                let answer = buffer.get(..length).unwrap_or_default();
                let _ = SockRef::from(&*clients).send_to(answer, &self.client.into());
            }
            Ok(false)
        })
    }
}

/// When datagrams of a flow went by.
#[derive(Debug)]
struct Activity {
    begun: Instant,
    last: Instant,
    /// Whether an answer came after [`STREAM_AGE`].
    is_stream: bool,
}

impl Activity {
    fn new(now: Instant) -> Self {
        Self { begun: now, last: now, is_stream: false }
    }

    fn sent(&mut self, now: Instant) {
        self.last = now;
    }

    fn answered(&mut self, now: Instant) {
        self.last = now;
        self.is_stream |= now.saturating_duration_since(self.begun) > STREAM_AGE;
    }

    /// When the flow ends if nothing else goes by.
    fn deadline(&self, limits: &Limits) -> Instant {
        self.last + if self.is_stream { limits.udp_stream_idle } else { limits.udp_idle }
    }
}

/// Makes a socket that talks to an endpoint alone.
fn connected(endpoint: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = if endpoint.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(endpoint)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_lasts_as_long_as_conntrack_would_remember_it() {
        let (limits, start) = (Limits::of(1024), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut activity = Activity::new(start);
        assert_eq!(activity.deadline(&limits), at(30));
        activity.sent(at(20));
        assert_eq!(activity.deadline(&limits), at(50));
        // A question with one answer, as for DNS.
        let mut question = Activity::new(start);
        question.answered(at(1));
        assert_eq!(question.deadline(&limits), at(31));
        activity.answered(at(21));
        assert_eq!(activity.deadline(&limits), at(141));
        activity.sent(at(30));
        assert_eq!(activity.deadline(&limits), at(150));
    }
}
