//! Watches for other programs' changes to our tables.
//!
//! The kernel reports every commit to the group `NFNLGRP_NFTABLES`: one message
//! per object, then one with the new generation and its author. A socket filter
//! drops our own messages inside the kernel, because the first sync of a large
//! cluster would overrun any buffer. The kernel still creates them as soon as
//! anybody in the network namespace listens, and a commit of very many elements
//! then takes about three times as long. A first sync therefore runs without
//! the monitor, and counts the generations of the rule set instead (decision
//! 23). The cost for a change of a few elements is negligible.
//!
//! The kernel queues the messages of a commit before it takes the next one. So
//! when it has answered to a batch of ours, everything that was committed before
//! can be read here.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nlink::netlink::nftables::events::NFNLGRP_NFTABLES;
use nlink::netlink::{NetlinkSocket, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_wire::message::{Attributes, Messages};
use vmap_proxy_wire::nf_tables::{OwnTable, TABLE_NAME, message_family, message_type};
use vmap_proxy_wire::uapi::{
    NFT_MSG_NEWCHAIN, NFT_MSG_NEWGEN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE,
    NFTA_CHAIN_NAME, NFTA_GEN_ID, NFTA_GEN_PROC_NAME, NFTA_GEN_PROC_PID,
};

use super::error::NetlinkError;

/// A foreign commit that touched one of our tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignChange {
    /// The generation of the rule set that it made.
    pub genid: u32,
    /// The tables of ours that it touched, IPv4 first.
    pub families: Vec<Family>,
    /// The process that made it, as seen in the initial process namespace; 0 if
    /// the kernel does not report it.
    pub pid: u32,
    /// The name of that process, at most 15 bytes of it.
    pub process_name: String,
}

/// An observation of the monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Somebody changed one of our tables: read it back and repair.
    Foreign(ForeignChange),
    /// Messages were lost (`ENOBUFS`), so anything may have changed.
    Unknown,
}

/// A separate socket that follows the changes of the rule set in the network
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
    /// Starts to follow. Commits of the socket with this netlink address
    /// ([`super::Kernel::port`]) are not reported. Earlier changes are not
    /// seen: read the tables back afterwards.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::News`], if the socket can't be made.
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
    /// [`NetlinkError::News`], if the socket fails.
    pub async fn next(&mut self) -> Result<Observed, NetlinkError> {
        loop {
            if let Some(change) = self.follower.seen.pop_front() {
                return Ok(change);
            }
            let received = self.socket.recv_msg().await;
            self.follow(received)?;
        }
    }

    /// Returns whether there is a change that [`Self::next`] or [`Self::take`]
    /// has not returned yet. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn has_seen(&mut self) -> Result<bool, NetlinkError> {
        loop {
            match self.socket.try_recv_msg() {
                // A commit of which not every message is here yet is one, too.
                Ok(None) => return Ok(!self.follower.seen.is_empty() || !self.follower.touched.is_empty()),
                Ok(Some(datagram)) => self.follow(Ok(datagram))?,
                Err(error) => self.follow(Err(error))?,
            }
        }
    }

    /// Returns all observations not returned yet. Does not wait.
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn take(&mut self) -> Result<Vec<Observed>, NetlinkError> {
        self.has_seen()?;
        Ok(self.follower.seen.drain(..).collect())
    }

    fn follow(&mut self, received: nlink::Result<Vec<u8>>) -> Result<(), NetlinkError> {
        match received {
            Ok(datagram) => self.follower.read(&datagram),
            Err(error) if error.is_no_buffer_space() || error.is_truncated() => {
                self.follower.touched.clear();
                self.follower.push(Observed::Unknown);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// kube-proxy's table in nftables mode.
const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// The chain that kube-proxy makes in iptables mode over nf_tables, and the
/// kubelet does not.
const KUBE_PROXY_CHAIN: &str = "KUBE-SERVICES";

/// Shortest time between two reports of a kube-proxy, which may write at each
/// change of a Service.
const KUBE_PROXY_PAUSE: Duration = Duration::from_secs(10 * 60);

/// Warns of a kube-proxy that runs beside us.
#[derive(Debug, Default)]
struct Rival {
    /// Whether the commit under way has added to kube-proxy's rules so far.
    writes: bool,
    named: Option<Instant>,
}

impl Rival {
    /// A commit is complete; `process` made it.
    fn committed(&mut self, process: impl FnOnce() -> String) {
        let pauses = self.named.is_some_and(|named| named.elapsed() < KUBE_PROXY_PAUSE);
        if std::mem::take(&mut self.writes) && !pauses {
            self.named = Some(Instant::now());
            tracing::warn!(
                "kube-proxy runs beside vmap-proxy: {} wrote its rules, and both translate new connections; end one of \
                 the two (after kubeadm's upgrade: docs/kubeadm.md), then remove what it left, with --cleanup-kube-proxy \
                 or with vmap-proxy cleanup",
                process()
            );
        }
    }
}

/// Returns whether a message adds something to kube-proxy's rules. A removal is
/// a clean-up, possibly ours.
fn is_of_kube_proxy(kind: u16, attributes: Attributes<'_>) -> bool {
    let adds = |message| kind == message_type(message);
    if adds(NFT_MSG_NEWCHAIN) && attributes.string(NFTA_CHAIN_NAME) == Some(KUBE_PROXY_CHAIN) {
        return true;
    }
    attributes.string(TABLE_NAME) == Some(KUBE_PROXY_TABLE)
        && [NFT_MSG_NEWTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM]
            .into_iter()
            .any(adds)
}

/// Joins the messages of one commit.
#[derive(Debug, Default)]
struct Follower {
    rival: Rival,
    /// The tables that the current commit has touched so far.
    touched: Vec<Family>,
    seen: VecDeque<Observed>,
}

/// A larger number need not be exact.
const MOST_KEPT: usize = 1024;

impl Follower {
    fn push(&mut self, observed: Observed) {
        if self.seen.len() < MOST_KEPT {
            self.seen.push_back(observed);
        }
    }

    fn read(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            let Some((family, attributes)) = message.body() else { continue };
            if message.kind == message_type(NFT_MSG_NEWGEN) {
                self.rival.committed(|| {
                    let pid = attributes.be32(NFTA_GEN_PROC_PID).unwrap_or_default();
                    format!("process {pid} ({})", process_name(attributes))
                });
                let families = std::mem::take(&mut self.touched);
                if !families.is_empty() {
                    self.push(Observed::Foreign(ForeignChange {
                        genid: attributes.be32(NFTA_GEN_ID).unwrap_or_default(),
                        families,
                        pid: attributes.be32(NFTA_GEN_PROC_PID).unwrap_or_default(),
                        process_name: process_name(attributes),
                    }));
                }
            } else if is_of_kube_proxy(message.kind, attributes) {
                self.rival.writes = true;
            } else if attributes.string(TABLE_NAME).and_then(OwnTable::of_name).is_some()
                && let Some(family) = message_family(family)
                && !self.touched.contains(&family)
            {
                self.touched.push(family);
                self.touched.sort();
            }
        }
    }
}

/// Follows the notifications in these datagrams, for the fuzz target `notifications`.
#[cfg(fuzzing)]
pub fn follow_datagrams<'a>(datagrams: impl Iterator<Item = &'a [u8]>) -> Vec<Observed> {
    let mut follower = Follower::default();
    datagrams.for_each(|datagram| follower.read(datagram));
    follower.seen.into()
}

/// Returns the name of a process. The process may choose it, so unprintable
/// characters are replaced.
fn process_name(attributes: Attributes<'_>) -> String {
    let bytes = attributes.get(NFTA_GEN_PROC_NAME).map(|name| name.payload).unwrap_or_default();
    let printable = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    String::from_utf8_lossy(bytes).trim_end_matches('\0').chars().map(printable).collect()
}

/// A socket filter that drops only messages caused by one port: all messages of
/// a datagram belong to one commit, and carry its port.
fn all_but(port: u32) -> Vec<u8> {
    /// The offset of `nlmsg_pid` in the header.
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
    use vmap_proxy_compiler::ruleset::TABLE;
    use vmap_proxy_wire::message::Writer;
    use vmap_proxy_wire::nf_tables::family_number;
    use vmap_proxy_wire::uapi::NFT_MSG_DELTABLE;

    use super::*;

    fn message(writer: &mut Writer, kind: u8, family: u8, content: impl FnOnce(&mut Writer)) {
        let open = writer.begin_message(message_type(kind), 0, 1, family, 0);
        content(writer);
        writer.end_message(open);
    }

    #[test]
    fn kube_proxy_is_noticed_when_it_writes_and_not_when_it_is_removed() {
        let family = family_number(Family::Ipv4);
        let noticed = |kind, table: &str, chain: Option<&str>| {
            let mut writer = Writer::default();
            message(&mut writer, kind, family, |w| {
                w.string(TABLE_NAME, table);
                chain.into_iter().for_each(|chain| w.string(NFTA_CHAIN_NAME, chain));
            });
            message(&mut writer, NFT_MSG_NEWGEN, 0, |w| w.be32(NFTA_GEN_PROC_PID, 42));
            let mut follower = Follower::default();
            follower.read(writer.bytes());
            assert!(follower.seen.is_empty() && !follower.rival.writes);
            follower.rival.named.is_some()
        };
        assert!(noticed(NFT_MSG_NEWRULE, KUBE_PROXY_TABLE, None));
        assert!(noticed(NFT_MSG_NEWCHAIN, "nat", Some(KUBE_PROXY_CHAIN)));
        assert!(!noticed(NFT_MSG_DELTABLE, KUBE_PROXY_TABLE, None));
        assert!(!noticed(NFT_MSG_NEWCHAIN, "mangle", Some("KUBE-KUBELET-CANARY")));
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
        message(&mut writer, NFT_MSG_DELTABLE, family_number(Family::Ipv4), |w| w.string(TABLE_NAME, "filter"));
        generation(&mut writer, 7);
        message(&mut writer, NFT_MSG_DELTABLE, family_number(Family::Ipv6), |w| w.string(TABLE_NAME, TABLE));
        message(&mut writer, NFT_MSG_DELTABLE, 1, |w| w.string(TABLE_NAME, TABLE));
        generation(&mut writer, 8);

        let mut follower = Follower::default();
        follower.read(writer.bytes());
        let expected =
            ForeignChange { genid: 8, families: vec![Family::Ipv6], pid: 42, process_name: "nft".to_owned() };
        assert_eq!(follower.seen, [Observed::Foreign(expected)]);
        assert_eq!(follower.touched, []);
    }
}
