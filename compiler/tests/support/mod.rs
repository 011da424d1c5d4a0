//! A kernel made of hash maps, stricter than the real one: adding what is
//! there, removing what is not, or pointing to a chain that does not exist is
//! an error, by element or by rule.
#![allow(clippy::panic, reason = "a failed step is a failed test")]
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod changes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use vmap_proxy_compiler::model::{Endpoint, PerFamily};
use vmap_proxy_compiler::plan::{Action, KernelElements, KernelState, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber, Verdict};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::rule::{Rule, Statement};
use vmap_proxy_compiler::ruleset::skeleton::SkeletonConfig;
use vmap_proxy_compiler::ruleset::spread::Spread;
use vmap_proxy_compiler::ruleset::table::{Ruleset, Table};
use vmap_proxy_compiler::ruleset::target::Target;

/// One table.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct FakeTable {
    pub(crate) exists: bool,
    pub(crate) maps: HashSet<Map>,
    pub(crate) chains: HashMap<Chain, Vec<Rule>>,
    pub(crate) elements: HashMap<(Map, Key), Element>,
}

/// Both tables.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct FakeKernel(pub(crate) PerFamily<FakeTable>);

impl FakeKernel {
    /// Commits a transaction, or panics with the operation that fails.
    pub(crate) fn commit(&mut self, transaction: &Transaction) {
        let chains_before = self.0.as_ref().map(|table| table.chains.keys().copied().collect::<HashSet<_>>());
        for operation in &transaction.operations {
            let table = &mut self.0[operation.family];
            match &operation.action {
                Action::AddTable => table.exists = true,
                Action::AddMap(map) => assert!(table.exists && table.maps.insert(*map), "{operation:?}"),
                Action::AddChain(chain) => {
                    table.chains.entry(*chain).or_default();
                }
                Action::FlushChain(chain) => {
                    table.chains.get_mut(chain).unwrap_or_else(|| panic!("{operation:?}")).clear();
                }
                Action::AddRule(chain, rule) => {
                    for target in jumps(rule) {
                        assert!(table.chains.contains_key(&target), "no such chain: {operation:?}");
                    }
                    table.chains.get_mut(chain).unwrap_or_else(|| panic!("{operation:?}")).push(rule.clone());
                }
                Action::DeleteChain(chain) => {
                    let pointed = table.elements.values().any(|element| target(element) == Some(*chain));
                    let jumped = table.chains.values().flatten().any(|rule| jumps(rule).any(|to| to == *chain));
                    assert!(!pointed && !jumped && table.chains.remove(chain).is_some(), "{operation:?}");
                }
                Action::DeleteMap(map) => assert!(table.maps.remove(map), "{operation:?}"),
                Action::AddElement(element) => {
                    assert!(table.maps.contains(&element.map), "{operation:?}");
                    if let Some(chain) = target(element) {
                        // For packets on their way a chain of the same transaction is empty yet.
                        let known = &chains_before[operation.family];
                        assert!(known.contains(&chain), "not there before this transaction: {operation:?}");
                        assert!(table.chains.contains_key(&chain), "no such chain: {operation:?}");
                    }
                    let previous = table.elements.insert((element.map, element.key), element.clone());
                    assert!(previous.is_none(), "exists already: {operation:?}");
                }
                Action::DeleteElement(element) => {
                    let previous = table.elements.remove(&(element.map, element.key));
                    assert!(previous.is_some(), "is not there: {operation:?}");
                }
            }
        }
    }

    /// Every verdict that spreads over N endpoints finds slots 0 to N-1, and one
    /// that spreads over at most N finds more than half of them: no frontend
    /// is without a usable endpoint while it has one.
    pub(crate) fn assert_consistent(&self) {
        for table in self.0.values() {
            for element in table.elements.values() {
                let Some(Chain::Balance { domain, pool, sticky, spread }) = target(element) else { continue };
                if sticky {
                    let map = Map::AffinityLists(domain, pool);
                    let list = table.elements.get(&(map, element.key));
                    let Some(Data::List(number)) = list.map(|list| list.data) else {
                        panic!("no number for {element:?}")
                    };
                    let learns = table.elements.contains_key(&(Map::AffinityTimeouts, Key::List(number)));
                    assert!(learns, "nothing is learned under {number:?} of {element:?}");
                }
                let filled = match spread {
                    Spread::Exactly(slots) => slots,
                    Spread::AtMost(slots) => slots / 2 + 1,
                };
                for slot in 0..filled {
                    let Key::Target(target) = element.key else { panic!("{element:?}") };
                    assert_eq!(target.domain(), domain, "{element:?}");
                    let (map, key) = (Map::Endpoints(domain, pool), Key::Slot(target, slot));
                    assert!(table.elements.contains_key(&(map, key)), "no endpoint in {map} {key:?} for {element:?}");
                }
            }
        }
    }

    /// The tables that exist, as packets meet them.
    pub(crate) fn ruleset(&self) -> Ruleset {
        let table = |family: Family| {
            let table = &self.0[family];
            // The rules are those of the chains; nothing here makes them from a configuration.
            let config =
                SkeletonConfig { family, detector: None, masquerade_all: false, nodeports_on_all_addresses: false };
            let chains = table.chains.iter().map(|(chain, rules)| (*chain, rules.clone())).collect();
            let elements = table.elements.values().cloned().collect();
            table.exists.then_some(Table { family, config, chains, elements })
        };
        Ruleset { tables: Family::ALL.into_iter().filter_map(table).collect() }
    }

    /// Returns the state that a start would read.
    pub(crate) fn state(&self) -> PerFamily<KernelState> {
        self.0.as_ref().map(|table| {
            let mut elements = KernelElements::default();
            for element in table.elements.values() {
                elements.insert(element.clone());
            }
            KernelState {
                exists: table.exists,
                chains: table.chains.keys().map(|chain| (*chain, true)).collect(),
                maps: table.maps.iter().copied().collect(),
                elements,
                learned: HashSet::new(),
                earlier: KernelElements::default(),
            }
        })
    }

    /// Whose list each number belongs to.
    pub(crate) fn list_owners(&self, family: Family) -> BTreeMap<ListNumber, String> {
        let elements = self.0[family].elements.values();
        let owner = |element: &Element| match element.key {
            Key::List(number) => Some((number, element.comment.as_deref().unwrap().to_owned())),
            _ => None,
        };
        elements.filter_map(owner).collect()
    }

    /// The endpoints behind each frontend that sends clients to a numbered list.
    pub(crate) fn numbered_lists(&self, family: Family) -> Vec<(ListNumber, BTreeSet<Endpoint>)> {
        let elements = &self.0[family].elements;
        let endpoints_of = |element: &Element| {
            let Data::List(number) = element.data else { return None };
            let Map::AffinityLists(domain, pool) = element.map else { panic!("{element:?}") };
            let Key::Target(target) = element.key else { panic!("{element:?}") };
            let endpoints = (0..).map_while(|position| {
                match elements.get(&(Map::Endpoints(domain, pool), Key::Slot(target, position)))?.data {
                    Data::Endpoint(endpoint) => Some(endpoint),
                    _ => None,
                }
            });
            Some((number, endpoints.collect()))
        };
        elements.values().filter_map(endpoints_of).collect()
    }

    /// The elements, with the endpoints of one frontend sorted into its slots:
    /// two histories may have put them into different ones.
    pub(crate) fn normalised(&self, family: Family) -> BTreeMap<(Map, Key), (Data, Option<String>)> {
        let elements = &self.0[family].elements;
        // Two histories may have numbered the lists differently.
        let mut owners: Vec<(String, ListNumber)> =
            self.list_owners(family).into_iter().map(|(number, owner)| (owner, number)).collect();
        owners.sort_unstable();
        let renamed = |number: ListNumber| {
            let position = owners.iter().position(|(_, other)| *other == number).unwrap();
            ListNumber::at(position as u32 + 1).unwrap()
        };
        let mut lists: BTreeMap<(Map, Target), Vec<Data>> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for element in elements.values() {
            match element.key {
                Key::Slot(target, _) => lists.entry((element.map, target)).or_default().push(element.data),
                key => {
                    let comment = element.comment.as_deref().map(str::to_owned);
                    let data = match element.data {
                        Data::List(number) => Data::List(renamed(number)),
                        data => data,
                    };
                    let key = match key {
                        Key::List(number) => Key::List(renamed(number)),
                        key => key,
                    };
                    all.insert((element.map, key), (data, comment));
                }
            }
        }
        for ((map, target), mut list) in lists {
            list.sort_unstable();
            all.extend((0..).zip(list).map(|(slot, data)| ((map, Key::Slot(target, slot)), (data, None))));
        }
        all
    }
}

fn target(element: &Element) -> Option<Chain> {
    match element.data {
        Data::Verdict(Verdict::Goto(chain)) => Some(chain),
        _ => None,
    }
}

/// The chains that a rule leads to.
fn jumps(rule: &Rule) -> impl Iterator<Item = Chain> {
    rule.0.iter().filter_map(|statement| match statement {
        Statement::Jump(chain) | Statement::Goto(chain) => Some(*chain),
        _ => None,
    })
}
