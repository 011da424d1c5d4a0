//! What the kernel holds: tables, rules, and elements, listed or looked up.

use std::collections::HashSet;
use std::time::Duration;

use nlink::netlink::nftables::*;
use tracing::{debug, warn};
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::{Family, TABLE};

use super::Kernel;
use crate::netlink::elements::{Contents, Counter, ElementState, ForeignElement, Reader, write_element_key};
use crate::netlink::error::NetlinkError;
use crate::netlink::family_number;
use crate::netlink::state::TableState;
use crate::netlink::wire::{
    Answer, Attributes, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Writer, nft_type,
};

/// How often a listing is tried again that changed meanwhile.
const DUMP_ATTEMPTS: u32 = 20;

/// How long to leave the kernel to resize a hash table before listing it again.
const RESIZE_PAUSE: Duration = Duration::from_millis(5);

/// The most keys of one question: each is answered by a datagram of its own,
/// and all of them must fit the socket's receive buffer.
const LOOKUP_KEYS: usize = 256;

/// One listing, or that it has to be asked for again.
enum Dump {
    Complete,
    Interrupted,
    Refused(i32),
}

/// What becomes of the rest of a listing once the rule set has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Torn {
    /// It is of no use.
    Refused,
    /// It is read like the beginning.
    Kept,
}

/// Which elements a question is about: those of this map.
fn elements_of(map: Map) -> impl FnOnce(&mut Writer) {
    move |writer| {
        writer.string(NFTA_SET_ELEM_LIST_TABLE, TABLE);
        writer.string(NFTA_SET_ELEM_LIST_SET, map.name());
    }
}

impl Kernel {
    /// Reads our table of a family: chains, rules, and the declarations of
    /// sets and maps. `None`: there is no such table.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::Interrupted`] if the rule set does not hold still.
    pub async fn read_table(&mut self, family: Family) -> Result<Option<TableState>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let generation = self.generation().await?;
            let state = self.read_objects(family).await?;
            if self.generation().await? == generation {
                return Ok(state);
            }
        }
        Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS })
    }

    async fn read_objects(&mut self, family: Family) -> Result<Option<TableState>, NetlinkError> {
        let tables = self.list(family, NFT_MSG_GETTABLE).await?;
        let Some(table) = tables.first() else { return Ok(None) };
        let mut state = TableState::default();
        state.read_table(Attributes(table));
        for chain in self.list(family, NFT_MSG_GETCHAIN).await? {
            state.read_chain(Attributes(&chain));
        }
        for rule in self.list(family, NFT_MSG_GETRULE).await? {
            state.read_rule(Attributes(&rule));
        }
        for set in self.list(family, NFT_MSG_GETSET).await? {
            state.read_set(Attributes(&set));
        }
        for object in self.list(family, NFT_MSG_GETOBJ).await? {
            state.read_object(Attributes(&object));
        }
        for flowtable in self.list(family, NFT_MSG_GETFLOWTABLE).await? {
            state.read_flowtable(Attributes(&flowtable));
        }
        Ok(Some(state))
    }

    /// The generation of the rule set: it grows with every commit, anybody's.
    pub(super) async fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = 0;
        let sequence = self.socket.next_seq();
        let mut writer = Writer::default();
        let open = writer.begin_message(nft_type(NFT_MSG_GETGEN), NLM_F_ACK, sequence, 0, 0);
        writer.end_message(open);
        self.socket.send(writer.bytes()).await?;
        while let Some(length) = self.receive_now()? {
            for message in Messages(&self.received[..length]).filter(|message| message.sequence == sequence) {
                if message.kind == nft_type(NFT_MSG_NEWGEN)
                    && let Some((_, attributes)) = message.body()
                {
                    generation = attributes.be32(NFTA_GEN_ID).unwrap_or_default();
                }
            }
        }
        Ok(generation)
    }

    /// Reads the elements of a map that we could have written. Others are
    /// logged; see [`Kernel::read_contents`].
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`NetlinkError::Question`] if there is no such map;
    /// [`NetlinkError::Interrupted`] if the rule set does not hold still.
    pub async fn read_elements(&mut self, family: Family, map: Map) -> Result<Vec<ElementState>, NetlinkError> {
        let (elements, foreign) = self.read_contents(family, map).await?;
        if !foreign.is_empty() {
            warn!(%family, %map, count = foreign.len(), "elements that are not ours");
        }
        Ok(elements)
    }

    /// Reads all elements of a map: those we could have written, and others,
    /// which [`Kernel::delete_foreign`] removes.
    ///
    /// The kernel walks a hash table from its beginning for each message of
    /// about 400 elements, so the time grows with the square of their number:
    /// 1 to 2 s for 100,000, but minutes for a million. It can't be asked for
    /// larger messages than 32 KiB.
    ///
    /// # Errors
    ///
    /// As [`Kernel::read_elements`].
    pub async fn read_contents(
        &mut self,
        family: Family,
        map: Map,
    ) -> Result<(Vec<ElementState>, Vec<ForeignElement>), NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut reader = Reader::new(family, map);
            match self
                .dump_once(family, NFT_MSG_GETSETELEM, elements_of(map), Torn::Refused, &mut |list| reader.read(list))
                .await?
            {
                Dump::Complete => match reader.finish() {
                    Some(Contents { elements, foreign }) => return Ok((elements, foreign)),
                    None => {
                        debug!(%family, %map, "the map was resized while it was listed");
                        tokio::time::sleep(RESIZE_PAUSE).await;
                    }
                },
                Dump::Interrupted => debug!(%family, %map, "the map changed while it was listed"),
                Dump::Refused(errno) => {
                    return Err(NetlinkError::from_errno(format!("elements of {} {map}", family.keyword()), errno));
                }
            }
        }
        Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS })
    }

    /// Reads the counters of a map in one listing, whatever happens meanwhile:
    /// calls `each` with an element and what it has counted, and holds none of
    /// them. If somebody commits meanwhile, elements may be missing; none comes
    /// twice.
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`NetlinkError::Question`] if there is no such map.
    pub async fn read_counters(
        &mut self,
        family: Family,
        map: Map,
        each: &mut impl FnMut(Element, Counter),
    ) -> Result<(), NetlinkError> {
        let mut reader = Reader::new(family, map);
        let mut seen = HashSet::new();
        let mut entry = |attributes: Attributes<'_>| {
            reader.read(attributes);
            for state in reader.take_elements() {
                if let Some(counter) = state.counter
                    && seen.insert(state.element.key)
                {
                    each(state.element, counter);
                }
            }
        };
        match self.dump_once(family, NFT_MSG_GETSETELEM, elements_of(map), Torn::Kept, &mut entry).await? {
            Dump::Complete | Dump::Interrupted => Ok(()),
            Dump::Refused(errno) => {
                Err(NetlinkError::from_errno(format!("counters of {} {map}", family.keyword()), errno))
            }
        }
    }

    /// Reads the state of one element, its counter above all, without listing
    /// the map. `None`: it is not there. Prefixes can't be asked for alone.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub async fn read_element(
        &mut self,
        family: Family,
        map: Map,
        key: &Key,
    ) -> Result<Option<ElementState>, NetlinkError> {
        Ok(self.look_up(family, map, std::slice::from_ref(key)).await?.0.pop())
    }

    /// Reads those of these elements that are there, without listing the map:
    /// the time grows with the number of keys alone, about 3 us each. Prefixes
    /// can't be asked for. Apart from them: what somebody else put under one of
    /// these keys.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub async fn look_up(
        &mut self,
        family: Family,
        map: Map,
        keys: &[Key],
    ) -> Result<(Vec<ElementState>, Vec<ForeignElement>), NetlinkError> {
        let mut found = Vec::with_capacity(keys.len());
        let mut foreign = Vec::new();
        let mut rest = keys;
        while !rest.is_empty() {
            let asked = &rest[..rest.len().min(LOOKUP_KEYS)];
            let (mut answers, missing) = self.look_up_some(family, map, asked).await?;
            // The kernel answers in order, up to the first that is missing.
            let answered = answers.elements.len() + answers.foreign.len();
            let done = if missing { answered + 1 } else { asked.len() };
            found.append(&mut answers.elements);
            foreign.append(&mut answers.foreign);
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok((found, foreign))
    }

    /// One question. Whether one of the keys, the one behind those that were
    /// found, is missing.
    async fn look_up_some(&mut self, family: Family, map: Map, keys: &[Key]) -> Result<(Contents, bool), NetlinkError> {
        self.drain()?;
        let sequence = self.socket.next_seq();
        let mut writer = Writer::default();
        let family_byte = family_number(family);
        let open = writer.begin_message(nft_type(NFT_MSG_GETSETELEM), NLM_F_ACK, sequence, family_byte, 0);
        elements_of(map)(&mut writer);
        writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| keys.iter().for_each(|key| write_element_key(w, key)));
        writer.end_message(open);
        self.socket.send(writer.bytes()).await?;
        let mut reader = Reader::new(family, map);
        let mut missing = false;
        // The kernel has queued every answer before the send returns.
        while let Some(length) = self.receive_now()? {
            for message in Messages(&self.received[..length]).filter(|message| message.sequence == sequence) {
                match (message.kind, message.body()) {
                    (NLMSG_ERROR, _) => match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                        0 => {}
                        libc::ENOENT => missing = true,
                        errno => return Err(NetlinkError::from_errno(format!("an element of {map}"), errno)),
                    },
                    (_, Some((_, attributes))) => reader.read(attributes),
                    _ => {}
                }
            }
        }
        Ok((reader.finish().unwrap_or_default(), missing))
    }

    /// The attributes of our table's objects of one kind. Attribute 1 is the
    /// table's name in each of them; not every kernel leaves out those of
    /// other tables by itself.
    async fn list(&mut self, family: Family, kind: u8) -> Result<Vec<Vec<u8>>, NetlinkError> {
        const TABLE_NAME: u16 = NFTA_RULE_TABLE;
        for _ in 0..DUMP_ATTEMPTS {
            let mut objects = Vec::new();
            let mut entry = |attributes: Attributes<'_>| {
                if attributes.string(TABLE_NAME) == Some(TABLE) {
                    objects.push(attributes.0.to_vec());
                }
            };
            let question = |w: &mut Writer| w.string(TABLE_NAME, TABLE);
            match self.dump_once(family, kind, question, Torn::Refused, &mut entry).await? {
                Dump::Complete => return Ok(objects),
                Dump::Interrupted => debug!(%family, kind, "the rule set changed while it was listed"),
                // A kernel that looks for the table first.
                Dump::Refused(libc::ENOENT) => return Ok(Vec::new()),
                Dump::Refused(errno) => {
                    return Err(NetlinkError::from_errno(format!("listing of {} {TABLE}", family.keyword()), errno));
                }
            }
        }
        Err(NetlinkError::Interrupted { attempts: DUMP_ATTEMPTS })
    }

    async fn dump_once(
        &mut self,
        family: Family,
        kind: u8,
        question: impl FnOnce(&mut Writer),
        torn: Torn,
        entry: &mut impl FnMut(Attributes<'_>),
    ) -> Result<Dump, NetlinkError> {
        self.drain()?;
        let sequence = self.socket.next_seq();
        let mut writer = Writer::default();
        let open = writer.begin_message(nft_type(kind), NLM_F_DUMP, sequence, family_number(family), 0);
        question(&mut writer);
        writer.end_message(open);
        self.socket.send(writer.bytes()).await?;
        let mut interrupted = false;
        loop {
            let length = self.receive().await?;
            for message in Messages(&self.received[..length]).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        // Both begin with the errno; EINTR says the same as the flag.
                        let errno = Answer::parse(&message).map_or(0, |answer| answer.errno);
                        return Ok(match errno {
                            _ if interrupted => Dump::Interrupted,
                            libc::EINTR | libc::EAGAIN => Dump::Interrupted,
                            0 => Dump::Complete,
                            errno => Dump::Refused(errno),
                        });
                    }
                    _ if interrupted && torn == Torn::Refused => {}
                    _ => {
                        if let Some((_, attributes)) = message.body() {
                            entry(attributes);
                        }
                    }
                }
            }
        }
    }
}
