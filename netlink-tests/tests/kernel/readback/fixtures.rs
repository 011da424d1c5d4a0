//! Tables with something of everything, for tests on a kernel.

use std::net::IpAddr;

use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber, Verdict};
use vmap_proxy_compiler::ruleset::maps::{DataKind, KeyField, Map};
use vmap_proxy_compiler::ruleset::skeleton::{LocalDetector, SkeletonConfig, rules};
use vmap_proxy_compiler::ruleset::spread::Spread;
use vmap_proxy_compiler::ruleset::table::Table;
use vmap_proxy_compiler::ruleset::target::{Domain, FrontendKey, NodePortKey, Pool, Target};

/// The fixed chains and one of each kind that exists once per number, of small
/// numbers and of those that share a chain.
pub(crate) fn all_chains(family: Family) -> Vec<Chain> {
    let mut chains = Chain::FIXED.to_vec();
    for domain in [Domain::Frontend, Domain::NodePort] {
        for pool in [Pool::Main, Pool::ShortCircuit] {
            for sticky in [false, true] {
                for endpoints in [3, 100] {
                    let chain = Chain::Balance { domain, pool, sticky, spread: Spread::of(endpoints) };
                    chains.extend(chain.needs().chain([chain]));
                }
            }
        }
    }
    let learn = Chain::LearnFor { seconds: 10800 };
    chains.extend(learn.needs().chain([learn]));
    let search = Chain::SourceRanges(family);
    chains.extend(search.needs().chain([search]));
    chains
}

/// All configurations of one family that the rules depend on.
pub(crate) fn all_configs(family: Family) -> Vec<SkeletonConfig> {
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

/// An operation of nobody in particular.
pub(crate) fn operation(family: Family, action: Action) -> Operation {
    Operation { family, action, owner: None }
}

/// Table, maps, chains and rules of one configuration.
pub(crate) fn skeleton(config: &SkeletonConfig) -> Transaction {
    let family = config.family;
    let mut actions = vec![Action::AddTable];
    actions.extend(Map::all().map(Action::AddMap));
    actions.extend(all_chains(family).into_iter().map(Action::AddChain));
    for chain in all_chains(family) {
        actions.push(Action::FlushChain(chain));
        actions.extend(rules(config, chain).into_iter().map(|rule| Action::AddRule(chain, rule)));
    }
    Transaction { operations: actions.into_iter().map(|action| operation(family, action)).collect() }
}

/// The first of [`all_configs`]: by source address, NodePorts on chosen addresses.
pub(crate) fn simple_config(family: Family) -> SkeletonConfig {
    all_configs(family).into_iter().next().unwrap()
}

/// One element that each map can hold, besides prefixes.
pub(crate) fn sample(family: Family, map: Map, number: u16) -> Element {
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
    let list = ListNumber::at(1 + u32::from(number)).unwrap();
    use KeyField::{Address, List, Port, Protocol as Proto, Slot};
    let key = match (map, map.key()) {
        (Map::ServiceCidrs, _) => Key::Prefix(net(short)),
        (Map::HairpinConnections, _) => Key::Hairpin(endpoint, protocol),
        (_, [Address, List]) => Key::Affinity(address(9), list),
        (_, [List]) => Key::List(list),
        (Map::SourceRanges | Map::SourceRangeMarkers, _) => {
            Key::SourceRange(frontend, net(if number.is_multiple_of(2) { full } else { short }))
        }
        (_, [Address]) => Key::Address(address(number)),
        (_, [Address, Proto, Port]) => Key::Target(Target::Frontend(frontend)),
        (_, [Address, Proto, Port, Slot]) => Key::Slot(Target::Frontend(frontend), u32::from(number)),
        (_, [Proto, Port]) => Key::Target(Target::NodePort(node_port)),
        (_, [Proto, Port, Slot]) => Key::Slot(Target::NodePort(node_port), u32::from(number)),
        other => panic!("{other:?}"),
    };
    let data = match map.data() {
        DataKind::Nothing => Data::Nothing,
        DataKind::Verdict if number.is_multiple_of(5) => Data::Verdict(Verdict::Drop),
        DataKind::Verdict => Data::Verdict(Verdict::Goto(Chain::Reject)),
        DataKind::Endpoint => Data::Endpoint(endpoint),
        DataKind::List => Data::List(list),
    };
    let comment = (number % 2 == 1).then(|| format!("shop/cart{number}:http").into());
    Element { map, key, data, comment }
}

/// Chains and sample elements of every map, as operations.
pub(crate) fn complete(table: &Table) -> Transaction {
    let mut actions = vec![Action::AddTable];
    actions.extend(Map::all().map(Action::AddMap));
    actions.extend(table.chains.keys().copied().map(Action::AddChain));
    for (chain, rules) in &table.chains {
        actions.extend(rules.iter().map(|rule| Action::AddRule(*chain, rule.clone())));
    }
    actions.extend(table.elements.iter().cloned().map(Action::AddElement));
    Transaction { operations: actions.into_iter().map(|action| operation(table.family, action)).collect() }
}

/// A table with every kind of chain and elements in every map that nft can
/// load: nft 1.0.6 aborts on the rules that learn for IPv6.
pub(crate) fn loadable(config: SkeletonConfig) -> Table {
    let family = config.family;
    let mut samples: Vec<Element> = Vec::new();
    for map in Map::all().filter(|map| !map.is_dynamic()) {
        samples.extend((0..7).map(|number| sample(family, map, number)));
    }
    let mut table = Table::new(config, samples);
    for chain in all_chains(family) {
        if family == Family::Ipv4 || !matches!(chain, Chain::LearnFor { .. }) {
            table.chains.insert(chain, rules(&table.config, chain));
        }
    }
    table
}
