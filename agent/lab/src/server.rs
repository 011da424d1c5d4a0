//! Echo servers that report their own address and the source address that they
//! see.
//!
//! Over TCP a server sends this line when the connection opens, and again for every line it receives; over UDP for
//! every datagram, over SCTP for every INIT.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sctp::Packet;
use crate::{LabError, NetNs, Transport};

/// Longest datagram or packet read at once; probes and answers are far shorter.
pub(crate) const RECEIVE_BUFFER: usize = 2048;

/// The answer of an echo server: its own address and port, and the sender's as it sees them. In
/// text `10.244.1.5:8080 saw 192.0.2.11:40000`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The address and port the server listens on.
    pub server: SocketAddr,
    /// The source address and port of the probe as they arrived.
    pub seen: SocketAddr,
}

impl fmt::Display for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} saw {}", self.server, self.seen)
    }
}

/// A text that is no [`Identity`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not an echo server's answer: {0:?}")]
pub struct NotAnIdentity(String);

impl FromStr for Identity {
    type Err = NotAnIdentity;

    fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
        let parse = || {
            let (server, seen) = text.trim_end().split_once(" saw ")?;
            Some(Self { server: server.parse().ok()?, seen: seen.parse().ok()? })
        };
        parse().ok_or_else(|| NotAnIdentity(text.to_owned()))
    }
}

/// All echo servers of one namespace, on one thread. Dropping it closes them.
#[derive(Debug)]
pub struct EchoServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<Result<(), LabError>, LabError>>>,
}

#[derive(Debug)]
struct Shared {
    listeners: Mutex<Listeners>,
    /// Writing to this end makes the thread look at `listeners` again.
    waker: UnixStream,
}

#[derive(Debug, Default)]
struct Listeners {
    all: Vec<Arc<Listener>>,
    closed: bool,
}

#[derive(Debug)]
struct Listener {
    address: SocketAddr,
    socket: ListenerSocket,
}

#[derive(Debug)]
enum ListenerSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// A raw socket bound to the address; the port is looked for in each packet.
    Sctp(Socket),
}

impl EchoServer {
    /// Starts the serving thread inside `namespace`, with no listener yet.
    ///
    /// # Errors
    ///
    /// No thread or socket can be had.
    pub fn start(namespace: &NetNs) -> Result<Self, LabError> {
        let pair = UnixStream::pair().map_err(LabError::syscall("make a socket pair"))?;
        let (waker, wake) = pair;
        for end in [&waker, &wake] {
            end.set_nonblocking(true).map_err(LabError::syscall("make a socket non-blocking"))?;
        }
        let shared = Arc::new(Shared { listeners: Mutex::default(), waker });
        let thread = {
            let shared = Arc::clone(&shared);
            namespace.spawn(move || serve(&shared, wake))?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Listens at `address`, which `namespace` (the one given to [`EchoServer::start`]) must have. When it
    /// returns, the kernel accepts connections. Asking twice for the same one is no error.
    ///
    /// # Errors
    ///
    /// The address or port can't be bound.
    pub fn listen(&self, namespace: &NetNs, address: SocketAddr, transport: Transport) -> Result<(), LabError> {
        let mut listeners = self.shared.lock();
        if listeners.all.iter().any(|known| known.is(address, transport)) {
            return Ok(());
        }
        let socket = namespace.run(|| ListenerSocket::bind(address, transport))?.map_err(LabError::syscall(
            format!("listen on {address} ({transport}) in namespace {}", namespace.name()),
        ))?;
        listeners.all.push(Arc::new(Listener { address, socket }));
        drop(listeners);
        self.shared.wake();
        Ok(())
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A full socket is as good as one more byte: the thread will wake either way.
    fn wake(&self) {
        let _ = (&self.waker).write(&[1]);
    }
}

impl Listener {
    fn is(&self, address: SocketAddr, transport: Transport) -> bool {
        let own = match self.socket {
            ListenerSocket::Tcp(_) => Transport::Tcp,
            ListenerSocket::Udp(_) => Transport::Udp,
            ListenerSocket::Sctp(_) => Transport::Sctp,
        };
        self.address == address && own == transport
    }

    /// Answers everything that waits on this listener, and keeps new connections.
    fn answer_all(&self, connections: &mut Vec<Connection>) {
        // An error is "nothing more for now" or a client that went away: both end this turn, and poll
        // reports when there is more.
        let _ = match &self.socket {
            ListenerSocket::Tcp(socket) => accept_all(socket, self.address, connections),
            ListenerSocket::Udp(socket) => answer_udp(socket, self.address),
            ListenerSocket::Sctp(socket) => answer_sctp(socket, self.address),
        };
    }
}

impl ListenerSocket {
    fn bind(address: SocketAddr, transport: Transport) -> io::Result<Self> {
        let domain = Domain::for_address(address);
        let (kind, protocol) = match transport {
            Transport::Tcp => (Type::STREAM, Protocol::TCP),
            Transport::Udp => (Type::DGRAM, Protocol::UDP),
            Transport::Sctp => (Type::RAW, Protocol::SCTP),
        };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if transport == Transport::Sctp {
            socket.bind(&SockAddr::from(SocketAddr::new(address.ip(), 0)))?;
            return Ok(Self::Sctp(socket));
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if transport == Transport::Udp {
            socket.bind(&address.into())?;
            return Ok(Self::Udp(socket.into()));
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        Ok(Self::Tcp(socket.into()))
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Udp(socket) => socket.as_fd(),
            Self::Sctp(socket) => socket.as_fd(),
        }
    }
}

/// The serving thread: waits for any listener, any open connection or the waker.
fn serve(shared: &Shared, mut wake: UnixStream) -> Result<(), LabError> {
    let mut connections: Vec<Connection> = Vec::new();
    loop {
        let listeners = {
            let listeners = shared.lock();
            if listeners.closed {
                return Ok(());
            }
            listeners.all.clone()
        };
        let sockets = std::iter::once(wake.as_fd())
            .chain(listeners.iter().map(|listener| listener.socket.as_fd()))
            .chain(connections.iter().map(|connection| connection.stream.as_fd()));
        let mut waiting: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::POLLIN)).collect();
        match poll(&mut waiting, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(LabError::errno("wait for probes")(errno)),
        }
        let ready: Vec<bool> = waiting.iter().map(|socket| socket.any().unwrap_or(false)).collect();
        let mut ready = ready.into_iter();
        if ready.next() == Some(true) {
            let _ = wake.read(&mut [0; 64]);
        }
        let called: Vec<bool> = ready.by_ref().take(listeners.len()).collect();
        connections.retain_mut(|connection| ready.next() != Some(true) || connection.answer_lines());
        for (listener, _) in listeners.iter().zip(called).filter(|(_, called)| *called) {
            listener.answer_all(&mut connections);
        }
    }
}

/// An open TCP connection.
struct Connection {
    stream: TcpStream,
    identity: Identity,
}

impl Connection {
    /// Answers every line that has arrived; false once the connection is over.
    fn answer_lines(&mut self) -> bool {
        let mut buffer = [0; RECEIVE_BUFFER];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(length) => {
                    let lines = buffer[..length].iter().filter(|byte| **byte == b'\n').count();
                    if (0..lines).any(|_| self.say_who().is_err()) {
                        return false;
                    }
                }
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    /// A line fits any socket buffer whose reader reads, so this does not block.
    fn say_who(&mut self) -> io::Result<()> {
        self.stream.write_all(format!("{}\n", self.identity).as_bytes())
    }
}

fn accept_all(listener: &TcpListener, server: SocketAddr, connections: &mut Vec<Connection>) -> io::Result<()> {
    loop {
        let (stream, seen) = listener.accept()?;
        let mut connection = Connection { stream, identity: Identity { server, seen } };
        // A client that has gone already is no concern of the others.
        if connection.stream.set_nonblocking(true).and_then(|()| connection.say_who()).is_ok() {
            connections.push(connection);
        }
    }
}

fn answer_udp(socket: &UdpSocket, server: SocketAddr) -> io::Result<()> {
    let mut buffer = [0; RECEIVE_BUFFER];
    loop {
        let (_, seen) = socket.recv_from(&mut buffer)?;
        let _ = socket.send_to(Identity { server, seen }.to_string().as_bytes(), seen);
    }
}

fn answer_sctp(socket: &Socket, server: SocketAddr) -> io::Result<()> {
    loop {
        let (packet, sender) = receive_raw(socket, server.is_ipv4())?;
        let Some(packet) = Packet::decode(&packet) else {
            continue;
        };
        if packet.cookie.is_some() || packet.target_port != server.port() {
            continue;
        }
        let seen = SocketAddr::new(sender, packet.source_port);
        let cookie = Identity { server, seen }.to_string().into_bytes();
        let to = SockAddr::from(SocketAddr::new(sender, 0));
        let _ = socket.send_to(&packet.answer(cookie).encode(), &to);
    }
}

/// Receives one packet from a raw socket: its payload behind the IP header, and its sender.
pub(crate) fn receive_raw(socket: &Socket, ipv4: bool) -> io::Result<(Vec<u8>, IpAddr)> {
    let mut buffer = [MaybeUninit::new(0_u8); RECEIVE_BUFFER];
    let (length, sender) = socket.recv_from(&mut buffer)?;
    // SAFETY: every byte of `buffer` was initialised to zero above.
    let bytes: Vec<u8> =
        buffer[..length.min(RECEIVE_BUFFER)].iter().map(|byte| unsafe { byte.assume_init() }).collect();
    // raw(7): IPv4 raw sockets deliver the IP header too, IPv6 ones do not.
    let header = match bytes.first() {
        Some(first) if ipv4 => usize::from(first & 0x0f) * 4,
        _ => 0,
    };
    let unspecified = if ipv4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let sender = sender.as_socket().map_or(unspecified, |address| address.ip());
    let payload = bytes.get(header..).unwrap_or_default().to_vec();
    Ok((payload, sender))
}
