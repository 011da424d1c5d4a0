//! The state that we write over netlink equals the kernel's state and the
//! result of nft for the same text.

use crate::readback::fixtures::{
    all_chains, all_configs, complete, loadable, operation, sample, simple_config, skeleton,
};
use vmap_proxy_agent::netlink::{ChainState, CommitError, Kernel, OwnTable, TableState};
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::Element;
use vmap_proxy_compiler::ruleset::maps::{KeyField, Map};
use vmap_proxy_compiler::ruleset::skeleton::rules;
use vmap_proxy_compiler::ruleset::target::Domain;
use vmap_proxy_compiler::ruleset::{Family, TABLE};
use vmap_proxy_testbed::namespaces::in_fresh_namespace;
use vmap_proxy_testbed::nft::nft;
use vmap_proxy_wire::message::{Attribute, Attributes};
use vmap_proxy_wire::uapi::{
    NFTA_DYNSET_SREG_DATA, NFTA_DYNSET_SREG_KEY, NFTA_EXPR_DATA, NFTA_EXPR_NAME, NFTA_IMMEDIATE_DREG, NFTA_META_DREG,
    NFTA_META_SREG, NFTA_PAYLOAD_DREG,
};

/// Whether the kernel is older than this version.
fn is_before(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) < (major, minor)
}

#[test]
fn every_chain_and_map_reads_back_as_written() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            assert!(kernel.read_table(OwnTable::Main, family).unwrap().is_none());
            for config in all_configs(family) {
                kernel.commit(&skeleton(&config)).unwrap_or_else(|error| panic!("{config:?}: {error}"));
                let state = kernel.read_table(OwnTable::Main, family).unwrap().unwrap();
                for chain in all_chains(family) {
                    assert!(state.chain_matches(chain, family, &rules(&config, chain)), "{chain} {config:?}");
                }
                for map in Map::all() {
                    assert!(state.map_matches(map, family), "{map} {family}");
                }
            }
            assert!(kernel.delete_table(OwnTable::Main, family).unwrap());
            assert!(!kernel.delete_table(OwnTable::Main, family).unwrap());
        }
    });
}

fn elements(family: Family, elements: &[Element], add: bool) -> Transaction {
    let action = |element: &Element| match add {
        true => Action::AddElement(element.clone()),
        false => Action::DeleteElement(element.clone()),
    };
    let operations = elements
        .iter()
        .map(|element| Operation { owner: Some("shop/cart".into()), ..operation(family, action(element)) });
    Transaction { operations: operations.collect() }
}

#[test]
fn elements_of_every_map_read_back_as_written() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            kernel.commit(&skeleton(&simple_config(family))).unwrap();
            for map in Map::all() {
                // More than one message's worth.
                let mut expected: Vec<Element> = (0..1500).map(|number| sample(family, map, number)).collect();
                kernel.commit(&elements(family, &expected, true)).unwrap_or_else(|e| panic!("{map}: {e}"));
                let (states, foreign) = kernel.read_contents(family, map).unwrap();
                assert_eq!(foreign, []);
                let mut listed: Vec<Element> = states.iter().map(|state| state.element.clone()).collect();
                let order = |element: &Element| element.key;
                listed.sort_by_key(order);
                expected.sort_by_key(order);
                assert_eq!(listed, expected, "{map}");
                for state in &states {
                    assert_eq!(state.counter.is_some(), map.has_counter(), "{map}");
                }
                if map != Map::ServiceCidrs {
                    let one = &states[700];
                    let read = kernel.read_element(family, map, &one.element.key).unwrap();
                    assert_eq!(read.as_ref(), Some(one), "{map}");
                    let absent = sample(family, map, 2000).key;
                    assert_eq!(kernel.read_element(family, map, &absent).unwrap(), None, "{map}");
                }
                kernel.commit(&elements(family, &expected, false)).unwrap_or_else(|e| panic!("{map}: {e}"));
                assert_eq!(kernel.read_elements(family, map).unwrap(), [], "{map}");
            }
        }
    });
}

#[test]
fn a_refused_element_is_named() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            kernel.commit(&skeleton(&simple_config(family))).unwrap();
            for map in Map::all() {
                // If ranges may share boundaries, adding twice is no error.
                if map == Map::ServiceCidrs {
                    continue;
                }
                let mut list: Vec<Element> = (0..1500).map(|number| sample(family, map, number)).collect();
                kernel.commit(&elements(family, &list[1234..1235], true)).unwrap();
                match kernel.commit(&elements(family, &list, true)) {
                    Err(CommitError::Refused { failures }) => {
                        assert_eq!(failures.len(), 1, "{failures:?}");
                        let failure = &failures[0];
                        let named = (failure.operation, failure.span) == (1234, 1)
                            && failure.description.contains("for Service shop/cart: File exists");
                        // b53c11664250 ("netfilter: nf_tables: set element extended ACK reporting support") names the
                        // element; some older kernels have it, too. Without it only the message is known, and a sync
                        // commits one Service after the other.
                        let among = (failure.operation..failure.operation + failure.span).contains(&1234);
                        assert!(named || is_before(5, 19) && among, "{failures:?}");
                        assert_eq!(failure.errno, libc::EEXIST, "{failures:?}");
                    }
                    other => panic!("{map}: {other:?}"),
                }
                assert_eq!(kernel.read_elements(family, map).unwrap().len(), 1, "nothing of it is committed");
                // Deleting what is not there is refused likewise, but for learned entries.
                list.swap(7, 1234);
                let result = kernel.commit(&elements(family, &list[..8], false));
                if map == Map::Affinity {
                    result.unwrap();
                    continue;
                }
                match result {
                    Err(CommitError::Refused { failures }) => assert_eq!(failures[0].operation, 0, "{failures:?}"),
                    other => panic!("{map}: {other:?}"),
                }
            }
        }
    });
}

fn sorted(mut elements: Vec<Element>) -> Vec<Element> {
    elements.sort_by_key(|element| element.key);
    elements
}

/// All that the kernel holds of a table: objects and elements.
fn everything(kernel: &mut Kernel, family: Family) -> (TableState, Vec<Element>) {
    let state = kernel.read_table(OwnTable::Main, family).unwrap().unwrap();
    let mut elements = Vec::new();
    for map in Map::all() {
        let (known, foreign) = kernel.read_contents(family, map).unwrap();
        assert_eq!(foreign, [], "{map}");
        elements.extend(sorted(known.into_iter().map(|state| state.element).collect()));
    }
    (state, elements)
}

/// Versions of nft choose different registers for the rule that learns affinity (1.1.3 others than 1.0.6): the same
/// rule in other bytes.
fn learns(chain: Chain) -> bool {
    matches!(chain, Chain::LearnFor { .. })
}

/// An expression: its name, and the type and content of its attributes.
type Expression = (String, Vec<(u16, Vec<u8>)>);

/// The rules of a chain; for each register of a rule that learns, its place in the key or in the value that is learned.
/// All else is the kernel's bytes.
fn with_places(chain: &ChainState) -> Vec<Vec<Expression>> {
    chain.rules().map(rule_with_places).collect()
}

fn rule_with_places(rule: Attributes<'_>) -> Vec<Expression> {
    let learning = rule.map(parts).find(|(name, _)| *name == "dynset").map(|(_, attributes)| attributes);
    let start = |register| learning.and_then(|attributes| attributes.be32(register)).map(offset).unwrap_or_default();
    let (key, value) = (start(NFTA_DYNSET_SREG_KEY), start(NFTA_DYNSET_SREG_DATA));
    rule.map(parts)
        .map(|(name, attributes)| {
            let content = |attribute: Attribute<'_>| match is_register(name, attribute.kind) {
                true => place(offset(attribute.be32().unwrap()), key, value),
                false => attribute.payload.to_vec(),
            };
            (name.to_owned(), attributes.map(|attribute| (attribute.kind, content(attribute))).collect())
        })
        .collect()
}

/// The name and the attributes of an expression.
fn parts<'a>(expression: Attribute<'a>) -> (&'a str, Attributes<'a>) {
    let parts = expression.nested();
    (parts.string(NFTA_EXPR_NAME).unwrap(), parts.get(NFTA_EXPR_DATA).unwrap().nested())
}

fn is_register(expression: &str, attribute: u16) -> bool {
    match expression {
        "payload" => attribute == NFTA_PAYLOAD_DREG,
        "meta" => [NFTA_META_DREG, NFTA_META_SREG].contains(&attribute),
        "immediate" => attribute == NFTA_IMMEDIATE_DREG,
        "dynset" => [NFTA_DYNSET_SREG_KEY, NFTA_DYNSET_SREG_DATA].contains(&attribute),
        other => panic!("the registers of {other} are not known here"),
    }
}

/// Where a register begins in the kernel's registers, in bytes: 1 to 4 are of 16 bytes, from 8 on they are of four
/// (`enum nft_registers`).
fn offset(register: u32) -> u32 {
    match register {
        1..=4 => (register - 1) * 16,
        8.. => (register - 8) * 4,
        _ => panic!("{register} is no register for data"),
    }
}

/// Whether it is the key's or the value's, and how far from its beginning.
fn place(offset: u32, key: u32, value: u32) -> Vec<u8> {
    let (of_value, from) = if value > key && offset >= value { (1, value) } else { (0, key) };
    [of_value, u8::try_from(offset - from).unwrap()].to_vec()
}

/// [`TableState`] keeps the kernel's own bytes of each rule: equal chains are
/// equal bytes.
#[test]
fn nft_makes_the_same_bytes_of_the_text() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            for config in all_configs(family) {
                let table = loadable(config);
                kernel.commit(&complete(&table)).unwrap();
                let (ours, our_elements) = everything(&mut kernel, family);
                kernel.delete_table(OwnTable::Main, family).unwrap();

                nft(&["-f", "-"], &render::table(&table)).unwrap();
                let (theirs, their_elements) = everything(&mut kernel, family);
                kernel.delete_table(OwnTable::Main, family).unwrap();

                for chain in table.chains.keys() {
                    let (our, their) = (ours.chain(&chain.to_string()), theirs.chain(&chain.to_string()));
                    match learns(*chain) {
                        true => assert_eq!(our.map(with_places), their.map(with_places), "{chain} {:?}", table.config),
                        false => assert_eq!(our, their, "{chain} {:?}", table.config),
                    }
                }
                assert_maps_as_nft_declares(&theirs, family);
                assert_eq!(our_elements, their_elements, "{:?}", table.config);
            }
        }
    });
}

/// nft declares as we do, but for the type of a slot: of a `typeof` with
/// `numgen` it makes `integer`, which has no size. The agent tells the two
/// apart and puts the table right.
fn assert_maps_as_nft_declares(state: &TableState, family: Family) {
    for map in Map::all() {
        let has_slot = map.key().contains(&KeyField::Slot);
        assert_eq!(state.map_matches(map, family), !has_slot, "{map} {family}");
    }
}

/// Slow: nft lists and loads every configuration.
#[test]
fn a_listing_of_ours_loads_again() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            for config in all_configs(family) {
                let table = loadable(config);
                kernel.commit(&complete(&table)).unwrap();
                let before = everything(&mut kernel, family);
                let listing = nft(&["list", "table", family.keyword(), TABLE], "").unwrap();

                // With the sets in place it is refused as a whole, because of the slots' type, and harms nothing.
                let flush = format!("flush table {} {TABLE}", family.keyword());
                match nft(&["-f", "-"], &format!("{flush}\n{listing}")) {
                    Err(refusal) => {
                        let refusal = refusal.to_string();
                        assert!(refusal.contains("endpoints") && refusal.contains("File exists"), "{refusal}");
                        assert_eq!(everything(&mut kernel, family), before, "{:?}", table.config);
                    }
                    // f6594c372afd ("netfilter: nf_tables: perform type checking for existing sets") compares the
                    // types. Without it the sets stay as they are, and the elements are the same ones.
                    Ok(_) => {
                        assert!(is_before(6, 2), "{flush} and the listing were loaded over the sets");
                        assert_eq!(everything(&mut kernel, family).1, before.1, "{:?}", table.config);
                    }
                }
                // Everything recreated, and into an empty rule set.
                let delete = format!("delete table {} {TABLE}", family.keyword());
                nft(&["-f", "-"], &format!("{delete}\n{listing}")).unwrap();
                assert_eq!(everything(&mut kernel, family).1, before.1, "{:?}", table.config);
                kernel.delete_table(OwnTable::Main, family).unwrap();
                nft(&["-f", "-"], &listing).unwrap();
                let (state, elements) = everything(&mut kernel, family);
                assert_eq!(elements, before.1, "{:?}", table.config);
                for (chain, rules) in &table.chains {
                    let name = chain.to_string();
                    match learns(*chain) {
                        true => assert_eq!(
                            state.chain(&name).map(with_places),
                            before.0.chain(&name).map(with_places),
                            "{chain} {:?}",
                            table.config
                        ),
                        false => assert!(state.chain_matches(*chain, family, rules), "{chain} {:?}", table.config),
                    }
                }
                assert_maps_as_nft_declares(&state, family);
                kernel.delete_table(OwnTable::Main, family).unwrap();
            }
        }
    });
}

/// nft 1.0.6 lists a rule that it cannot load, in the same words.
#[test]
fn nft_lists_the_rules_that_learn() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            let config = simple_config(family);
            kernel.commit(&skeleton(&config)).unwrap();
            let chain = Chain::LearnFor { seconds: 10800 };
            let listing = nft(&["list", "chain", family.keyword(), TABLE, &chain.to_string()], "").unwrap();
            for rule in rules(&config, chain) {
                let text = render::rule(family, &rule);
                assert!(listing.lines().any(|line| line.trim() == text), "{text}\n{listing}");
            }
        }
    });
}

#[test]
fn a_changed_chain_does_not_match() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        let config = simple_config(Family::Ipv4);
        kernel.commit(&skeleton(&config)).unwrap();
        let changes = [
            ("add rule ip vmap-proxy services accept", Chain::Frontends(Domain::Frontend)),
            ("flush chain ip vmap-proxy nodeports", Chain::Frontends(Domain::NodePort)),
            ("flush chain ip vmap-proxy reject-chain; add rule ip vmap-proxy reject-chain drop", Chain::Reject),
            ("chain ip vmap-proxy filter-input { policy drop; }", Chain::FilterInput),
        ];
        for (text, chain) in changes {
            let state = kernel.read_table(OwnTable::Main, Family::Ipv4).unwrap().unwrap();
            assert!(state.chain_matches(chain, Family::Ipv4, &rules(&config, chain)), "before {text}");
            nft(&["-f", "-"], text).unwrap();
            let state = kernel.read_table(OwnTable::Main, Family::Ipv4).unwrap().unwrap();
            assert!(!state.chain_matches(chain, Family::Ipv4, &rules(&config, chain)), "after {text}");
        }
        nft(&["-f", "-"], "table ip vmap-proxy { chain other {}\n set sticky-other { type ipv4_addr; }\n }").unwrap();
        let state = kernel.read_table(OwnTable::Main, Family::Ipv4).unwrap().unwrap();
        assert!(state.chain_names().any(|name| name == "other"));
        assert!(state.map_names().any(|name| name == "sticky-other"));
    });
}

#[test]
fn elements_that_are_not_ours_are_told_apart_and_removed() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        kernel.commit(&skeleton(&simple_config(Family::Ipv4))).unwrap();
        let text = "add element ip vmap-proxy services { 10.0.0.1 . icmp . 1 : drop, 10.0.0.2 . tcp . 80 : accept, \
                    10.0.0.3 . tcp . 80 : goto reject-chain }
                    add element ip vmap-proxy service-cidrs { 10.0.0.0-10.0.0.2, 10.1.0.0/16 }
                    add element ip vmap-proxy source-ranges { 10.0.0.1 . tcp . 80 . 10.0.0.1 . 10.0.0.2 }";
        nft(&["-f", "-"], text).unwrap();
        for (map, ours, others) in
            [(Map::Frontends(Domain::Frontend), 1, 2), (Map::ServiceCidrs, 1, 2), (Map::SourceRanges, 0, 1)]
        {
            let (known, foreign) = kernel.read_contents(Family::Ipv4, map).unwrap();
            assert_eq!((known.len(), foreign.len()), (ours, others), "{map}: {known:?} {foreign:?}");
            kernel.delete_foreign(Family::Ipv4, map, &foreign).unwrap();
            let (known, foreign) = kernel.read_contents(Family::Ipv4, map).unwrap();
            assert_eq!((known.len(), foreign.len()), (ours, 0), "{map}");
        }
    });
}
