//! Reads the kernel's state: tables, rules, and elements, listed or looked up.

use std::collections::HashSet;
use std::time::Duration;

use tracing::{debug, warn};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_wire::message::{Attributes, Message, Request, Writer};
use vmap_proxy_wire::nf_tables::elements::{
    Contents, Counter, ElementState, ForeignElement, Reader, write_element_key,
};
use vmap_proxy_wire::nf_tables::table_state::TableState;
use vmap_proxy_wire::nf_tables::{OwnTable, TABLE_NAME, message_type, request};
use vmap_proxy_wire::uapi::{
    NFT_MSG_GETCHAIN, NFT_MSG_GETFLOWTABLE, NFT_MSG_GETGEN, NFT_MSG_GETOBJ, NFT_MSG_GETRULE, NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM, NFT_MSG_GETTABLE, NFT_MSG_NEWGEN, NFTA_GEN_ID, NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_TABLE,
};

use super::Kernel;
use crate::netlink::error::{NetlinkError, SocketError};
use crate::netlink::socket::{is_complete, until_undisturbed};

/// Time for the kernel to resize a hash table before it is listed again.
const RESIZE_PAUSE: Duration = Duration::from_millis(5);

/// The maximum number of keys in one request: each is answered by a separate
/// datagram, and all of them must fit into the socket's receive buffer.
const LOOKUP_KEYS: usize = 256;

/// Adds a listed object to the state of its table.
type ReadObject = fn(&mut TableState, Attributes<'_>);

/// Asks for elements of a map: for all of them, unless `rest` names some.
fn elements_of(table: OwnTable, family: Family, map: Map, rest: impl FnOnce(&mut Writer)) -> Request {
    request(NFT_MSG_GETSETELEM, family, |w| {
        w.string(NFTA_SET_ELEM_LIST_TABLE, table.name());
        w.string(NFTA_SET_ELEM_LIST_SET, map.name());
        rest(w);
    })
}

impl Kernel {
    /// Reads one of our tables of a family: chains, rules, and the declarations
    /// of sets and maps. `None` if there is no such table.
    ///
    /// # Errors
    ///
    /// [`SocketError::Interrupted`] if the rule set keeps changing.
    pub fn read_table(&mut self, table: OwnTable, family: Family) -> Result<Option<TableState>, NetlinkError> {
        until_undisturbed(|| {
            let generation = self.generation()?;
            let state = self.read_objects(table, family)?;
            Ok((self.generation()? == generation).then_some(state))
        })
    }

    fn read_objects(&mut self, table: OwnTable, family: Family) -> Result<Option<TableState>, NetlinkError> {
        let Some(mut state) = self.read_flags(table, family)? else { return Ok(None) };
        let kinds: [(u8, ReadObject); 5] = [
            (NFT_MSG_GETCHAIN, |state, one| state.read_chain(one)),
            (NFT_MSG_GETRULE, |state, one| state.read_rule(one)),
            (NFT_MSG_GETSET, |state, one| state.read_set(one)),
            (NFT_MSG_GETOBJ, |state, one| state.read_object(one)),
            (NFT_MSG_GETFLOWTABLE, |state, one| state.read_flowtable(one)),
        ];
        for (kind, read) in kinds {
            for object in self.list(table, family, kind)? {
                read(&mut state, Attributes::new(&object));
            }
        }
        Ok(Some(state))
    }

    /// Reads a table alone, without the objects in it.
    pub(super) fn read_flags(&mut self, table: OwnTable, family: Family) -> Result<Option<TableState>, NetlinkError> {
        let tables = self.list(table, family, NFT_MSG_GETTABLE)?;
        Ok(tables.first().map(|listed| {
            let mut state = TableState::default();
            state.read_table(Attributes::new(listed));
            state
        }))
    }

    /// The generation of the rule set: it grows with every commit of any
    /// program.
    pub(super) fn generation(&mut self) -> Result<u32, NetlinkError> {
        let mut generation = None;
        let question = request(NFT_MSG_GETGEN, Family::Ipv4, |_| {});
        let outcome = self.socket.ask(&question, &mut |message: &Message<'_>| {
            if message.kind == message_type(NFT_MSG_NEWGEN)
                && let Some((_, attributes)) = message.body()
            {
                generation = attributes.be32(NFTA_GEN_ID);
            }
        });
        outcome.map_err(|error| NetlinkError::of("generation of the rule set", error))?;
        // Two answers that were lost must not look like one and the same generation.
        Ok(generation.ok_or(SocketError::AnswerLost)?)
    }

    /// Reads the elements of a map that we could have written. Others are
    /// logged; see [`Kernel::read_contents`].
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`NetlinkError::Question`] if there is no such map;
    /// [`SocketError::Interrupted`] if the rule set keeps changing.
    pub fn read_elements(&mut self, family: Family, map: Map) -> Result<Vec<ElementState>, NetlinkError> {
        let (elements, foreign) = self.read_contents(family, map)?;
        if !foreign.is_empty() {
            warn!(%family, %map, count = foreign.len(), "elements that are not ours");
        }
        Ok(elements)
    }

    /// Reads all elements of a map: those we could have written, and others,
    /// which [`Kernel::delete_foreign`] removes.
    ///
    /// The kernel walks a hash table from its beginning for each message of
    /// about 400 elements, so the time grows with the square of their number: 1
    /// to 2 s for 100,000, but minutes for a million. It does not send messages
    /// larger than 32 KiB.
    ///
    /// # Errors
    ///
    /// As [`Kernel::read_elements`].
    pub fn read_contents(
        &mut self,
        family: Family,
        map: Map,
    ) -> Result<(Vec<ElementState>, Vec<ForeignElement>), NetlinkError> {
        self.read_contents_of(OwnTable::Main, family, map)
    }

    /// The same in either table.
    ///
    /// # Errors
    ///
    /// As [`Kernel::read_elements`].
    pub fn read_contents_of(
        &mut self,
        table: OwnTable,
        family: Family,
        map: Map,
    ) -> Result<(Vec<ElementState>, Vec<ForeignElement>), NetlinkError> {
        let contents = self.read_listed(usize::MAX, table, family, map)?.unwrap_or_default();
        Ok((contents.elements, contents.foreign))
    }

    /// The same, if the map has `most` elements at most. Otherwise `None`: the
    /// listing is given up then, and this socket is of no further use.
    ///
    /// # Errors
    ///
    /// As [`Kernel::read_elements`].
    pub(crate) fn read_contents_up_to(
        &mut self,
        most: usize,
        family: Family,
        map: Map,
    ) -> Result<Option<Contents>, NetlinkError> {
        self.read_listed(most, OwnTable::Main, family, map)
    }

    fn read_listed(
        &mut self,
        most: usize,
        table: OwnTable,
        family: Family,
        map: Map,
    ) -> Result<Option<Contents>, NetlinkError> {
        let question = elements_of(table, family, map, |_| {});
        let outcome = until_undisturbed(|| {
            let mut reader = Reader::new(family, map);
            let end = self.socket.dump_while(&question, &mut |entries| {
                entries.filter_map(|entry| entry.body()).for_each(|(_, list)| reader.read(list));
                reader.count() <= most
            })?;
            let Some(end) = end else { return Ok::<_, SocketError>(Some(None)) };
            if !is_complete(end)? {
                debug!(%family, %map, "the map changed while it was listed");
                return Ok(None);
            }
            let contents = reader.finish();
            if contents.is_none() {
                debug!(%family, %map, "the map was resized while it was listed");
                std::thread::sleep(RESIZE_PAUSE);
            }
            Ok(contents.map(Some))
        });
        outcome.map_err(|error| NetlinkError::of(format!("elements of {} {map}", family.keyword()), error))
    }

    /// Lists a map once, whatever happens meanwhile: calls `each` with the
    /// elements of a message, and keeps none of them. Returns whether nobody
    /// committed meanwhile. If somebody did, or if the kernel resized the map,
    /// elements may be missing or come twice.
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`NetlinkError::Question`] if there is no such map.
    pub(crate) fn list_contents(
        &mut self,
        family: Family,
        map: Map,
        each: &mut impl FnMut(Contents),
    ) -> Result<bool, NetlinkError> {
        let mut reader = Reader::new(family, map);
        let end = self.socket.dump(&elements_of(OwnTable::Main, family, map, |_| {}), &mut |entries| {
            entries.filter_map(|entry| entry.body()).for_each(|(_, list)| reader.read(list));
            each(reader.take());
        })?;
        is_complete(end).map_err(|error| NetlinkError::of(format!("elements of {} {map}", family.keyword()), error))
    }

    /// Reads the counters of a map in one listing, whatever happens meanwhile:
    /// calls `each` with an element and its counter, and keeps none of them. If
    /// another program commits meanwhile, elements may be missing; none comes
    /// twice.
    ///
    /// # Errors
    ///
    /// `ENOENT` as [`NetlinkError::Question`] if there is no such map.
    pub fn read_counters(
        &mut self,
        family: Family,
        map: Map,
        each: &mut impl FnMut(Element, Counter),
    ) -> Result<(), NetlinkError> {
        let mut seen = HashSet::new();
        self.list_contents(family, map, &mut |contents| {
            for state in contents.elements {
                if let Some(counter) = state.counter
                    && seen.insert(state.element.key)
                {
                    each(state.element, counter);
                }
            }
        })?;
        Ok(())
    }

    /// Reads the state of one element, its counter above all, without listing
    /// the map. `None` if it does not exist. Prefixes cannot be looked up
    /// alone.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn read_element(&mut self, family: Family, map: Map, key: &Key) -> Result<Option<ElementState>, NetlinkError> {
        Ok(self.look_up(family, map, std::slice::from_ref(key))?.0.pop())
    }

    /// Reads the existing ones of these elements, without listing the map: the
    /// time grows with the number of keys alone, about 3 us each. Prefixes
    /// cannot be looked up. Foreign elements under these keys are returned
    /// separately.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn look_up(
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
            let (mut answers, missing) = self.look_up_some(family, map, asked)?;
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
    fn look_up_some(&mut self, family: Family, map: Map, keys: &[Key]) -> Result<(Contents, bool), NetlinkError> {
        let question = elements_of(OwnTable::Main, family, map, |w| {
            w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| keys.iter().for_each(|key| write_element_key(w, key)));
        });
        let mut reader = Reader::new(family, map);
        let answered = self.socket.ask(&question, &mut |message: &Message<'_>| {
            if let Some((_, attributes)) = message.body() {
                reader.read(attributes);
            }
        });
        let missing = match answered {
            Ok(()) => false,
            Err(SocketError::Refused(libc::ENOENT)) => true,
            Err(error) => return Err(NetlinkError::of(format!("an element of {map}"), error)),
        };
        Ok((reader.finish().unwrap_or_default(), missing))
    }

    /// The attributes of a table's objects of one kind. Not every kernel leaves
    /// out those of other tables by itself.
    fn list(&mut self, table: OwnTable, family: Family, kind: u8) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let name = table.name();
        let question = request(kind, family, |w| w.string(TABLE_NAME, name));
        let listed = self.socket.list(&question, |entry| {
            let (_, attributes) = entry.body()?;
            (attributes.string(TABLE_NAME) == Some(name)).then(|| attributes.bytes().to_vec())
        });
        match listed {
            // A kernel that looks for the table first.
            Err(SocketError::Refused(libc::ENOENT)) => Ok(Vec::new()),
            other => other.map_err(|error| NetlinkError::of(format!("listing of {} {name}", family.keyword()), error)),
        }
    }
}
