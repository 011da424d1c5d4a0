//! One agent for each network namespace: two would undo each other's work.
//!
//! The first agent holds an abstract Unix socket. The name belongs to the
//! network namespace, and disappears with its process, however that ends.

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

/// The right to change our tables, until it is dropped.
#[derive(Debug)]
pub struct Instance {
    /// `None` if a process without the right to change the tables has the name.
    _socket: Option<OwnedFd>,
}

/// Somebody else has the right.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// Another agent.
    #[error(
        "another vmap-proxy ({}) runs in this network namespace, and would undo whatever this one does: stop it first",
        describe(*pid)
    )]
    Running {
        /// Its process; `None` if it is in a process namespace that is
        /// invisible from here.
        pid: Option<i32>,
    },
    /// A socket could not be made.
    #[error("whether another vmap-proxy runs in this network namespace could not be found out: {0}")]
    Socket(#[from] Errno),
}

fn describe(pid: Option<i32>) -> String {
    pid.map_or_else(|| "in another process namespace".to_owned(), |pid| format!("pid {pid}"))
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
    Ok(Instance { _socket: Some(own) })
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
            Ok(Instance { _socket: None })
        }
        Ok(peer) => Err(InstanceError::Running { pid: Some(peer.pid()).filter(|pid| *pid != 0) }),
        // It exists, but does not listen yet, or its queue is full.
        Err(_) => Err(InstanceError::Running { pid: None }),
    }
}

fn stream() -> Result<OwnedFd, Errno> {
    socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
}
