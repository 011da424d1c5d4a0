//! Side tables: made with the flag `owner` over a socket of their own, so that
//! the kernel deletes them when the socket closes, however the process ends.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmap_proxy_wire::message::{Message, Messages, Request};

use super::error::SocketError;
use super::socket::{Protocol, Socket};

/// Bytes of one datagram of events.
const RECEIVE_BYTES: usize = 64 << 10;

/// The multicast group of trace events (`NFNLGRP_NFTRACE` of
/// `include/uapi/linux/netfilter/nfnetlink.h`).
const TRACE_GROUP: u32 = 9;

/// The owner of side tables. They go with it.
#[derive(Debug)]
pub struct SideTables {
    socket: Socket,
}

impl SideTables {
    /// An owner without tables, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If no socket can be opened.
    pub fn open() -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    /// Carries requests out, all or none.
    ///
    /// # Errors
    /// [`SocketError::Refused`] with the kernel's first refusal.
    pub fn submit(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        self.socket.creation(requests)
    }

    /// Carries out requests that remove something, all or none.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn remove(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        self.socket.transaction(requests)
    }
}

/// Receives trace events of this network namespace.
#[derive(Debug)]
pub struct TraceEvents {
    socket: netlink_sys::Socket,
    received: Vec<u8>,
}

impl TraceEvents {
    /// Listens from now on.
    ///
    /// # Errors
    /// If no socket can be opened, or there is no permission.
    pub fn open() -> Result<Self, SocketError> {
        let failed = |call| move |source| SocketError::System { call, source };
        let mut socket =
            netlink_sys::Socket::new(netlink_sys::protocols::NETLINK_NETFILTER).map_err(failed("socket"))?;
        socket.bind_auto().map_err(failed("bind"))?;
        socket.add_membership(TRACE_GROUP).map_err(failed("setsockopt"))?;
        socket.set_non_blocking(true).map_err(failed("fcntl"))?;
        Ok(Self { socket, received: vec![0; RECEIVE_BYTES] })
    }

    /// Hands the messages of the next datagram to `each`. Returns false when the
    /// deadline has passed.
    ///
    /// # Errors
    /// [`SocketError::AnswerLost`] if events came faster than they were read: go
    /// on; others end it.
    pub fn next(&mut self, deadline: Instant, each: impl FnMut(Message<'_>)) -> Result<bool, SocketError> {
        let system = |call| move |errno: Errno| SocketError::System { call, source: errno.into() };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let patience = left.min(Duration::from_secs(1)).as_millis() as u16 + 1;
            let mut waiting = [PollFd::new(std::os::fd::AsFd::as_fd(&self.socket), PollFlags::POLLIN)];
            match poll(&mut waiting, PollTimeout::from(patience)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                other => other.map_err(system("poll"))?,
            };
            let descriptor = std::os::fd::AsFd::as_fd(&self.socket).as_raw_fd();
            let received = nix::sys::socket::recv(descriptor, &mut self.received, nix::sys::socket::MsgFlags::empty());
            match received {
                Ok(length) => {
                    Messages::new(&self.received[..length]).for_each(each);
                    return Ok(true);
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Err(SocketError::AnswerLost),
                Err(errno) => return Err(system("recv")(errno)),
            }
        }
    }
}
