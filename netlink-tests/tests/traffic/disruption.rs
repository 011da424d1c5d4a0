//! Connections while Services and their endpoints change: what is open stays open, what is new finds who serves now.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_lab::{Flow, ProbeResult};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{
    CLIENT, Cluster, LOCAL, NODE, POD, REMOTE, answerer, at, ip, node_object, proxy_config,
};
use vmap_proxy_testbed::continuous::none_fails_while;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{ServiceManifest, SliceManifest, service, slice};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::random::Random;
use vmap_proxy_testbed::shop::{
    LOAD_BALANCER, VIP, many_pods, on_pod_port, programmed, slices, slices_of, web, with_load_balancer,
};

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

/// Subsets of four, never empty: the same ones in every run.
fn random_subsets(count: usize) -> impl Iterator<Item = [bool; 4]> {
    let mut random = Random::new(1);
    let next = move || [(); 4].map(|()| random.one_in(2));
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

/// The same over counts that share a chain, from exact ones into them, and from one such to the next. A draw may hit a slot
/// that is empty by now, and is repeated.
#[test]
fn no_connection_fails_while_a_large_service_grows_and_shrinks() {
    let sticky = service("shop/sticky").cluster_ip("10.96.0.20").port(Tcp, 80).port(Udp, 80).affinity(600);
    let local = service("shop/local").cluster_ip("10.96.0.30").port(Tcp, 80).node_port(30090).port(Udp, 80);
    let names = ["shop/web", "shop/sticky", "shop/local"];
    let (cluster, proxy) = programmed([web().build(), sticky.build(), local.external_local().build()]);
    let pods = many_pods(&cluster, 140);
    let set = |count: usize| {
        let objects: Vec<Value> = names.into_iter().flat_map(|name| slices_of(name, &pods, count)).collect();
        proxy.program(&objects);
    };
    set(60);
    let ways = [
        (POD[0], at(VIP[0], 80), Tcp),
        (POD[1], at(VIP[1], 80), Udp),
        (CLIENT[0], at(NODE[0], 30080), Udp),
        (NODE[1], at(NODE[1], 30080), Tcp),
        (POD[0], at("10.96.0.20", 80), Tcp),
        (REMOTE[0][3], at("10.96.0.20", 80), Udp),
        (CLIENT[0], at(NODE[0], 30090), Tcp),
        (NODE[0], at(NODE[0], 30090), Tcp),
    ];
    let connections = none_fails_while(&cluster, &ways, || {
        for _ in 0..4 {
            let edges = [63, 64, 65, 64, 63, 4, 3, 2, 3, 4, 7, 8, 127, 128, 129, 128, 127, 100, 8, 7, 1, 140, 65];
            edges.into_iter().for_each(set);
        }
    });
    assert!(connections > 100, "{connections}");
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
            // Rules recreated while clients connect.
            let touched = with_load_balancer(web()).affinity(600 + round).build();
            proxy.apply(&[touched]);
            proxy.apply(&objects);
        }
    });
    assert!(connections > 20, "{connections}");
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
fn a_recreated_service_takes_over_its_address() {
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

/// The flows of a Service end with it, even if it goes in the very sync that repairs what somebody did to our rules.
#[test]
fn a_service_that_goes_while_rules_are_repaired_takes_its_flows_along() {
    let (cluster, proxy) =
        programmed([web().build()].into_iter().chain(slices("shop/web", |family| vec![LOCAL[family][0]])));
    let mut flows = [0, 1].map(|family| cluster.flow(POD[family], at(VIP[family], 80), Udp));
    for (family, flow) in flows.iter_mut().enumerate() {
        assert_eq!(cluster.ask(flow, 10), ip(LOCAL[family][0]));
    }
    proxy.with(|syncer| syncer.mark_damaged());
    let report = proxy.delete("Service shop/web");
    assert!(report.repaired, "{report:?}");
    for flow in &mut flows {
        let answer = flow.ask(10).unwrap();
        assert!(!matches!(answer, ProbeResult::Answered { .. }), "{answer}");
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
    let agent = AgentProcess::start(env!("CARGO_BIN_EXE_agent-under-test"), cluster.node(), &manifests, &[]);
    for (slice, expected) in states {
        manifests.write_objects("slice.json", &[slice.build()]);
        let deadline = Instant::now() + Duration::from_secs(180);
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
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        match flow.ask(10).unwrap() {
            ProbeResult::Answered { by, .. } if by.ip() == ip(pod) => return,
            other => assert!(Instant::now() < deadline, "{flow:?}: {other}, wanted {pod}"),
        }
        // A flow that is refused is refused at once.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The whole agent, its own clean-up included: clients that go on sending reach the new endpoint.
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
    let mut agent = AgentProcess::start(env!("CARGO_BIN_EXE_agent-under-test"), cluster.node(), &manifests, &[]);
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
    agent.wait_for(&["deleted", "stale flow"]);
    // Looking through the kernel's table of flows takes up to a second: not on the thread that programs.
    assert!(agent.has_thread("conntrack"));
    write(&|family| empty(family).endpoint(REMOTE[family][1]));
    follow(&|family| REMOTE[family][1]);
    // The same pod at another port.
    for pods in REMOTE {
        cluster.serve(at(pods[1], 9090), Udp);
    }
    write(&|family| slice("shop/web", &family.to_string()).port(Udp, 9090).endpoint(REMOTE[family][1]));
    for (_, flow) in &mut flows {
        let deadline = Instant::now() + Duration::from_secs(180);
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
