//! The load generator.
//!
//! Between network namespaces joined by veth pairs, a packet's whole way runs
//! inside the system call that sends it: through the node's hooks, up to the
//! pod's socket buffer. Nobody sleeps on that socket meanwhile, so no wake-up
//! and no scheduler is in the time that is measured.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::scale::Failure;

/// Source ports in turn; what is below belongs to others.
const FIRST_PORT: u16 = 33_000;
const LAST_PORT: u16 = 62_999;
/// The buffer size for all waiting datagrams of one round, with a margin.
const DATAGRAM_BUFFER: usize = 256 << 20;

/// Opens flows that nobody has opened before.
#[derive(Debug)]
pub struct Client {
    sources: Vec<Ipv4Addr>,
    source: usize,
    port: u16,
}

impl Client {
    /// A client with these addresses.
    pub fn new(sources: Vec<Ipv4Addr>) -> Self {
        Self { sources, source: 0, port: FIRST_PORT }
    }

    /// The next address and port to send from.
    fn next_source(&mut self) -> SockAddr {
        let address = self.sources.get(self.source).copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let source = SocketAddrV4::new(address, self.port);
        self.port += 1;
        if self.port > LAST_PORT {
            self.port = FIRST_PORT;
            self.source = (self.source + 1) % self.sources.len().max(1);
        }
        source.into()
    }

    /// Sends the first packet of many flows. What each call took, in
    /// microseconds.
    ///
    /// # Errors
    /// If one can't be sent.
    pub fn send_datagrams(&mut self, targets: &[SocketAddrV4], flows: usize) -> Result<Vec<f64>, Failure> {
        let mut latencies = Vec::with_capacity(flows);
        for target in targets.iter().cycle().take(flows) {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind(&self.next_source())?;
            // The route is looked up here, and not while the clock runs.
            socket.connect(&(*target).into())?;
            let begun = Instant::now();
            socket.send(b"a")?;
            latencies.push(microseconds(begun));
        }
        Ok(latencies)
    }

    /// Opens connections and resets them. What opening took, in microseconds.
    ///
    /// # Errors
    /// If one can't be opened.
    pub fn connect(&mut self, targets: &[SocketAddrV4], count: usize) -> Result<Vec<f64>, Failure> {
        let mut latencies = Vec::with_capacity(count);
        for target in targets.iter().cycle().take(count) {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            // Closing resets the connection: no port and no entry is left.
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&self.next_source())?;
            let begun = Instant::now();
            socket.connect_timeout(&(*target).into(), Duration::from_secs(1))?;
            latencies.push(microseconds(begun));
        }
        Ok(latencies)
    }
}

fn microseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e6
}

/// The pods' servers: one socket each protocol, for all pod addresses.
#[derive(Debug)]
pub struct Servers {
    datagrams: Socket,
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Servers {
    /// Listens in this thread's namespace.
    ///
    /// # Errors
    /// If a port can't be bound.
    pub fn start(tcp_port: u16, udp_port: u16) -> Result<Self, Failure> {
        let datagrams = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        if setsockopt(&datagrams, sockopt::RcvBufForce, &DATAGRAM_BUFFER).is_err() {
            setsockopt(&datagrams, sockopt::RcvBuf, &DATAGRAM_BUFFER)?;
        }
        datagrams.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, udp_port).into())?;
        datagrams.set_nonblocking(true)?;

        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        listener.set_reuse_address(true)?;
        listener.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, tcp_port).into())?;
        listener.listen(4096)?;
        let listener = TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let accepting = std::thread::spawn(move || accept_until(&listener, &seen));
        Ok(Self { datagrams, stop, accepting: Some(accepting) })
    }

    /// Takes all waiting datagrams. How many there were.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn discard_datagrams(&self) -> Result<usize, Failure> {
        let mut count = 0;
        let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
        loop {
            match self.datagrams.recv(&mut buffer) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            // A panic was already reported by the thread itself.
            let _ = accepting.join();
        }
    }
}

/// Accepts and closes. It looks every few milliseconds rather than sleeping on
/// the socket, so that no connection has to wake it.
fn accept_until(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((connection, _)) => drop(connection),
            Err(error) if is_over(&error) => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => {}
        }
    }
}

/// Returns whether nothing waits to be accepted.
fn is_over(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}
