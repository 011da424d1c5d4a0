//! What we write over netlink is what the kernel holds and what nft makes of
//! the same text.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::IpAddr;
use std::sync::Arc;

use agent::netlink::{CommitError, Kernel};
use compiler::diff::{Action, Operation, Transaction};
use compiler::model::{Endpoint, Protocol};
use compiler::ruleset::Family;
use compiler::ruleset::chains::{Chain, Domain, Pool};
use compiler::ruleset::element::{Data, Element, FrontendKey, Key, NodePortKey, Verdict};
use compiler::ruleset::maps::{DataKind, KeyField, Map};
use compiler::ruleset::skeleton::{LocalDetector, SkeletonConfig, rules};
use netlink_tests::readback::in_fresh_namespace;

netlink_tests::in_own_namespaces!();

/// The fixed chains and one of each kind that exists once per number.
fn all_chains() -> Vec<Chain> {
    let mut chains = Chain::FIXED.to_vec();
    for domain in [Domain::Service, Domain::NodePort] {
        for pool in [Pool::Main, Pool::ShortCircuit] {
            for sticky in [false, true] {
                chains.push(Chain::Balance { domain, pool, sticky, endpoints: 3 });
            }
        }
    }
    chains.push(Chain::LearnFor { seconds: 10800 });
    chains
}

/// All configurations of one family that the rules depend on.
fn all_configs(family: Family) -> Vec<SkeletonConfig> {
    let nets: &[&str] = match family {
        Family::Ipv4 => &["10.244.0.0/16", "10.244.16.0/20", "10.244.1.1/32", "0.0.0.0/0"],
        Family::Ipv6 => &["fd00:10::/32", "fd00:10::/29", "fd00:10::1/128", "::/0"],
    };
    let mut detectors: Vec<Option<LocalDetector>> =
        nets.iter().map(|net| Some(LocalDetector::Source(net.parse().unwrap()))).collect();
    detectors.push(Some(LocalDetector::Interface("cbr0".into())));
    detectors.push(Some(LocalDetector::InterfacePrefix("veth".into())));
    detectors.push(None);
    let mut configs = Vec::new();
    for detector in detectors {
        for nodeports_on_all_addresses in [false, true] {
            for masquerade_all in [false, true] {
                let detector = detector.clone();
                configs.push(SkeletonConfig { family, detector, masquerade_all, nodeports_on_all_addresses });
            }
        }
    }
    configs
}

fn operation(family: Family, action: Action) -> Operation {
    Operation { family, action, owner: None }
}

/// Table, maps, chains and rules of one configuration.
fn skeleton(config: &SkeletonConfig) -> Transaction {
    let family = config.family;
    let mut actions = vec![Action::AddTable];
    actions.extend(Map::ALL.map(Action::AddMap));
    actions.extend(all_chains().into_iter().map(Action::AddChain));
    for chain in all_chains() {
        actions.push(Action::FlushChain(chain));
        actions.extend(rules(config, chain).into_iter().map(|rule| Action::AddRule(chain, rule)));
    }
    Transaction { operations: actions.into_iter().map(|action| operation(family, action)).collect() }
}

fn simple_config(family: Family) -> SkeletonConfig {
    all_configs(family).into_iter().next().unwrap()
}

#[test]
fn every_chain_and_map_reads_back_as_written() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            assert!(kernel.read_table(family).await.unwrap().is_none());
            for config in all_configs(family) {
                kernel.commit(&skeleton(&config)).await.unwrap_or_else(|error| panic!("{config:?}: {error}"));
                let state = kernel.read_table(family).await.unwrap().unwrap();
                for chain in all_chains() {
                    assert!(state.chain_matches(chain, family, &rules(&config, chain)), "{chain} {config:?}");
                }
                for map in Map::ALL {
                    assert!(state.map_matches(map, family), "{map} {family}");
                }
            }
            assert!(kernel.delete_table(family).await.unwrap());
            assert!(!kernel.delete_table(family).await.unwrap());
        }
    });
}

/// One element that each map can hold, besides prefixes.
fn sample(family: Family, map: Map, number: u16) -> Element {
    let address = |host: u16| -> IpAddr {
        match family {
            Family::Ipv4 => IpAddr::from([10, 96, (host >> 8) as u8, host as u8]),
            Family::Ipv6 => IpAddr::from([0xfd00, 0x96, 0, 0, 0, 0, 0, host]),
        }
    };
    let protocol = Protocol::ALL[usize::from(number) % 3];
    let frontend = FrontendKey { address: address(number), protocol, port: 80 + number };
    let node_port = NodePortKey { protocol, port: 30000 + number };
    let endpoint = Endpoint { address: address(4000 + number), port: 8080 };
    let net = |length: u8| ipnet::IpNet::new(address(number << 4), length).unwrap().trunc();
    let (full, short) = if family == Family::Ipv4 { (32, 28) } else { (128, 124) };
    use KeyField::{Address, Port, Protocol as Proto, Slot};
    let key = match (map, map.key()) {
        (Map::ServiceCidrs, _) => Key::Prefix(net(short)),
        (Map::HairpinConnections, _) => Key::Hairpin(endpoint, protocol),
        (Map::Affinity, _) => Key::Affinity(address(9), frontend),
        (Map::SourceRanges, _) => Key::SourceRange(frontend, net(if number % 2 == 0 { full } else { short })),
        (_, [Address]) => Key::Address(address(number)),
        (_, [Address, Proto, Port]) => Key::Frontend(frontend),
        (_, [Address, Proto, Port, Slot]) => Key::FrontendSlot(frontend, u32::from(number)),
        (_, [Proto, Port]) => Key::NodePort(node_port),
        (_, [Proto, Port, Slot]) => Key::NodePortSlot(node_port, u32::from(number)),
        other => panic!("{other:?}"),
    };
    let data = match map.data() {
        DataKind::Nothing => Data::Nothing,
        DataKind::Verdict if number % 5 == 0 => Data::Verdict(Verdict::Drop),
        DataKind::Verdict => Data::Verdict(Verdict::Goto(Chain::Reject)),
        DataKind::Endpoint => Data::Endpoint(endpoint),
    };
    let comment = (number % 2 == 1).then(|| Arc::from(format!("shop/cart{number}:http")));
    Element { map, key, data, comment }
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
            kernel.commit(&skeleton(&simple_config(family))).await.unwrap();
            for map in Map::ALL {
                // More than one message's worth.
                let mut expected: Vec<Element> = (0..1500).map(|number| sample(family, map, number)).collect();
                kernel.commit(&elements(family, &expected, true)).await.unwrap_or_else(|e| panic!("{map}: {e}"));
                let (states, foreign) = kernel.read_contents(family, map).await.unwrap();
                assert_eq!(foreign, []);
                let mut listed: Vec<Element> = states.iter().map(|state| state.element.clone()).collect();
                let order = |element: &Element| element.key;
                listed.sort_by_key(order);
                expected.sort_by_key(order);
                assert_eq!(listed, expected, "{map}");
                for state in states {
                    assert_eq!(state.counter.is_some(), map.has_counter(), "{map}");
                }
                kernel.commit(&elements(family, &expected, false)).await.unwrap_or_else(|e| panic!("{map}: {e}"));
                assert_eq!(kernel.read_elements(family, map).await.unwrap(), [], "{map}");
            }
        }
    });
}

#[test]
fn a_refused_element_is_named() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        for family in Family::ALL {
            kernel.commit(&skeleton(&simple_config(family))).await.unwrap();
            for map in Map::ALL {
                // Where boundaries of ranges may be shared, adding twice is no error.
                if map == Map::ServiceCidrs {
                    continue;
                }
                let mut list: Vec<Element> = (0..1500).map(|number| sample(family, map, number)).collect();
                kernel.commit(&elements(family, &list[1234..1235], true)).await.unwrap();
                match kernel.commit(&elements(family, &list, true)).await {
                    Err(CommitError::Refused { failures }) => {
                        assert_eq!(failures.len(), 1, "{failures:?}");
                        let failure = &failures[0];
                        assert_eq!((failure.operation, failure.span, failure.errno), (1234, 1, 17), "{failures:?}");
                        assert!(failure.description.contains("for Service shop/cart: File exists"), "{failure:?}");
                    }
                    other => panic!("{map}: {other:?}"),
                }
                assert_eq!(kernel.read_elements(family, map).await.unwrap().len(), 1, "nothing of it is committed");
                // Deleting what is not there is refused likewise, but for learned entries.
                list.swap(7, 1234);
                let result = kernel.commit(&elements(family, &list[..8], false)).await;
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
