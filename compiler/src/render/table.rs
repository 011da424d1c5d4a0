//! Tables, sets, maps, chains and elements as nft text.

use std::collections::HashMap;
use std::fmt::Write;

use super::text::{address, prefix, quotable, rule};
use crate::model::{Endpoint, Protocol};
use crate::ruleset::chains::{Chain, Hook};
use crate::ruleset::element::{Data, Element, Key, ListNumber, Verdict};
use crate::ruleset::maps::{AFFINITY_SIZE, DataKind, KeyField, Map};
use crate::ruleset::rule::Rule;
use crate::ruleset::table::{Ruleset, Table};
use crate::ruleset::target::{FrontendKey, Target};
use crate::ruleset::{Family, LAYOUT, TABLE};

/// The indentation of an element that begins a line, in nft's layout.
const NEXT_LINE: &str = "\n\t\t\t     ";

/// All tables, one after the other.
pub fn ruleset(ruleset: &Ruleset) -> String {
    ruleset.tables.iter().map(table).collect()
}

/// One table: its sets and maps with their elements, then its chains.
pub fn table(table: &Table) -> String {
    let elements = by_map(table);
    let of_map = |map| elements.get(&map).map(Vec::as_slice).unwrap_or_default();
    let maps = Map::all().map(|map| self::map(table.family, map, of_map(map)));
    let chains = table.chains.iter().map(|(chain, rules)| self::chain(table.family, *chain, rules));
    let blocks: Vec<String> = maps.chain(chains).collect();
    format!("table {} {TABLE} {{\n\tcomment \"{LAYOUT}\"\n{}}}\n", table.family.keyword(), blocks.join("\n"))
}

/// The elements of each map, sorted by key.
pub(super) fn by_map(table: &Table) -> HashMap<Map, Vec<&Element>> {
    let mut maps: HashMap<Map, Vec<&Element>> = HashMap::new();
    for element in &table.elements {
        maps.entry(element.map).or_default().push(element);
    }
    maps.values_mut().for_each(|elements| elements.sort_by_key(|element| element.key));
    maps
}

fn map(family: Family, map: Map, elements: &[&Element]) -> String {
    let mut text = format!("\t{} {map} {{\n\t\t{}\n", kind(map), declaration(family, map));
    for property in properties(map) {
        text.push_str("\t\t");
        text.push_str(&property);
        text.push('\n');
    }
    if !elements.is_empty() {
        text.push_str("\t\telements = { ");
        for (index, element) in elements.iter().enumerate() {
            if index > 0 {
                text.push(',');
                text.push_str(if index % per_line(family, map) == 0 { NEXT_LINE } else { " " });
            }
            text.push_str(&self::element(element));
        }
        text.push_str(" }\n");
    }
    text.push_str("\t}\n");
    text
}

/// nft's word for it: `set` or `map`.
pub fn kind(map: Map) -> &'static str {
    match map.data() {
        DataKind::Nothing => "set",
        DataKind::Verdict | DataKind::Endpoint | DataKind::List => "map",
    }
}

/// The declaration of a set or map besides its types, in nft's order: size,
/// flags, `counter`.
pub fn properties(map: Map) -> Vec<String> {
    let mut properties = Vec::new();
    if map.is_dynamic() {
        properties.push(format!("size {AFFINITY_SIZE}"));
        properties.push("flags dynamic,timeout".to_owned());
    }
    if map.is_interval() {
        properties.push("flags interval".to_owned());
    }
    if map.has_counter() {
        properties.push("counter".to_owned());
    }
    properties
}

/// nft prints two IPv4 addresses of a plain set in a line, and one of anything
/// else.
fn per_line(family: Family, map: Map) -> usize {
    let plain_ipv4 = family == Family::Ipv4 && map.data() == DataKind::Nothing && map.key() == [KeyField::Address];
    if plain_ipv4 { 2 } else { 1 }
}

/// The types of a set or map as nft declares them: `type …` or `typeof …`, with
/// the value's after a colon.
pub fn declaration(family: Family, map: Map) -> String {
    let (word, name_of): (_, fn(Family, KeyField) -> String) =
        if map.is_typeof() { ("typeof", expression) } else { ("type", type_name) };
    let key: Vec<String> = map.key().iter().map(|field| name_of(family, *field)).collect();
    let key = key.join(" . ");
    match map.data() {
        DataKind::Nothing => format!("{word} {key}"),
        DataKind::Verdict => format!("{word} {key} : verdict"),
        DataKind::List => format!("{word} {key} : {}", type_name(family, KeyField::List)),
        DataKind::Endpoint if map.is_typeof() => format!("{word} {key} : {} daddr . tcp dport", family.keyword()),
        DataKind::Endpoint => format!("{word} {key} : {} . inet_service", type_name(family, KeyField::Address)),
    }
}

fn type_name(family: Family, field: KeyField) -> String {
    match (field, family) {
        (KeyField::Address, Family::Ipv4) => "ipv4_addr",
        (KeyField::Address, Family::Ipv6) => "ipv6_addr",
        (KeyField::Protocol, _) => "inet_proto",
        (KeyField::Port, _) => "inet_service",
        (KeyField::Slot, _) => "integer",
        (KeyField::List, _) => "classid",
    }
    .to_owned()
}

fn expression(family: Family, field: KeyField) -> String {
    match field {
        KeyField::Address => format!("{} daddr", family.keyword()),
        KeyField::Protocol => "meta l4proto".to_owned(),
        KeyField::Port => "th dport".to_owned(),
        KeyField::Slot => "numgen random mod 65536".to_owned(),
        KeyField::List => "meta priority".to_owned(),
    }
}

/// One element as nft text: key, counter (as zero), comment, and data.
pub fn element(element: &Element) -> String {
    let mut text = key(&element.key);
    if element.map.has_counter() {
        text.push_str(" counter packets 0 bytes 0");
    }
    if let Some(comment) = &element.comment {
        // Writing to a String does not fail.
        let _ = write!(text, " comment \"{}\"", quotable(comment));
    }
    if let Some(data) = data(&element.data) {
        text.push_str(" : ");
        text.push_str(&data);
    }
    text
}

/// An element's key: its fields joined by dots.
pub(super) fn key(key: &Key) -> String {
    match key {
        Key::Address(one) => address(*one),
        Key::Prefix(net) => prefix(*net),
        Key::Target(one) => target(one),
        Key::Slot(one, slot) => format!("{} . {slot}", target(one)),
        Key::Hairpin(endpoint, protocol) => hairpin(endpoint, *protocol),
        Key::SourceRange(key, net) => {
            format!("{} . {} . {}", frontend(key), address(net.network()), address(net.broadcast()))
        }
        Key::Affinity(client, number) => format!("{} . {}", address(*client), list(*number)),
        Key::List(number) => list(*number),
    }
}

fn frontend(key: &FrontendKey) -> String {
    format!("{} . {} . {}", address(key.address), key.protocol.keyword(), key.port)
}

fn target(target: &Target) -> String {
    match target {
        Target::Frontend(key) => frontend(key),
        Target::NodePort(key) => format!("{} . {}", key.protocol.keyword(), key.port),
    }
}

/// A list's number as nft writes it: the two halves in hexadecimal.
fn list(number: ListNumber) -> String {
    match number.priority() {
        0 => "none".to_owned(),
        priority => format!("{:x}:{:x}", priority >> 16, priority & 0xffff),
    }
}

fn hairpin(endpoint: &Endpoint, protocol: Protocol) -> String {
    let one = address(endpoint.address);
    format!("{one} . {one} . {} . {}", protocol.keyword(), endpoint.port)
}

/// The data of the element; `None` for an element of a set.
pub(super) fn data(data: &Data) -> Option<String> {
    match data {
        Data::Nothing => None,
        Data::Verdict(Verdict::Goto(chain)) => Some(format!("goto {chain}")),
        Data::Verdict(Verdict::Drop) => Some("drop".to_owned()),
        Data::Endpoint(endpoint) => Some(format!("{} . {}", address(endpoint.address), endpoint.port)),
        Data::List(number) => Some(list(*number)),
    }
}

fn chain(family: Family, chain: Chain, rules: &[Rule]) -> String {
    let mut text = format!("\tchain {chain} {{\n");
    if let Some(hook) = base(chain) {
        text.push_str("\t\t");
        text.push_str(&hook);
        text.push('\n');
    }
    for rule in rules {
        text.push_str("\t\t");
        text.push_str(&self::rule(family, rule));
        text.push('\n');
    }
    text.push_str("\t}\n");
    text
}

/// The line that makes a chain a base chain.
pub(crate) fn base(chain: Chain) -> Option<String> {
    let base = chain.base()?;
    let kind = if base.nat { "nat" } else { "filter" };
    let priority = priority(base.hook, base.priority);
    Some(format!("type {kind} hook {} priority {priority}; policy accept;", base.hook.keyword()))
}

/// A priority by the name nearest to it, as nft prints those up to 10 away.
/// `dstnat` and `srcnat` are names on one hook only.
fn priority(hook: Hook, priority: i32) -> String {
    let names: &[(&str, i32)] = match hook {
        Hook::Prerouting => &[("dstnat", -100), ("filter", 0)],
        Hook::Postrouting => &[("filter", 0), ("srcnat", 100)],
        Hook::Input | Hook::Forward | Hook::Output => &[("filter", 0)],
    };
    match names.iter().find(|(_, value)| priority.abs_diff(*value) <= 10) {
        Some((name, value)) if priority == *value => (*name).to_owned(),
        Some((name, value)) if priority < *value => format!("{name} - {}", value - priority),
        Some((name, value)) => format!("{name} + {}", priority - value),
        None => priority.to_string(),
    }
}
