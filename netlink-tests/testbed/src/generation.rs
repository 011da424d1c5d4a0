//! The generation of a namespace's nftables rules, and the commits that make new ones.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_GETGEN`
const GET_GENERATION: u16 = (10 << 8) | 16;

/// The group `NFNLGRP_NFTABLES` (7), as a bit.
const NEWS: u32 = 1 << 6;

fn open(groups: u32) -> io::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Follows the commits in a namespace, by whatever program.
#[derive(Debug)]
pub struct Commits(OwnedFd);

impl Commits {
    /// Follows those in the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// The kernel has no nf_tables.
    pub fn follow() -> io::Result<Self> {
        open(NEWS).map(Self)
    }

    /// Waits for a commit, unless there was one since the last wait.
    ///
    /// # Errors
    /// The socket can't be read.
    pub fn wait(&self, patience: Duration) -> io::Result<()> {
        let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], patience) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [0; 4096];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // Notifications that were lost are of commits, too.
                Ok(_) | Err(Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

/// Reads the generation in the calling thread's namespace: every commit, by
/// whatever program, adds one.
///
/// # Errors
/// The kernel has no nf_tables, or answers something else.
pub fn generation() -> io::Result<u32> {
    let socket = open(0)?;
    let mut request = Vec::with_capacity(20);
    request.extend(20u32.to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    request.extend(1u16.to_ne_bytes()); // NLM_F_REQUEST
    request.extend([0; 12]); // Sequence number, sender, and nfgenmsg.
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = [0; 256];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // Headers of 16 and 4 bytes, then NFTA_GEN_ID: 4 bytes of header, 4 of value.
    let attribute = answer.get(20..length).and_then(|rest| rest.split_first_chunk::<4>());
    match attribute {
        Some(([8, 0, 1, 0], rest)) if rest.len() >= 4 => Ok(u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]])),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel answers without a generation")),
    }
}
