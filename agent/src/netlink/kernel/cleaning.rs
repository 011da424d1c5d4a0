//! Removes foreign objects from our tables, and undoes changes that other
//! programs can make in place.

use std::collections::HashSet;

use vmap_proxy_compiler::plan::MAX_OPERATIONS;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_wire::message::Request;
use vmap_proxy_wire::nf_tables::batch::write_chain;
use vmap_proxy_wire::nf_tables::elements::{ElementState, ForeignElement, write_expiring, write_foreign};
use vmap_proxy_wire::nf_tables::foreign::{ForeignObject, disarm, removal};
use vmap_proxy_wire::nf_tables::table_state::TableState;
use vmap_proxy_wire::nf_tables::{OwnTable, request};
use vmap_proxy_wire::uapi::{
    NFT_MSG_DELRULE, NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWSETELEM, NFT_MSG_NEWTABLE,
    NFT_TABLE_F_DORMANT, NFTA_RULE_CHAIN, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
};

use super::Kernel;
use crate::netlink::error::{NetlinkError, SocketError};
use crate::netlink::packets::await_packets;
use crate::netlink::socket::until_undisturbed;

/// 100 elements of at most 200 bytes fit one attribute.
const ELEMENTS_AT_ONCE: usize = 100;

impl Kernel {
    /// Removes one of our tables of a family with all it holds. `false`: it was
    /// not there.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn delete_table(&mut self, table: OwnTable, family: Family) -> Result<bool, NetlinkError> {
        let name = table.name();
        match self.submit_requests(&[request(NFT_MSG_DELTABLE, family, |w| w.string(NFTA_TABLE_NAME, name))]) {
            Ok(()) => Ok(true),
            Err(SocketError::Refused(libc::ENOENT)) => Ok(false),
            Err(error) => Err(NetlinkError::of(format!("delete table {} {name}", family.keyword()), error)),
        }
    }

    /// Removes one of our tables while another one serves, so that no packet
    /// meets a part of it: takes it from the hooks (flag `dormant`), waits for
    /// the packets that are in its chains, and deletes it. `false`: it was not
    /// there. The kernel does not change the flags of a table that we own; then
    /// its base chains lose their rules instead.
    ///
    /// A packet that is between two lookups when the elements go would reach the
    /// `drop` at the end of a balancing chain.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn retire_table(&mut self, table: OwnTable, family: Family) -> Result<bool, NetlinkError> {
        let Some(state) = self.read_table(table, family)? else { return Ok(false) };
        let switch_off = match state.owner() {
            Some(_) => state.base_chain_names().map(|chain| flush(table, family, chain)).collect(),
            None => vec![request(NFT_MSG_NEWTABLE, family, |w| {
                w.string(NFTA_TABLE_NAME, table.name());
                w.be32(NFTA_TABLE_FLAGS, state.lasting_flags() | NFT_TABLE_F_DORMANT);
            })],
        };
        self.must(family, "switch off the replaced table", &switch_off)?;
        await_packets();
        self.delete_table(table, family)
    }

    /// Adds learned entries to the map `affinity` of a table, with the rest of
    /// their lives, except for those whose key it has already.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; [`SocketError::Interrupted`] if packets add the
    /// same keys meanwhile, again and again.
    pub fn add_learned(
        &mut self,
        table: OwnTable,
        family: Family,
        learned: &[ElementState],
    ) -> Result<(), NetlinkError> {
        let at_once = MAX_OPERATIONS.min(self.max_operations());
        until_undisturbed(|| {
            let (known, _) = self.read_contents_of(table, family, Map::Affinity)?;
            let known: HashSet<Key> = known.into_iter().map(|state| state.element.key).collect();
            let missing: Vec<&ElementState> =
                learned.iter().filter(|state| !known.contains(&state.element.key)).collect();
            for some in missing.chunks(at_once) {
                match self.submit_requests(&additions(table, family, some)) {
                    Ok(()) => {}
                    // A packet was faster.
                    Err(SocketError::Refused(libc::EBUSY | libc::EEXIST)) => return Ok(None),
                    Err(error) => {
                        let what = format!("add elements to {} {}", table.name(), Map::Affinity);
                        return Err(NetlinkError::of(what, error));
                    }
                }
            }
            Ok(Some(()))
        })
    }

    /// Switches on a table that another program has made dormant, which hooks
    /// its base chains in again.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn wake_table(&mut self, family: Family, state: &TableState) -> Result<(), NetlinkError> {
        let wake = request(NFT_MSG_NEWTABLE, family, |w| {
            w.string(NFTA_TABLE_NAME, TABLE);
            w.be32(NFTA_TABLE_FLAGS, state.lasting_flags());
        });
        self.must(family, "switch on the table", &[wake])
    }

    /// Sets the policy of base chains back to accept.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn restore_policies(&mut self, family: Family, chains: &[Chain]) -> Result<(), NetlinkError> {
        let restore = |chain: &Chain| request(NFT_MSG_NEWCHAIN, family, |w| write_chain(w, TABLE, *chain));
        let messages: Vec<Request> = chains.iter().map(restore).collect();
        self.must(family, "restore the policy of chains", &messages)
    }

    /// Takes the effect from foreign chains: base chains go, the others lose
    /// their rules.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn disarm_foreign(&mut self, family: Family, foreign: &[ForeignObject]) -> Result<(), NetlinkError> {
        self.must(family, "take the effect from foreign chains", &disarm(family, foreign))
    }

    /// Removes foreign objects that were [disarmed](Self::disarm_foreign) and
    /// that nothing of ours refers to any more.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile, `EBUSY` if
    /// something still refers to one.
    pub fn remove_foreign(&mut self, family: Family, foreign: &[ForeignObject]) -> Result<(), NetlinkError> {
        removal(family, foreign).iter().try_for_each(|batch| self.must(family, "remove foreign objects", batch))
    }

    /// Removes elements that another program put into one of our maps.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn delete_foreign(
        &mut self,
        family: Family,
        map: Map,
        elements: &[ForeignElement],
    ) -> Result<(), NetlinkError> {
        let delete = |some: &[ForeignElement]| {
            request(NFT_MSG_DELSETELEM, family, |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, TABLE);
                w.string(NFTA_SET_ELEM_LIST_SET, map.name());
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| some.iter().for_each(|one| write_foreign(w, one)));
            })
        };
        let at_once = self.max_operations();
        elements.chunks(at_once).try_for_each(|some| {
            let messages: Vec<Request> = some.chunks(ELEMENTS_AT_ONCE).map(delete).collect();
            self.must(family, &format!("delete foreign elements of {map}"), &messages)
        })
    }

    pub(super) fn must(&mut self, family: Family, what: &str, requests: &[Request]) -> Result<(), NetlinkError> {
        let outcome = self.submit_requests(requests);
        outcome.map_err(|error| NetlinkError::of(format!("{what} in {} {TABLE}", family.keyword()), error))
    }

    /// Submits messages as one batch, which goes to the tables that they name.
    fn submit_requests(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        if requests.is_empty() {
            return Ok(());
        }
        self.socket.transaction(requests)?;
        self.commits = self.commits.wrapping_add(1);
        Ok(())
    }
}

/// The message that takes all rules out of a chain.
fn flush(table: OwnTable, family: Family, chain: &str) -> Request {
    request(NFT_MSG_DELRULE, family, |w| {
        w.string(NFTA_RULE_TABLE, table.name());
        w.string(NFTA_RULE_CHAIN, chain);
    })
}

/// The messages that add learned entries. Entries that are about to expire are
/// left out.
fn additions(table: OwnTable, family: Family, learned: &[&ElementState]) -> Vec<Request> {
    let living = |state: &&ElementState| state.timeout.zip(state.expires).filter(|(_, expires)| *expires > 0);
    let add = |some: &[&ElementState]| {
        request(NFT_MSG_NEWSETELEM, family, |w| {
            w.string(NFTA_SET_ELEM_LIST_TABLE, table.name());
            w.string(NFTA_SET_ELEM_LIST_SET, Map::Affinity.name());
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                for state in some {
                    if let Some((timeout, expires)) = living(state) {
                        write_expiring(w, &state.element, timeout, expires.min(timeout));
                    }
                }
            });
        })
    };
    learned.chunks(ELEMENTS_AT_ONCE).map(add).collect()
}
