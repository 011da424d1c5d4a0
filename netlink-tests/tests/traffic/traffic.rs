//! Real connections through Services, on every path, as Kubernetes' end-to-end tests have them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::Transport::{Sctp, Tcp, Udp};
use vmap_proxy_lab::{Probe, ProbeResult};
use vmap_proxy_testbed::cluster::{
    ALL_TRANSPORTS, CLIENT, Cluster, LOCAL, NODE, POD, POD_PORT, REMOTE, answerer, at, ip, node_object, proxy_config,
};
use vmap_proxy_testbed::holdings::{Holdings, learned};
use vmap_proxy_testbed::manifests::slice;
use vmap_proxy_testbed::nft::{load_nft, nft_in};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::shop::{
    LOAD_BALANCER, VIP, many_pods, on_pod_port, programmed, slices, slices_of, web, with_load_balancer,
};

/// Returns the output of `nft` on the node.
fn on_the_node(cluster: &Cluster, arguments: &[&str]) -> String {
    nft_in(cluster.node(), arguments, "").unwrap_or_else(|problem| panic!("{problem}"))
}

/// From pods, the node, an endpoint itself and outside, to every kind of address, over every protocol and family.
#[test]
fn every_path_works_over_every_protocol() {
    let pods = |family: usize| vec![LOCAL[family][0], REMOTE[family][0]];
    let service = with_load_balancer(web().port(Sctp, 80).node_port(30080));
    let (cluster, _proxy) = programmed([service.build()].into_iter().chain(slices("shop/web", pods)));
    for family in 0..2 {
        let frontends = [at(VIP[family], 80), at(NODE[family], 30080), at(LOAD_BALANCER[family], 80)];
        for from in [POD[family], NODE[family], LOCAL[family][0], REMOTE[family][0], CLIENT[family]] {
            for to in frontends {
                for transport in ALL_TRANSPORTS {
                    cluster.assert_served(from, to, transport, pods(family));
                }
            }
        }
    }
}

#[test]
fn processes_of_the_node_serve_as_endpoints() {
    let cluster = Cluster::new();
    let mut objects = vec![node_object(), with_load_balancer(web()).build()];
    for (family, address) in NODE.into_iter().enumerate() {
        [Tcp, Udp].into_iter().for_each(|transport| cluster.serve(at(address, POD_PORT), transport));
        objects.push(on_pod_port(slice("shop/web", &family.to_string())).endpoint(address).build());
    }
    let (_proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    for family in 0..2 {
        for from in [POD[family], NODE[family], REMOTE[family][0], CLIENT[family]] {
            for to in [at(VIP[family], 80), at(NODE[family], 30080), at(LOAD_BALANCER[family], 80)] {
                for transport in [Tcp, Udp] {
                    cluster.assert_served(from, to, transport, [NODE[family]]);
                }
            }
        }
    }
}

#[test]
fn a_pod_that_reaches_itself_sees_its_node() {
    let (cluster, _proxy) =
        programmed([web().build()].into_iter().chain(slices("shop/web", |family| vec![LOCAL[family][0]])));
    for family in 0..2 {
        for transport in [Tcp, Udp] {
            let from = LOCAL[family][0];
            let result = cluster.connect(from, at(VIP[family], 80), transport, 1)[0];
            let ProbeResult::Answered { by, seen_source } = result else { panic!("{result}") };
            assert_eq!(by.ip(), ip(from));
            assert!(cluster.lab().is_node_address(seen_source), "{seen_source}");
        }
    }
}

#[test]
fn large_requests_arrive_whole() {
    let pods = |family: usize| vec![LOCAL[family][0], REMOTE[family][0]];
    let (cluster, _proxy) = programmed([with_load_balancer(web()).build()].into_iter().chain(slices("shop/web", pods)));
    for family in 0..2 {
        let ways = [
            (POD[family], at(VIP[family], 80)),
            (NODE[family], at(VIP[family], 80)),
            (LOCAL[family][0], at(VIP[family], 80)),
            (CLIENT[family], at(NODE[family], 30080)),
            (CLIENT[family], at(LOAD_BALANCER[family], 80)),
        ];
        for (from, to) in ways {
            // Above the links' 1500 bytes a datagram travels in fragments.
            for (transport, sizes) in [(Tcp, [1, 5_000, 300_000]), (Udp, [1, 5_000, 60_000])] {
                let mut flow = cluster.flow(from, to, transport);
                let opened = answerer(flow.opened(), from);
                for size in sizes {
                    assert_eq!(cluster.ask(&mut flow, size), opened, "{from} to {to} over {transport}");
                }
            }
        }
    }
}

#[test]
fn without_endpoints_connections_are_refused_at_once() {
    let unready = on_pod_port(slice("shop/web", "0")).endpoint(LOCAL[0][0]).not_ready();
    let (cluster, proxy) = programmed([with_load_balancer(web()).build(), unready.build()]);
    for family in 0..2 {
        for from in [POD[family], NODE[family], CLIENT[family]] {
            for to in [at(VIP[family], 80), at(NODE[family], 30080), at(LOAD_BALANCER[family], 80)] {
                for transport in [Tcp, Udp] {
                    cluster.assert_refused(from, to, transport);
                }
            }
        }
    }
    proxy.apply(&slices("shop/web", |family| vec![LOCAL[family][0]]));
    cluster.assert_served(POD[1], at(VIP[1], 80), Udp, [LOCAL[1][0]]);
    proxy.delete("EndpointSlice shop/web-1");
    cluster.assert_refused(POD[1], at(VIP[1], 80), Udp);
    cluster.assert_served(POD[0], at(VIP[0], 80), Udp, [LOCAL[0][0]]);
}

#[test]
fn clients_stick_until_affinity_is_switched_off() {
    let pods = |family: usize| vec![LOCAL[family][0], LOCAL[family][1], LOCAL[family][2]];
    for policy_is_local in [false, true] {
        let base = || {
            let service = with_load_balancer(web());
            if policy_is_local { service.external_local() } else { service }
        };
        let (cluster, proxy) = programmed([base().build()].into_iter().chain(slices("shop/web", pods)));
        let ways: Vec<(&str, SocketAddr, usize)> = (0..2)
            .flat_map(|family| {
                [
                    (POD[family], at(VIP[family], 80), family),
                    (CLIENT[family], at(NODE[family], 30080), family),
                    (CLIENT[family], at(LOAD_BALANCER[family], 80), family),
                ]
            })
            .collect();
        for is_sticky in [true, false, true] {
            proxy.apply(&[if is_sticky { base().affinity(600) } else { base() }.build()]);
            for (from, to, family) in &ways {
                for transport in [Tcp, Udp] {
                    if is_sticky {
                        // Not all at once: connections begun together may be placed before any was learned.
                        let first = cluster.answers(from, *to, transport, 1);
                        assert_eq!(cluster.answers(from, *to, transport, 30), first, "{from} to {to}");
                    } else {
                        cluster.assert_served(from, *to, transport, pods(*family));
                    }
                }
            }
        }
    }
}

/// As Kubernetes' own tests ask: who comes again in time meets its pod at every address of the service port, and who
/// comes later may meet another.
#[test]
fn affinity_is_shared_by_all_addresses_and_ends_with_its_timeout() {
    const CLIENTS: usize = 12;
    const TIMEOUT: Duration = Duration::from_secs(3);
    let (cluster, proxy) = programmed([web().affinity(TIMEOUT.as_secs() as i64).build()]);
    let clients: Vec<String> = (0..CLIENTS).map(|number| format!("10.244.2.{}", 100 + number)).collect();
    let addresses: Vec<IpAddr> = clients.iter().map(|client| ip(client)).collect();
    cluster.lab().add_addresses("outside", &addresses).unwrap();
    let cluster_ip = at(VIP[0], 80);
    let ask_all =
        |to| -> Vec<IpAddr> { clients.iter().flat_map(|client| cluster.answers(client, to, Tcp, 1)).collect() };
    let forgotten = || {
        let deadline = Instant::now() + Duration::from_secs(180);
        while !learned(cluster.node(), Family::Ipv4).is_empty() {
            assert!(Instant::now() < deadline, "nothing expires");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    proxy.apply(&slices("shop/web", |family| LOCAL[family].to_vec()));

    // Rounds that take longer than the timeout do not count.
    let mut rounds = 0;
    for _ in 0..20 {
        forgotten();
        let begun = Instant::now();
        let placed = ask_all(cluster_ip);
        let again = [at(NODE[0], 30080), cluster_ip].map(&ask_all);
        let known = learned(cluster.node(), Family::Ipv4).len();
        if begun.elapsed() < TIMEOUT {
            assert!(again.iter().all(|again| *again == placed), "{placed:?}, then {again:?}");
            assert_eq!(known, CLIENTS, "one entry a client for all addresses");
            rounds += 1;
        }
        if rounds == 2 {
            break;
        }
    }
    assert_eq!(rounds, 2, "this machine is too slow for a timeout of {TIMEOUT:?}");

    // Each new connection renews it: nobody moves in three times the timeout.
    let mut was_in_time = false;
    for _ in 0..5 {
        let placed = ask_all(cluster_ip);
        let begun = Instant::now();
        let mut last = begun;
        let mut in_time = true;
        while in_time && begun.elapsed() < 3 * TIMEOUT {
            let now = ask_all(cluster_ip);
            in_time = last.elapsed() < TIMEOUT;
            last = Instant::now();
            assert!(!in_time || now == placed, "{placed:?}, then {now:?}");
        }
        was_in_time = in_time;
        if was_in_time {
            break;
        }
    }
    assert!(was_in_time, "this machine is too slow for a timeout of {TIMEOUT:?}");

    // Placed again at random: the chance that none of twelve moves is 4^-12.
    let placed = ask_all(cluster_ip);
    forgotten();
    assert_ne!(ask_all(cluster_ip), placed);
}

#[test]
fn a_service_of_another_proxy_is_left_alone() {
    let label = "service.kubernetes.io/service-proxy-name";
    let (cluster, proxy) = programmed(
        [web().label(label, "other").build()].into_iter().chain(slices("shop/web", |family| vec![LOCAL[family][0]])),
    );
    for is_ours in [false, true, false] {
        proxy.apply(&[if is_ours { web() } else { web().label(label, "") }.build()]);
        for family in 0..2 {
            if is_ours {
                cluster.assert_served(POD[family], at(VIP[family], 80), Tcp, [LOCAL[family][0]]);
            } else {
                cluster.assert_silence(POD[family], at(VIP[family], 80), Tcp);
            }
        }
    }
}

#[test]
fn source_ranges_allow_change_and_clear() {
    let service = |ranges: &[&str]| {
        let service = web().load_balancer_ip(LOAD_BALANCER[0]);
        ranges.iter().fold(service, |service, range| service.source_range(range)).build()
    };
    let (cluster, proxy) = programmed(
        [service(&["198.51.100.0/24"])].into_iter().chain(slices("shop/web", |family| vec![LOCAL[family][0]])),
    );
    let to = at(LOAD_BALANCER[0], 80);
    let pods = [LOCAL[0][0]];
    cluster.assert_served(CLIENT[0], to, Tcp, pods);
    cluster.assert_silence(POD[0], to, Tcp);
    let mut open = cluster.flow(CLIENT[0], to, Tcp);
    proxy.apply(&[service(&["10.244.0.0/16", "10.244.1.0/24"])]);
    cluster.assert_silence(CLIENT[0], to, Udp);
    cluster.assert_served(POD[0], to, Udp, pods);
    // Only new connections are judged.
    assert_eq!(cluster.ask(&mut open, 10), ip(pods[0]));
    proxy.apply(&[service(&[])]);
    for from in [CLIENT[0], POD[0], NODE[0]] {
        cluster.assert_served(from, to, Tcp, pods);
    }
}

/// Such a count has no chain of its own: draws that hit an empty slot are repeated.
#[test]
fn every_one_of_a_hundred_endpoints_answers() {
    const PODS: usize = 100;
    let (cluster, proxy) = programmed([with_load_balancer(web()).build()]);
    let pods = many_pods(&cluster, PODS);
    proxy.apply(&slices_of("shop/web", &pods, PODS));
    let ask = |from: &str, to, transport, family: usize| {
        // As in `assert_served`, but not all at once: misses one pod in one run of 10^8.
        let answered: BTreeSet<IpAddr> = (0..24).flat_map(|_| cluster.answers(from, to, transport, PODS)).collect();
        assert_eq!(answered, pods[family].iter().map(|pod| ip(pod)).collect(), "{from} to {to} over {transport}");
    };
    for family in 0..2 {
        ask(POD[family], at(VIP[family], 80), Tcp, family);
        ask(NODE[family], at(VIP[family], 80), Udp, family);
        ask(CLIENT[family], at(NODE[family], 30080), Udp, family);
        ask(CLIENT[family], at(LOAD_BALANCER[family], 80), Tcp, family);
    }

    // Nothing else uses the maps: what nft makes of the first rule that does is decided by the chain that draws.
    let listing = on_the_node(&cluster, &["list", "ruleset"]);
    let before = Holdings::read(cluster.node());
    load_nft(cluster.node(), &format!("flush ruleset\n{listing}")).unwrap();
    for (before, after) in before.iter().zip(&Holdings::read(cluster.node())) {
        assert_eq!(before.differences(after), [""; 0], "{listing}");
    }
    ask(POD[0], at(VIP[0], 80), Udp, 0);
}

/// A remembered client keeps its endpoint while the Service grows; a forgotten one is placed again, on any pod.
#[test]
fn a_hundred_endpoints_have_their_clients() {
    const CLIENTS: usize = 1_000;
    let (cluster, proxy) = programmed([web().affinity(6000).build()]);
    let pods = many_pods(&cluster, 101);
    let clients: Vec<IpAddr> =
        (0..CLIENTS).map(|number| ip(&format!("10.250.{}.{}", number / 250, 1 + number % 250))).collect();
    cluster.lab().add_addresses("outside", &clients).unwrap();
    let place_all = |to, transport| -> Vec<IpAddr> {
        let probes: Vec<Probe> = clients
            .iter()
            .map(|source| Probe { source: *source, target: to, transport, timeout: Duration::from_millis(950) })
            .collect();
        let results = probes.chunks(100).flat_map(|probes| cluster.lab().probe_all(probes).unwrap());
        results.zip(&clients).map(|(result, client)| answerer(result, &client.to_string())).collect()
    };

    proxy.apply(&slices_of("shop/web", &pods, 100));
    let placed = place_all(at(VIP[0], 80), Tcp);
    // That one pod of the hundred has no client takes chance 100 * 0.99^1000; that eight have none, 10^-17.
    assert!(placed.iter().copied().collect::<BTreeSet<_>>().len() > 92);
    assert!(place_all(at(NODE[0], 30080), Tcp) == placed, "frontends of one port place clients differently");

    let report = proxy.apply(&slices_of("shop/web", &pods, 101));
    assert_eq!(report.objects, 0, "a chain was made: {report:?}");
    assert!(place_all(at(VIP[0], 80), Tcp) == placed, "who is remembered moved");
    on_the_node(&cluster, &["flush", "map", "ip", "vmap-proxy", "affinity"]);
    let now = place_all(at(VIP[0], 80), Tcp);
    // Each stays with chance 1/101: about ten of them.
    let moved = now.iter().zip(&placed).filter(|(now, then)| now != then).count();
    assert!(moved > CLIENTS * 9 / 10, "{moved}");
}

#[test]
fn new_connections_are_spread_evenly() {
    let (cluster, _proxy) =
        programmed([web().build()].into_iter().chain(slices("shop/web", |family| LOCAL[family].to_vec())));
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for result in cluster.connect(POD[0], at(VIP[0], 80), Udp, 800) {
        *counts.entry(answerer(result, "a connection")).or_default() += 1;
    }
    // 200 each, with a standard deviation of 12: six of them away is one run in 10^8.
    assert!(counts.len() == 4 && counts.values().all(|count| (125..275).contains(count)), "{counts:?}");
}
