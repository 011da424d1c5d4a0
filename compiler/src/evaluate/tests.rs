use std::net::IpAddr;

use super::{Bridge, Evaluator, Host, Outcome, Packet, Remembered, Verdict};
use crate::model::{Endpoint, Protocol};
use crate::ruleset::Family;
use crate::ruleset::chains::Chain;
use crate::ruleset::element::{self, Data, Element, Key, ListNumber};
use crate::ruleset::maps::Map;
use crate::ruleset::skeleton::{LocalDetector, SkeletonConfig};
use crate::ruleset::spread::Spread;
use crate::ruleset::table::{Ruleset, Table};
use crate::ruleset::target::{Domain, FrontendKey, NodePortKey, Pool, Target};

const NODE: &str = "192.0.2.11";
const POD: &str = "10.244.1.5";
const REMOTE_POD: &str = "10.244.2.7";
const CLIENT: &str = "198.51.100.23";
const CLUSTER_IP: &str = "10.96.0.10";
const VIP: &str = "203.0.113.80";

/// A rule set built by hand, element by element.
struct Rules {
    config: SkeletonConfig,
    elements: Vec<Element>,
}

impl Rules {
    /// IPv4, pods recognised by address, NodePorts on the node's own address.
    fn new() -> Self {
        let detector = Some(LocalDetector::Source("10.244.0.0/16".parse().unwrap()));
        let (family, masquerade_all, nodeports_on_all_addresses) = (Family::Ipv4, false, false);
        let config = SkeletonConfig { family, detector, masquerade_all, nodeports_on_all_addresses };
        Self { config, elements: Vec::new() }.with(Map::NodePortIps, Key::Address(ip(NODE)), Data::Nothing)
    }

    fn with(mut self, map: Map, key: Key, data: Data) -> Self {
        self.elements.push(Element { map, key, data, comment: Some(format!("shop/cart:{map}").into()) });
        self
    }

    /// An element with the verdict "goto the chain for this number of endpoints", and the endpoints.
    fn balanced(self, map: Map, key: Key, sticky: bool, endpoints: &[&str]) -> Self {
        let domain = if matches!(key, Key::Target(Target::NodePort(_))) { Domain::NodePort } else { Domain::Frontend };
        let (pool, list) = match map {
            Map::ShortCircuit(Domain::Frontend) => {
                (Pool::ShortCircuit, Map::Endpoints(Domain::Frontend, Pool::ShortCircuit))
            }
            Map::ShortCircuit(Domain::NodePort) => {
                (Pool::ShortCircuit, Map::Endpoints(Domain::NodePort, Pool::ShortCircuit))
            }
            Map::Frontends(Domain::NodePort) | Map::LocalFrontends(Domain::NodePort) => {
                (Pool::Main, Map::Endpoints(Domain::NodePort, Pool::Main))
            }
            _ => (Pool::Main, Map::Endpoints(Domain::Frontend, Pool::Main)),
        };
        let chain = Chain::Balance { domain, pool, sticky, spread: Spread::of(endpoints.len() as u32) };
        let mut rules = self.with(map, key, goto(chain));
        for (slot, endpoint) in (0..).zip(endpoints) {
            let slot_key = match key {
                Key::Target(Target::Frontend(frontend)) => Key::Slot(Target::Frontend(frontend), slot),
                Key::Target(Target::NodePort(port)) => Key::Slot(Target::NodePort(port), slot),
                other => panic!("{other:?} has no slots"),
            };
            rules = rules.with(list, slot_key, Data::Endpoint(at(endpoint)));
        }
        rules
    }

    /// A cluster IP that pods and others reach.
    fn cluster_ip(self, endpoints: &[&str]) -> Self {
        self.with(Map::ClusterIps, Key::Address(ip(CLUSTER_IP)), Data::Nothing).balanced(
            Map::Frontends(Domain::Frontend),
            frontend(CLUSTER_IP),
            false,
            endpoints,
        )
    }

    fn evaluate(self, packet: &Packet) -> Outcome {
        self.evaluate_with(Vec::new(), packet)
    }

    fn evaluate_with(self, bridges: Vec<Bridge>, packet: &Packet) -> Outcome {
        let ruleset = Ruleset { tables: vec![Table::new(self.config, self.elements)] };
        let local_addresses = vec![ip(NODE), ip("192.0.2.111"), ip("2001:db8:1::11")];
        let host = Host { local_addresses, bridges };
        Evaluator::new(&ruleset, host).evaluate(packet)
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().unwrap();
    Endpoint { address: socket.ip(), port: socket.port() }
}

fn goto(chain: Chain) -> Data {
    Data::Verdict(element::Verdict::Goto(chain))
}

const DROP: Data = Data::Verdict(element::Verdict::Drop);

/// TCP port 80 of an address.
fn frontend(address: &str) -> Key {
    Key::Target(Target::Frontend(FrontendKey { address: ip(address), protocol: Protocol::Tcp, port: 80 }))
}

const NODE_PORT: Key = Key::Target(Target::NodePort(NodePortKey { protocol: Protocol::Tcp, port: 30080 }));

fn arrives(from: &str, to: &str, port: u16) -> Packet {
    let input_interface = Some("eth0".to_owned());
    Packet { source: ip(from), destination: ip(to), protocol: Protocol::Tcp, port, input_interface }
}

fn sent_by_node(from: &str, to: &str, port: u16) -> Packet {
    Packet { input_interface: None, ..arrives(from, to, port) }
}

fn dnat(endpoints: &[&str]) -> Verdict {
    Verdict::Dnat { endpoints: endpoints.iter().map(|text| at(text)).collect() }
}

fn assert_outcome(outcome: &Outcome, verdict: Verdict, masqueraded: &[&str]) {
    assert_eq!(outcome.verdict, verdict, "{outcome:#?}");
    assert_eq!(outcome.masqueraded, masqueraded.iter().map(|text| at(text)).collect(), "{outcome:#?}");
}

const TWO: [&str; 2] = ["10.244.1.5:8080", "10.244.2.7:8080"];

#[test]
fn a_pod_reaches_every_endpoint_of_a_cluster_ip_with_its_own_address() {
    let outcome = Rules::new().cluster_ip(&TWO).evaluate(&arrives("10.244.1.9", CLUSTER_IP, 80));
    assert_outcome(&outcome, dnat(&TWO), &[]);
    let services = outcome.trace.iter().find(|step| step.chain == Chain::Frontends(Domain::Frontend)).unwrap();
    assert_eq!(services.rule_text, "ip daddr . meta l4proto . th dport vmap @services");
    assert_eq!(services.comment.as_deref(), Some("shop/cart:services"));
    assert!(services.element.as_deref().unwrap().ends_with(" : goto lb-2"), "{services:?}");
}

#[test]
fn others_are_masqueraded_on_their_way_to_a_cluster_ip() {
    for packet in [arrives(CLIENT, CLUSTER_IP, 80), sent_by_node(NODE, CLUSTER_IP, 80)] {
        assert_outcome(&Rules::new().cluster_ip(&TWO).evaluate(&packet), dnat(&TWO), &TWO);
    }
}

#[test]
fn each_detector_says_who_is_masqueraded() {
    let inside = LocalDetector::Interface("eth0".to_owned());
    let outside = LocalDetector::Interface("cbr0".to_owned());
    let prefix = LocalDetector::InterfacePrefix("eth".to_owned());
    let foreign = LocalDetector::InterfacePrefix("veth".to_owned());
    for (detector, masqueraded) in
        [(None, false), (Some(inside), false), (Some(outside), true), (Some(prefix), false), (Some(foreign), true)]
    {
        let mut rules = Rules::new().cluster_ip(&TWO);
        rules.config.detector = detector.clone();
        let outcome = rules.evaluate(&arrives(CLIENT, CLUSTER_IP, 80));
        assert_eq!(outcome.masqueraded.len(), if masqueraded { 2 } else { 0 }, "{detector:?}");
    }
}

/// The node's own packets have no input interface, so no detector takes them for a pod's.
#[test]
fn an_interface_detector_masquerades_the_node() {
    let mut rules = Rules::new().cluster_ip(&TWO);
    rules.config.detector = Some(LocalDetector::InterfacePrefix("veth".to_owned()));
    assert_outcome(&rules.evaluate(&sent_by_node(NODE, CLUSTER_IP, 80)), dnat(&TWO), &TWO);
}

/// Between two ports of such a bridge postrouting knows no input interface. One of the two endpoints is on it.
#[test]
fn a_pod_keeps_its_address_on_a_bridge_that_shows_its_packets() {
    let bridges = || vec![Bridge { name: "cbr0".to_owned(), networks: vec!["10.244.1.0/24".parse().unwrap()] }];
    let on = |interface: &str, from: &str| Packet {
        input_interface: Some(interface.to_owned()),
        ..arrives(from, CLUSTER_IP, 80)
    };
    let by_name = LocalDetector::Interface("cbr0".to_owned());
    let by_prefix = LocalDetector::InterfacePrefix("cbr".to_owned());
    let by_other_prefix = LocalDetector::InterfacePrefix("veth".to_owned());
    for (detector, packet, masqueraded) in [
        (&by_name, on("cbr0", "10.244.1.9"), false),
        (&by_prefix, on("cbr0", "10.244.1.9"), false),
        // The ports' names are nowhere to be seen, not in prerouting either.
        (&by_other_prefix, on("cbr0", "10.244.1.9"), true),
        (&by_name, on("eth0", CLIENT), true),
        (&by_prefix, on("eth0", CLIENT), true),
        (&by_name, sent_by_node(NODE, CLUSTER_IP, 80), true),
        (&by_prefix, sent_by_node(NODE, CLUSTER_IP, 80), true),
    ] {
        let mut rules = Rules::new().cluster_ip(&TWO);
        rules.config.detector = Some(detector.clone());
        let expected = if masqueraded { TWO.as_slice() } else { &[] };
        assert_outcome(&rules.evaluate_with(bridges(), &packet), dnat(&TWO), expected);
    }
}

#[test]
fn masquerade_all_masquerades_pods_too() {
    let mut rules = Rules::new().cluster_ip(&TWO);
    rules.config.masquerade_all = true;
    assert_outcome(&rules.evaluate(&arrives("10.244.1.9", CLUSTER_IP, 80)), dnat(&TWO), &TWO);
}

#[test]
fn a_pod_that_reaches_itself_is_masqueraded() {
    let hairpin = Key::Hairpin(at(TWO[0]), Protocol::Tcp);
    let rules = Rules::new().cluster_ip(&TWO).with(Map::HairpinConnections, hairpin, Data::Nothing);
    assert_outcome(&rules.evaluate(&arrives(POD, CLUSTER_IP, 80)), dnat(&TWO), &TWO[..1]);
}

#[test]
fn udp_and_tcp_are_told_apart() {
    let mut packet = arrives(POD, CLUSTER_IP, 80);
    packet.protocol = Protocol::Udp;
    assert_outcome(&Rules::new().cluster_ip(&TWO).evaluate(&packet), Verdict::Reject, &[]);

    // The generic rule behind the TCP rule serves it where it is defined.
    let key = Key::Target(Target::Frontend(FrontendKey { address: ip(CLUSTER_IP), protocol: Protocol::Udp, port: 80 }));
    let rules = Rules::new().balanced(Map::Frontends(Domain::Frontend), key, false, &TWO);
    assert_outcome(&rules.evaluate(&packet), dnat(&TWO), &[]);
}

#[test]
fn an_undefined_port_of_a_cluster_ip_is_rejected() {
    for packet in [arrives(POD, CLUSTER_IP, 81), sent_by_node(NODE, CLUSTER_IP, 81), arrives(CLIENT, CLUSTER_IP, 81)] {
        assert_outcome(&Rules::new().cluster_ip(&TWO).evaluate(&packet), Verdict::Reject, &[]);
    }
}

#[test]
fn unallocated_service_addresses_are_dropped() {
    let rules = || Rules::new().with(Map::ServiceCidrs, Key::Prefix("10.96.0.0/12".parse().unwrap()), Data::Nothing);
    assert_outcome(&rules().evaluate(&arrives(POD, "10.96.9.9", 80)), Verdict::Drop, &[]);
    assert_outcome(&rules().evaluate(&sent_by_node(NODE, "10.111.0.1", 80)), Verdict::Drop, &[]);
    assert_outcome(&rules().evaluate(&arrives(POD, "10.112.0.1", 80)), Verdict::Pass, &[]);
}

#[test]
fn frontends_without_endpoint_reject_or_drop_before_cluster_ips_reject() {
    for (data, verdict) in [(goto(Chain::Reject), Verdict::Reject), (DROP, Verdict::Drop)] {
        let rules = || {
            Rules::new().with(Map::ClusterIps, Key::Address(ip(CLUSTER_IP)), Data::Nothing).with(
                Map::NoEndpoints(Domain::Frontend),
                frontend(CLUSTER_IP),
                data,
            )
        };
        for packet in [arrives(POD, CLUSTER_IP, 80), sent_by_node(NODE, CLUSTER_IP, 80)] {
            assert_outcome(&rules().evaluate(&packet), verdict.clone(), &[]);
        }
    }
}

fn node_port() -> Rules {
    let rules = Rules::new().balanced(Map::Frontends(Domain::NodePort), NODE_PORT, false, &TWO);
    rules.with(Map::Masquerade(Domain::NodePort), NODE_PORT, Data::Nothing)
}

#[test]
fn node_ports_are_served_and_masqueraded_on_their_addresses_only() {
    for packet in [arrives(CLIENT, NODE, 30080), sent_by_node(NODE, NODE, 30080), arrives(POD, NODE, 30080)] {
        assert_outcome(&node_port().evaluate(&packet), dnat(&TWO), &TWO);
    }
    // Another address of the node, loopback, another host.
    for packet in [
        arrives(CLIENT, "192.0.2.111", 30080),
        sent_by_node("127.0.0.1", "127.0.0.1", 30080),
        arrives(CLIENT, "192.0.2.12", 30080),
    ] {
        assert_outcome(&node_port().evaluate(&packet), Verdict::Pass, &[]);
    }
}

#[test]
fn node_ports_on_all_addresses_leave_loopback_alone() {
    let evaluate = |packet: &Packet| {
        let mut rules = node_port();
        rules.config.nodeports_on_all_addresses = true;
        rules.evaluate(packet)
    };
    assert_outcome(&evaluate(&arrives(CLIENT, "192.0.2.111", 30080)), dnat(&TWO), &TWO);
    assert_outcome(&evaluate(&sent_by_node(NODE, "192.0.2.111", 30080)), dnat(&TWO), &TWO);
    assert_outcome(&evaluate(&sent_by_node("127.0.0.1", "127.0.0.2", 30080)), Verdict::Pass, &[]);
    assert_outcome(&evaluate(&arrives(CLIENT, "192.0.2.12", 30080)), Verdict::Pass, &[]);
}

/// To an endpoint on the node itself a packet that arrives never passes postrouting.
#[test]
fn what_is_delivered_to_the_node_keeps_its_source() {
    let endpoints = ["192.0.2.11:8080", "10.244.2.7:8080"];
    let rules = || {
        let rules = Rules::new().balanced(Map::Frontends(Domain::NodePort), NODE_PORT, false, &endpoints);
        rules.with(Map::Masquerade(Domain::NodePort), NODE_PORT, Data::Nothing)
    };
    assert_outcome(&rules().evaluate(&arrives(CLIENT, NODE, 30080)), dnat(&endpoints), &endpoints[1..]);
    assert_outcome(&rules().evaluate(&sent_by_node(NODE, NODE, 30080)), dnat(&endpoints), &endpoints);
}

#[test]
fn a_node_port_without_endpoint_is_refused_in_the_input_hook() {
    for (data, verdict) in [(goto(Chain::Reject), Verdict::Reject), (DROP, Verdict::Drop)] {
        for packet in [arrives(CLIENT, NODE, 30080), sent_by_node(NODE, NODE, 30080)] {
            let outcome = Rules::new().with(Map::NoEndpoints(Domain::NodePort), NODE_PORT, data).evaluate(&packet);
            assert_outcome(&outcome, verdict.clone(), &[]);
            assert!(outcome.trace.iter().any(|step| step.chain == Chain::FilterInput), "{outcome:#?}");
        }
    }
}

/// `externalTrafficPolicy: Local`, with or without an endpoint here.
fn local_policy(local: &[&str]) -> Rules {
    let rules = Rules::new()
        .with(Map::Frontends(Domain::Frontend), frontend(VIP), goto(Chain::LocalPolicy(Domain::Frontend)))
        .with(Map::LocalPolicy(Domain::Frontend), frontend(VIP), Data::Nothing)
        .balanced(Map::ShortCircuit(Domain::Frontend), frontend(VIP), false, &TWO);
    match local {
        [] => rules.with(Map::NoEndpoints(Domain::Frontend), frontend(VIP), DROP),
        _ => rules.balanced(Map::LocalFrontends(Domain::Frontend), frontend(VIP), false, local),
    }
}

#[test]
fn local_policy_sends_strangers_to_local_endpoints_with_their_own_address() {
    let local = &TWO[..1];
    assert_outcome(&local_policy(local).evaluate(&arrives(CLIENT, VIP, 80)), dnat(local), &[]);
    assert_outcome(&local_policy(local).evaluate(&arrives(REMOTE_POD, VIP, 80)), dnat(&TWO), &[]);
    assert_outcome(&local_policy(local).evaluate(&sent_by_node(NODE, VIP, 80)), dnat(&TWO), &TWO);
}

#[test]
fn local_policy_without_local_endpoint_drops_strangers_only() {
    assert_outcome(&local_policy(&[]).evaluate(&arrives(CLIENT, VIP, 80)), Verdict::Drop, &[]);
    assert_outcome(&local_policy(&[]).evaluate(&arrives(POD, VIP, 80)), dnat(&TWO), &[]);
    assert_outcome(&local_policy(&[]).evaluate(&sent_by_node(NODE, VIP, 80)), dnat(&TWO), &TWO);
}

#[test]
fn local_policy_of_node_ports() {
    let rules = || {
        Rules::new()
            .with(Map::Frontends(Domain::NodePort), NODE_PORT, goto(Chain::LocalPolicy(Domain::NodePort)))
            .with(Map::LocalPolicy(Domain::NodePort), NODE_PORT, Data::Nothing)
            .balanced(Map::ShortCircuit(Domain::NodePort), NODE_PORT, false, &TWO)
    };
    let with_local = || rules().balanced(Map::LocalFrontends(Domain::NodePort), NODE_PORT, false, &TWO[..1]);
    let without = || rules().with(Map::NoEndpoints(Domain::NodePort), NODE_PORT, DROP);
    assert_outcome(&with_local().evaluate(&arrives(CLIENT, NODE, 30080)), dnat(&TWO[..1]), &[]);
    assert_outcome(&with_local().evaluate(&sent_by_node(NODE, NODE, 30080)), dnat(&TWO), &TWO);
    assert_outcome(&with_local().evaluate(&arrives(POD, NODE, 30080)), dnat(&TWO), &[]);
    assert_outcome(&without().evaluate(&arrives(CLIENT, NODE, 30080)), Verdict::Drop, &[]);
    assert_outcome(&without().evaluate(&arrives(POD, NODE, 30080)), dnat(&TWO), &[]);
}

#[test]
fn source_ranges_stop_all_others_before_translation() {
    let rules = || {
        let key = FrontendKey { address: ip(VIP), protocol: Protocol::Tcp, port: 80 };
        Rules::new()
            .balanced(Map::Frontends(Domain::Frontend), frontend(VIP), false, &TWO)
            .with(Map::FirewallIps, frontend(VIP), goto(Chain::SourceRanges(Family::Ipv4)))
            .with(Map::SourceRanges, Key::SourceRange(key, "198.51.100.0/24".parse().unwrap()), Data::Nothing)
            .with(Map::SourceRanges, Key::SourceRange(key, "192.0.2.11/32".parse().unwrap()), Data::Nothing)
            .with(Map::SourceRangeMarkers, Key::SourceRange(key, "192.0.2.0/24".parse().unwrap()), Data::Nothing)
    };
    assert_outcome(&rules().evaluate(&arrives(CLIENT, VIP, 80)), dnat(&TWO), &[]);
    assert_outcome(&rules().evaluate(&sent_by_node(NODE, VIP, 80)), dnat(&TWO), &[]);
    assert_outcome(&rules().evaluate(&arrives("198.51.101.23", VIP, 80)), Verdict::Drop, &[]);
    assert_outcome(&rules().evaluate(&arrives(POD, VIP, 80)), Verdict::Drop, &[]);
    assert_outcome(&rules().evaluate(&sent_by_node("192.0.2.111", VIP, 80)), Verdict::Drop, &[]);
    // Another port of the same address is not filtered.
    assert_outcome(&rules().evaluate(&arrives(POD, VIP, 81)), Verdict::Pass, &[]);
}

#[test]
fn affinity_explores_every_slot_and_is_remembered() {
    let list = ListNumber::at(7).unwrap();
    let sticky = || {
        Rules::new()
            .balanced(Map::Frontends(Domain::Frontend), frontend(CLUSTER_IP), true, &TWO)
            .with(Map::AffinityLists(Domain::Frontend, Pool::Main), frontend(CLUSTER_IP), Data::List(list))
            .with(Map::AffinityTimeouts, Key::List(list), goto(Chain::LearnFor { seconds: 90 }))
    };
    for packet in [arrives(POD, CLUSTER_IP, 80), sent_by_node(NODE, CLUSTER_IP, 80)] {
        let outcome = sticky().evaluate(&packet);
        assert_outcome(&outcome, dnat(&TWO), &[]);
        assert_eq!(outcome.remembered, Some(Remembered { list, seconds: 90 }));
    }
    // A client that is known goes where it went before.
    let known = |list| sticky().with(Map::Affinity, Key::Affinity(ip(POD), list), Data::Endpoint(at(TWO[1])));
    assert_outcome(&known(list).evaluate(&arrives(POD, CLUSTER_IP, 80)), dnat(&TWO[1..]), &[]);
    // Entries of another list or another client do not count.
    let other = known(ListNumber::at(8).unwrap());
    assert_outcome(&other.evaluate(&arrives(POD, CLUSTER_IP, 80)), dnat(&TWO), &[]);
    assert_outcome(&known(list).evaluate(&sent_by_node(NODE, CLUSTER_IP, 80)), dnat(&TWO), &[]);
}

/// The endpoints are in the first slots.
fn many(endpoints: usize) -> Vec<String> {
    (0..endpoints).map(|number| format!("10.244.{}.{}:8080", 1 + number / 200, 1 + number % 200)).collect()
}

#[test]
fn every_one_of_many_endpoints_is_reached_and_nothing_is_dropped() {
    for count in [2, 3, 4, 5, 7, 8, 63, 64, 65, 100, 127, 128, 255, 256] {
        let many = many(count);
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for sticky in [false, true] {
            let rules = || {
                Rules::new()
                    .balanced(Map::Frontends(Domain::Frontend), frontend(CLUSTER_IP), sticky, &many)
                    .balanced(Map::Frontends(Domain::NodePort), NODE_PORT, sticky, &many)
                    .with(Map::Masquerade(Domain::NodePort), NODE_PORT, Data::Nothing)
            };
            let udp = Key::Target(Target::Frontend(FrontendKey {
                address: ip(CLUSTER_IP),
                protocol: Protocol::Udp,
                port: 80,
            }));
            let datagram = Packet { protocol: Protocol::Udp, ..arrives(POD, CLUSTER_IP, 80) };
            assert_outcome(&rules().evaluate(&arrives(POD, CLUSTER_IP, 80)), dnat(&many), &[]);
            assert_outcome(&rules().evaluate(&arrives(CLIENT, NODE, 30080)), dnat(&many), &many);
            let rules = Rules::new().balanced(Map::Frontends(Domain::Frontend), udp, sticky, &many);
            assert_outcome(&rules.evaluate(&datagram), dnat(&many), &[]);
        }
    }
}

#[test]
fn local_policy_with_many_endpoints() {
    let many = many(100);
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for sticky in [false, true] {
        let rules = || {
            Rules::new()
                .with(Map::Frontends(Domain::NodePort), NODE_PORT, goto(Chain::LocalPolicy(Domain::NodePort)))
                .with(Map::LocalPolicy(Domain::NodePort), NODE_PORT, Data::Nothing)
                .balanced(Map::ShortCircuit(Domain::NodePort), NODE_PORT, sticky, &many)
                .balanced(Map::LocalFrontends(Domain::NodePort), NODE_PORT, sticky, &many[..70])
        };
        assert_outcome(&rules().evaluate(&arrives(CLIENT, NODE, 30080)), dnat(&many[..70]), &[]);
        assert_outcome(&rules().evaluate(&sent_by_node(NODE, NODE, 30080)), dnat(&many), &many);
    }
}

/// A draw that is repeated is one step of the way, not eight.
#[test]
fn repeated_draws_are_named_once() {
    let many = many(100);
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let outcome = Rules::new().cluster_ip(&many).evaluate(&arrives(POD, CLUSTER_IP, 80));
    let texts = |chain: &str| -> Vec<&str> {
        let steps = outcome.trace.iter().filter(|step| step.chain.to_string() == chain);
        steps.map(|step| step.rule_text.as_str()).collect()
    };
    assert_eq!(texts("lb-max-127"), ["jump draw-127"]);
    let drawn = "dnat ip to ip daddr . meta l4proto . tcp dport . numgen random mod 127 map @endpoints";
    assert_eq!(texts("draw-127"), [drawn]);
}

/// A packet that finds nothing among the slots that must be filled is dropped, never let through.
#[test]
fn a_hole_among_the_slots_that_are_always_filled_is_inconsistent() {
    for (hole, whole) in [(0, false), (63, false), (64, true), (99, true)] {
        for sticky in [false, true] {
            let many = many(100);
            let many: Vec<&str> = many.iter().map(String::as_str).collect();
            let mut rules =
                Rules::new().balanced(Map::Frontends(Domain::Frontend), frontend(CLUSTER_IP), sticky, &many);
            rules
                .elements
                .retain(|element| !matches!(element.key, Key::Slot(Target::Frontend(_), slot) if slot == hole));
            match rules.evaluate(&arrives(POD, CLUSTER_IP, 80)).verdict {
                Verdict::Dnat { endpoints } => assert!(whole && endpoints.len() == 99, "{hole}"),
                Verdict::Inconsistent { endpoints, dropped: true, rejected: false, passed: false } => {
                    assert!(!whole && endpoints.len() == 99, "{hole}");
                }
                other => panic!("{hole}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_hole_among_the_slots_is_inconsistent() {
    let mut rules = Rules::new().cluster_ip(&TWO);
    rules.elements.retain(|element| !matches!(element.key, Key::Slot(Target::Frontend(_), 1)));
    let verdict = rules.evaluate(&arrives(POD, CLUSTER_IP, 80)).verdict;
    let endpoints = [at(TWO[0])].into();
    let (dropped, rejected, passed) = (true, false, false);
    assert_eq!(verdict, Verdict::Inconsistent { endpoints, dropped, rejected, passed });
}

#[test]
fn all_slots_missing_is_a_drop() {
    let mut rules = Rules::new().cluster_ip(&TWO);
    rules.elements.retain(|element| !matches!(element.key, Key::Slot(Target::Frontend(..), ..)));
    assert_outcome(&rules.evaluate(&arrives(POD, CLUSTER_IP, 80)), Verdict::Drop, &[]);
}

/// A connection is translated once: the new destination is not looked up again.
#[test]
fn an_endpoint_that_is_a_frontend_itself_meets_only_the_filters() {
    let rules = Rules::new()
        .balanced(Map::Frontends(Domain::Frontend), frontend(VIP), false, &["10.96.0.10:80"])
        .cluster_ip(&TWO)
        .with(Map::NoEndpoints(Domain::Frontend), frontend(CLUSTER_IP), DROP);
    assert_outcome(&rules.evaluate(&arrives(CLIENT, VIP, 80)), Verdict::Drop, &[]);
}

#[test]
fn a_load_balancer_address_comes_before_the_node_port_of_the_same_number() {
    let key = Key::Target(Target::Frontend(FrontendKey { address: ip(NODE), protocol: Protocol::Tcp, port: 30080 }));
    let rules = node_port().balanced(Map::Frontends(Domain::Frontend), key, false, &["10.244.1.6:9090"]);
    let outcome = rules.evaluate(&arrives(CLIENT, NODE, 30080));
    assert_eq!(outcome.verdict, dnat(&["10.244.1.6:9090"]), "{outcome:#?}");
}

#[test]
fn ipv6_has_a_table_of_its_own() {
    let endpoints = ["[fd00:10:244:1::5]:8080", "[fd00:10:244:2::7]:8080"];
    let mut rules = Rules::new();
    rules.config.family = Family::Ipv6;
    rules.config.detector = Some(LocalDetector::Source("fd00:10:244::/48".parse().unwrap()));
    rules.config.nodeports_on_all_addresses = true;
    let table = |rules: Rules| Ruleset { tables: vec![Table::new(rules.config, rules.elements)] };
    let ruleset = table(
        rules
            .with(Map::ClusterIps, Key::Address(ip("fd00:10:96::a")), Data::Nothing)
            .balanced(Map::Frontends(Domain::Frontend), frontend("fd00:10:96::a"), false, &endpoints)
            .balanced(Map::Frontends(Domain::NodePort), NODE_PORT, false, &endpoints)
            .with(Map::Masquerade(Domain::NodePort), NODE_PORT, Data::Nothing),
    );
    let evaluator = Evaluator::new(&ruleset, Host { local_addresses: vec![ip("2001:db8:1::11")], ..Host::default() });
    let arrives = |from, to, port| evaluator.evaluate(&arrives(from, to, port));
    assert_outcome(&arrives("fd00:10:244:1::9", "fd00:10:96::a", 80), dnat(&endpoints), &[]);
    assert_outcome(&arrives("2001:db8:2::23", "fd00:10:96::a", 80), dnat(&endpoints), &endpoints);
    assert_outcome(&arrives("2001:db8:2::23", "2001:db8:1::11", 30080), dnat(&endpoints), &endpoints);
    assert_outcome(&evaluator.evaluate(&sent_by_node("::1", "::1", 30080)), Verdict::Pass, &[]);
    assert_outcome(&arrives(CLIENT, CLUSTER_IP, 80), Verdict::Pass, &[]);
}

/// The kernel does not call a connection translated whose translation changes nothing (seen on 6.18), so no rule
/// masquerades it.
#[test]
fn a_translation_that_changes_nothing_is_none_to_ct_status() {
    let endpoints = ["192.0.2.11:30080"];
    let rules = Rules::new().balanced(Map::Frontends(Domain::NodePort), NODE_PORT, false, &endpoints).with(
        Map::Masquerade(Domain::NodePort),
        NODE_PORT,
        Data::Nothing,
    );
    assert_outcome(&rules.evaluate(&sent_by_node(NODE, NODE, 30080)), dnat(&endpoints), &[]);
}
