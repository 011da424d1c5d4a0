//! One agent for each network namespace: two would undo each other's work.
//!
//! The first agent holds an abstract Unix socket. The name belongs to the
//! network namespace, and disappears with its process, however that ends.
//!
//! The agents of two pods have process namespaces of their own, so that neither
//! sees the other's process. A second socket therefore has a name that describes
//! its holder. Every process of the network namespace finds it in
//! `/proc/net/unix`.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
};
use nix::unistd::geteuid;
use thiserror::Error;

/// The name of the socket, in the abstract namespace.
const NAME: &[u8] = b"vmap-proxy";

/// The beginning of the name that describes its holder.
const DESCRIPTION: &str = "vmap-proxy/";

/// The longest name of a socket is 107 bytes.
const LONGEST: usize = 100;

/// The right to change our tables, until it is dropped.
#[derive(Debug)]
pub struct Instance {
    /// `None` if a process without the right to change the tables has the name.
    _socket: Option<OwnedFd>,
    /// The socket that describes the agent.
    _description: Option<OwnedFd>,
}

/// Somebody else has the right.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// Another agent.
    #[error(
        "another vmap-proxy ({}) runs in this network namespace, and would undo whatever this one does: stop it first",
        describe(*pid, description.as_deref())
    )]
    Running {
        /// Its process; `None` if it is in a process namespace that is
        /// invisible from here.
        pid: Option<i32>,
        /// Its description of itself: its process in its own namespace, its
        /// pod or host, and its version.
        description: Option<String>,
    },
    /// A socket could not be made.
    #[error("whether another vmap-proxy runs in this network namespace could not be found out: {0}")]
    Socket(#[from] Errno),
}

fn describe(pid: Option<i32>, description: Option<&str>) -> String {
    match (pid, description) {
        (Some(pid), _) => format!("pid {pid}"),
        (None, Some(description)) => format!("in another process namespace; there it is {description}"),
        (None, None) => "in another process namespace".to_owned(),
    }
}

/// This agent's description of itself, in characters that need no escape.
fn own_description() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let host = || nix::unistd::gethostname().ok().map(|name| format!("host {}", name.to_string_lossy()));
    let place = variable("POD_NAME").map(|name| format!("pod {name}")).or_else(host).unwrap_or_default();
    let text = format!("pid {}, {place}, version {}", std::process::id(), env!("CARGO_PKG_VERSION"));
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    text.chars().map(plain).take(LONGEST - DESCRIPTION.len()).collect()
}

/// A socket of the name that describes this agent. Without it only the message of
/// a second agent is less precise.
fn introduce() -> Option<OwnedFd> {
    let name = format!("{DESCRIPTION}{}", own_description());
    let bound = UnixAddr::new_abstract(name.as_bytes()).and_then(|address| {
        let own = stream()?;
        bind(own.as_raw_fd(), &address)?;
        Ok(own)
    });
    bound.inspect_err(|errno| tracing::debug!("the socket @{name} could not be made: {errno}")).ok()
}

/// The description that the holder of the socket gives of itself. Any process may take such a
/// name, so the text is escaped, and only the first one is read.
fn description_of_holder() -> Option<String> {
    let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
    let prefix = format!(" @{DESCRIPTION}");
    let description = sockets.lines().find_map(|line| Some(line.split_once(&prefix)?.1))?;
    Some(description.chars().take(LONGEST).collect::<String>().escape_debug().to_string())
}

/// Takes the right to change our tables in this network namespace.
///
/// Any process may take the name of the socket. A process of a user other than
/// root therefore only causes a warning. Otherwise it would be too easy to keep
/// the proxy from starting.
///
/// # Errors
/// [`InstanceError::Running`] if another agent has it.
pub fn claim() -> Result<Instance, InstanceError> {
    let address = UnixAddr::new_abstract(NAME)?;
    let own = stream()?;
    match bind(own.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(Errno::EADDRINUSE) => return holder(&address),
        Err(errno) => return Err(errno.into()),
    }
    // No connection is ever accepted. A connecting process learns from the kernel who owns the socket.
    listen(&own, Backlog::MAXCONN)?;
    Ok(Instance { _socket: Some(own), _description: introduce() })
}

fn holder(address: &UnixAddr) -> Result<Instance, InstanceError> {
    let question = stream()?;
    let credentials = connect(question.as_raw_fd(), address).and_then(|()| getsockopt(&question, PeerCredentials));
    match credentials {
        Ok(peer) if peer.uid() != 0 && peer.uid() != geteuid().as_raw() => {
            tracing::warn!(
                "process {} of user {} has the abstract socket @vmap-proxy, by which two agents on one node are \
                 detected; going on without it",
                peer.pid(),
                peer.uid()
            );
            Ok(Instance { _socket: None, _description: introduce() })
        }
        Ok(peer) => Err(running(Some(peer.pid()).filter(|pid| *pid != 0))),
        // It exists, but does not listen yet, or its queue is full.
        Err(_) => Err(running(None)),
    }
}

fn running(pid: Option<i32>) -> InstanceError {
    InstanceError::Running { pid, description: description_of_holder() }
}

fn stream() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}
