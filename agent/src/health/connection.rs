//! Accepts connections within bounds: how many there are, how long each may
//! take for a request, and how much it may send.
//!
//! The newest connection is always served: if there are too many, the oldest is
//! closed. A probe is short, so an old connection is idle, slow or stuck.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep};

/// Longest time for a client's first request.
const FIRST_REQUEST: Duration = Duration::from_secs(30);

/// Longest idle time of a connection between requests, and longest time in
/// which its client reads nothing of a reply.
const IDLE: Duration = Duration::from_secs(60);

/// Longest lifetime of a connection.
const LIFETIME: Duration = Duration::from_secs(600);

/// Number of bytes that a client may send before it gets a reply: a request and
/// its headers. No request here has a body.
const LONGEST_REQUEST: usize = 64 << 10;

/// The most connections of one server, where descriptors are plenty.
const MOST: u64 = 256;

/// The wait after a failure to accept: no descriptor, no memory.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Maximum number of connections of one server, or of all health check ports
/// together, if the limit of open files allows it.
pub(super) fn most_connections(descriptors: u64) -> usize {
    (descriptors / 16).clamp(8, MOST) as usize
}

/// The connections of one or several listeners.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    /// The oldest first; each ends when this end of it is dropped.
    open: Mutex<VecDeque<oneshot::Sender<()>>>,
}

impl Connections {
    /// None yet.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default() })
    }

    fn admit(&self) -> oneshot::Receiver<()> {
        let (sender, evicted) = oneshot::channel();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|sender| !sender.is_closed());
        while open.len() >= self.most {
            open.pop_front();
            tracing::debug!("more than {} connections: the oldest is closed", self.most);
        }
        open.push_back(sender);
        evicted
    }
}

/// A listener whose connections are bounded.
#[derive(Debug)]
pub(super) struct Bounded {
    pub(super) listener: TcpListener,
    pub(super) connections: Arc<Connections>,
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let mut pause = FIRST_RETRY;
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => return (Connection::new(stream, self.connections.admit()), peer),
                // Of a client that has gone again.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!("a connection could not be accepted: {error}; trying again in {pause:?}");
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The address of a client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// A connection that fails once it has taken too long.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Resolves, with an error, when others need its place.
    evicted: oneshot::Receiver<()>,
    deadline: Pin<Box<Sleep>>,
    end: Instant,
    received: usize,
    is_over: bool,
}

impl Connection {
    fn new(stream: TcpStream, evicted: oneshot::Receiver<()>) -> Self {
        let deadline = Box::pin(sleep(FIRST_REQUEST));
        Self { stream, evicted, deadline, end: Instant::now() + LIFETIME, received: 0, is_over: false }
    }

    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.is_over = self.is_over
            || self.received > LONGEST_REQUEST
            || Pin::new(&mut self.evicted).poll(context).is_ready()
            || self.deadline.as_mut().poll(context).is_ready();
        if self.is_over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// A reply, or a part of it, is on its way.
    fn wrote(&mut self) {
        self.received = 0;
        self.deadline.as_mut().reset((Instant::now() + IDLE).min(self.end));
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.received += buffer.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.wrote();
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.wrote();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::health::test_client::{get as request, run};

    async fn serve(most: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bounded = Bounded { listener, connections: Connections::new(most) };
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(async { axum::serve(bounded, router).await });
        address
    }

    #[test]
    fn the_oldest_connection_makes_way_for_the_next() {
        run(async {
            let address = serve(4).await;
            let mut open = Vec::new();
            for _ in 0..4 {
                let mut stream = TcpStream::connect(address).await.unwrap();
                // Half a request.
                stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
                open.push(stream);
            }
            assert_eq!(request(address, "/").await.body, "here");
            // The first of them is closed; that shows as its end, or as a reset.
            let mut rest = Vec::new();
            let ended = open.remove(0).read_to_end(&mut rest).await;
            assert!(matches!(ended, Ok(0) | Err(_)) && rest.is_empty(), "{ended:?}");
        });
    }

    #[test]
    fn a_request_without_end_is_cut_off() {
        run(async {
            let address = serve(4).await;
            let mut stream = TcpStream::connect(address).await.unwrap();
            let header = format!("x: {}\r\n", "y".repeat(1000));
            stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
            let mut sent = 0;
            while stream.write_all(header.as_bytes()).await.is_ok() {
                sent += header.len();
                assert!(sent < 100 * LONGEST_REQUEST, "it takes everything");
                tokio::task::yield_now().await;
            }
        });
    }

    #[test]
    fn few_descriptors_mean_few_connections() {
        assert_eq!([64, 1024, 1_048_576].map(most_connections), [8, 64, 256]);
    }
}
