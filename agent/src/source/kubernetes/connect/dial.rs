//! Connections to the API server: TCP, through a proxy if there is one, then
//! TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tower::{Service, ServiceExt};

use super::proxy::{Protocol, Proxy};
use super::resolve::Resolver;
use super::settings::Identity;
use super::tls::{Tls, server_name};

/// Longest time to establish a connection, for all steps together; the same as
/// client-go's for TCP alone.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection, whatever it goes through.
pub(super) struct Stream {
    io: TokioIo<Box<dyn Io>>,
    /// The server has chosen HTTP/2.
    is_http2: bool,
    /// A proxy reads the requests: they name the whole URL.
    is_proxied: bool,
    /// Set for the connection as a whole, not for the layers below.
    pulse: Option<Pulse>,
}

impl Stream {
    fn new(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Self {
        Self { io: TokioIo::new(Box::new(io)), is_http2: false, is_proxied: false, pulse: None }
    }
}

/// The time of the peer's last sign of life. A connection that is given up for
/// the lack of one ends without an error that shows this.
struct Pulse {
    last: Instant,
    limit: Duration,
    server: String,
}

impl Pulse {
    fn tell(&self) {
        let silence = self.last.elapsed().as_secs();
        tracing::warn!("the API server {} has given no sign of life for {silence} s; connecting again", self.server);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Over HTTP/2 even an idle connection has pings.
        if let Some(pulse) = self.pulse.as_ref().filter(|pulse| self.is_http2 && pulse.last.elapsed() >= pulse.limit) {
            pulse.tell();
        }
    }
}

/// The silence after which the peer counts as gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Liveness {
    /// Silence after which the peer gets a ping.
    pub(super) interval: Duration,
    /// Longest time to give one.
    pub(super) patience: Duration,
}

/// Makes connections to one API server.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Inner>);

struct Inner {
    tcp: HttpConnector<Resolver>,
    proxy: Option<Proxy>,
    tls: Tls,
    /// Silence that only a dead peer leaves.
    limit: Duration,
    /// The client certificate from a plugin, for the next connection.
    identity: Mutex<Option<Identity>>,
}

impl Dialer {
    /// Connects nothing yet.
    pub(super) fn new(proxy: Option<Proxy>, tls: Tls, liveness: Liveness) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(PATIENCE));
        // For connections without pings: HTTP/1.1, and the connection to a
        // proxy. Probes until the patience is over, and waits as long for
        // unacknowledged data.
        tcp.set_keepalive(Some(liveness.interval));
        tcp.set_keepalive_interval(Some((liveness.patience / 3).max(Duration::from_secs(1))));
        tcp.set_keepalive_retries(Some(2));
        tcp.set_tcp_user_timeout(Some(liveness.interval + liveness.patience * 2 / 3));
        // A little less: the ping starts the count, not its arrival.
        let limit = liveness.interval + liveness.patience * 9 / 10;
        Self(Arc::new(Inner { tcp, proxy, tls, limit, identity: Mutex::new(None) }))
    }

    /// The proxy, if there is one.
    pub(super) fn proxy(&self) -> Option<&Proxy> {
        self.0.proxy.as_ref()
    }

    /// The TLS settings.
    pub(super) fn tls(&self) -> &Tls {
        &self.0.tls
    }

    /// From now on connections are made with this client certificate.
    pub(super) fn set_identity(&self, identity: Option<Identity>) {
        *self.0.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    fn identity(&self) -> Option<Identity> {
        self.0.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn dial(self, target: Uri) -> Result<Stream, BoxError> {
        let is_https = target.scheme_str() == Some("https");
        let mut stream = match self.proxy().cloned() {
            None => self.tcp(target.clone()).await?,
            Some(proxy) if proxy.protocol == Protocol::Socks5 => {
                let mut socks = SocksV5::new(proxy.url.clone(), self.0.tcp.clone());
                if let Some((user, password)) = proxy.credentials.clone() {
                    socks = socks.with_auth(user, password);
                }
                let connected = socks.ready().await?.call(target.clone()).await;
                Stream::new(connected.map_err(|error| through(&proxy, error.into()))?.into_inner())
            }
            Some(proxy) if is_https => {
                let to_proxy = self.clone();
                let inner = tower::service_fn(move |_: Uri| to_proxy.clone().dial_proxy());
                let mut tunnel = Tunnel::new(proxy.url.clone(), inner);
                if let Some(authorization) = proxy.authorization() {
                    tunnel = tunnel.with_auth(authorization);
                }
                let connected = tunnel.ready().await?.call(target.clone()).await;
                connected.map_err(|error| through(&proxy, error.into()))?
            }
            Some(_) => {
                let mut stream = self.clone().dial_proxy().await?;
                stream.is_proxied = true;
                stream
            }
        };
        if is_https {
            let plugin = self.identity();
            let mut config = (*self.0.tls.load_or_last(plugin.as_ref())?).clone();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let name = self.0.tls.server_name(target.host().unwrap_or_default())?;
            let connected = TlsConnector::from(Arc::new(config)).connect(name, TokioIo::new(stream)).await?;
            let is_http2 = connected.get_ref().1.alpn_protocol() == Some(b"h2");
            stream = Stream::new(connected);
            stream.is_http2 = is_http2;
        }
        let server = target.authority().map(ToString::to_string).unwrap_or_default();
        stream.pulse = Some(Pulse { last: Instant::now(), limit: self.0.limit, server });
        Ok(stream)
    }

    async fn tcp(&self, target: Uri) -> Result<Stream, BoxError> {
        let mut tcp = self.0.tcp.clone();
        Ok(Stream::new(tcp.ready().await?.call(target).await?.into_inner()))
    }

    /// Connects to the proxy itself. If it uses TLS, its certificate is checked
    /// and the client certificate is sent, as with the server: client-go has
    /// one configuration for both.
    async fn dial_proxy(self) -> Result<Stream, BoxError> {
        let Some(proxy) = self.proxy().cloned() else { return Err("no proxy is configured".into()) };
        let tcp = self.tcp(proxy.url.clone()).await.map_err(|error| through(&proxy, error))?;
        if proxy.protocol != Protocol::Https {
            return Ok(tcp);
        }
        let plugin = self.identity();
        let config = self.0.tls.load_or_last(plugin.as_ref())?;
        let name = server_name(proxy.url.host().unwrap_or_default())?;
        let connected = TlsConnector::from(config).connect(name, TokioIo::new(tcp)).await;
        Ok(Stream::new(connected.map_err(|error| through(&proxy, error.into()))?))
    }
}

fn through(proxy: &Proxy, error: BoxError) -> BoxError {
    format!("through the proxy {proxy:?}: {}", super::super::failure::with_causes(&*error)).into()
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, target: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, dialer.dial(target)).await {
                Ok(result) => result,
                Err(_) => Err(format!("no connection within {} s", PATIENCE.as_secs()).into()),
            }
        })
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied);
        if self.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if let (Poll::Ready(result), Some(pulse)) = (&read, &mut self.pulse) {
            // The kernel's probes were not answered.
            if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                pulse.tell();
            }
            pulse.last = Instant::now();
        }
        read
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
