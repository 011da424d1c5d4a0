//! Programmed elements in pages: the agent writes them, and its clients read
//! them and look them up in the kernel.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::Element;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_wire::message::{Attributes, Writer};
use vmap_proxy_wire::nf_tables::elements::{Reader, write_element};

use super::answer::{State, service_name};
use super::protocol::{ElementGroup, ElementsAnswer, PAGE};

/// The owner of the elements that belong to no Service. A Service has a slash in
/// its name.
pub(crate) const NODE: &str = "node";

/// Elements in one page, at which a page ends early.
const PAGE_ELEMENTS: usize = 4096;

/// The next page, or all elements of one owner.
pub(super) fn page(state: &State<'_>, maps: &[String], only: Option<&str>, after: Option<&str>) -> ElementsAnswer {
    let mut page = Page { maps: maps.iter().filter_map(|name| Map::parse(name)).collect(), ..Page::default() };
    if only == Some(NODE) || (only.is_none() && after.is_none()) {
        for family in Family::ALL {
            state.planner.elements_of_node(family).iter().for_each(|element| page.push(family, NODE, element));
        }
    }
    let mut last = None;
    match only {
        Some(NODE) => {}
        Some(only) => page.push_service(state, &service_name(only)),
        None => {
            for (seen, (name, _)) in state.store.after(after.map(service_name).as_ref()).enumerate() {
                if seen == PAGE || page.count >= PAGE_ELEMENTS {
                    return page.finish(last);
                }
                last = Some(name);
                page.push_service(state, name);
            }
        }
    }
    page.finish(None)
}

/// The elements of one map in the making.
#[derive(Default)]
struct Group {
    writer: Writer,
    owners: Vec<(String, usize)>,
}

/// A page in the making.
#[derive(Default)]
struct Page {
    /// The wanted maps; empty for all.
    maps: Vec<Map>,
    groups: BTreeMap<(Family, Map), Group>,
    count: usize,
}

impl Page {
    fn push_service(&mut self, state: &State<'_>, name: &ServiceName) {
        for family in Family::ALL {
            let elements = state.planner.elements_of(name, family);
            elements.iter().for_each(|element| self.push(family, name.text(), element));
        }
    }

    fn push(&mut self, family: Family, owner: &str, element: &Element) {
        if !self.maps.is_empty() && !self.maps.contains(&element.map) {
            return;
        }
        let Group { writer, owners } = self.groups.entry((family, element.map)).or_default();
        write_element(writer, element);
        match owners.last_mut().filter(|(last, _)| last == owner) {
            Some((_, count)) => *count += 1,
            None => owners.push((owner.to_owned(), 1)),
        }
        self.count += 1;
    }

    fn finish(self, last: Option<&ServiceName>) -> ElementsAnswer {
        let groups = self.groups.into_iter().map(|((family, map), Group { writer, owners })| ElementGroup {
            family,
            map: map.name().to_owned(),
            owners,
            elements: STANDARD.encode(writer.bytes()),
        });
        ElementsAnswer { groups: groups.collect(), last: last.map(ServiceName::to_string) }
    }
}

impl ElementGroup {
    /// The map and its elements with their owners; `None` for a map that this
    /// program does not know, of a newer agent.
    pub(crate) fn read(&self) -> Option<(Map, Vec<(&str, Element)>)> {
        let map = Map::parse(&self.map)?;
        let bytes = STANDARD.decode(&self.elements).ok()?;
        let mut reader = Reader::new(self.family, map);
        reader.read_list(Attributes::new(&bytes));
        // The boundaries of intervals pair up at the end.
        let elements = if map.is_interval() { reader.finish()?.elements } else { reader.take().elements };
        let owners = self.owners.iter().flat_map(|(owner, count)| std::iter::repeat_n(owner.as_str(), *count));
        Some((map, owners.zip(elements.into_iter().map(|state| state.element)).collect()))
    }
}
