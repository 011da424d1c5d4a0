//! Elements of the sets and maps, encoded and decoded.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber, Verdict};
use vmap_proxy_compiler::ruleset::maps::{DataKind, KeyField, Map};
use vmap_proxy_compiler::ruleset::target::{FrontendKey, NodePortKey, Target};

use super::expressions::{NO_CHAIN, Octets, write_verdict};
use super::write_value;
use crate::message::{Attribute, Attributes, Writer};
use crate::uapi::*;

/// `NFTNL_UDATA_SET_ELEM_COMMENT` of libnftnl.
const NFTNL_UDATA_SET_ELEM_COMMENT: u8 = 0;
/// nft's own `NFTNL_UDATA_SET_ELEM_FLAGS`, and its flag of an interval that
/// reaches to the end of the address space.
const NFTNL_UDATA_SET_ELEM_FLAGS: u8 = 1;
const SET_ELEM_F_INTERVAL_OPEN: u32 = 1;

/// The maximum size of one element in a message, in bytes: a key of 56 bytes
/// (IPv6 source ranges), an endpoint or a chain name, a comment, and headers.
pub const MAX_ELEMENT: usize = 512;

/// Writes one element of a `NFT_MSG_NEWSETELEM`.
pub fn write_element(writer: &mut Writer, element: &Element) {
    if let Key::Prefix(net) = &element.key {
        return write_interval(writer, net, element.comment.as_deref());
    }
    let open = writer.begin_nest(NFTA_LIST_ELEM);
    write_key(writer, &element.key);
    write_data(writer, &element.data);
    write_comment(writer, element.comment.as_deref());
    writer.end(open);
}

fn write_data(writer: &mut Writer, data: &Data) {
    match data {
        Data::Nothing => {}
        Data::Verdict(verdict) => writer.nest(NFTA_SET_ELEM_DATA, |w| match verdict {
            Verdict::Goto(chain) => write_verdict(w, NFT_GOTO, Some(*chain)),
            Verdict::Drop => write_verdict(w, NF_DROP, NO_CHAIN),
        }),
        Data::Endpoint(endpoint) => writer.nest(NFTA_SET_ELEM_DATA, |w| {
            let open = w.begin_attribute(NFTA_DATA_VALUE);
            write_address(w, endpoint.address);
            write_port(w, endpoint.port);
            w.end(open);
        }),
        Data::List(number) => {
            writer.nest(NFTA_SET_ELEM_DATA, |w| w.attribute(NFTA_DATA_VALUE, &number.priority().to_ne_bytes()));
        }
    }
}

/// Writes one element of a `NFT_MSG_NEWSETELEM` with the rest of its life, for a
/// map whose elements expire.
pub fn write_expiring(writer: &mut Writer, element: &Element, timeout: u64, expires: u64) {
    let open = writer.begin_nest(NFTA_LIST_ELEM);
    write_key(writer, &element.key);
    write_data(writer, &element.data);
    writer.be64(NFTA_SET_ELEM_TIMEOUT, timeout);
    writer.be64(NFTA_SET_ELEM_EXPIRATION, expires);
    writer.end(open);
}

/// Writes one element of a `NFT_MSG_DELSETELEM`: its key alone.
pub fn write_element_key(writer: &mut Writer, key: &Key) {
    if let Key::Prefix(net) = key {
        return write_interval(writer, net, None);
    }
    let open = writer.begin_nest(NFTA_LIST_ELEM);
    write_key(writer, key);
    writer.end(open);
}

fn write_target(writer: &mut Writer, target: &Target) {
    match target {
        Target::Frontend(frontend) => write_frontend(writer, frontend),
        Target::NodePort(port) => write_node_port(writer, port),
    }
}

fn write_key(writer: &mut Writer, key: &Key) {
    let nest = writer.begin_nest(NFTA_SET_ELEM_KEY);
    let value = writer.begin_attribute(NFTA_DATA_VALUE);
    match key {
        Key::Address(address) => write_address(writer, *address),
        Key::Prefix(net) => write_address(writer, net.network()),
        Key::Target(target) => write_target(writer, target),
        Key::Slot(target, slot) => {
            write_target(writer, target);
            writer.raw(&slot.to_ne_bytes());
        }
        Key::Hairpin(endpoint, protocol) => {
            write_address(writer, endpoint.address);
            write_address(writer, endpoint.address);
            write_protocol(writer, *protocol);
            write_port(writer, endpoint.port);
        }
        Key::SourceRange(frontend, net) => {
            write_frontend(writer, frontend);
            write_address(writer, net.network());
            write_address(writer, net.broadcast());
        }
        Key::Affinity(client, number) => {
            write_address(writer, *client);
            writer.raw(&number.priority().to_ne_bytes());
        }
        Key::List(number) => writer.raw(&number.priority().to_ne_bytes()),
    }
    writer.end(value);
    writer.end(nest);
}

fn write_address(writer: &mut Writer, address: IpAddr) {
    writer.raw(Octets::of(address).bytes());
}

fn write_protocol(writer: &mut Writer, protocol: Protocol) {
    writer.raw(&[protocol.number(), 0, 0, 0]);
}

fn write_port(writer: &mut Writer, port: u16) {
    let [high, low] = port.to_be_bytes();
    writer.raw(&[high, low, 0, 0]);
}

fn write_frontend(writer: &mut Writer, frontend: &FrontendKey) {
    write_address(writer, frontend.address);
    write_protocol(writer, frontend.protocol);
    write_port(writer, frontend.port);
}

fn write_node_port(writer: &mut Writer, key: &NodePortKey) {
    write_protocol(writer, key.protocol);
    write_port(writer, key.port);
}

/// An interval of a single field is two elements: its start, and the first key
/// behind it. An interval up to the end of the address space has no second
/// element, but a note for nft instead.
fn write_interval(writer: &mut Writer, net: &IpNet, comment: Option<&str>) {
    let after = successor(net.broadcast());
    let open = writer.begin_nest(NFTA_LIST_ELEM);
    write_value(writer, NFTA_SET_ELEM_KEY, Octets::of(net.network()).bytes());
    if after.is_none() {
        let userdata = writer.begin_attribute(NFTA_SET_ELEM_USERDATA);
        if let Some(comment) = comment {
            write_comment_entry(writer, comment);
        }
        writer.raw(&[NFTNL_UDATA_SET_ELEM_FLAGS, 4]);
        writer.raw(&SET_ELEM_F_INTERVAL_OPEN.to_ne_bytes());
        writer.end(userdata);
    } else {
        write_comment(writer, comment);
    }
    writer.end(open);
    if let Some(after) = after {
        writer.nest(NFTA_LIST_ELEM, |w| {
            w.be32(NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
            write_value(w, NFTA_SET_ELEM_KEY, Octets::of(after).bytes());
        });
    }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(1)?.into()),
    })
}

fn write_comment(writer: &mut Writer, comment: Option<&str>) {
    if let Some(comment) = comment {
        let open = writer.begin_attribute(NFTA_SET_ELEM_USERDATA);
        write_comment_entry(writer, comment);
        writer.end(open);
    }
}

/// Type, length, and the text with its terminating zero. The compiler has
/// shortened comments to `MAX_COMMENT`; the kernel refuses longer ones. nft's
/// comments of tables have the same form (`NFTNL_UDATA_TABLE_COMMENT` is 0, too).
pub(super) fn write_comment_entry(writer: &mut Writer, comment: &str) {
    let length = comment.len().min(usize::from(u8::MAX) - 1);
    writer.raw(&[NFTNL_UDATA_SET_ELEM_COMMENT, length as u8 + 1]);
    writer.raw(&comment.as_bytes()[..length]);
    writer.raw(&[0]);
}

/// The counter of an element: `counter packets P bytes B`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// Packets that matched; in our maps, new connections.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An element as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementState {
    /// The element.
    pub element: Element,
    /// Its counter, in maps that count.
    pub counter: Option<Counter>,
    /// For how long it lives since it was last refreshed, in milliseconds.
    pub timeout: Option<u64>,
    /// For how long it will live if it is not, in milliseconds.
    pub expires: Option<u64>,
}

/// An element of one of our maps that none of our types can express, so another
/// program added it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignElement {
    /// Its key as the kernel has it.
    pub key: Vec<u8>,
    /// The inclusive end of its key, in an interval concatenation.
    pub key_end: Option<Vec<u8>>,
    /// `NFT_SET_ELEM_*` flags.
    pub flags: u32,
}

impl ForeignElement {
    /// Its key, if an element of ours in the same map could have it.
    pub fn known_key(&self, family: Family, map: Map) -> Option<Key> {
        if self.key_end.is_none() { read_key(family, map, &self.key) } else { None }
    }
}

/// The content of a map.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Elements that we could have written.
    pub elements: Vec<ElementState>,
    /// All others.
    pub foreign: Vec<ForeignElement>,
}

/// Collects the elements of one map from the messages of a dump.
#[derive(Debug)]
pub struct Reader {
    family: Family,
    map: Map,
    contents: Contents,
    /// Boundaries of a single-field interval set, which pair up only once all
    /// are known: key, whether it is an end, comment.
    boundaries: Vec<(IpAddr, bool, Option<String>)>,
}

impl Reader {
    /// Of this map.
    pub fn new(family: Family, map: Map) -> Self {
        Self { family, map, contents: Contents::default(), boundaries: Vec::new() }
    }

    /// Reads one message's elements.
    pub fn read(&mut self, message: Attributes<'_>) {
        if let Some(list) = message.get(NFTA_SET_ELEM_LIST_ELEMENTS) {
            self.read_list(list.nested());
        }
    }

    /// Reads elements one behind the other, as [`write_element`] writes them.
    pub fn read_list(&mut self, list: Attributes<'_>) {
        for element in list {
            self.read_element(element.nested());
        }
    }

    fn read_element(&mut self, attributes: Attributes<'_>) {
        let value = |kind| Some(attributes.get(kind)?.nested().get(NFTA_DATA_VALUE)?.payload);
        let flags = attributes.be32(NFTA_SET_ELEM_FLAGS).unwrap_or(0);
        let key = value(NFTA_SET_ELEM_KEY).unwrap_or_default();
        let key_end = value(NFTA_SET_ELEM_KEY_END);
        if self.map == Map::ServiceCidrs
            && let Some(address) = (Fields { bytes: key, family: self.family }).address()
        {
            let end = flags & NFT_SET_ELEM_INTERVAL_END != 0;
            return self.boundaries.push((address, end, comment(attributes)));
        }
        let plain = flags == 0 && has_our_expressions(attributes, self.map);
        let known = plain.then(|| self.known(attributes, key, key_end)).flatten();
        match known {
            Some(state) => self.contents.elements.push(state),
            None => self.contents.foreign.push(ForeignElement {
                key: key.to_vec(),
                key_end: key_end.map(<[u8]>::to_vec),
                flags,
            }),
        }
    }

    fn known(&self, attributes: Attributes<'_>, key: &[u8], key_end: Option<&[u8]>) -> Option<ElementState> {
        // An interval concatenation: none of our sets is one.
        let key = if key_end.is_none() { read_key(self.family, self.map, key)? } else { return None };
        let data = match self.map.data() {
            DataKind::Nothing => Data::Nothing,
            DataKind::Verdict => Data::Verdict(read_verdict(attributes.get(NFTA_SET_ELEM_DATA)?.nested())?),
            DataKind::Endpoint => {
                let bytes = attributes.get(NFTA_SET_ELEM_DATA)?.nested().get(NFTA_DATA_VALUE)?.payload;
                let mut fields = Fields { bytes, family: self.family };
                Data::Endpoint(Endpoint { address: fields.address()?, port: fields.port()? })
            }
            DataKind::List => {
                let bytes = attributes.get(NFTA_SET_ELEM_DATA)?.nested().get(NFTA_DATA_VALUE)?.payload;
                Data::List((Fields { bytes, family: self.family }).list()?)
            }
        };
        let element = Element { map: self.map, key, data, comment: comment(attributes).map(Into::into) };
        let milliseconds = |kind| attributes.get(kind)?.be64();
        Some(ElementState {
            element,
            counter: counter(attributes),
            timeout: milliseconds(NFTA_SET_ELEM_TIMEOUT),
            expires: milliseconds(NFTA_SET_ELEM_EXPIRATION),
        })
    }

    /// The number of elements read so far.
    pub fn count(&self) -> usize {
        self.contents.elements.len() + self.contents.foreign.len() + self.boundaries.len()
    }

    /// The elements read so far, without boundaries.
    pub fn take(&mut self) -> Contents {
        std::mem::take(&mut self.contents)
    }

    /// The elements, in the order in which the kernel lists them; prefixes in
    /// ascending order. `None` if the listing is torn and has to be repeated.
    ///
    /// The kernel resizes a hash table in the background, and a listing resumes
    /// behind as many elements as it has shown before. A resize between two
    /// messages makes it show some elements twice and omit as many, without any
    /// other sign (`nft_rhash_walk`, seen on 6.18).
    pub fn finish(mut self) -> Option<Contents> {
        self.pair_boundaries();
        let mut seen = HashSet::with_capacity(self.contents.elements.len());
        let torn = !self.contents.elements.iter().all(|state| seen.insert(state.element.key));
        (!torn).then_some(self.contents)
    }

    fn pair_boundaries(&mut self) {
        let mut boundaries = std::mem::take(&mut self.boundaries);
        // Another range may start where one ends: the end comes first.
        boundaries.sort_by_key(|(address, end, _)| (*address, !*end));
        let mut boundaries = boundaries.into_iter().peekable();
        while let Some((start, is_end, comment)) = boundaries.next() {
            if is_end {
                // nft's mark that nothing is in the set from 0 on.
                continue;
            }
            let after = boundaries.next_if(|(_, end, _)| *end).map(|(address, ..)| address);
            match prefix(start, after) {
                Some(net) => self.contents.elements.push(ElementState {
                    element: Element {
                        map: self.map,
                        key: Key::Prefix(net),
                        data: Data::Nothing,
                        comment: comment.map(Into::into),
                    },
                    counter: None,
                    timeout: None,
                    expires: None,
                }),
                None => {
                    self.foreign_boundary(start, 0);
                    if let Some(after) = after {
                        self.foreign_boundary(after, NFT_SET_ELEM_INTERVAL_END);
                    }
                }
            }
        }
    }

    fn foreign_boundary(&mut self, address: IpAddr, flags: u32) {
        let key = Octets::of(address).bytes().to_vec();
        self.contents.foreign.push(ForeignElement { key, key_end: None, flags });
    }
}

/// Writes a foreign element into a `NFT_MSG_DELSETELEM`.
pub fn write_foreign(writer: &mut Writer, element: &ForeignElement) {
    writer.nest(NFTA_LIST_ELEM, |w| {
        if element.flags != 0 {
            w.be32(NFTA_SET_ELEM_FLAGS, element.flags);
        }
        if element.flags & NFT_SET_ELEM_CATCHALL == 0 {
            write_value(w, NFTA_SET_ELEM_KEY, &element.key);
        }
        if let Some(end) = &element.key_end {
            write_value(w, NFTA_SET_ELEM_KEY_END, end);
        }
    });
}

/// The prefix that covers exactly the addresses from `start` to before
/// `after` (`None`: to the end of the address space).
fn prefix(start: IpAddr, after: Option<IpAddr>) -> Option<IpNet> {
    let (bits, length) = match (start, after) {
        (IpAddr::V4(start), after) => {
            let end = match after {
                Some(IpAddr::V4(after)) => u64::from(u32::from(after)),
                None => 1 << 32,
                Some(IpAddr::V6(_)) => return None,
            };
            let size = end.checked_sub(u64::from(u32::from(start)))?;
            (32, size.is_power_of_two().then(|| size.trailing_zeros())?)
        }
        (IpAddr::V6(start), after) => {
            let end = match after {
                Some(IpAddr::V6(after)) => u128::from(after),
                None => 0,
                Some(IpAddr::V4(_)) => return None,
            };
            let size = end.wrapping_sub(u128::from(start));
            // The whole address space, 2^128, is 0 here.
            let length = if size == 0 { 128 } else { size.is_power_of_two().then(|| size.trailing_zeros())? };
            (128, length)
        }
    };
    let net = IpNet::new(start, (bits - length) as u8).ok()?;
    (net.network() == start).then_some(net)
}

fn comment(attributes: Attributes<'_>) -> Option<String> {
    comment_in(attributes.get(NFTA_SET_ELEM_USERDATA)?.payload)
}

/// The comment in the userdata of an element or a table.
pub(super) fn comment_in(userdata: &[u8]) -> Option<String> {
    let text = super::sets::userdata::find(userdata, NFTNL_UDATA_SET_ELEM_COMMENT)?;
    Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// A single expression is in `NFTA_SET_ELEM_EXPR`, several are in a list.
fn counter(attributes: Attributes<'_>) -> Option<Counter> {
    let expression = match attributes.get(NFTA_SET_ELEM_EXPR) {
        Some(expression) => expression,
        None => attributes
            .get(NFTA_SET_ELEM_EXPRESSIONS)?
            .nested()
            .find(|expression| expression.nested().string(NFTA_EXPR_NAME) == Some("counter"))?,
    };
    let expression = expression.nested();
    if expression.string(NFTA_EXPR_NAME) != Some("counter") {
        return None;
    }
    let data = expression.get(NFTA_EXPR_DATA)?.nested();
    Some(Counter { packets: data.get(NFTA_COUNTER_PACKETS)?.be64()?, bytes: data.get(NFTA_COUNTER_BYTES)?.be64()? })
}

/// Returns whether an element does nothing but count, where we count. Another
/// program may have added one whose `limit` or `quota` makes each look-up of it
/// fail.
fn has_our_expressions(attributes: Attributes<'_>, map: Map) -> bool {
    let is_counter = |expression: Attribute<'_>| expression.nested().string(NFTA_EXPR_NAME) == Some("counter");
    let one = attributes.get(NFTA_SET_ELEM_EXPR);
    let several = attributes.get(NFTA_SET_ELEM_EXPRESSIONS).map(|list| list.nested()).unwrap_or_default();
    map.is_dynamic() || one.into_iter().chain(several).all(|expression| map.has_counter() && is_counter(expression))
}

fn read_verdict(data: Attributes<'_>) -> Option<Verdict> {
    let verdict = data.get(NFTA_DATA_VERDICT)?.nested();
    match verdict.be32(NFTA_VERDICT_CODE)? as i32 {
        NF_DROP => Some(Verdict::Drop),
        NFT_GOTO => Chain::parse(verdict.string(NFTA_VERDICT_CHAIN)?).map(Verdict::Goto),
        _ => None,
    }
}

/// Reads the fields of a key or of an endpoint one after the other.
struct Fields<'a> {
    bytes: &'a [u8],
    family: Family,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*field)
    }

    fn address(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::from(self.take::<4>()?)),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::from(self.take::<16>()?)),
        })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::from_number(number)
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn slot(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.take()?))
    }

    fn list(&mut self) -> Option<ListNumber> {
        match u32::from_ne_bytes(self.take()?) {
            0 => Some(ListNumber::NONE),
            priority => ListNumber::from_priority(priority),
        }
    }

    fn node_port(&mut self) -> Option<NodePortKey> {
        Some(NodePortKey { protocol: self.protocol()?, port: self.port()? })
    }

    fn frontend(&mut self) -> Option<FrontendKey> {
        Some(FrontendKey { address: self.address()?, protocol: self.protocol()?, port: self.port()? })
    }
}

fn read_key(family: Family, map: Map, bytes: &[u8]) -> Option<Key> {
    use KeyField::{Address, List, Port, Protocol, Slot};
    let mut fields = Fields { bytes, family };
    let key = match (map, map.key()) {
        (Map::HairpinConnections, _) => {
            let (source, destination) = (fields.address()?, fields.address()?);
            let (protocol, port) = (fields.protocol()?, fields.port()?);
            (source == destination).then_some(Key::Hairpin(Endpoint { address: source, port }, protocol))?
        }
        (_, [Address, List]) => Key::Affinity(fields.address()?, fields.list()?),
        (_, [List]) => Key::List(fields.list()?),
        (Map::SourceRanges | Map::SourceRangeMarkers, _) => {
            let frontend = fields.frontend()?;
            let (first, last) = (fields.address()?, fields.address()?);
            Key::SourceRange(frontend, prefix(first, successor(last))?)
        }
        (_, [Address]) => Key::Address(fields.address()?),
        (_, [Address, Protocol, Port]) => Key::Target(Target::Frontend(fields.frontend()?)),
        (_, [Address, Protocol, Port, Slot]) => Key::Slot(Target::Frontend(fields.frontend()?), fields.slot()?),
        (_, [Protocol, Port]) => Key::Target(Target::NodePort(fields.node_port()?)),
        (_, [Protocol, Port, Slot]) => Key::Slot(Target::NodePort(fields.node_port()?), fields.slot()?),
        _ => return None,
    };
    fields.bytes.is_empty().then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_that_does_more_than_count_is_foreign() {
        let read = |map: Map, expressions: &[&str]| {
            let mut writer = Writer::default();
            writer.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
                w.nest(NFTA_LIST_ELEM, |w| {
                    write_value(w, NFTA_SET_ELEM_KEY, &[192, 0, 2, 9]);
                    for name in expressions {
                        w.nest(NFTA_SET_ELEM_EXPR, |w| w.string(NFTA_EXPR_NAME, name));
                    }
                });
            });
            let mut reader = Reader::new(Family::Ipv4, map);
            reader.read(Attributes::new(writer.bytes()));
            let contents = reader.finish().unwrap();
            (contents.elements.len(), contents.foreign.len())
        };
        assert_eq!(read(Map::ClusterIps, &[]), (1, 0));
        assert_eq!(read(Map::ClusterIps, &["limit"]), (0, 1));
        assert_eq!(read(Map::ClusterIps, &["counter"]), (0, 1), "not where we count");
    }

    #[test]
    fn ranges_that_are_no_prefix_are_none() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let net = |text: &str| Some(text.parse::<IpNet>().unwrap());
        assert_eq!(prefix(address("10.0.0.0"), Some(address("10.1.0.0"))), net("10.0.0.0/16"));
        assert_eq!(prefix(address("255.255.0.0"), None), net("255.255.0.0/16"));
        assert_eq!(prefix(address("0.0.0.0"), None), net("0.0.0.0/0"));
        assert_eq!(prefix(address("::"), None), net("::/0"));
        assert_eq!(prefix(address("ffff::"), None), net("ffff::/16"));
        assert_eq!(prefix(address("10.0.0.0"), Some(address("10.0.0.3"))), None);
        assert_eq!(prefix(address("10.0.0.1"), Some(address("10.0.0.3"))), None, "not on its boundary");
        assert_eq!(prefix(address("10.0.0.1"), Some(address("10.0.0.0"))), None, "backwards");
    }
}
