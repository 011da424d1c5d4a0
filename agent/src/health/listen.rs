//! Listening, and listening again when it fails.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::connection::{Bounded, Connections, Peer, most_connections};
use crate::k8s_events::Recorder;
use crate::process;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// kube-proxy tries again this long after a failure to listen.
pub const RETRY: Duration = Duration::from_secs(5);

/// A server can't listen on its address.
#[derive(Debug, Error)]
#[error(
    "the {server} server cannot listen on {address}: {source}; \
     stop what uses the port (another kube-proxy?) or set {setting}"
)]
pub struct ListenError {
    /// The name of the server.
    pub server: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// The field that sets the address.
    pub setting: &'static str,
    /// The system's reason.
    pub source: io::Error,
}

/// The address and manner in which a server listens.
#[derive(Debug, Clone)]
pub struct Listen {
    /// The name of the server, for messages.
    pub server: &'static str,
    /// The field that sets the address, for messages.
    pub setting: &'static str,
    /// The address. An unspecified address of either family means all addresses
    /// of both, as in Go. Unlike in Go, `[::]` means those of IPv4 where the
    /// kernel has no IPv6.
    pub address: SocketAddr,
    /// Give up at the first failure (`bindAddressHardFail`).
    pub hard_fail: bool,
    /// Time between attempts otherwise.
    pub retry: Duration,
    /// Receives the address once the server listens, with the real port if it
    /// was 0.
    pub listening: watch::Sender<Option<SocketAddr>>,
    /// An optional receiver of each failure, besides the log.
    pub events: Option<Recorder>,
}

impl Listen {
    /// As in kube-proxy: again every 5 s, unless `hard_fail`.
    pub fn new(server: &'static str, setting: &'static str, address: SocketAddr, hard_fail: bool) -> Self {
        let listening = watch::Sender::new(None);
        Self { server, setting, address, hard_fail, retry: RETRY, listening, events: None }
    }

    /// Reports failures as kube-proxy's Event about its health server.
    #[must_use]
    pub fn with_events(self, events: Recorder) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// If it can't listen and `hard_fail` is set.
    pub async fn serve(self, router: Router) -> Result<Infallible, ListenError> {
        let connections = Connections::new(most_connections(process::descriptor_limit()));
        loop {
            let source = match listener(self.address, Stack::Dual) {
                Ok(listener) => {
                    self.listening.send_replace(listener.local_addr().ok());
                    serve(Bounded { listener, connections: connections.clone() }, router.clone()).await
                }
                Err(error) => error,
            };
            self.listening.send_replace(None);
            let Self { server, address, setting, .. } = self;
            let error = ListenError { server, address, setting, source };
            if let Some(events) = &self.events {
                events.health_server_failed(&error.to_string());
            }
            if self.hard_fail {
                return Err(error);
            }
            tracing::warn!("{error}; next attempt in {:?}", self.retry);
            tokio::time::sleep(self.retry).await;
        }
    }
}

async fn serve(listener: Bounded, router: Router) -> io::Error {
    match axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await {
        // It never ends by itself without an error.
        Ok(()) => io::Error::other("the listener ended"),
        Err(error) => error,
    }
}

/// Whether an unspecified address stands for both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Stack {
    /// It does, where the kernel has IPv6.
    Dual,
    /// It stands for its own family.
    Single,
}

/// Opens a listening socket.
pub(super) fn listener(address: SocketAddr, stack: Stack) -> io::Result<TcpListener> {
    if stack == Stack::Dual && address.ip().is_unspecified() {
        let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
        return match open(both, false) {
            // The kernel has no IPv6.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
                open(everywhere, true)
            }
            result => result,
        };
    }
    open(address, true)
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;
    use crate::health::test_client::{get as request, run};

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn router() -> Router {
        Router::new().route("/", get(|| async { "here" }))
    }

    #[test]
    fn a_port_in_use_is_tried_again() {
        run(async {
            let other = std::net::TcpListener::bind(LOOPBACK).unwrap();
            let address = other.local_addr().unwrap();
            let mut listen = Listen::new("test", "testAddress", address, false);
            listen.retry = Duration::from_millis(1);
            let mut listening = listen.listening.subscribe();
            let server = tokio::spawn(listen.serve(router()));
            // The first failure is reported as "not listening".
            listening.changed().await.unwrap();
            assert_eq!(*listening.borrow(), None);
            drop(other);
            listening.wait_for(Option::is_some).await.unwrap();
            assert_eq!(request(address, "/").await.body, "here");
            server.abort();
        });
    }

    #[test]
    fn or_is_fatal_and_names_the_setting() {
        run(async {
            let other = std::net::TcpListener::bind(LOOPBACK).unwrap();
            let listen = Listen::new("test", "testAddress", other.local_addr().unwrap(), true);
            let error = listen.serve(router()).await.unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
            assert!(error.to_string().contains("testAddress"));
        });
    }

    #[test]
    fn an_unspecified_address_serves_both_families() {
        run(async {
            let listen = Listen::new("test", "testAddress", "0.0.0.0:0".parse().unwrap(), true);
            let mut listening = listen.listening.subscribe();
            let server = tokio::spawn(listen.serve(router()));
            let port = listening.wait_for(Option::is_some).await.unwrap().unwrap().port();
            assert_eq!(request(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), "/").await.status, 200);
            if std::net::TcpListener::bind("[::1]:0").is_ok() {
                assert_eq!(request(SocketAddr::from((Ipv6Addr::LOCALHOST, port)), "/").await.status, 200);
            } else {
                assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6 loopback");
                eprintln!("SKIPPED: IPv6 half, this machine has no IPv6 loopback");
            }
            server.abort();
        });
    }
}
