//! `render` writes exactly what `nft` lists, and the listing can be loaded again without loss.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key, ListNumber, Verdict, fit_comment};
use vmap_proxy_compiler::ruleset::maps::{DataKind, KeyField, Map};
use vmap_proxy_compiler::ruleset::skeleton::{LocalDetector, SkeletonConfig};
use vmap_proxy_compiler::ruleset::spread::Spread;
use vmap_proxy_compiler::ruleset::table::{Ruleset, Table};
use vmap_proxy_compiler::ruleset::target::{FrontendKey, NodePortKey, Pool, Target};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::nft::{NftError, load_nft, nft_in};
use vmap_proxy_testbed::skip::skipped_outside_ci;

/// Every combination of what the skeleton depends on.
fn configurations(family: Family) -> Vec<SkeletonConfig> {
    let pods = net(family, "10.244.0.0/16", "fd00:10:244::/56");
    let detectors = [
        None,
        Some(LocalDetector::Source(pods)),
        Some(LocalDetector::Interface("cbr0".to_owned())),
        Some(LocalDetector::InterfacePrefix("veth".to_owned())),
    ];
    let mut configurations = Vec::new();
    for detector in detectors {
        for masquerade_all in [false, true] {
            for nodeports_on_all_addresses in [false, true] {
                let detector = detector.clone();
                configurations.push(SkeletonConfig { family, detector, masquerade_all, nodeports_on_all_addresses });
            }
        }
    }
    configurations
}

fn net(family: Family, v4: &str, v6: &str) -> IpNet {
    match family {
        Family::Ipv4 => v4.parse().unwrap(),
        Family::Ipv6 => v6.parse().unwrap(),
    }
}

/// The n-th address of some documentation range.
fn address(family: Family, n: u32) -> IpAddr {
    match family {
        Family::Ipv4 => std::net::Ipv4Addr::from(0x0a60_0000 + n).into(),
        Family::Ipv6 => std::net::Ipv6Addr::from((0xfd00_u128 << 112) + u128::from(n)).into(),
    }
}

/// Several elements in every map, all three protocols, every kind of chain a verdict can point to. Without the
/// chains that learn where this nft can't write them: see [`nft_can_learn`].
fn elements(family: Family) -> Vec<Element> {
    let can_learn = nft_can_learn(family);
    let mut elements = Vec::new();
    for map in Map::all().filter(|map| !map.is_dynamic()) {
        if map == Map::AffinityTimeouts && !can_learn {
            continue;
        }
        for (key, verdict) in keys(map, family).into_iter().zip(verdicts(map, family).into_iter().cycle()) {
            let number = elements.len() as u32;
            let data = match map.data() {
                DataKind::Nothing => Data::Nothing,
                DataKind::Verdict => Data::Verdict(verdict),
                DataKind::Endpoint => {
                    Data::Endpoint(Endpoint { address: address(family, 0x1000 + number), port: 8080 })
                }
                DataKind::List => Data::List(ListNumber::at(1 + number * 0x1234).unwrap()),
            };
            let comment = match number % 3 {
                0 => None,
                1 => Some(format!("shop/cart-{number}:http").into()),
                _ => Some(fit_comment(&"long/".repeat(40)).into()),
            };
            elements.push(Element { map, key, data, comment });
        }
    }
    elements
}

/// Returns whether this nft can write the rule that learns affinity. nft 1.0.6 sets aside 16 bytes of registers for the
/// key of an `update` with a value, whatever the key's length (mended in 1.0.9: "skip set element expression in map
/// statement key"), so of IPv6 it ends in a failed assertion. It happens before anything is sent to the kernel.
fn nft_can_learn(family: Family) -> bool {
    let config = SkeletonConfig { family, detector: None, masquerade_all: false, nodeports_on_all_addresses: false };
    let key = Key::List(ListNumber::at(1).unwrap());
    let data = Data::Verdict(Verdict::Goto(Chain::LearnFor { seconds: 1 }));
    let element = Element { map: Map::AffinityTimeouts, key, data, comment: None };
    let namespace = NetNs::new("can nft learn").unwrap();
    match load_nft(&namespace, &render::table(&Table::new(config, vec![element]))) {
        Ok(()) => true,
        Err(NftError::Refused(text)) if family == Family::Ipv6 && text.contains("dreg < ctx->reg_low") => false,
        Err(error) => panic!("the rules that learn: {error}"),
    }
}

/// Ports whose bytes differ, slots beyond one byte: what is swapped shows.
fn keys(map: Map, family: Family) -> Vec<Key> {
    let frontend = |n: u32, protocol| FrontendKey { address: address(family, n), protocol, port: 258 + n as u16 };
    let prefixes = [
        net(family, "10.0.0.0/9", "fd00::/9"),
        net(family, "10.128.0.0/9", "fd80::/9"),
        net(family, "192.0.2.1/32", "2001:db8::1/128"),
        net(family, "198.51.100.0/31", "2001:db8:1::/64"),
    ];
    let mut keys = Vec::new();
    for (n, protocol) in (1..=5).zip(Protocol::ALL.into_iter().cycle()) {
        let node_port = NodePortKey { protocol, port: 30000 + n as u16 };
        match map.key() {
            _ if matches!(map, Map::SourceRanges | Map::SourceRangeMarkers) => {
                keys.extend(prefixes.map(|prefix| Key::SourceRange(frontend(n, protocol), prefix)));
            }
            _ if map == Map::ServiceCidrs => keys = prefixes.map(Key::Prefix).to_vec(),
            _ if map == Map::HairpinConnections => {
                keys.push(Key::Hairpin(Endpoint { address: address(family, n), port: 8080 }, protocol));
            }
            [KeyField::Address] => keys.push(Key::Address(address(family, n))),
            [KeyField::Address, KeyField::Protocol, KeyField::Port] => {
                keys.push(Key::Target(Target::Frontend(frontend(n, protocol))))
            }
            [KeyField::List] => keys.push(Key::List(ListNumber::at(n * 0x1234).unwrap())),
            [KeyField::Protocol, KeyField::Port] => keys.push(Key::Target(Target::NodePort(node_port))),
            [KeyField::Protocol, KeyField::Port, KeyField::Slot] => {
                keys.extend([0, 1, 256, 65535].map(|slot| Key::Slot(Target::NodePort(node_port), slot)));
            }
            [_, _, _, KeyField::Slot] => {
                keys.extend([0, 1, 256, 65535].map(|slot| Key::Slot(Target::Frontend(frontend(n, protocol)), slot)));
            }
            other => panic!("no keys for {map}: {other:?}"),
        }
    }
    keys
}

/// The permitted verdicts of a map: dnat only where the kernel accepts it.
fn verdicts(map: Map, family: Family) -> Vec<Verdict> {
    let chains = |domain, pool| -> Vec<Verdict> {
        let balance =
            |sticky, endpoints| Verdict::Goto(Chain::Balance { domain, pool, sticky, spread: Spread::of(endpoints) });
        vec![balance(false, 1), balance(true, 3), balance(false, 300), balance(true, 10_000)]
    };
    match map {
        Map::Frontends(domain) => {
            [chains(domain, Pool::Main), vec![Verdict::Goto(Chain::LocalPolicy(domain))]].concat()
        }
        Map::LocalFrontends(domain) => chains(domain, Pool::Main),
        Map::ShortCircuit(domain) => chains(domain, Pool::ShortCircuit),
        Map::AffinityTimeouts => {
            [1, 90, 10800, 86400].map(|seconds| Verdict::Goto(Chain::LearnFor { seconds })).to_vec()
        }
        Map::FirewallIps => vec![Verdict::Goto(Chain::SourceRanges(family))],
        _ => vec![Verdict::Goto(Chain::Reject), Verdict::Drop],
    }
}

/// Both families' tables, for each configuration.
fn rulesets() -> Vec<Ruleset> {
    let of = |family| configurations(family).into_iter().map(move |config| Table::new(config, elements(family)));
    of(Family::Ipv4).zip(of(Family::Ipv6)).map(|(v4, v6)| Ruleset { tables: vec![v4, v6] }).collect()
}

fn nft(namespace: &NetNs, arguments: &[&str]) -> String {
    nft_in(namespace, arguments, "").unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn listing(namespace: &NetNs) -> String {
    nft(namespace, &["list", "ruleset"])
}

/// Returns the bytecode of every rule in the kernel, by table and chain. Element dumps are left out (their order
/// is the hash table's), and so are handles.
fn bytecode(namespace: &NetNs) -> BTreeMap<String, Vec<String>> {
    let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut chain = None;
    for line in nft(namespace, &["--debug=netlink", "list", "ruleset"]).lines() {
        if let Some(expression) = line.strip_prefix("  [ ") {
            if let Some(rules) = chain.as_ref().and_then(|chain| rules.get_mut(chain)) {
                rules.push(expression.to_owned());
            }
        } else if let Some(name) = rule_header(line) {
            rules.entry(name.clone()).or_default().push("rule".to_owned());
            chain = Some(name);
        } else {
            chain = None;
        }
    }
    rules
}

/// `ip vmap-proxy services 12 11`: family, table, chain and two handles stand before a rule's expressions.
fn rule_header(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [family @ ("ip" | "ip6"), "vmap-proxy", chain, handle, ..] if handle.parse::<u64>().is_ok() => {
            Some(format!("{family} {chain}"))
        }
        _ => None,
    }
}

/// Versions of nft differ in where they write the priority of a hook as a name with an offset.
fn numeric_priority(line: &str) -> String {
    const NAMES: [(&str, i32); 6] =
        [("raw", -300), ("mangle", -150), ("dstnat", -100), ("filter", 0), ("security", 50), ("srcnat", 100)];
    let Some((before, rest)) = line.split_once(" priority ") else { return line.to_owned() };
    let Some((priority, after)) = rest.split_once(';') else { return line.to_owned() };
    let mut words = priority.split(' ');
    let name = words.next().unwrap_or_default();
    let Some(base) = NAMES.iter().find(|(known, _)| *known == name).map(|(_, base)| *base) else {
        return line.to_owned();
    };
    let offset: i32 = words.collect::<String>().parse().unwrap_or(0);
    format!("{before} priority {};{after}", base + offset)
}

/// Puts the elements of each set in one order, one a line, and priorities as numbers; everything else stays as it is.
fn normalised(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut elements: Option<Vec<String>> = None;
    for line in text.lines() {
        let content = match line.trim_start().strip_prefix("elements = { ") {
            Some(first) => {
                elements = Some(Vec::new());
                first
            }
            None => line,
        };
        let Some(list) = &mut elements else {
            lines.push(numeric_priority(line));
            continue;
        };
        let (content, last) = content.strip_suffix(" }").map_or((content, false), |content| (content, true));
        list.extend(content.split(", ").map(|one| one.trim().trim_end_matches(',').to_owned()));
        if last {
            list.sort();
            lines.append(list);
            elements = None;
        }
    }
    lines
}

fn assert_same_text(found: &str, expected: &str, what: &str) {
    let (found, expected) = (normalised(found), normalised(expected));
    for (number, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "{what}, line {number}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: number of lines");
}

/// Loads a whole rule set; false, with a loud line, if the kernel takes no such batch. nft sends everything at once, and
/// without CAP_NET_ADMIN in the initial user namespace `net.core.wmem_max` bounds that: an ordinary user's limit.
fn load_whole(namespace: &NetNs, text: &str) -> bool {
    match load_nft(namespace, text) {
        Ok(()) => true,
        Err(NftError::Refused(reason)) if reason.contains("Message too long") => {
            skipped_outside_ci(format_args!(
                "a rule set of {} KiB is too large for one batch of an ordinary user ({}); run this as root",
                text.len() / 1024,
                reason.trim()
            ));
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn nft_lists_what_render_writes_for_every_configuration() {
    for ruleset in rulesets() {
        let namespace = NetNs::new("listing").unwrap();
        let text = render::ruleset(&ruleset);
        if !load_whole(&namespace, &text) {
            return;
        }
        assert_same_text(&listing(&namespace), &text, &format!("{:?}", ruleset.tables[0].config));
    }
}

/// In nft's own layout too: where lines break depends on nothing but the type of the set.
#[test]
fn one_element_a_set_is_listed_line_for_line() {
    for family in Family::ALL {
        let mut seen = BTreeSet::new();
        let one_each = elements(family).into_iter().filter(|element| seen.insert(element.map)).collect();
        let table = Table::new(configurations(family).remove(0), one_each);
        let namespace = NetNs::new("listing").unwrap();
        load_nft(&namespace, &render::table(&table)).unwrap();
        let lines = |text: &str| -> Vec<String> { text.lines().map(numeric_priority).collect() };
        assert_eq!(lines(&listing(&namespace)), lines(&render::table(&table)));
    }
}

/// Slow: nft lists and loads every configuration three times.
#[test]
fn a_listing_loads_again_with_the_same_meaning() {
    for ruleset in rulesets() {
        let namespace = NetNs::new("listing").unwrap();
        if !load_whole(&namespace, &render::ruleset(&ruleset)) {
            return;
        }
        let (first, first_code) = (listing(&namespace), bytecode(&namespace));
        let context = format!("{:?}", ruleset.tables[0].config);
        assert_rules_for_every_protocol(&first_code);

        // The three ways in which administrators restore a listing: rules recreated with the sets in place, everything recreated,
        // and after a reboot.
        let flush_rules: String = Family::ALL.map(|f| format!("flush table {} vmap-proxy\n", f.keyword())).concat();
        let rebooted = NetNs::new("listing").unwrap();
        for (target, prefix) in [(&namespace, &*flush_rules), (&namespace, "flush ruleset\n"), (&rebooted, "")] {
            load_nft(target, &format!("{prefix}{first}")).unwrap();
            assert_same_text(&listing(target), &first, &format!("{context} after {prefix:?}"));
            assert_eq!(bytecode(target), first_code, "{context} after {prefix:?}");
        }

        // As it stands over itself: nft appends each rule once more.
        load_nft(&namespace, &first).unwrap();
        for (chain, code) in bytecode(&namespace) {
            let once = &first_code[&chain];
            assert_eq!(code, [once.as_slice(), once].concat(), "{context}: {chain} appended");
        }
    }
}

/// nft prints the one byte of a protocol as a word of four up to 1.1.3 or later, and as a byte since.
fn is_match_for_tcp(line: &str) -> bool {
    line.strip_prefix("cmp eq reg 1 0x")
        .and_then(|rest| rest.split(' ').next())
        .is_some_and(|value| matches!(value, "00000006" | "06"))
}

/// The rule behind the TCP rule serves UDP and SCTP: it must not have been given a match for TCP as well, and the
/// TCP rule must have one. Where not every slot is filled, one more draw follows, for every protocol. A `sticky` chain
/// asks the affinity map, with a rule for each protocol, and goes on to the chain that draws.
fn assert_rules_for_every_protocol(code: &BTreeMap<String, Vec<String>>) {
    let mut kinds = BTreeSet::new();
    for (chain, code) in code {
        let name = chain.rsplit(' ').next().unwrap_or_default();
        let expected: &[bool] = match Chain::parse(name) {
            Some(Chain::Draw { .. }) => &[true, false],
            Some(Chain::Balance { sticky: false, spread: Spread::Exactly(_), .. }) => &[true, false],
            Some(Chain::Balance { sticky: false, spread: Spread::AtMost(_), .. }) => &[false],
            Some(Chain::Balance { sticky: true, .. }) => &[true, false, false],
            _ => continue,
        };
        let only_tcp: Vec<bool> = code
            .split(|line| line == "rule")
            .filter(|rule| rule.iter().any(|line| line.starts_with("nat dnat")))
            .map(|rule| rule.iter().any(|line| is_match_for_tcp(line)))
            .collect();
        assert_eq!(only_tcp, expected, "{chain}: {code:#?}");
        kinds.insert(expected);
    }
    assert_eq!(kinds.len(), 3, "not every kind of balancing chain was read: {kinds:?}");
}
