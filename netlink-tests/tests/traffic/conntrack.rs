//! Stale flows are deleted, and only those: real flows through real rules in network namespaces.
//!
//! Every scenario sends a datagram from one and the same client socket before and after, so that it is one flow to the
//! kernel, and shows first that the flow goes astray without the clean-up.

mod world;

use std::time::{Duration, Instant};

use nlink::netlink::netfilter::{ConntrackFilter, IpProtocol};
use serde_json::json;
use vmap_proxy_lab::{Probe, ProbeResult, Transport};
use vmap_proxy_testbed::nft::load_nft;
use world::{Answer, BOTH, Connected, Flow, NODE_PORT, SERVICE_PORT, V4, World, at, enter_flows, flows_that_reach};

const SCTP: IpProtocol = IpProtocol::Other(132);
/// For the one SCTP probe; it must be answered.
const PATIENT: Duration = Duration::from_secs(20);

#[test]
fn flows_follow_a_replaced_endpoint() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&net.objects(&[net.pod_b]));
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()), "rules alone change no flow");
        }
        let report = world.clean(&stale);
        assert_eq!(report.deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()), "to {}", flow.to);
        }
        assert_eq!(world.clean(&stale).deleted, 0, "flows to the new endpoint stay");
    }
}

#[test]
fn nothing_else_is_touched() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a, net.pod_b]));
        let connection = Connected::through(&world, &net);
        let unrelated = [
            world.flow(net.client, at(net.pod_a, 8080)),
            world.flow(net.client, net.a()),
            // The NodePort's number on a host that is not this node.
            world.flow(net.client, at(net.remote, NODE_PORT)),
            // On an address of the node that serves no NodePorts.
            world.flow(net.outside, at(net.other_node_address, NODE_PORT)),
        ];
        let before: Vec<_> = unrelated
            .iter()
            .map(|flow| {
                world.begin(flow);
                let ids = world.ids(IpProtocol::Udp, flow.to);
                assert_eq!(ids.len(), 1, "{}", flow.to);
                ids
            })
            .collect();
        let kept: Vec<Flow> = flows_that_reach(&world, &net, net.b());
        let kept_ids = world.ids(IpProtocol::Udp, net.cluster());
        let tcp = world.ids(IpProtocol::Tcp, net.cluster());

        let stale = world.apply(&net.objects(&[net.pod_b]));
        world.clean(&stale);
        world.clean_at_start();

        let after: Vec<_> = unrelated.iter().map(|flow| world.ids(IpProtocol::Udp, flow.to)).collect();
        assert_eq!(after, before);
        let left = world.ids(IpProtocol::Udp, net.cluster());
        assert_eq!(left.len(), kept.len());
        assert!(left.iter().all(|id| kept_ids.contains(id)), "flows to the endpoint that stays are the same ones");
        assert_eq!(world.ids(IpProtocol::Tcp, net.cluster()), tcp);
        connection.assert_alive();
    }
}

#[test]
fn flows_made_before_the_rules_find_the_service() {
    let mut world = World::new();
    for net in BOTH {
        let to_cluster_ip = world.flow(net.client, net.cluster());
        world.assert_not_answered_by_a(&to_cluster_ip, &net);
        let to_node_port = world.flow(net.outside, net.node_port());
        world.assert_not_answered_by_a(&to_node_port, &net);
        let stale = world.apply(&net.objects(&[net.pod_a]));
        for flow in [&to_cluster_ip, &to_node_port] {
            // A flow that exists is not translated.
            world.assert_not_answered_by_a(flow, &net);
        }
        assert_eq!(world.clean(&stale).deleted, 2);
        for flow in [&to_cluster_ip, &to_node_port] {
            assert_eq!(flow.ask(), Answer::From(net.a()), "to {}", flow.to);
        }
    }
}

#[test]
fn flows_are_refused_with_the_last_endpoint() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&net.objects(&[]));
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()));
        }
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::Refused, "to {}", flow.to);
        }
        let stale = world.apply(&net.objects(&[net.pod_b]));
        world.clean(&stale);
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()), "to {}", flow.to);
        }
    }
}

#[test]
fn flows_end_with_their_port_and_with_their_service() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&[net.service(SERVICE_PORT + 1, NODE_PORT + 1)]);
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            world.assert_not_answered_by_a(flow, &net);
        }
        let moved = world.flow(net.client, at(net.cluster_ip, SERVICE_PORT + 1));
        assert_eq!(moved.ask(), Answer::From(net.a()));
        let stale = world.delete(&net.service(0, 0));
        assert_eq!(moved.ask(), Answer::From(net.a()));
        assert_eq!(world.clean(&stale).deleted, 1);
        world.assert_not_answered_by_a(&moved, &net);
    }
}

#[test]
fn flows_stay_while_their_endpoint_terminates() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&[net.slice(&[(net.pod_a, true), (net.pod_b, false)])]);
        assert_eq!(world.clean(&stale).deleted, 0);
        assert_eq!(world.flow(net.client, net.cluster()).ask(), Answer::From(net.b()), "new flows go elsewhere");
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()));
        }
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()));
        }
    }
}

#[test]
fn a_start_cleans_what_happened_while_nobody_looked() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        assert_eq!(world.clean_at_start().deleted, 0, "a restart cuts nothing that is right");
        // The stale flows of the change are forgotten, as in a crash.
        let _ = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean_at_start().deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()));
        }
    }
}

#[test]
fn sctp_associations_go_with_their_pod() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let source = net.client.parse().unwrap();
        let probe = Probe { source, target: net.cluster(), transport: Transport::Sctp, timeout: PATIENT };
        let result = world.lab.probe(&probe).unwrap();
        assert!(matches!(result, ProbeResult::Answered { by, .. } if by == net.a()), "{result}");
        assert_eq!(world.ids(SCTP, net.cluster()).len(), 1);
        assert_eq!(world.clean_at_start().deleted, 0);
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, 1);
        assert!(world.ids(SCTP, net.cluster()).is_empty());
    }
}

#[test]
fn flows_in_a_zone_are_deleted_in_that_zone() {
    let mut world = World::new();
    load_nft(
        world.lab.node(),
        "table inet zone { chain pre { type filter hook prerouting priority raw; udp dport 53 ct zone set 7; }; }",
    )
    .unwrap();
    for net in BOTH {
        let untranslated = world.flow(net.client, net.cluster());
        world.begin(&untranslated);
        world.apply(&net.objects(&[net.pod_a]));
        let flow = world.flow(net.client, net.cluster());
        world.begin(&flow);
        let zones: Vec<_> = world
            .flows()
            .into_iter()
            .filter(|flow| flow.orig.dst_ip == Some(net.cluster().ip()))
            .map(|flow| (flow.zone, flow.reply.src_ip))
            .collect();
        assert_eq!(zones.len(), 2);
        assert!(zones.contains(&(Some(7), Some(net.a().ip()))), "{zones:?}");
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, 1, "the one that was translated");
        assert_eq!(world.ids(IpProtocol::Udp, net.cluster()).len(), 1);
    }
}

#[test]
fn flows_in_their_tens_of_thousands_all_go() {
    const MANY: u16 = 40_000;
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    world.runtime.block_on(enter_flows(&world.nlink, &V4, MANY));
    assert_eq!(world.clean_at_start().deleted, 0);
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    let report = world.clean(&stale);
    assert_eq!((report.deleted, report.examined), (usize::from(MANY), usize::from(MANY)), "one dump is enough");
    assert!(world.ids(IpProtocol::Udp, V4.cluster()).is_empty());
}

/// The figures of decision 44, with `nlink` as the other way to clean:
/// `cargo test -p netlink-tests --test traffic how_fast -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test: it prints figures"]
fn how_fast_flows_are_found_and_deleted() {
    const FLOWS: u16 = 50_000;
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    let fresh_peak = || {
        // proc(5): resets the peak.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        peak()
    };
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    for _ in 0..3 {
        world.runtime.block_on(enter_flows(&world.nlink, &V4, FLOWS));
        let before = fresh_peak();
        let report = world.clean(&stale);
        assert_eq!(report.deleted, usize::from(FLOWS));
        eprintln!("ours: found and deleted in {:?}, {:.1} MiB", report.duration, peak() - before);

        world.runtime.block_on(enter_flows(&world.nlink, &V4, FLOWS));
        let before = fresh_peak();
        let filter = ConntrackFilter::new().proto(IpProtocol::Udp).orig_dst_port(SERVICE_PORT);
        let begun = Instant::now();
        let (found, deleted) = world.runtime.block_on(async {
            let entries = world.nlink.get_conntrack_matching(&filter).await.unwrap();
            let found = begun.elapsed();
            for entry in &entries {
                world.nlink.del_conntrack_entry(entry).await.unwrap();
            }
            (found, entries.len())
        });
        assert_eq!(deleted, usize::from(FLOWS));
        let memory = peak() - before;
        eprintln!("nlink: found in {found:?}, found and deleted in {:?}, {memory:.1} MiB", begun.elapsed());
    }
}

#[test]
fn the_kernel_hands_out_only_what_is_asked_for() {
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    world.runtime.block_on(enter_flows(&world.nlink, &V4, 1000));
    let mut other = V4.objects(&[V4.pod_a]);
    for object in &mut other {
        object["metadata"]["name"] = "other".into();
    }
    other[0]["spec"]["clusterIP"] = "10.96.0.20".into();
    other[0]["spec"]["type"] = "ClusterIP".into();
    other[0]["spec"]["ports"] = json!([{"name": "udp", "protocol": "UDP", "port": 99}]);
    other[1]["metadata"]["labels"]["kubernetes.io/service-name"] = "other".into();
    let stale = world.apply(&other);
    assert_eq!(stale.to_look_for(), 1);
    let flow = world.flow(V4.client, at("10.96.0.20", 99));
    assert_eq!(flow.ask(), Answer::From(V4.a()));
    let report = world.clean(&stale);
    assert_eq!((report.examined, report.deleted), (1, 0));
}

#[test]
fn other_requests_on_a_busy_table_do_not_disturb() {
    // Flows come and go while the table is dumped: a dump may hold one twice, and a deletion may come too late.
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    for _ in 0..10 {
        world.runtime.block_on(enter_flows(&world.nlink, &V4, 500));
        let flush = async {
            world.nlink.flush_conntrack_all().await.unwrap();
        };
        let report = std::thread::scope(|scope| {
            let cleaner = scope.spawn(|| world.conntrack.clean(&stale));
            world.runtime.block_on(flush);
            cleaner.join().unwrap()
        });
        assert!(report.unwrap().deleted <= 500);
        assert!(world.ids(IpProtocol::Udp, V4.cluster()).is_empty());
    }
}
