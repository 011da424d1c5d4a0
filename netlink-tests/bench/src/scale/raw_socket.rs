//! A netlink socket with nothing around it: what a commit costs at the least.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};

use super::Failure;

/// As large as the agent's own, so that both send alike.
const SEND_BUFFER: usize = 128 << 20;
const RECEIVE_BUFFER: usize = 16 << 20;
/// `NLMSG_ERROR`: an error, or with code 0 an acknowledgement.
const NLMSG_ERROR: u16 = 2;

/// A socket of the nfnetlink protocol, in the namespace of the thread that
/// opened it.
#[derive(Debug)]
pub struct RawSocket {
    descriptor: OwnedFd,
    received: Vec<u8>,
}

impl RawSocket {
    /// Opens it, with large buffers.
    ///
    /// # Errors
    /// Without root.
    pub fn open() -> Result<Self, Failure> {
        let (flags, protocol) = (SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter);
        let descriptor = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        if setsockopt(&descriptor, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            setsockopt(&descriptor, sockopt::SndBuf, &SEND_BUFFER)?;
        }
        setsockopt(&descriptor, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        Ok(Self { descriptor, received: vec![0; 64 << 10] })
    }

    /// Sends an encoded batch and reads what the kernel says to it. Returns
    /// what that took.
    ///
    /// # Errors
    /// The first error that the kernel answers, or none if it does not answer.
    pub fn commit(&mut self, batch: &[u8]) -> Result<Duration, Failure> {
        let begun = Instant::now();
        send(self.descriptor.as_raw_fd(), batch, MsgFlags::empty())?;
        // nfnetlink has queued all answers when send returns.
        let mut answered = false;
        loop {
            match recv(self.descriptor.as_raw_fd(), &mut self.received, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => answered |= check(self.received.get(..length).unwrap_or_default())?,
                Err(Errno::EAGAIN) if answered => return Ok(begun.elapsed()),
                Err(Errno::EAGAIN) => return Err("the kernel did not acknowledge a batch".into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Whether a datagram holds an acknowledgement; an error if it holds one.
fn check(datagram: &[u8]) -> Result<bool, Failure> {
    let number = |at: usize, bytes: usize| datagram.get(at..at + bytes);
    let kind = number(4, 2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let error = number(16, 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(true),
        (Some(NLMSG_ERROR), Some(error)) => Err(Errno::from_raw(-error).into()),
        _ => Ok(false),
    }
}
