//! The content of our tables in a node's kernel, ready for comparison.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use vmap_proxy_agent::netlink::{Kernel, NetlinkError, OwnTable};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Key, ListNumber, Verdict};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::Target;
use vmap_proxy_lab::NetNs;

use crate::generation::Commits;

/// Value and comment of an element.
type Value = (Data, Option<String>);
/// Elements by their place.
type Elements = BTreeMap<(Map, Key), Value>;

/// One family's table. What packets learned (`affinity`) is left out.
#[derive(Debug, Default, PartialEq)]
pub struct Holdings {
    /// The expressions of each chain's rules, as the kernel encodes them.
    chains: BTreeMap<String, Vec<Vec<u8>>>,
    /// The sets and maps there are.
    maps: BTreeSet<String>,
    /// The content of every other map.
    elements: Elements,
    /// The foreign objects in the table, and the defects of the table.
    foreign: BTreeSet<String>,
}

/// A learned entry: the client's address and the number of the list, and the
/// endpoint.
pub type Learned = BTreeMap<Key, Data>;

impl Holdings {
    /// Reads both families, IPv4 first.
    ///
    /// # Panics
    ///
    /// If the kernel does not answer.
    #[track_caller]
    pub fn read(namespace: &NetNs) -> [Holdings; 2] {
        Self::try_read(namespace).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_read(namespace: &NetNs) -> Result<[Holdings; 2], String> {
        try_in_namespace(namespace, |kernel| {
            let mut both = <[Holdings; 2]>::default();
            for (holdings, family) in both.iter_mut().zip(Family::ALL) {
                let Some(table) = kernel.read_table(OwnTable::Main, family)? else { continue };
                for (name, chain) in table.chain_names().filter_map(|name| Some((name, table.chain(name)?))) {
                    holdings.chains.insert(name.to_owned(), chain.rule_expressions().to_vec());
                }
                holdings.maps = table.map_names().map(str::to_owned).collect();
                let maps = table.map_names().filter_map(Map::parse).filter(|map| *map != Map::Affinity);
                holdings.foreign = table.foreign().iter().map(ToString::to_string).collect();
                if table.is_dormant() {
                    holdings.foreign.insert("flag dormant".to_owned());
                }
                if !table.layout_matches() {
                    holdings.foreign.insert(table.layout());
                }
                if kernel.read_table(OwnTable::StandIn, family)?.is_some() {
                    holdings.foreign.insert("a stand-in".to_owned());
                }
                holdings.foreign.extend(table.wrong_policies().iter().map(|chain| format!("policy of {chain}")));
                for map in maps {
                    let (states, foreign) = kernel.read_contents(family, map)?;
                    holdings.foreign.extend(foreign.iter().map(|element| format!("element of {map}: {element:?}")));
                    for state in states {
                        let element = state.element;
                        let comment = element.comment.as_deref().map(str::to_owned);
                        holdings.elements.insert((map, element.key), (element.data, comment));
                    }
                }
            }
            Ok(both)
        })
    }

    /// Leaves out chains that nothing leads to: most stay once they were in
    /// use, and some are made with a new table, so that only history explains
    /// which there are.
    pub fn forget_unused_chains(&mut self) {
        let verdicts = self.elements.values().filter_map(|(data, _)| match data {
            Data::Verdict(Verdict::Goto(chain)) => Some(*chain),
            _ => None,
        });
        let used: BTreeSet<Chain> = verdicts.flat_map(|chain| chain.needs().chain([chain])).collect();
        self.chains.retain(|name, _| match Chain::parse(name) {
            Some(chain) => Chain::FIXED.contains(&chain) || used.contains(&chain),
            None => true,
        });
    }

    /// The names of the chains.
    pub fn chain_names(&self) -> impl Iterator<Item = &str> {
        self.chains.keys().map(String::as_str)
    }

    /// Returns the differences between two tables, one line each. The slots of
    /// endpoints and the numbers of lists depend on the history, and do not
    /// count.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let names: BTreeSet<&String> = self.chains.keys().chain(other.chains.keys()).collect();
        for name in names.into_iter().filter(|name| self.chains.get(*name) != other.chains.get(*name)) {
            let rules = [self, other].map(|holdings| holdings.chains.get(name).map(Vec::len));
            lines.push(format!("chain {name}: {rules:?} rules"));
        }
        lines.extend(self.foreign.symmetric_difference(&other.foreign).cloned());
        lines.extend(self.maps.symmetric_difference(&other.maps).map(|name| format!("map {name}")));
        let (ours, theirs) = (self.without_history(), other.without_history());
        let keys: BTreeSet<_> = ours.keys().chain(theirs.keys()).collect();
        for key in keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key)) {
            lines.push(format!("element {key:?}: {:?}, {:?}", ours.get(key), theirs.get(key)));
        }
        lines
    }

    fn without_history(&self) -> Elements {
        // A number's comment tells whose list it is.
        let mut owners: Vec<(&Option<String>, ListNumber)> = Vec::new();
        for ((_, key), (_, comment)) in &self.elements {
            if let Key::List(number) = key {
                owners.push((comment, *number));
            }
        }
        owners.sort();
        let renamed = |number: ListNumber| {
            let position = owners.iter().position(|(_, other)| *other == number);
            position.and_then(|position| ListNumber::at(position as u32 + 1)).unwrap_or_default()
        };
        let mut slots: BTreeMap<(Map, Target), Vec<Value>> = BTreeMap::new();
        let mut rest = Elements::new();
        for ((map, key), value) in &self.elements {
            match key {
                Key::Slot(target, _) => slots.entry((*map, *target)).or_default().push(value.clone()),
                Key::List(number) => {
                    rest.insert((*map, Key::List(renamed(*number))), value.clone());
                }
                key => {
                    let (data, comment) = value.clone();
                    let data = if let Data::List(number) = data { Data::List(renamed(number)) } else { data };
                    rest.insert((*map, *key), (data, comment));
                }
            }
        }
        for ((map, target), mut values) in slots {
            values.sort();
            for (slot, value) in (0..).zip(values) {
                rest.insert((map, Key::Slot(target, slot)), value);
            }
        }
        rest
    }
}

/// Returns the learned entries in the table of one family.
///
/// # Panics
///
/// If the kernel does not answer.
#[track_caller]
pub fn learned(namespace: &NetNs, family: Family) -> Learned {
    in_namespace(namespace, |kernel| {
        let states = kernel.read_elements(family, Map::Affinity)?;
        // An expired element stays listed until the kernel collects it.
        let alive = states.into_iter().filter(|state| state.expires != Some(0));
        Ok(alive.map(|state| (state.element.key, state.element.data)).collect())
    })
}

/// Waits until the tables hold what `expected` does, in whichever slots; how
/// long that took.
///
/// # Panics
///
/// If they don't, after `patience`.
#[track_caller]
pub fn await_holdings_within(
    namespace: &NetNs,
    expected: &[Holdings; 2],
    patience: Duration,
    context: &dyn std::fmt::Display,
) -> Duration {
    await_read(namespace, |_| (), expected, patience, context)
}

/// The same, whatever chains are left that nothing leads to.
///
/// # Panics
///
/// If they don't.
#[track_caller]
pub fn await_used_holdings(namespace: &NetNs, expected: &[Holdings; 2], context: &dyn std::fmt::Display) -> Duration {
    await_read(namespace, Holdings::forget_unused_chains, expected, Duration::from_secs(60), context)
}

#[track_caller]
fn await_read(
    namespace: &NetNs,
    prepare: impl Fn(&mut Holdings),
    expected: &[Holdings; 2],
    patience: Duration,
    context: &dyn std::fmt::Display,
) -> Duration {
    let begun = Instant::now();
    let commits = namespace.run(Commits::follow).unwrap_or_else(|error| panic!("{error}"));
    let commits = commits.unwrap_or_else(|error| panic!("{error}"));
    loop {
        let read = Holdings::try_read(namespace).map(|mut now| {
            now.iter_mut().for_each(&prepare);
            now
        });
        let lines = match read {
            Ok(now) => now.iter().zip(expected).flat_map(|(now, expected)| now.differences(expected)).collect(),
            // Somebody changed the tables while they were read.
            Err(error) => vec![error],
        };
        if lines.is_empty() {
            return begun.elapsed();
        }
        let some: Vec<&String> = lines.iter().take(10).collect();
        assert!(begun.elapsed() < patience, "{context}: {} differences: {some:#?}", lines.len());
        // Only a commit can remove a difference. A reading that failed for another reason is repeated without one.
        commits.wait(Duration::from_secs(1)).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// As [`await_holdings_within`], with patience enough for a machine under load.
///
/// # Panics
///
/// If they don't.
#[track_caller]
pub fn await_holdings(namespace: &NetNs, expected: &[Holdings; 2], context: &dyn std::fmt::Display) -> Duration {
    await_holdings_within(namespace, expected, Duration::from_secs(60), context)
}

#[track_caller]
fn in_namespace<T: Send>(namespace: &NetNs, job: impl FnOnce(&mut Kernel) -> Result<T, NetlinkError> + Send) -> T {
    try_in_namespace(namespace, job).unwrap_or_else(|error| panic!("{error}"))
}

fn try_in_namespace<T: Send>(
    namespace: &NetNs,
    job: impl FnOnce(&mut Kernel) -> Result<T, NetlinkError> + Send,
) -> Result<T, String> {
    let read = namespace.run(|| Kernel::open().and_then(|mut kernel| job(&mut kernel)));
    read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
