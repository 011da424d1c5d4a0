//! The content of a table in terms that every independent reader can report.

use std::collections::{BTreeMap, BTreeSet};

use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::table::Table;

/// A chain: how it hooks in, and how many rules it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ChainView {
    /// Type, hook number and priority of a base chain.
    pub(crate) base: Option<(String, u32, i32)>,
    /// The number of rules.
    pub(crate) rules: usize,
}

/// A table as an independent reader reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The chains by name.
    pub(crate) chains: BTreeMap<String, ChainView>,
    /// The elements of each set and map, as nft writes them, without comments
    /// and counters.
    pub(crate) sets: BTreeMap<String, BTreeSet<String>>,
}

impl View {
    /// The report that a reader must give of a kernel with `table`.
    pub(crate) fn expected(table: &Table) -> View {
        let mut view = View::default();
        for (chain, rules) in &table.chains {
            let base = chain
                .base()
                .map(|base| (if base.nat { "nat" } else { "filter" }.to_owned(), base.hook.number(), base.priority));
            view.chains.insert(chain.to_string(), ChainView { base, rules: rules.len() });
        }
        for map in Map::all() {
            let elements = table.elements.iter().filter(|element| element.map == map);
            let texts = elements.map(|element| {
                let mut bare = element.clone();
                bare.comment = None;
                without_counter(&render::element(&bare))
            });
            view.sets.insert(map.to_string(), texts.collect());
        }
        view
    }
}

/// `render` prints a counter in the maps that count.
fn without_counter(text: &str) -> String {
    text.replace(" counter packets 0 bytes 0", "")
}
