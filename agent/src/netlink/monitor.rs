//! Watches for other programs' changes to our tables.
//!
//! The kernel tells every commit to the group `NFNLGRP_NFTABLES`: one message
//! per object, then one with the new generation and who made it. Ours are
//! dropped inside the kernel by a socket filter: the first sync of a large
//! cluster would overrun any buffer. The kernel still makes them, as soon as
//! anybody in the network namespace listens, and a commit of very many
//! elements takes about three times as long: open the monitor after the first
//! sync. A change of a few elements does not feel it.

use std::collections::VecDeque;

use compiler::ruleset::{Family, TABLE};
use nlink::netlink::nftables::events::NFNLGRP_NFTABLES;
use nlink::netlink::nftables::*;
use nlink::netlink::{NetlinkSocket, Protocol};

use super::error::NetlinkError;
use super::message_family;
use super::wire::{Messages, nft_type};

/// A commit of somebody else that touched one of our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChange {
    /// The generation of the rule set that it made.
    pub genid: u32,
    /// Which of our tables it touched, IPv4 first.
    pub families: Vec<Family>,
    /// The process that made it, as seen in the initial process namespace; 0
    /// if the kernel does not say.
    pub pid: u32,
    /// The name of that process, at most 15 bytes of it.
    pub process_name: String,
}

/// What the monitor saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Somebody changed one of our tables: read it back and repair.
    Foreign(ForeignChange),
    /// Messages were lost (`ENOBUFS`): anybody may have changed anything.
    Unknown,
}

/// A socket of its own that follows the changes of the rule set in the network
/// namespace of the thread that opened it.
pub struct Monitor {
    socket: NetlinkSocket,
    follower: Follower,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Monitor").field("follower", &self.follower).finish_non_exhaustive()
    }
}

impl Monitor {
    /// Starts to follow. What the socket with this netlink address commits
    /// ([`super::Kernel::port`]) is not reported. Whatever
    /// changed before this is not seen: read the tables back afterwards.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`], if the socket can't be made.
    pub fn open(port: u32) -> Result<Monitor, NetlinkError> {
        let socket = NetlinkSocket::new(Protocol::Netfilter)?;
        socket.attach_filter(&all_but(port))?;
        socket.set_rcvbuf(4 << 20)?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Monitor { socket, follower: Follower::default() })
    }

    /// The next change, waiting for it. May be dropped and called again:
    /// nothing is lost in between.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Socket`], if the socket fails.
    pub async fn next(&mut self) -> Result<Observed, NetlinkError> {
        loop {
            if let Some(change) = self.follower.changes.pop_front() {
                return Ok(Observed::Foreign(change));
            }
            match self.socket.recv_msg().await {
                Ok(datagram) => self.follower.read(&datagram),
                Err(error) if error.is_no_buffer_space() || error.is_truncated() => {
                    self.follower = Follower::default();
                    return Ok(Observed::Unknown);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Joins the messages of one commit.
#[derive(Debug, Default)]
struct Follower {
    /// Which tables the commit under way has touched so far.
    touched: Vec<Family>,
    changes: VecDeque<ForeignChange>,
}

impl Follower {
    fn read(&mut self, datagram: &[u8]) {
        /// The table's name is attribute 1 of every object.
        const TABLE_NAME: u16 = NFTA_TABLE_NAME;
        for message in Messages(datagram) {
            let Some((family, attributes)) = message.body() else { continue };
            if message.kind == nft_type(NFT_MSG_NEWGEN) {
                let families = std::mem::take(&mut self.touched);
                if !families.is_empty() {
                    self.changes.push_back(ForeignChange {
                        genid: attributes.be32(NFTA_GEN_ID).unwrap_or_default(),
                        families,
                        pid: attributes.be32(NFTA_GEN_PROC_PID).unwrap_or_default(),
                        process_name: attributes.string(NFTA_GEN_PROC_NAME).unwrap_or_default().to_owned(),
                    });
                }
            } else if attributes.string(TABLE_NAME) == Some(TABLE)
                && let Some(family) = message_family(family)
                && !self.touched.contains(&family)
            {
                self.touched.push(family);
                self.touched.sort();
            }
        }
    }
}

/// A socket filter that lets everything pass but what was caused by one port:
/// all messages of a datagram belong to one commit, and carry its port.
fn all_but(port: u32) -> Vec<u8> {
    /// Where `nlmsg_pid` stands in the header.
    const NLMSG_PID: u32 = 12;
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // The filter reads in network byte order, the header is in the host's.
    let port = u32::from_be_bytes(port.to_ne_bytes());
    let program: [(u16, u8, u8, u32); 4] =
        [(LOAD_WORD, 0, 0, NLMSG_PID), (JUMP_EQUAL, 0, 1, port), (RETURN, 0, 0, 0), (RETURN, 0, 0, u32::MAX)];
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for (code, jump_true, jump_false, k) in program {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[jump_true, jump_false]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::family_number;
    use super::super::wire::Writer;
    use super::*;

    fn message(writer: &mut Writer, kind: u8, family: u8, content: impl FnOnce(&mut Writer)) {
        let open = writer.begin_message(nft_type(kind), 0, 1, family, 0);
        content(writer);
        writer.end_message(open);
    }

    #[test]
    fn only_commits_to_our_tables_are_reported() {
        let mut writer = Writer::default();
        let generation = |writer: &mut Writer, id| {
            message(writer, NFT_MSG_NEWGEN, 0, |w| {
                w.be32(NFTA_GEN_ID, id);
                w.be32(NFTA_GEN_PROC_PID, 42);
                w.string(NFTA_GEN_PROC_NAME, "nft");
            });
        };
        message(&mut writer, NFT_MSG_DELTABLE, family_number(Family::Ipv4), |w| w.string(NFTA_TABLE_NAME, "filter"));
        generation(&mut writer, 7);
        message(&mut writer, NFT_MSG_DELTABLE, family_number(Family::Ipv6), |w| w.string(NFTA_TABLE_NAME, TABLE));
        message(&mut writer, NFT_MSG_DELTABLE, 1, |w| w.string(NFTA_TABLE_NAME, TABLE));
        generation(&mut writer, 8);

        let mut follower = Follower::default();
        follower.read(writer.bytes());
        let expected =
            ForeignChange { genid: 8, families: vec![Family::Ipv6], pid: 42, process_name: "nft".to_owned() };
        assert_eq!(follower.changes, [expected]);
        assert_eq!(follower.touched, []);
    }
}
