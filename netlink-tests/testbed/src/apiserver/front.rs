//! Fronts between a client and the double: TLS, and proxies. Each is a
//! real server on a thread of its own, in the network namespace of the thread
//! that starts it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A running front; it ends when dropped.
pub struct Front {
    address: SocketAddr,
    seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The requests that a front has seen.
#[derive(Default)]
struct Seen {
    lines: Mutex<Vec<String>>,
    /// Counts the connections that are to be frozen.
    frozen: watch::Sender<u64>,
}

impl Seen {
    fn note(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// The kind of front.
#[derive(Clone)]
pub enum Role {
    /// Takes TLS off and hands on to this address. With `http/1.1` or `h2`
    /// chosen by the configuration.
    Tls(Arc<ServerConfig>, SocketAddr),
    /// Speaks TLS, and is behind that what the other is.
    OverTls(Arc<ServerConfig>, Box<Role>),
    /// An HTTP proxy, with `CONNECT` and without. Notes method, target and
    /// `Proxy-Authorization`.
    HttpProxy,
    /// A SOCKS5 proxy. Notes user, password and target.
    Socks5,
}

impl Front {
    /// Starts one; port 0 chooses a port.
    ///
    /// # Errors
    /// No port, or no thread.
    pub fn start(address: SocketAddr, role: Role) -> io::Result<Self> {
        let seen = Arc::new(Seen::default());
        let (stop, stopped) = oneshot::channel();
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let known = seen.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("front".to_owned()).spawn(move || {
            // Dropping the runtime closes every connection.
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    () = accept(&listener, &role, &known) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, seen, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests seen so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on nothing is relayed over the connections that are open, which
    /// stay open: what a client sees of a server behind a load balancer whose
    /// machine loses power. New connections work.
    pub fn freeze(&self) {
        self.seen.frozen.send_modify(|count| *count += 1);
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &TcpListener, role: &Role, seen: &Arc<Seen>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (role, seen) = (role.clone(), seen.clone());
        tokio::spawn(async move {
            let mut frozen = seen.frozen.subscribe();
            frozen.mark_unchanged();
            let mut relaying = std::pin::pin!(relay(Box::new(stream), role, seen.clone()));
            tokio::select! {
                // First: what comes after the freeze must not pass.
                biased;
                // Neither polled any more nor dropped: the connection is mute.
                _ = frozen.changed() => std::future::pending::<()>().await,
                result = &mut relaying => {
                    if let Err(error) = result {
                        seen.note(format!("failed: {error}"));
                    }
                }
            }
        });
    }
}

fn relay(mut stream: Box<dyn Io>, role: Role, seen: Arc<Seen>) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
    Box::pin(async move {
        match role {
            Role::Tls(config, target) => {
                let mut stream = TlsAcceptor::from(config).accept(stream).await?;
                let (_, session) = stream.get_ref();
                let protocol = session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
                let is_known = session.peer_certificates().is_some();
                seen.note(format!("{} client certificate: {is_known}", protocol.unwrap_or_default()));
                let mut target = TcpStream::connect(target).await?;
                copy_bidirectional(&mut stream, &mut target).await?;
            }
            Role::OverTls(config, inner) => {
                let stream = TlsAcceptor::from(config).accept(stream).await?;
                relay(Box::new(stream), *inner, seen).await?;
            }
            Role::HttpProxy => http_proxy(&mut stream, &seen).await?,
            Role::Socks5 => socks5(&mut stream, &seen).await?,
        }
        Ok(())
    })
}

async fn http_proxy(client: &mut Box<dyn Io>, seen: &Seen) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split_ascii_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let authorization = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("proxy-authorization").then_some(value)
    });
    seen.note(format!("{method} {target} {}", authorization.unwrap_or_default()).trim_end().to_owned());
    let host = match method {
        "CONNECT" => target,
        _ => target.strip_prefix("http://").and_then(|rest| rest.split('/').next()).unwrap_or_default(),
    };
    let mut server = TcpStream::connect(host).await?;
    if method == "CONNECT" {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // One request a connection, without the absolute form.
        let path = target.strip_prefix("http://").and_then(|rest| rest.split_once('/')).map_or("", |(_, path)| path);
        let head = head.replacen(target, &format!("/{path}"), 1);
        server.write_all(head.as_bytes()).await?;
    }
    copy_bidirectional(client, &mut server).await?;
    Ok(())
}

async fn socks5(client: &mut Box<dyn Io>, seen: &Seen) -> io::Result<()> {
    let mut note = String::new();
    let _version = client.read_u8().await?;
    let methods = bytes(client).await?;
    if methods.contains(&2) {
        client.write_all(&[5, 2]).await?;
        let _version = client.read_u8().await?;
        let (user, password) = (bytes(client).await?, bytes(client).await?);
        note = format!("{}:{} ", String::from_utf8_lossy(&user), String::from_utf8_lossy(&password));
        client.write_all(&[1, 0]).await?;
    } else {
        client.write_all(&[5, 0]).await?;
    }
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    let host = match head[3] {
        1 => std::net::Ipv4Addr::from(client.read_u32().await?).to_string(),
        3 => String::from_utf8_lossy(&bytes(client).await?).into_owned(),
        4 => format!("[{}]", std::net::Ipv6Addr::from(client.read_u128().await?)),
        other => return Err(io::Error::other(format!("address type {other}"))),
    };
    let port = client.read_u16().await?;
    seen.note(format!("{note}{host}:{port}"));
    let mut server = TcpStream::connect(format!("{host}:{port}")).await?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    copy_bidirectional(client, &mut server).await?;
    Ok(())
}

/// A length and the bytes.
async fn bytes(client: &mut Box<dyn Io>) -> io::Result<Vec<u8>> {
    let length = client.read_u8().await?;
    let mut bytes = vec![0; usize::from(length)];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
