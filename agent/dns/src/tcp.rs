//! Questions over connections: for answers that fit into no datagram.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::message::Transport;
use crate::metrics::ListenerMetrics;
use crate::respond::{Reaction, Responder};

/// The most connections of one listener, and of one client to it. The oldest one
/// gives way to a new one, so that no client can shut others out.
const MOST: usize = 256;
const MOST_OF_CLIENT: usize = 32;

/// Longest time for a whole question to arrive, and for an answer to leave. A
/// connection that is idle as long is closed (RFC 7766, section 6.2.3).
const PATIENCE: Duration = Duration::from_secs(10);

/// The most questions of one connection.
const MOST_QUESTIONS: usize = 1000;

/// The wait after a failure to accept: no descriptor, no memory.
const RETRY: Duration = Duration::from_millis(100);

/// The open connections, the oldest first; each ends when its sender is dropped.
#[derive(Debug, Default)]
struct Connections(VecDeque<(IpAddr, oneshot::Sender<()>)>);

impl Connections {
    fn admit(&mut self, client: IpAddr) -> oneshot::Receiver<()> {
        let (sender, evicted) = oneshot::channel();
        self.0.retain(|(_, sender)| !sender.is_closed());
        let of_client = self.0.iter().filter(|(other, _)| *other == client).count();
        if of_client >= MOST_OF_CLIENT {
            if let Some(oldest) = self.0.iter().position(|(other, _)| *other == client) {
                self.0.remove(oldest);
            }
        } else if self.0.len() >= MOST {
            self.0.pop_front();
        }
        self.0.push_back((client, sender));
        evicted
    }
}

/// Answers questions until the listener fails for good.
pub(crate) async fn serve(listener: TcpListener, responder: Responder, metrics: Arc<ListenerMetrics>) -> io::Error {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                let evicted = connections.admit(client.ip());
                let (responder, metrics) = (responder.clone(), metrics.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = converse(stream, client, &responder, &metrics) => {}
                        _ = evicted => tracing::debug!("DNS: the connection of {client} gave way to a new one"),
                    }
                });
            }
            // Of a client that has gone again.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("DNS: a connection could not be accepted: {error}; trying again in {RETRY:?}");
                sleep(RETRY).await;
            }
        }
    }
}

/// One connection: question and answer by turns.
async fn converse(
    mut stream: TcpStream,
    client: SocketAddr,
    responder: &Responder,
    metrics: &ListenerMetrics,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut question, mut answer) = (Vec::new(), Vec::new());
    for _ in 0..MOST_QUESTIONS {
        timeout(PATIENCE, read(&mut stream, &mut question)).await??;
        let begun = Instant::now();
        let reaction = responder.react(&question, client.ip(), Transport::Tcp, &mut answer);
        let seen = match reaction {
            Reaction::Ignore => return Ok(()),
            Reaction::Reply(seen) => seen,
            Reaction::Forward(forward) => responder.finish(*forward, &mut answer).await,
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let sent = async { stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat()).await };
        timeout(PATIENCE, sent).await??;
        metrics.note(&seen, Transport::Tcp, client.is_ipv4(), begun.elapsed());
    }
    Ok(())
}

/// Reads a message with its length.
async fn read(stream: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    let length = stream.read_u16().await?;
    message.clear();
    // It grows as bytes arrive; the length alone reserves nothing.
    let read = stream.take(u64::from(length)).read_to_end(message).await?;
    if read < usize::from(length) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
