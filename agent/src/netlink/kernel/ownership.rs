//! Tables that no other program can flush or change.
//!
//! A table with the flag `owner` (Linux 5.12) may be changed by one socket alone;
//! `nft flush ruleset` of another passes it over. With `persist` (Linux 6.9), too,
//! it stays when the socket is closed, as an ordinary table, until another socket
//! takes it over (`nf_tables_updtable`, `nft_rcv_nl_event` in
//! `net/netfilter/nf_tables_api.c`). The two flags go together: without `persist`
//! the kernel would delete the table when the agent ends.

use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_wire::nf_tables::{OwnTable, request};
use vmap_proxy_wire::uapi::{
    NFT_MSG_NEWTABLE, NFT_TABLE_F_OWNER, NFT_TABLE_F_PERSIST, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
};

use super::Kernel;
use crate::netlink::error::{NetlinkError, SocketError};

/// The flags of tables that are proof against flushes.
const FLAGS: u32 = NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST;

/// A table of this name is never made.
const NEVER_MADE: &str = "vmap-proxy-check";

impl Kernel {
    /// Returns whether the kernel knows the flags `owner` and `persist`: lets it
    /// check a new table with them, without making it.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn knows_flush_proof_tables(&mut self) -> Result<bool, NetlinkError> {
        let table = request(NFT_MSG_NEWTABLE, Family::Ipv4, |w| {
            w.string(NFTA_TABLE_NAME, NEVER_MADE);
            w.be32(NFTA_TABLE_FLAGS, FLAGS);
        });
        match self.socket.check(&[table]) {
            Ok(()) => Ok(true),
            Err(SocketError::Refused(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(false),
            Err(error) => Err(NetlinkError::of("check of the table flags owner and persist", error)),
        }
    }

    /// Makes new tables proof against flushes from now on, or no longer. An
    /// existing table gets and loses the flags only by being replaced.
    pub fn make_flush_proof(&mut self, flush_proof: bool) {
        self.flush_proof = flush_proof;
        self.batch.set_table_flags(if flush_proof { FLAGS } else { 0 });
    }

    /// Returns whether new tables are proof against flushes.
    pub fn is_flush_proof(&self) -> bool {
        self.flush_proof
    }

    /// Returns whether another socket owns one of our tables.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn is_owned_by_another(&mut self, family: Family) -> Result<bool, NetlinkError> {
        for table in OwnTable::ALL {
            let owner = self.read_flags(table, family)?.and_then(|state| state.owner());
            if owner.is_some_and(|owner| owner != self.port()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes over our table from an agent that has ended.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn adopt_table(&mut self, family: Family) -> Result<(), NetlinkError> {
        let own = request(NFT_MSG_NEWTABLE, family, |w| {
            w.string(NFTA_TABLE_NAME, TABLE);
            w.be32(NFTA_TABLE_FLAGS, FLAGS);
        });
        self.must(family, "take over the table", &[own])
    }
}
