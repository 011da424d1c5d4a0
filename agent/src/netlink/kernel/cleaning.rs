//! Takes out of our tables what is not ours, and undoes what others may change
//! in place.

use nlink::netlink::nftables::*;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};

use super::Kernel;
use crate::netlink::batch::write_chain;
use crate::netlink::elements::{ForeignElement, write_foreign};
use crate::netlink::error::NetlinkError;
use crate::netlink::foreign::{ForeignObject, RawMessage, disarm, removal};
use crate::netlink::state::TableState;
use crate::netlink::wire::Writer;

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
        match self.submit_raw(family, &[message(NFT_MSG_DELTABLE, |w| w.string(NFTA_TABLE_NAME, TABLE))])? {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            errno => Err(NetlinkError::from_errno(format!("delete table {} {TABLE}", family.keyword()), errno)),
        }
    }

    /// Switches a table on again that somebody else has made dormant. Its base
    /// chains are hooked in with that.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn wake_table(&mut self, family: Family, state: &TableState) -> Result<(), NetlinkError> {
        let wake = message(NFT_MSG_NEWTABLE, |w| {
            w.string(NFTA_TABLE_NAME, TABLE);
            w.be32(NFTA_TABLE_FLAGS, state.lasting_flags());
        });
        self.must(family, "switch on the table", &[wake])
    }

    /// Lets base chains accept again what they let through.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn restore_policies(&mut self, family: Family, chains: &[Chain]) -> Result<(), NetlinkError> {
        let restore = |chain: &Chain| message(NFT_MSG_NEWCHAIN, |w| write_chain(w, *chain));
        let messages: Vec<RawMessage> = chains.iter().map(restore).collect();
        self.must(family, "restore the policy of chains", &messages)
    }

    /// Takes the effect from foreign chains: base chains go, the others lose
    /// their rules.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn disarm_foreign(&mut self, family: Family, foreign: &[ForeignObject]) -> Result<(), NetlinkError> {
        self.must(family, "take the effect from foreign chains", &disarm(foreign))
    }

    /// Removes foreign objects that were [disarmed](Self::disarm_foreign) and
    /// that nothing of ours refers to any more.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile, `EBUSY` if
    /// something still refers to one.
    pub fn remove_foreign(&mut self, family: Family, foreign: &[ForeignObject]) -> Result<(), NetlinkError> {
        removal(foreign).iter().try_for_each(|batch| self.must(family, "remove foreign objects", batch))
    }

    /// Removes elements that somebody else put into one of our maps.
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
            message(NFT_MSG_DELSETELEM, |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, TABLE);
                w.string(NFTA_SET_ELEM_LIST_SET, map.name());
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| some.iter().for_each(|one| write_foreign(w, one)));
            })
        };
        let messages: Vec<RawMessage> = elements.chunks(ELEMENTS_AT_ONCE).map(delete).collect();
        self.must(family, &format!("delete foreign elements of {map}"), &messages)
    }

    fn must(&mut self, family: Family, what: &str, messages: &[RawMessage]) -> Result<(), NetlinkError> {
        match self.submit_raw(family, messages)? {
            0 => Ok(()),
            errno => Err(NetlinkError::from_errno(format!("{what} in {} {TABLE}", family.keyword()), errno)),
        }
    }

    /// Submits messages as one batch; the kernel's errno, or 0.
    fn submit_raw(&mut self, family: Family, messages: &[RawMessage]) -> Result<i32, NetlinkError> {
        if messages.is_empty() {
            return Ok(0);
        }
        self.batch.encode_raw(family, messages, || self.socket.next_seq());
        let answers = self.exchange()?;
        match answers.refused.first() {
            Some((_, answer)) => Ok(answer.errno),
            None if answers.acknowledged.is_empty() => Err(NetlinkError::AnswerLost),
            None => Ok(0),
        }
    }
}

fn message(kind: u8, content: impl FnOnce(&mut Writer)) -> RawMessage {
    let mut writer = Writer::default();
    content(&mut writer);
    (kind, writer.bytes().to_vec())
}
