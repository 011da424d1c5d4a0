//! Removes foreign objects from our tables, and undoes changes that other
//! programs can make in place.

use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_wire::message::Request;
use vmap_proxy_wire::nf_tables::batch::write_chain;
use vmap_proxy_wire::nf_tables::elements::{ForeignElement, write_foreign};
use vmap_proxy_wire::nf_tables::foreign::{ForeignObject, disarm, removal};
use vmap_proxy_wire::nf_tables::request;
use vmap_proxy_wire::nf_tables::table_state::TableState;
use vmap_proxy_wire::uapi::{
    NFT_MSG_DELSETELEM, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWTABLE, NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE, NFTA_TABLE_FLAGS, NFTA_TABLE_NAME,
};

use super::Kernel;
use crate::netlink::error::{NetlinkError, SocketError};

/// 100 elements of at most 200 bytes fit one attribute.
const ELEMENTS_AT_ONCE: usize = 100;

impl Kernel {
    /// Removes our table of a family with all it holds. `false`: it was not
    /// there.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn delete_table(&mut self, family: Family) -> Result<bool, NetlinkError> {
        match self.submit_requests(&[request(NFT_MSG_DELTABLE, family, |w| w.string(NFTA_TABLE_NAME, TABLE))]) {
            Ok(()) => Ok(true),
            Err(SocketError::Refused(libc::ENOENT)) => Ok(false),
            Err(error) => Err(NetlinkError::of(format!("delete table {} {TABLE}", family.keyword()), error)),
        }
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
        let restore = |chain: &Chain| request(NFT_MSG_NEWCHAIN, family, |w| write_chain(w, *chain));
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
        let messages: Vec<Request> = elements.chunks(ELEMENTS_AT_ONCE).map(delete).collect();
        self.must(family, &format!("delete foreign elements of {map}"), &messages)
    }

    fn must(&mut self, family: Family, what: &str, requests: &[Request]) -> Result<(), NetlinkError> {
        let outcome = self.submit_requests(requests);
        outcome.map_err(|error| NetlinkError::of(format!("{what} in {} {TABLE}", family.keyword()), error))
    }

    /// Submits messages as one batch.
    fn submit_requests(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        if requests.is_empty() {
            return Ok(());
        }
        self.socket.transaction(requests)?;
        self.commits = self.commits.wrapping_add(1);
        Ok(())
    }
}
