//! Looks up elements as the kernel does: by the bytes of the fields, whatever
//! they mean.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Protocol;
use crate::ruleset::element::{Element, Key, ListNumber};
use crate::ruleset::maps::Map;
use crate::ruleset::target::{FrontendKey, Target};

/// One field of a key, of an element or of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Field {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
    Slot(u32),
    Priority(u32),
}

type Prefixed<'a> = (IpNet, &'a Element);

/// The elements of a table by set and key.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    exact: HashMap<(Map, Vec<Field>), &'a Element>,
    /// Elements whose last field is a prefix, by the fields before it.
    prefixes: HashMap<(Map, Vec<Field>), Vec<Prefixed<'a>>>,
}

impl<'a> Index<'a> {
    pub(super) fn new(elements: &'a [Element]) -> Self {
        let mut index = Self::default();
        for element in elements {
            let (fields, prefix) = split(&element.key);
            match prefix {
                Some(prefix) => index.prefixes.entry((element.map, fields)).or_default().push((prefix, element)),
                None => {
                    index.exact.insert((element.map, fields), element);
                }
            }
        }
        index
    }

    /// The element with this key, or whose prefix contains its last field.
    pub(super) fn find(&self, map: Map, mut key: Vec<Field>) -> Option<&'a Element> {
        if !map.is_interval() {
            return self.exact.get(&(map, key)).copied();
        }
        let Some(Field::Address(address)) = key.pop() else { return None };
        let candidates = self.prefixes.get(&(map, key))?;
        candidates.iter().find(|(prefix, _)| prefix.contains(&address)).map(|(_, element)| *element)
    }
}

/// The fields of an element's key, and the prefix at its end if it has one.
fn split(key: &Key) -> (Vec<Field>, Option<IpNet>) {
    match key {
        Key::Address(address) => (vec![Field::Address(*address)], None),
        Key::Prefix(prefix) => (Vec::new(), Some(*prefix)),
        Key::Target(one) => (target(one), None),
        Key::Slot(one, slot) => ([target(one).as_slice(), &[Field::Slot(*slot)]].concat(), None),
        Key::Hairpin(endpoint, protocol) => {
            let address = Field::Address(endpoint.address);
            (vec![address, address, Field::Protocol(*protocol), Field::Port(endpoint.port)], None)
        }
        Key::SourceRange(key, range) => {
            let range = [range.network(), range.broadcast()].map(Field::Address);
            ([frontend(key).as_slice(), &range].concat(), None)
        }
        Key::Affinity(client, number) => (vec![Field::Address(*client), list(*number)], None),
        Key::List(number) => (vec![list(*number)], None),
    }
}

fn list(number: ListNumber) -> Field {
    Field::Priority(number.priority())
}

fn frontend(key: &FrontendKey) -> [Field; 3] {
    [Field::Address(key.address), Field::Protocol(key.protocol), Field::Port(key.port)]
}

fn target(target: &Target) -> Vec<Field> {
    match target {
        Target::Frontend(key) => frontend(key).to_vec(),
        Target::NodePort(key) => vec![Field::Protocol(key.protocol), Field::Port(key.port)],
    }
}
