//! The harness proves itself: what its probes tell apart, they tell apart rightly.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use vmap_proxy_lab::{Lab, LabError, NetNs, Probe, ProbeResult, Transport};
use vmap_proxy_testbed::nft::{NftError, load_nft};

const PATIENT: Duration = Duration::from_millis(900);
const BRIEF: Duration = Duration::from_millis(200);
const ALL_TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

/// One node, two local pods in one namespace and one in its own, a client and remote pods outside.
fn lab() -> Lab {
    Lab::builder()
        .node_addresses(ips(&["192.0.2.11", "2001:db8:1::11", "192.0.2.211"]))
        .host("pods", "vethab", ips(&["10.244.1.5", "10.244.1.6", "fd00:10:244:1::5", "fd00:10:244:1::6"]))
        .host("lone-pod", "vethcd", ips(&["10.244.1.7", "fd00:10:244:1::7"]))
        .uplink("outside", "eth0", ips(&["198.51.100.23", "2001:db8:2::23", "10.244.2.5", "203.0.113.9"]))
        .build()
        .unwrap()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn probe(source: &str, target: &str, transport: Transport, timeout: Duration) -> Probe {
    Probe { source: ip(source), target: at(target), transport, timeout }
}

/// Listens at `target`, probes it, and returns the source address it saw.
#[track_caller]
fn reach(lab: &Lab, source: &str, target: &str, transport: Transport) -> IpAddr {
    lab.listen(at(target), transport).unwrap();
    match lab.probe(&probe(source, target, transport, PATIENT)) {
        Ok(ProbeResult::Answered { by, seen_source }) if by == at(target) => seen_source,
        other => panic!("{source} to {target} over {transport}: {other:?}"),
    }
}

#[test]
fn pods_node_and_clients_reach_each_other_untranslated() {
    let lab = lab();
    let pairs = [
        ("10.244.1.5", "10.244.1.7:8080"),
        ("10.244.1.7", "10.244.1.5:8080"),
        ("10.244.1.5", "10.244.1.6:8080"),
        ("10.244.1.5", "10.244.2.5:8080"),
        ("198.51.100.23", "10.244.1.6:8080"),
        ("198.51.100.23", "203.0.113.9:80"),
        ("198.51.100.23", "192.0.2.211:80"),
        ("10.244.1.5", "192.0.2.11:80"),
        ("192.0.2.11", "10.244.1.5:8080"),
        ("192.0.2.211", "10.244.2.5:8080"),
        ("192.0.2.11", "192.0.2.211:81"),
        ("127.0.0.1", "127.0.0.1:80"),
        ("fd00:10:244:1::5", "[fd00:10:244:1::7]:8080"),
        ("fd00:10:244:1::5", "[fd00:10:244:1::6]:8080"),
        ("2001:db8:2::23", "[fd00:10:244:1::7]:8080"),
        ("2001:db8:2::23", "[2001:db8:1::11]:80"),
        ("2001:db8:1::11", "[fd00:10:244:1::7]:8080"),
        ("::1", "[::1]:80"),
    ];
    for transport in ALL_TRANSPORTS {
        for (source, target) in pairs {
            assert_eq!(reach(&lab, source, target, transport), ip(source), "{target}");
        }
    }
}

#[test]
fn two_addresses_of_one_host_talk_through_the_node() {
    let lab = lab();
    load_nft(
        lab.node(),
        "table inet count { chain forward { type filter hook forward priority 0;
           ip saddr 10.244.1.5 ip daddr 10.244.1.6 drop
           ip6 saddr fd00:10:244:1::5 ip6 daddr fd00:10:244:1::6 drop; }; }",
    )
    .unwrap();
    for (source, target) in [("10.244.1.5", "10.244.1.6:8080"), ("fd00:10:244:1::5", "[fd00:10:244:1::6]:8080")] {
        for transport in ALL_TRANSPORTS {
            lab.listen(at(target), transport).unwrap();
            let result = lab.probe(&probe(source, target, transport, BRIEF)).unwrap();
            assert_eq!(result, ProbeResult::Silence, "{source} {transport}");
        }
    }
}

#[test]
fn reject_reset_and_silence_are_told_apart() {
    let lab = lab();
    // One rule set per hook a locally generated, a forwarded and an arriving packet meets.
    let verdicts = "th dport 1001 reject; th dport 1002 drop; th dport 1003 reject with icmpx admin-prohibited;
        tcp dport 1004 reject with tcp reset";
    let chains: String = ["input", "forward", "output"]
        .map(|hook| format!("chain {hook} {{ type filter hook {hook} priority 0; {verdicts}; }}\n"))
        .concat();
    load_nft(lab.node(), &format!("table inet judge {{ {chains} }}")).unwrap();
    let ways = [
        ("10.244.1.5", "10.244.1.7"),
        ("198.51.100.23", "192.0.2.11"),
        ("192.0.2.11", "10.244.1.5"),
        ("fd00:10:244:1::5", "[fd00:10:244:1::7]"),
        ("2001:db8:2::23", "[2001:db8:1::11]"),
        ("2001:db8:1::11", "[fd00:10:244:1::7]"),
    ];
    for (source, host) in ways {
        for transport in ALL_TRANSPORTS {
            let to = |port: u16, timeout| {
                let target = format!("{host}:{port}");
                lab.listen(at(&target), transport).unwrap();
                lab.probe(&probe(source, &target, transport, timeout)).unwrap()
            };
            let way = format!("{source} to {host} over {transport}");
            let rejected = to(1001, PATIENT);
            assert!(rejected.is_port_unreachable(), "{way}: {rejected}");
            assert_eq!(to(1002, BRIEF), ProbeResult::Silence, "{way}");
            let prohibited = to(1003, PATIENT);
            assert!(matches!(prohibited, ProbeResult::IcmpUnreachable { .. }), "{way}: {prohibited}");
            assert!(!prohibited.is_port_unreachable(), "{way}: {prohibited}");
            if transport == Transport::Tcp {
                assert_eq!(to(1004, PATIENT), ProbeResult::Reset, "{way}");
            }
        }
    }
}

#[test]
fn a_closed_port_resets_tcp() {
    let lab = lab();
    for (source, target) in [
        ("10.244.1.5", "10.244.1.7:9"),
        ("198.51.100.23", "192.0.2.11:9"),
        ("fd00:10:244:1::5", "[fd00:10:244:1::7]:9"),
        ("127.0.0.1", "127.0.0.1:9"),
    ] {
        let result = lab.probe(&probe(source, target, Transport::Tcp, PATIENT)).unwrap();
        assert_eq!(result, ProbeResult::Reset, "{source} to {target}");
    }
}

#[test]
fn translation_shows_in_who_answers_and_in_the_source_seen() {
    let lab = lab();
    load_nft(
        lab.node(),
        "table ip nat {
           chain pre { type nat hook prerouting priority dstnat; jump translate; }
           chain out { type nat hook output priority -100; jump translate; }
           chain translate {
             ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.1.5:8080
             ip daddr 10.96.0.1 udp dport 80 dnat to 10.244.1.5:8080
             ip daddr 10.96.0.1 sctp dport 80 dnat to 10.244.1.5:8080; }
           chain post { type nat hook postrouting priority srcnat;
             ip saddr != 10.244.1.6 masquerade; }; }
         table ip6 nat {
           chain pre { type nat hook prerouting priority dstnat;
             ip6 daddr fd00:10:96::1 meta l4proto { tcp, udp, sctp } dnat to [fd00:10:244:1::5]:8080; }
           chain post { type nat hook postrouting priority srcnat;
             ip6 saddr != fd00:10:244:1::6 masquerade; }; }",
    )
    .unwrap();
    let cases = [
        // A neighbour in the same host keeps its address, a client and the pod itself lose theirs.
        ("10.244.1.6", "10.96.0.1:80", "10.244.1.5:8080", Some("10.244.1.6")),
        ("198.51.100.23", "10.96.0.1:80", "10.244.1.5:8080", None),
        ("10.244.1.5", "10.96.0.1:80", "10.244.1.5:8080", None),
        ("192.0.2.11", "10.96.0.1:80", "10.244.1.5:8080", None),
        ("fd00:10:244:1::6", "[fd00:10:96::1]:80", "[fd00:10:244:1::5]:8080", Some("fd00:10:244:1::6")),
        ("2001:db8:2::23", "[fd00:10:96::1]:80", "[fd00:10:244:1::5]:8080", None),
        ("fd00:10:244:1::5", "[fd00:10:96::1]:80", "[fd00:10:244:1::5]:8080", None),
    ];
    for transport in ALL_TRANSPORTS {
        for (source, target, endpoint, kept) in cases {
            lab.listen(at(endpoint), transport).unwrap();
            let result = lab.probe(&probe(source, target, transport, PATIENT)).unwrap();
            let ProbeResult::Answered { by, seen_source } = result else {
                panic!("{source} to {target} over {transport}: {result}");
            };
            assert_eq!(by, at(endpoint));
            match kept {
                Some(kept) => assert_eq!(seen_source, ip(kept)),
                None => assert!(lab.is_node_address(seen_source), "{source}: {seen_source}"),
            }
        }
    }
}

#[test]
fn hundreds_of_probes_run_at_once() {
    let lab = lab();
    lab.listen(at("10.244.1.7:8080"), Transport::Tcp).unwrap();
    load_nft(
        lab.node(),
        "table inet judge { chain forward { type filter hook forward priority 0; th dport 1002 drop; }; }",
    )
    .unwrap();
    let answered = probe("10.244.1.5", "10.244.1.7:8080", Transport::Tcp, PATIENT);
    let dropped = probe("198.51.100.23", "10.244.1.7:1002", Transport::Tcp, BRIEF);
    let probes: Vec<Probe> = (0..600).map(|index| if index % 2 == 0 { answered } else { dropped }).collect();
    let results = lab.probe_all(&probes).unwrap();
    for (index, result) in results.iter().enumerate() {
        match result {
            ProbeResult::Answered { .. } => assert_eq!(index % 2, 0),
            ProbeResult::Silence => assert_eq!(index % 2, 1),
            other => panic!("probe {index}: {other}"),
        }
    }
}

#[test]
fn a_flow_stays_where_it_is_while_new_connections_go_elsewhere() {
    let lab = lab();
    let send_to = |endpoint: &str| {
        let rules = format!(
            "table ip nat; delete table ip nat
             table ip nat {{ chain pre {{ type nat hook prerouting priority dstnat;
               ip daddr 10.96.0.1 meta l4proto {{ tcp, udp, sctp }} dnat to {endpoint}; }}; }}"
        );
        load_nft(lab.node(), &rules).unwrap();
    };
    let answerer = |result: ProbeResult| match result {
        ProbeResult::Answered { by, .. } => by,
        other => panic!("{other}"),
    };
    let (old, new) = ("10.244.1.5:8080", "10.244.1.7:8080");
    for transport in ALL_TRANSPORTS {
        for endpoint in [old, new] {
            lab.listen(at(endpoint), transport).unwrap();
        }
        send_to(old);
        let question = probe("198.51.100.23", "10.96.0.1:80", transport, PATIENT);
        let mut flow = lab.open_flow(&question).unwrap();
        assert_eq!(answerer(flow.opened()), at(old));
        send_to(new);
        assert_eq!(answerer(flow.ask(10).unwrap()), at(old), "{transport}");
        assert_eq!(answerer(lab.probe(&question).unwrap()), at(new), "{transport}");
    }
}

#[test]
fn requests_larger_than_a_packet_arrive() {
    let lab = lab();
    for (source, target) in [("10.244.1.5", "10.244.1.7:8080"), ("2001:db8:2::23", "[fd00:10:244:1::7]:8080")] {
        for (transport, sizes) in [(Transport::Tcp, [1, 5_000, 300_000]), (Transport::Udp, [1, 5_000, 60_000])] {
            lab.listen(at(target), transport).unwrap();
            let mut flow = lab.open_flow(&probe(source, target, transport, PATIENT)).unwrap();
            for size in sizes {
                let result = flow.ask(size).unwrap();
                assert!(matches!(result, ProbeResult::Answered { .. }), "{size} over {transport}: {result}");
            }
        }
    }
}

#[test]
fn labs_with_the_same_addresses_run_side_by_side() {
    let (first, second) = (lab(), lab());
    let target = at("10.244.1.7:8080");
    first.listen(target, Transport::Tcp).unwrap();
    let question = probe("10.244.1.5", "10.244.1.7:8080", Transport::Tcp, PATIENT);
    assert!(matches!(first.probe(&question), Ok(ProbeResult::Answered { .. })));
    assert_eq!(second.probe(&question).unwrap(), ProbeResult::Reset);
}

#[test]
fn addresses_can_be_added_and_mistakes_are_named() {
    let lab = lab();
    let late = "10.244.1.99:8080";
    assert!(matches!(lab.listen(at(late), Transport::Tcp), Err(LabError::UnknownAddress(_))));
    lab.add_addresses("lone-pod", &ips(&["10.244.1.99"])).unwrap();
    assert_eq!(reach(&lab, "10.244.1.5", late, Transport::Tcp), ip("10.244.1.5"));
    assert!(matches!(lab.host("nobody"), Err(LabError::UnknownHost(_))));
    let shared =
        Lab::builder().node_addresses(ips(&["192.0.2.11"])).host("pods", "vethab", ips(&["192.0.2.11"])).build();
    assert!(matches!(shared, Err(LabError::DuplicateAddress(_))));
}

/// Not a test by itself: what another test runs with little in `PATH`.
#[test]
#[ignore = "the part of the test below that has an ordinary user's PATH"]
fn child_that_loads_with_nft() {
    load_nft(&NetNs::new("loaded").unwrap(), "table ip empty { }").unwrap();
}

#[test]
fn nft_is_found_with_the_path_of_an_ordinary_user() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "harness::child_that_loads_with_nft", "--ignored"])
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

#[test]
fn a_program_that_is_not_there_is_named_with_the_remedy() {
    let error = Command::new("/nowhere/nft").status().unwrap_err();
    let message = NftError::Run(error).to_string();
    assert!(message.contains("can't run nft: No such file") && message.contains("scripts/setup"), "{message}");
}
