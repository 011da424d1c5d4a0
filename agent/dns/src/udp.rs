//! Questions in datagrams.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;

use crate::hot::HotAnswers;
use crate::message::Transport;
use crate::metrics::ListenerMetrics;
use crate::replies::{Replies, Reply, send_together};
use crate::respond::{Reaction, Responder};

/// The largest question that is read whole. A longer one is no question that
/// this server can answer.
const LARGEST_QUESTION: usize = 4096;

/// The most questions of one listener that wait for upstream servers at a time;
/// further ones are not answered, and asked again.
const MOST_WAITING: usize = 1024;

/// A listener for datagrams.
pub(crate) struct UdpListener {
    socket: UdpSocket,
    state: UdpSocketState,
    /// Whether the socket is bound to one address, the source of every answer.
    has_one_source: bool,
}

impl UdpListener {
    /// Prepares a bound socket.
    ///
    /// # Errors
    /// If the kernel lacks an option that tells where a datagram was sent to.
    pub(crate) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        socket.set_nonblocking(true)?;
        let has_one_source = !socket.local_addr()?.ip().is_unspecified();
        Ok(Self { socket: UdpSocket::from_std(socket)?, state, has_one_source })
    }

    async fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let receive = || self.state.recv(UdpSockRef::from(&self.socket), buffers, metas);
        self.socket.async_io(Interest::READABLE, receive).await
    }

    /// Sends an answer from the address that was asked. An answer that cannot be
    /// sent is lost, as on the way.
    async fn send(&self, answer: &[u8], to: SocketAddr, from: Option<IpAddr>) {
        let transmit = Transmit { destination: to, ecn: None, contents: answer, segment_size: None, src_ip: from };
        let send = || self.state.try_send(UdpSockRef::from(&self.socket), &transmit);
        let sent = match send() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.socket.async_io(Interest::WRITABLE, send).await
            }
            sent => sent,
        };
        if let Err(error) = sent {
            tracing::debug!("DNS: no answer could be sent to {to}: {error}");
        }
    }

    /// Sends answers, several in one system call if all have the same source
    /// address. Those that cannot be sent are lost, as on the way.
    async fn send_all(&self, replies: &[Reply]) {
        let mut rest = replies;
        while let [first, behind @ ..] = rest {
            if behind.is_empty() || !self.has_one_source {
                self.send(&first.bytes, first.to, first.from).await;
                rest = behind;
                continue;
            }
            let send = || send_together(&self.socket, rest);
            let sent = match send() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.socket.async_io(Interest::WRITABLE, send).await
                }
                sent => sent,
            };
            let done = sent.unwrap_or_else(|error| {
                tracing::debug!("DNS: no answer could be sent to {}: {error}", first.to);
                1
            });
            rest = rest.get(done.max(1)..).unwrap_or_default();
        }
    }

    /// Sends the answers of one receive, counts them, and forgets them.
    async fn reply(&self, replies: &mut Replies, responder: &Responder, metrics: &ListenerMetrics, begun: Instant) {
        self.send_all(replies.kept()).await;
        for reply in replies.kept() {
            if !responder.is_own_question(reply.to.ip()) {
                metrics.note(&reply.seen, Transport::Udp, reply.to.is_ipv4(), begun.elapsed());
            }
        }
        replies.clear();
    }

    /// Answers questions until the socket fails.
    pub(crate) async fn serve(self, responder: Responder, metrics: Arc<ListenerMetrics>) -> io::Error {
        let listener = Arc::new(self);
        let waiting = Arc::new(Semaphore::new(MOST_WAITING));
        let mut storage = vec![[0u8; LARGEST_QUESTION]; BATCH_SIZE];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut replies = Replies::default();
        let mut hot = HotAnswers::default();
        loop {
            let mut buffers = storage.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect::<Vec<_>>();
            let count = match listener.receive(&mut buffers, &mut metas).await {
                Ok(count) => count,
                // An answer that met a closed port; the socket is fine.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return error,
            };
            let begun = Instant::now();
            for (meta, buffer) in metas.iter().zip(&storage).take(count) {
                let bytes = buffer.get(..meta.len).unwrap_or_default();
                // Datagrams of one client may arrive as one.
                for question in bytes.chunks(meta.stride.max(1)) {
                    let mut bytes = replies.buffer();
                    let (to, from) = (meta.addr, meta.dst_ip);
                    match responder.react_again(&mut hot, question, to.ip(), &mut bytes) {
                        Reaction::Ignore => replies.put_back(bytes),
                        Reaction::Reply(seen) => {
                            replies.keep(Reply { bytes, to, from, seen });
                            if replies.kept().len() == BATCH_SIZE {
                                listener.reply(&mut replies, &responder, &metrics, begun).await;
                            }
                        }
                        Reaction::Forward(forward) => {
                            replies.put_back(bytes);
                            let Ok(permit) = waiting.clone().try_acquire_owned() else { continue };
                            let (listener, responder, metrics) = (listener.clone(), responder.clone(), metrics.clone());
                            tokio::spawn(async move {
                                let mut out = Vec::new();
                                let seen = responder.finish(*forward, &mut out).await;
                                listener.send(&out, to, from).await;
                                metrics.note(&seen, Transport::Udp, to.is_ipv4(), begun.elapsed());
                                drop(permit);
                            });
                        }
                    }
                }
            }
            listener.reply(&mut replies, &responder, &metrics, begun).await;
        }
    }
}
