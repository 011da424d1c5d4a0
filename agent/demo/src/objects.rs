//! The number of nf_tables objects in a namespace, asked of the kernel itself: the program `nft` may be missing.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use vmap_proxy_lab::NetNs;
use vmap_proxy_wire::answer::{DumpEnd, DumpReader};
use vmap_proxy_wire::message::{NLM_F_DUMP, Request, Writer};
use vmap_proxy_wire::nf_tables::message_type;
use vmap_proxy_wire::uapi::{NFT_MSG_GETCHAIN, NFT_MSG_GETRULE, NFT_MSG_GETSET, NFT_MSG_GETTABLE};

use crate::DemoError;

/// The tables of every family.
const EVERY_FAMILY: u8 = 0;

/// The kernel sends parts of a listing of at most this size.
const RECEIVE_BYTES: usize = 64 << 10;

/// The objects of all tables. Elements are no objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Objects {
    pub(crate) tables: usize,
    pub(crate) chains: usize,
    pub(crate) rules: usize,
    /// Sets and maps.
    pub(crate) maps: usize,
}

impl Objects {
    /// Counts them in a namespace in which nobody changes them.
    pub(crate) fn count(namespace: &NetNs) -> Result<Self, DemoError> {
        let counted = namespace.run(|| -> io::Result<Self> {
            Ok(Self {
                tables: count(NFT_MSG_GETTABLE)?,
                chains: count(NFT_MSG_GETCHAIN)?,
                rules: count(NFT_MSG_GETRULE)?,
                maps: count(NFT_MSG_GETSET)?,
            })
        })?;
        counted.map_err(DemoError::Kernel)
    }
}

fn count(kind: u8) -> io::Result<usize> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
    let mut writer = Writer::default();
    Request::new(message_type(kind), EVERY_FAMILY, |_| {}).write(&mut writer, NLM_F_DUMP, 1);
    send(socket.as_raw_fd(), writer.bytes(), MsgFlags::empty())?;
    let mut reader = DumpReader::new(1);
    let mut buffer = vec![0; RECEIVE_BYTES];
    let mut count = 0;
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        match reader.read(&buffer[..length], &mut |entries| count += entries.count()) {
            None => {}
            Some(DumpEnd::Complete) => return Ok(count),
            Some(DumpEnd::Interrupted) => return Err(io::Error::other("the tables changed meanwhile")),
            Some(DumpEnd::Refused(errno)) => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}
