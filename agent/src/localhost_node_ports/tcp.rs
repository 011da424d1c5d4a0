//! TCP connections, relayed to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::limits::BUFFER;
use super::port::Port;
use crate::metrics::Refusal;

/// The wait after a failure to accept: no descriptor, no memory.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Idle time after which a connection is probed, and between probes, so that one
/// whose peer is gone does not count for ever; the values of Go's net package,
/// and so of kube-proxy.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// The sockets of one connection: the client's and the endpoint's.
const SOCKETS: u32 = 2;

/// Accepts and relays connections for ever. They end when this is dropped.
pub(super) async fn serve(listener: TcpListener, port: &Rc<Port>) -> io::Error {
    let most = (port.shared.limits.sockets_of_a_port / SOCKETS as usize).max(1);
    let mut connections = JoinSet::new();
    let mut pause = FIRST_RETRY;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // A panic ends the process (decision 67).
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((client, peer)) => {
                pause = FIRST_RETRY;
                match admit(port, peer, connections.len() < most) {
                    Some(permit) => {
                        let port = port.clone();
                        connections.spawn_local(async move {
                            relay(client, &port).await;
                            drop(permit);
                        });
                    }
                    None => reset(&client),
                }
            }
            // Of a client that has gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("{port} on localhost: a connection could not be accepted: {error}; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_RETRY);
            }
        }
    }
}

/// Decides whether a client is served. Only a client on a loopback address is:
/// where `route_localnet` is set, neighbours can reach 127.0.0.1, too.
fn admit(port: &Port, peer: SocketAddr, has_room: bool) -> Option<tokio::sync::OwnedSemaphorePermit> {
    if !peer.ip().is_loopback() {
        port.count_refused(Refusal::Source);
        return None;
    }
    let permit = has_room.then(|| port.take_sockets(SOCKETS)).flatten();
    if permit.is_none() {
        port.refuse_by_limit();
    }
    permit
}

/// Relays one connection to its end.
async fn relay(mut client: TcpStream, port: &Port) {
    let Some(endpoint) = port.choose() else { return reset(&client) };
    let error = match timeout(port.shared.limits.connect_timeout, TcpStream::connect(endpoint)).await {
        Ok(Ok(mut server)) => {
            port.count_connected();
            [&client, &server].into_iter().for_each(prepare);
            // It passes the end of each direction on, and ends after both.
            if copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await.is_err() {
                // A reset on one side must not look like an end on the other.
                [&client, &server].into_iter().for_each(reset);
            }
            return;
        }
        Ok(Err(error)) => error,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    port.count_refused(Refusal::Endpoint);
    tracing::debug!("{port} on localhost: endpoint {endpoint} cannot be reached: {error}; the client gets a reset");
    reset(&client);
}

fn prepare(stream: &TcpStream) {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    let set = stream.set_nodelay(true).and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = set {
        tracing::debug!("a relayed connection keeps the kernel's options: {error}");
    }
}

/// Has a connection end with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    // It fails for a connection that has ended.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
