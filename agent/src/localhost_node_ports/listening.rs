//! Opens the socket of a port, again and again if it must, and serves it.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;

use super::port::Port;
use super::{tcp, udp};
use crate::metrics::LocalhostMetrics;
use crate::process;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// The pause after the first failure to listen; each further one is twice as
/// long. Short, because a port may just have changed hands between two programs.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Serves a port for ever.
pub(super) async fn listen(port: Rc<Port>) {
    let shared = port.shared.clone();
    if shared.listeners.available_permits() == 0 {
        tracing::warn!(
            "{port} is not served on {} yet: too many others are for {} open files; raise the limit (LimitNOFILE, \
             ulimit -n)",
            port.place.address().ip(),
            process::descriptor_limit()
        );
    }
    // The semaphore is never closed, so an error may count as a permit.
    let _permit = shared.listeners.acquire().await;
    let mut pause = FIRST_RETRY;
    loop {
        let error = match Socket::open(port.place.address(), port.place.protocol()) {
            Ok(socket) => {
                if pause > FIRST_RETRY {
                    tracing::info!("{port} is served on {} now", port.place.address());
                }
                pause = FIRST_RETRY;
                let _open = Open::new(port.place.family, &shared.metrics);
                socket.serve(&port).await
            }
            Err(error) => error,
        };
        shared.metrics.listener_failed(port.place.family);
        // One line for a series of failures.
        if pause == FIRST_RETRY {
            tracing::warn!(
                "{port} is not served on {}: {error}; stop the program that uses the port there, or choose another \
                 nodePort; trying again until it succeeds",
                port.place.address()
            );
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Counts a listener for as long as it lives.
struct Open<'a> {
    family: Family,
    metrics: &'a LocalhostMetrics,
}

impl<'a> Open<'a> {
    fn new(family: Family, metrics: &'a LocalhostMetrics) -> Self {
        metrics.listener_opened(family);
        Self { family, metrics }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.metrics.listener_closed(self.family);
    }
}

/// An open socket.
enum Socket {
    Tcp(TcpListener),
    Udp(tokio::net::UdpSocket),
}

impl Socket {
    fn open(address: SocketAddr, protocol: Protocol) -> io::Result<Self> {
        match protocol {
            Protocol::Tcp => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                // Connections of an earlier listener may linger.
                socket.set_reuseaddr(true)?;
                socket.bind(address)?;
                Ok(Self::Tcp(socket.listen(BACKLOG)?))
            }
            Protocol::Udp => {
                let socket = UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Udp(tokio::net::UdpSocket::from_std(socket)?))
            }
            Protocol::Sctp => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Serves until the socket fails.
    async fn serve(self, port: &Rc<Port>) -> io::Error {
        match self {
            Self::Tcp(listener) => tcp::serve(listener, port).await,
            Self::Udp(socket) => udp::serve(socket, port).await,
        }
    }
}
