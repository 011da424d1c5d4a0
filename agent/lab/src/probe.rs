//! Probes: one new connection each, and what became of it.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::sctp::Packet;
use crate::server::{RECEIVE_BUFFER, receive_raw};
use crate::{Identity, LabError, NetNs, patient};

/// Maximum number of probes of one call with a socket at the same time.
const IN_FLIGHT: usize = 256;

/// A transport protocol a Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A TCP connection.
    Tcp,
    /// One UDP datagram and its answer.
    Udp,
    /// One SCTP INIT and its answer, see [`SCTP_METHOD`](crate::SCTP_METHOD).
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// One new connection to be made, from a source port not used before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The source address; it need not be configured in the namespace the probe starts from.
    pub source: IpAddr,
    /// The destination, in the same address family.
    pub target: SocketAddr,
    /// Over which protocol.
    pub transport: Transport,
    /// The wait after which the probe counts as unanswered, on an ordinary machine; a slow one waits longer, see
    /// [`patient`]. Below one second no TCP SYN is sent twice.
    pub timeout: Duration,
}

/// The result of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeResult {
    /// An echo server answered.
    Answered {
        /// The address and port the server listens on.
        by: SocketAddr,
        /// The source address as the server saw it.
        seen_source: IpAddr,
    },
    /// A TCP reset: the packet arrived at a host where nothing listens.
    Reset,
    /// An ICMP or ICMPv6 error came back.
    IcmpUnreachable {
        /// The ICMP type: 3 is "destination unreachable" in ICMP, 1 in ICMPv6.
        kind: u8,
        /// The ICMP code: "port unreachable" is 3 in ICMP, 4 in ICMPv6.
        code: u8,
        /// The sender of the error, if the kernel reports it.
        reporter: Option<IpAddr>,
    },
    /// Nothing came back in time.
    Silence,
    /// The probe's own kernel refused (no route, for example), or an answer made no sense.
    Failed {
        /// The class of the error.
        error: ErrorKind,
    },
}

impl ProbeResult {
    /// Returns whether this is the ICMP or ICMPv6 "port unreachable" a rejecting rule sends. A host sends the
    /// same for a closed UDP port, so a probe that must distinguish the two needs a listener there.
    pub fn is_port_unreachable(&self) -> bool {
        match self {
            Self::IcmpUnreachable { kind, code, .. } => matches!((kind, code), (3, 3) | (1, 4)),
            _ => false,
        }
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { by, seen_source } => {
                write!(formatter, "answered by {by}, which saw {seen_source}")
            }
            Self::Reset => formatter.write_str("TCP reset"),
            Self::IcmpUnreachable { .. } if self.is_port_unreachable() => formatter.write_str("ICMP port unreachable"),
            Self::IcmpUnreachable { kind, code, .. } => {
                write!(formatter, "ICMP error, type {kind} code {code}")
            }
            Self::Silence => formatter.write_str("silence"),
            Self::Failed { error } => write!(formatter, "failed: {error}"),
        }
    }
}

/// Makes all probes from `namespace`, many at a time, and answers in the same order.
///
/// Time alone does not make silence: on a loaded machine an answer may be late. For the source of every probe without an
/// answer `settle` is called, which returns when an answer would have come; then the probe is looked at once more.
///
/// # Errors
///
/// A socket can't be made or bound, or `settle` fails. What happens to a packet is never an error.
pub(crate) fn probe_all(
    namespace: &NetNs,
    probes: &[Probe],
    settle: &(dyn Fn(IpAddr) -> Result<(), LabError> + Sync),
) -> Result<Vec<ProbeResult>, LabError> {
    namespace.run(|| {
        let mut silent: Vec<(usize, Attempt)> = Vec::new();
        let mut results = vec![ProbeResult::Silence; probes.len()];
        let mut waiting: VecDeque<(usize, &Probe)> = probes.iter().enumerate().collect();
        let mut flying: Vec<(usize, Attempt)> = Vec::with_capacity(IN_FLIGHT);
        while !waiting.is_empty() || !flying.is_empty() {
            while flying.len() < IN_FLIGHT
                && let Some((index, probe)) = waiting.pop_front()
            {
                flying.push((index, Attempt::start(namespace, probe)?));
            }
            wait_for_any(flying.iter().map(|(_, attempt)| attempt))?;
            let now = Instant::now();
            let mut position = 0;
            while let Some((index, attempt)) = flying.get_mut(position) {
                let Some(result) = attempt.outcome(now) else {
                    position += 1;
                    continue;
                };
                results[*index] = result;
                let ended = flying.swap_remove(position);
                if result == ProbeResult::Silence {
                    silent.push(ended);
                }
            }
        }
        let sources: BTreeSet<IpAddr> = silent.iter().map(|(index, _)| probes[*index].source).collect();
        sources.into_iter().try_for_each(settle)?;
        for (index, mut attempt) in silent {
            if let Some(late) = attempt.receive() {
                results[index] = late;
            }
        }
        Ok(results)
    })?
}

/// Waits until a socket has an event or the first deadline passes.
fn wait_for_any<'a>(flying: impl Iterator<Item = &'a Attempt> + Clone) -> Result<(), LabError> {
    let Some(deadline) = flying.clone().map(|attempt| attempt.deadline).min() else {
        return Ok(());
    };
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up, or the last millisecond would be spent spinning.
    let milliseconds = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
    let mut sockets: Vec<PollFd<'_>> =
        flying.map(|attempt| PollFd::new(attempt.socket.as_fd(), PollFlags::POLLIN)).collect();
    match poll(&mut sockets, PollTimeout::from(milliseconds)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(LabError::errno("wait for answers")(errno)),
    }
}

/// A probe under way.
pub(crate) struct Attempt {
    pub(crate) socket: Socket,
    target: SocketAddr,
    transport: Transport,
    source_port: u16,
    pub(crate) deadline: Instant,
    /// The bytes that TCP has delivered so far.
    pub(crate) text: Vec<u8>,
    /// The probe ended while it was started.
    ended: Option<ProbeResult>,
}

impl Attempt {
    /// Opens the connection. The calling thread must be inside `namespace`.
    pub(crate) fn start(namespace: &NetNs, probe: &Probe) -> Result<Self, LabError> {
        let what = || {
            let (source, target) = (probe.source, probe.target);
            format!("probe {target} ({}) from {source}", probe.transport)
        };
        let (socket, source_port) = open(namespace, probe).map_err(|source| LabError::syscall(what())(source))?;
        let mut attempt = Self {
            socket,
            target: probe.target,
            transport: probe.transport,
            source_port,
            deadline: Instant::now() + patient(probe.timeout),
            text: Vec::new(),
            ended: None,
        };
        if let Err(error) = attempt.send() {
            attempt.ended = attempt.judge(&error);
        }
        Ok(attempt)
    }

    /// Sends the first packet.
    pub(crate) fn send(&self) -> io::Result<()> {
        match self.transport {
            Transport::Tcp => match self.socket.connect(&self.target.into()) {
                Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                other => other,
            },
            Transport::Udp => {
                self.socket.connect(&self.target.into())?;
                self.socket.send(b"who are you?").map(drop)
            }
            Transport::Sctp => {
                let host = SockAddr::from(SocketAddr::new(self.target.ip(), 0));
                self.socket.connect(&host)?;
                let init = Packet::init(self.source_port, self.target.port());
                self.socket.send(&init.encode()).map(drop)
            }
        }
    }

    /// Waits for the result.
    pub(crate) fn finish(&mut self) -> Result<ProbeResult, LabError> {
        loop {
            if let Some(result) = self.outcome(Instant::now()) {
                return Ok(result);
            }
            wait_for_any(std::iter::once(&*self))?;
        }
    }

    /// Returns the meaning of an error of a later send.
    pub(crate) fn note_send_error(&mut self, error: &io::Error) {
        self.ended = self.judge(error);
    }

    /// The result, once there is one.
    fn outcome(&mut self, now: Instant) -> Option<ProbeResult> {
        let ended = self.ended.or_else(|| self.receive());
        ended.or_else(|| (now >= self.deadline).then_some(ProbeResult::Silence))
    }

    fn receive(&mut self) -> Option<ProbeResult> {
        // The error queue first: an ICMP error also leaves a plain "connection refused" on the socket, which
        // by itself cannot be distinguished from a reset.
        if let Some(icmp) = self.icmp_error() {
            return Some(icmp);
        }
        match self.read_answer() {
            Ok(answer) => answer,
            Err(error) => self.judge(&error),
        }
    }

    /// Reads the available bytes; `Ok(None)` means that the answer is not
    /// complete.
    fn read_answer(&mut self) -> io::Result<Option<ProbeResult>> {
        let mut buffer = [0; RECEIVE_BUFFER];
        match self.transport {
            Transport::Tcp => loop {
                let length = (&self.socket).read(&mut buffer)?;
                self.text.extend_from_slice(&buffer[..length]);
                if length == 0 || self.text.ends_with(b"\n") {
                    return Ok(Some(answered(&self.text)));
                }
            },
            Transport::Udp => {
                let length = (&self.socket).read(&mut buffer)?;
                Ok(Some(answered(&buffer[..length])))
            }
            Transport::Sctp => loop {
                let (bytes, _) = receive_raw(&self.socket, self.target.is_ipv4())?;
                if let Some(packet) = Packet::decode(&bytes)
                    && packet.target_port == self.source_port
                    && packet.source_port == self.target.port()
                    && let Some(cookie) = packet.cookie
                {
                    return Ok(Some(answered(&cookie)));
                }
            },
        }
    }

    /// Returns the meaning of an error of a socket call; `None` means keep
    /// waiting.
    fn judge(&self, error: &io::Error) -> Option<ProbeResult> {
        match error.raw_os_error() {
            // A rule that drops on output answers "not permitted" to the sender (a reject does too, but its ICMP
            // error follows). On the wire both are silence so far. A TCP socket that is not yet connected
            // answers "not connected".
            Some(libc::EAGAIN | libc::EPERM | libc::ENOTCONN | libc::EINTR) => None,
            Some(libc::ETIMEDOUT) => Some(ProbeResult::Silence),
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => {
                self.icmp_error().or((self.transport == Transport::Tcp).then_some(ProbeResult::Reset))
            }
            _ => self.icmp_error().or(Some(ProbeResult::Failed { error: error.kind() })),
        }
    }

    /// Takes the next ICMP error of this probe from the socket's error queue (`IP_RECVERR` in ip(7)).
    fn icmp_error(&self) -> Option<ProbeResult> {
        loop {
            let mut returned = [0; RECEIVE_BUFFER];
            let mut vectors = [IoSliceMut::new(&mut returned)];
            let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
            let message = recvmsg::<()>(
                self.socket.as_raw_fd(),
                &mut vectors,
                Some(&mut control),
                MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
            )
            .ok()?;
            let length = message.bytes;
            let icmp = message.cmsgs().ok()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, from) => {
                    let from = from.map(|from| IpAddr::from(from.sin_addr.s_addr.to_ne_bytes()));
                    icmp_origin(&error, from)
                }
                ControlMessageOwned::Ipv6RecvErr(error, from) => {
                    icmp_origin(&error, from.map(|from| from.sin6_addr.s6_addr.into()))
                }
                _ => None,
            });
            // A raw socket hears the errors of all probes between the same two addresses; the returned packet
            // begins with its source port.
            let other = self.transport == Transport::Sctp
                && returned[..length].get(..2) != Some(&self.source_port.to_be_bytes());
            if icmp.is_some() && !other {
                return icmp;
            }
        }
    }
}

/// Opens and binds the socket of a probe, to a source port not used before.
fn open(namespace: &NetNs, probe: &Probe) -> io::Result<(Socket, u16)> {
    let (kind, protocol) = match probe.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
        Transport::Sctp => (Type::RAW, Protocol::SCTP),
    };
    let socket = Socket::new(Domain::for_address(probe.target), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if probe.source.is_ipv4() {
        socket.set_freebind_v4(true)?;
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    } else {
        socket.set_freebind_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    }
    match probe.transport {
        // Closing with a reset leaves no TIME_WAIT state in namespaces that see thousands of probes.
        Transport::Tcp => socket.set_linger(Some(Duration::ZERO))?,
        Transport::Udp => {}
        Transport::Sctp => {
            socket.bind(&SocketAddr::new(probe.source, 0).into())?;
            return Ok((socket, namespace.fresh_port()));
        }
    }
    // A taken port is passed over; a hundred taken in a row mean something else is wrong.
    let mut attempts_left = 100;
    loop {
        let port = namespace.fresh_port();
        attempts_left -= 1;
        match socket.bind(&SocketAddr::new(probe.source, port).into()) {
            Ok(()) => return Ok((socket, port)),
            Err(error) if error.kind() == ErrorKind::AddrInUse && attempts_left > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn answered(text: &[u8]) -> ProbeResult {
    match String::from_utf8_lossy(text).parse::<Identity>() {
        Ok(identity) => ProbeResult::Answered { by: identity.server, seen_source: identity.seen.ip() },
        Err(_) => ProbeResult::Failed { error: ErrorKind::InvalidData },
    }
}

/// The ICMP type and code of a queued error, unless it comes from this host's own stack.
fn icmp_origin(error: &libc::sock_extended_err, reporter: Option<IpAddr>) -> Option<ProbeResult> {
    let from_icmp = [libc::SO_EE_ORIGIN_ICMP, libc::SO_EE_ORIGIN_ICMP6];
    from_icmp.contains(&error.ee_origin).then_some(ProbeResult::IcmpUnreachable {
        kind: error.ee_type,
        code: error.ee_code,
        reporter,
    })
}
