//! Real connections through Services while these change, as Kubernetes' end-to-end tests have them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agent::lab::Transport::{Sctp, Tcp, Udp};
use agent::lab::{Flow, Probe, ProbeResult, Transport};
use compiler::ruleset::Family;
use netlink_tests::fixtures::agent_process::{AgentProcess, ManifestDirectory};
use netlink_tests::fixtures::cluster::{
    ALL_TRANSPORTS, CLIENT, Cluster, LOCAL, NODE, POD, POD_PORT, REMOTE, answerer, at, ip, node_object, proxy_config,
};
use netlink_tests::fixtures::holdings::learned;
use netlink_tests::fixtures::manifests::{ServiceManifest, SliceManifest, service, slice};
use netlink_tests::fixtures::proxy::Proxy;
use serde_json::Value;

netlink_tests::in_own_namespaces!();

const VIP: [&str; 2] = ["10.96.0.10", "fd00:10:96::10"];
const LOAD_BALANCER: [&str; 2] = ["203.0.113.10", "2001:db8:3::10"];

/// Service `shop/web`: TCP and UDP port 80 on a cluster IP of either family and on NodePort 30080.
fn web() -> ServiceManifest {
    web_at(VIP)
}

fn web_at(cluster_ips: [&str; 2]) -> ServiceManifest {
    let service = cluster_ips.into_iter().fold(service("shop/web"), ServiceManifest::cluster_ip);
    [Tcp, Udp].into_iter().fold(service, |service, transport| service.port(transport, 80).node_port(30080))
}

fn with_load_balancer(service: ServiceManifest) -> ServiceManifest {
    LOAD_BALANCER.into_iter().fold(service, ServiceManifest::load_balancer_ip)
}

/// A slice of a Service for each family; `pods` are chosen in both.
fn slices(service: &str, pods: impl Fn(usize) -> Vec<&'static str>) -> Vec<Value> {
    let slices = [0, 1].map(|family| on_pod_port(slice(service, &family.to_string())).endpoints(pods(family)));
    let types = ["IPv4", "IPv6"];
    slices.into_iter().zip(types).map(|(slice, address_type)| slice.address_type(address_type).build()).collect()
}

fn on_pod_port(slice: SliceManifest) -> SliceManifest {
    ALL_TRANSPORTS.into_iter().fold(slice, |slice, transport| slice.port(transport, POD_PORT.into()))
}

/// A cluster with these objects programmed, and the node's own.
fn programmed(objects: impl IntoIterator<Item = Value>) -> (Cluster, Proxy) {
    let cluster = Cluster::new();
    let mut all = vec![node_object()];
    all.extend(objects);
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &all);
    (cluster, proxy)
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
fn open_connections_stay_up_while_all_endpoints_are_replaced() {
    let old = |family: usize| vec![LOCAL[family][0], LOCAL[family][1], REMOTE[family][0]];
    let new = |family: usize| vec![LOCAL[family][2], LOCAL[family][3], REMOTE[family][1]];
    let (cluster, proxy) = programmed([with_load_balancer(web()).build()].into_iter().chain(slices("shop/web", old)));
    let mut flows: Vec<(Flow, IpAddr)> = Vec::new();
    for family in 0..2 {
        let ways = [
            (POD[family], at(VIP[family], 80)),
            (NODE[family], at(VIP[family], 80)),
            (CLIENT[family], at(NODE[family], 30080)),
            (CLIENT[family], at(LOAD_BALANCER[family], 80)),
        ];
        for (from, to) in ways.into_iter().cycle().take(12) {
            let flow = cluster.flow(from, to, Tcp);
            let opened = answerer(flow.opened(), from);
            flows.push((flow, opened));
        }
    }
    for step in 0..=3 {
        // One pod after the other terminates and is replaced; in the end the old ones are gone.
        let rolled = |family: usize| {
            let slice = on_pod_port(slice("shop/web", &family.to_string()));
            let slice = old(family)[step.min(3)..].iter().fold(slice, |slice, pod| slice.endpoint(pod));
            let slice = new(family)[..step].iter().fold(slice, |slice, pod| slice.endpoint(pod));
            match step {
                0 | 3 => slice,
                _ => slice.endpoint(old(family)[step - 1]).terminating(),
            }
        };
        proxy.apply(&[rolled(0).build(), rolled(1).build()]);
        for (flow, pod) in &mut flows {
            assert_eq!(cluster.ask(flow, 100), *pod, "step {step}");
        }
        for family in 0..2 {
            let ready = old(family).split_off(step).into_iter().chain(new(family).into_iter().take(step));
            cluster.assert_served(POD[family], at(VIP[family], 80), Tcp, ready);
        }
    }
}

/// Connects over and over, all ways at once, while `change` runs; all must be answered. How many were there?
fn none_fails_while(cluster: &Cluster, ways: &[(&str, SocketAddr, Transport)], change: impl FnOnce()) -> usize {
    let timeout = Duration::from_millis(950);
    let probe = |(source, target, transport): &(&str, SocketAddr, Transport)| {
        [Probe { source: ip(source), target: *target, transport: *transport, timeout }; 2]
    };
    let probes: Vec<Probe> = ways.iter().flat_map(probe).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connections = 0;
            while !done.load(Ordering::Acquire) {
                for (probe, result) in probes.iter().zip(cluster.lab().probe_all(&probes).unwrap()) {
                    let what = format!("connection {connections}, {probe:?}");
                    answerer(result, &what);
                    connections += 1;
                }
            }
            connections
        });
        change();
        done.store(true, Ordering::Release);
        client.join().unwrap()
    })
}

/// Subsets of four, never empty: the same ones in every run.
fn random_subsets(count: usize) -> impl Iterator<Item = [bool; 4]> {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        [0, 1, 2, 3].map(|bit| state >> (20 + bit) & 1 == 1)
    };
    std::iter::repeat_with(next).filter(|subset| subset.contains(&true)).take(count)
}

fn chosen(pods: [&'static str; 4], subset: [bool; 4]) -> impl Iterator<Item = &'static str> {
    pods.into_iter().zip(subset).filter(|(_, chosen)| *chosen).map(|(pod, _)| pod)
}

/// No commit on the way ever leaves a frontend without a usable endpoint, whatever the policy.
#[test]
fn no_connection_fails_while_endpoints_come_and_go() {
    let both = |family: usize| vec![LOCAL[family][0], REMOTE[family][0]];
    let sticky = service("shop/sticky").cluster_ip("10.96.0.20").port(Tcp, 80).port(Udp, 80).affinity(600);
    let local = service("shop/local").cluster_ip("10.96.0.30").port(Tcp, 80).node_port(30090).port(Udp, 80);
    let objects = [
        with_load_balancer(web()).build(),
        sticky.build(),
        local.external_local().load_balancer_ip("203.0.113.30").internal_local().build(),
    ];
    let names = ["shop/web", "shop/sticky", "shop/local"];
    let (cluster, proxy) = programmed(objects.into_iter().chain(names.into_iter().flat_map(|name| slices(name, both))));
    let ways = [
        (POD[0], at(VIP[0], 80), Tcp),
        (POD[0], at(VIP[0], 80), Udp),
        (POD[1], at(VIP[1], 80), Tcp),
        (NODE[0], at(VIP[0], 80), Tcp),
        (CLIENT[0], at(NODE[0], 30080), Tcp),
        (CLIENT[1], at(NODE[1], 30080), Udp),
        (CLIENT[0], at(LOAD_BALANCER[0], 80), Udp),
        (POD[0], at("10.96.0.20", 80), Tcp),
        (REMOTE[0][3], at("10.96.0.20", 80), Udp),
        (CLIENT[0], at(NODE[0], 30090), Tcp),
        (CLIENT[0], at("203.0.113.30", 80), Udp),
        (POD[0], at("10.96.0.30", 80), Tcp),
    ];
    let connections = none_fails_while(&cluster, &ways, || {
        let mut last = [false; 4];
        for subset in random_subsets(120) {
            // At least one endpoint is on this node, for the local policies.
            let pods =
                |family: usize| chosen(LOCAL[family], subset).chain(chosen(REMOTE[family], last)).collect::<Vec<_>>();
            let objects: Vec<Value> = names.into_iter().flat_map(|name| slices(name, pods)).collect();
            proxy.program(&objects);
            last = subset;
        }
    });
    assert!(connections > 120, "{connections}");
}

#[test]
fn no_connection_fails_while_the_agent_restarts() {
    let pods = |family: usize| LOCAL[family].to_vec();
    let objects: Vec<Value> = [node_object(), with_load_balancer(web()).affinity(600).build()]
        .into_iter()
        .chain(slices("shop/web", pods))
        .collect();
    let cluster = Cluster::new();
    let (mut proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    let ways = [
        (POD[0], at(VIP[0], 80), Tcp),
        (POD[1], at(VIP[1], 80), Udp),
        (CLIENT[0], at(NODE[0], 30080), Tcp),
        (CLIENT[1], at(LOAD_BALANCER[1], 80), Udp),
    ];
    let connections = none_fails_while(&cluster, &ways, || {
        for round in 0..5 {
            let (restarted, report) = Proxy::start(cluster.node(), proxy_config(), &objects);
            assert!(report.is_empty(), "{report:?}");
            drop(std::mem::replace(&mut proxy, restarted));
            // Rules made anew before the eyes of the clients.
            let touched = with_load_balancer(web()).affinity(600 + round).build();
            proxy.apply(&[touched]);
            proxy.apply(&objects);
        }
    });
    assert!(connections > 20, "{connections}");
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

#[test]
fn affinity_ends_with_its_timeout() {
    const CLIENTS: usize = 12;
    let (cluster, proxy) = programmed([web().affinity(3).build()]);
    let clients: Vec<String> = (0..CLIENTS).map(|number| format!("10.244.2.{}", 100 + number)).collect();
    let addresses: Vec<IpAddr> = clients.iter().map(|client| ip(client)).collect();
    cluster.lab().add_addresses("outside", &addresses).unwrap();
    let ask_all = || -> Vec<IpAddr> {
        clients.iter().flat_map(|client| cluster.answers(client, at(VIP[0], 80), Tcp, 1)).collect()
    };
    proxy.apply(&slices("shop/web", |family| LOCAL[family][..2].to_vec()));
    let placed = ask_all();
    proxy.apply(&slices("shop/web", |family| LOCAL[family].to_vec()));
    // More endpoints move nobody, and coming again prolongs the stay.
    assert_eq!(ask_all(), placed);
    assert_eq!(learned(cluster.node(), Family::Ipv4).len(), CLIENTS);

    let deadline = Instant::now() + Duration::from_secs(20);
    while !learned(cluster.node(), Family::Ipv4).is_empty() {
        assert!(Instant::now() < deadline, "nothing expires");
        std::thread::sleep(Duration::from_millis(100));
    }
    // By their addresses clients are spread over all four now: that nobody moves would take chance 2^-12.
    let moved = ask_all();
    assert_ne!(moved, placed);
    assert_eq!(ask_all(), moved);
}

#[test]
fn services_change_their_type() {
    let pods = |family: usize| vec![LOCAL[family][0]];
    let plain = || VIP.into_iter().fold(service("shop/web"), ServiceManifest::cluster_ip).port(Tcp, 80);
    let node_port = || plain().node_port(30080);
    let external = || service("shop/web").port(Tcp, 80).external_name("web.example.org");
    let with_leftover = || plain().external_name("web.example.org");
    let (cluster, proxy) = programmed(slices("shop/web", pods));
    // Type, then whether the cluster IP and the NodePort serve.
    let types: [(ServiceManifest, bool, bool); 9] = [
        (external(), false, false),
        (plain(), true, false),
        (node_port(), true, true),
        (with_leftover(), false, false),
        (node_port(), true, true),
        (plain(), true, false),
        (with_load_balancer(plain()), true, false),
        (external(), false, false),
        (plain().headless(), false, false),
    ];
    for (number, (manifest, cluster_ip_serves, node_port_serves)) in types.into_iter().enumerate() {
        let is_balanced = number == 6;
        proxy.apply(&[manifest.build()]);
        for family in 0..2 {
            if cluster_ip_serves {
                cluster.assert_served(POD[family], at(VIP[family], 80), Tcp, pods(family));
            } else {
                cluster.assert_silence(POD[family], at(VIP[family], 80), Tcp);
            }
            if is_balanced {
                cluster.assert_served(CLIENT[family], at(LOAD_BALANCER[family], 80), Tcp, pods(family));
            } else {
                cluster.assert_silence(CLIENT[family], at(LOAD_BALANCER[family], 80), Tcp);
            }
            let to_node = at(NODE[family], 30080);
            if node_port_serves {
                cluster.assert_served(CLIENT[family], to_node, Tcp, pods(family));
            } else {
                // Nothing listens on the node, and no rule is in the way.
                assert_eq!(cluster.connect(CLIENT[family], to_node, Tcp, 1), [ProbeResult::Reset]);
            }
        }
    }
}

#[test]
fn a_service_made_anew_takes_over_its_address() {
    let (cluster, proxy) =
        programmed([web().build()].into_iter().chain(slices("shop/web", |family| vec![LOCAL[family][0]])));
    let mut flows = [0, 1].map(|family| cluster.flow(POD[family], at(VIP[family], 80), Udp));
    // Deleted and made again, with other endpoints.
    proxy.delete("Service shop/web");
    for family in 0..2 {
        cluster.assert_silence(POD[family], at(VIP[family], 80), Tcp);
    }
    let mut objects = slices("shop/web", |family| vec![LOCAL[family][1]]);
    objects.push(web().build());
    proxy.apply(&objects);
    for (family, flow) in flows.iter_mut().enumerate() {
        cluster.assert_served(POD[family], at(VIP[family], 80), Tcp, [LOCAL[family][1]]);
        assert_eq!(cluster.ask(flow, 10), ip(LOCAL[family][1]));
    }
    // Another Service gets the addresses in the very same change.
    let other = VIP.into_iter().fold(service("shop/other"), ServiceManifest::cluster_ip);
    let mut objects = slices("shop/other", |family| vec![REMOTE[family][0]]);
    objects.push(other.port(Tcp, 80).port(Udp, 80).node_port(30080).build());
    proxy.change(&["Service shop/web"], &objects);
    for (family, flow) in flows.iter_mut().enumerate() {
        cluster.assert_served(POD[family], at(VIP[family], 80), Tcp, [REMOTE[family][0]]);
        cluster.assert_served(CLIENT[family], at(NODE[family], 30080), Udp, [REMOTE[family][0]]);
        assert_eq!(cluster.ask(flow, 10), ip(REMOTE[family][0]));
    }
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
fn services_that_share_endpoints_do_not_hurt_each_other() {
    let pods = |family: usize| vec![LOCAL[family][0], LOCAL[family][1]];
    let other = service("shop/other").cluster_ip("10.96.0.20").port(Tcp, 80).port(Udp, 80).affinity(600);
    let objects = [web().build(), other.build()].into_iter();
    let (cluster, proxy) = programmed(objects.chain(slices("shop/web", pods)).chain(slices("shop/other", pods)));
    let mut flow = cluster.flow(POD[0], at(VIP[0], 80), Tcp);
    let opened = answerer(flow.opened(), "the flow");
    let hairpin = || cluster.assert_served(LOCAL[0][0], at(VIP[0], 80), Tcp, pods(0));
    hairpin();
    cluster.answers(POD[0], at("10.96.0.20", 80), Udp, 4);
    proxy.change(&["Service shop/other", "EndpointSlice shop/other-0"], &[]);
    cluster.assert_silence(POD[0], at("10.96.0.20", 80), Udp);
    cluster.assert_served(POD[0], at(VIP[0], 80), Tcp, pods(0));
    cluster.assert_served(CLIENT[1], at(NODE[1], 30080), Udp, pods(1));
    hairpin();
    assert_eq!(cluster.ask(&mut flow, 10), opened);
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

/// The status of `GET /` on a health check node port, asked by the client; `None` while nothing listens.
fn health(cluster: &Cluster, port: u16) -> Option<u16> {
    let target = at(NODE[0], port);
    let answer = cluster.lab().owner(ip(CLIENT[0])).unwrap().run(|| {
        let mut stream = TcpStream::connect(target)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    answer.unwrap().ok()?.split(' ').nth(1)?.parse().ok()
}

#[test]
fn a_health_check_fails_while_terminating_pods_still_serve() {
    const HEALTH_PORT: u16 = 30999;
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    let service =
        web().load_balancer_ip(LOAD_BALANCER[0]).external_local().spec("healthCheckNodePort", HEALTH_PORT.into());
    manifests.write_objects("service.json", &[node_object(), service.build()]);
    let local = || on_pod_port(slice("shop/web", "0")).endpoint(LOCAL[0][0]);
    let states = [(local(), 200), (local().terminating(), 503), (local(), 200)];
    manifests.write_objects("slice.json", &[states[0].0.build()]);
    let agent = AgentProcess::start(env!("CARGO_BIN_EXE_netlink-tests"), cluster.node(), &manifests, &[]);
    for (slice, expected) in states {
        manifests.write_objects("slice.json", &[slice.build()]);
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let status = health(&cluster, HEALTH_PORT);
            if status == Some(expected) {
                break;
            }
            assert!(Instant::now() < deadline, "{status:?} instead of {expected}");
            std::thread::sleep(Duration::from_millis(20));
        }
        for to in [at(LOAD_BALANCER[0], 80), at(NODE[0], 30080)] {
            cluster.assert_served(CLIENT[0], to, Tcp, [LOCAL[0][0]]);
        }
    }
    agent.stop();
}

/// Asks until the answer comes from this pod: the agent deletes stale flows a moment after it has programmed.
#[track_caller]
fn ask_until(flow: &mut Flow, pod: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match flow.ask(10).unwrap() {
            ProbeResult::Answered { by, .. } if by.ip() == ip(pod) => return,
            other => assert!(Instant::now() < deadline, "{flow:?}: {other}, wanted {pod}"),
        }
        // A flow that is refused is refused at once.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The whole agent, its own clean-up included: clients that go on sending reach whoever serves now.
#[test]
fn udp_clients_follow_pods_through_the_running_agent() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    manifests.write_objects("service.json", &[node_object(), with_load_balancer(web()).build()]);
    let write = |slice: &dyn Fn(usize) -> SliceManifest| {
        manifests.write_objects("slices.json", &[slice(0).build(), slice(1).build()]);
    };
    let empty = |family: usize| on_pod_port(slice("shop/web", &family.to_string()));
    write(&|family| empty(family).endpoint(LOCAL[family][0]).not_ready());
    let mut agent = AgentProcess::start(env!("CARGO_BIN_EXE_netlink-tests"), cluster.node(), &manifests, &[]);
    let mut flows: Vec<(usize, Flow)> = Vec::new();
    for family in 0..2 {
        for (from, to) in [
            (POD[family], at(VIP[family], 80)),
            (NODE[family], at(VIP[family], 80)),
            (CLIENT[family], at(NODE[family], 30080)),
            (CLIENT[family], at(LOAD_BALANCER[family], 80)),
            (NODE[family], at(NODE[family], 30080)),
        ] {
            let flow = cluster.flow(from, to, Udp);
            assert!(flow.opened().is_port_unreachable(), "{flow:?}");
            flows.push((family, flow));
        }
    }
    let mut follow = |pod: &dyn Fn(usize) -> &'static str| {
        for (family, flow) in &mut flows {
            ask_until(flow, pod(*family));
        }
    };
    // Ready at last; replaced on this node; replaced on another node.
    write(&|family| empty(family).endpoint(LOCAL[family][0]));
    follow(&|family| LOCAL[family][0]);
    write(&|family| empty(family).endpoint(LOCAL[family][1]));
    follow(&|family| LOCAL[family][1]);
    agent.wait_for(&["deleted", "stale flows"]);
    write(&|family| empty(family).endpoint(REMOTE[family][1]));
    follow(&|family| REMOTE[family][1]);
    // The same pod at another port.
    for pods in REMOTE {
        cluster.serve(at(pods[1], 9090), Udp);
    }
    write(&|family| slice("shop/web", &family.to_string()).port(Udp, 9090).endpoint(REMOTE[family][1]));
    for (_, flow) in &mut flows {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match flow.ask(10).unwrap() {
                ProbeResult::Answered { by, .. } if by.port() == 9090 => break,
                other => assert!(Instant::now() < deadline, "{flow:?}: {other}"),
            }
        }
    }
    agent.stop();
}

/// UDP that was sent to a node port before any Service had it is tracked untranslated; it must not stay so.
#[test]
fn udp_clients_that_were_there_first_reach_a_new_service() {
    let (cluster, proxy) = programmed([]);
    let mut flow = cluster.flow(CLIENT[0], at(NODE[0], 30080), Udp);
    assert!(flow.opened().is_port_unreachable(), "{flow:?}");
    let mut objects = slices("shop/web", |family| vec![LOCAL[family][0]]);
    objects.push(web().internal_local().build());
    proxy.apply(&objects);
    assert_eq!(cluster.ask(&mut flow, 10), ip(LOCAL[0][0]));
    // With a local policy the next pod of this node takes over.
    let mut inside = cluster.flow(POD[0], at(VIP[0], 80), Udp);
    assert_eq!(answerer(inside.opened(), "inside"), ip(LOCAL[0][0]));
    proxy.apply(&slices("shop/web", |family| vec![LOCAL[family][2], REMOTE[family][0]]));
    assert_eq!(cluster.ask(&mut inside, 10), ip(LOCAL[0][2]));
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
