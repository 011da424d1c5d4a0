//! Changes in the API reach the packets they concern, and disturb no others.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::json;
use vmap_proxy_agent::netlink::Kernel;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::{Domain, Pool, Target};
use vmap_proxy_lab::{Probe, Transport};
use vmap_proxy_testbed::api_objects::{Endpoint, NAMESPACE, cluster_ip, named_slice, service, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::end_to_end::{CLIENT, CLIENT_POD, EndToEnd, NODE_IP, local_pod, remote_pod};

use crate::{apply, apply_service, cluster, frontend, is_answered, is_refused};

#[test]
fn create_scale_roll_and_delete_while_packets_flow() {
    let cluster = cluster();
    let steady = apply_service(&cluster, "steady", 1, &[Endpoint::local(7), Endpoint::remote(7)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let from_pod = cluster.traffic(CLIENT_POD, steady);
    let from_node = cluster.traffic(NODE_IP, steady);

    // Create: first the Service, then its endpoints, as controllers do.
    let shop = frontend(&cluster_ip(2), 80);
    apply(&cluster, &[service("shop", &cluster_ip(2), |_| {})]);
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, is_refused);
    apply(&cluster, &[slice("shop", &[Endpoint::local(1)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    // Scale up and down.
    apply(
        &cluster,
        &[slice("shop", &[Endpoint::local(1), Endpoint::local(2), Endpoint::remote(1), Endpoint::remote(2)])],
    );
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1), local_pod(2), remote_pod(1), remote_pod(2)]);
    apply(&cluster, &[slice("shop", &[Endpoint::local(2), Endpoint::remote(2)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2), remote_pod(2)]);
    // Roll: a new pod beside the old, which then goes.
    apply(&cluster, &[slice("shop", &[Endpoint::local(2), Endpoint::remote(2), Endpoint::local(3)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2), remote_pod(2), local_pod(3)]);
    apply(&cluster, &[slice("shop", &[Endpoint::local(2).terminating(), Endpoint::remote(2), Endpoint::local(3)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[remote_pod(2), local_pod(3)]);
    apply(&cluster, &[slice("shop", &[Endpoint::remote(3), Endpoint::local(3)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[remote_pod(3), local_pod(3)]);
    // Delete, in the order in which controllers do.
    cluster.api.delete(Resource::EndpointSlices, NAMESPACE, "shop-1").unwrap();
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, is_refused);
    cluster.api.delete(Resource::Services, NAMESPACE, "shop").unwrap();
    cluster.eventually(CLIENT_POD, shop, Transport::Tcp, |result| !is_refused(result) && !is_answered(result));

    from_pod.stop();
    from_node.stop();
    assert!(agent.terminate().success());
}

#[test]
fn a_rolling_update_loses_no_new_connection() {
    let cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1), Endpoint::remote(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    // An open connection stays at a pod that is terminating.
    let traffic = cluster.traffic(CLIENT_POD, shop);
    for round in 0..10 {
        let (old, new) = (1 + round % 8, 1 + (round + 1) % 8);
        let both = [Endpoint::local(old), Endpoint::remote(old), Endpoint::local(new), Endpoint::remote(new)];
        apply(&cluster, &[slice("shop", &both)]);
        let going =
            [Endpoint::local(old).terminating(), Endpoint::remote(old), Endpoint::local(new), Endpoint::remote(new)];
        apply(&cluster, &[slice("shop", &going)]);
        apply(&cluster, &[slice("shop", &[Endpoint::local(new), Endpoint::remote(new)])]);
    }
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(3), remote_pod(3)]);
    traffic.stop();
}

#[test]
fn a_service_changes_its_type() {
    let cluster = cluster();
    let internal = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, internal, &[local_pod(1)]);
    let traffic = cluster.traffic(CLIENT_POD, internal);

    let node_port = frontend(NODE_IP, 30_080);
    let external = frontend("198.51.100.200", 80);
    let as_type = |kind: &'static str| {
        service("shop", &cluster_ip(2), |service| {
            service["spec"]["type"] = json!(kind);
            if kind != "ClusterIP" {
                service["spec"]["ports"][0]["nodePort"] = json!(30_080);
            }
            if kind == "LoadBalancer" {
                service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.200", "ipMode": "VIP"}]}});
            }
        })
    };
    apply(&cluster, &[as_type("NodePort")]);
    cluster.eventually_reaches(CLIENT, node_port, &[local_pod(1)]);
    apply(&cluster, &[as_type("LoadBalancer")]);
    cluster.eventually_reaches(CLIENT, external, &[local_pod(1)]);
    cluster.eventually_reaches(CLIENT, node_port, &[local_pod(1)]);
    apply(&cluster, &[as_type("ClusterIP")]);
    cluster.eventually(CLIENT, node_port, Transport::Tcp, is_refused);
    cluster.eventually(CLIENT_POD, external, Transport::Tcp, |result| !is_answered(result));
    traffic.stop();
    // A Service without cluster IP has no rules.
    cluster.api.delete(Resource::Services, NAMESPACE, "shop").unwrap();
    apply(
        &cluster,
        &[service("shop", "None", |service| {
            service["spec"].as_object_mut().unwrap().remove("clusterIP");
            service["spec"].as_object_mut().unwrap().remove("clusterIPs");
            service["spec"]["type"] = json!("ExternalName");
            service["spec"]["externalName"] = json!("example.com");
        })],
    );
    cluster.eventually(CLIENT_POD, internal, Transport::Tcp, |result| !is_answered(result) && !is_refused(result));
}

#[test]
fn a_udp_flow_leaves_a_pod_that_is_gone() {
    let cluster = cluster();
    let udp = |service: &mut serde_json::Value| service["spec"]["ports"][0]["protocol"] = json!("UDP");
    let udp_slice = |endpoints: &[Endpoint]| {
        let mut slice = slice("dns", endpoints);
        slice["ports"][0]["protocol"] = json!("UDP");
        slice
    };
    apply(&cluster, &[service("dns", &cluster_ip(3), udp), udp_slice(&[Endpoint::local(1)])]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let probe = Probe {
        source: CLIENT_POD.parse().unwrap(),
        target: frontend(&cluster_ip(3), 80),
        transport: Transport::Udp,
        timeout: std::time::Duration::from_millis(300),
    };
    let mut flow = cluster.lab().open_flow(&probe).unwrap();
    let answered_by = |result: vmap_proxy_lab::ProbeResult, pod: String| {
        let pod: IpAddr = pod.parse().unwrap();
        matches!(result, vmap_proxy_lab::ProbeResult::Answered { by, .. } if by.ip() == pod)
    };
    assert!(answered_by(flow.opened(), local_pod(1)), "{}", flow.opened());
    apply(&cluster, &[udp_slice(&[Endpoint::local(2)])]);
    let deadline = std::time::Instant::now() + vmap_proxy_testbed::PATIENCE;
    while !answered_by(flow.ask(1).unwrap(), local_pod(2)) {
        assert!(std::time::Instant::now() < deadline, "the flow still goes to the pod that is gone");
    }
}

/// Returns the number of endpoints in the kernel for a cluster IP.
fn endpoints_in_kernel(cluster: &EndToEnd, frontend: SocketAddr) -> usize {
    let read = || {
        let mut kernel = Kernel::open().unwrap();
        let elements = kernel.read_elements(Family::Ipv4, Map::Endpoints(Domain::Frontend, Pool::Main)).unwrap();
        let is_its = |key: &Key| matches!(key, Key::Slot(Target::Frontend(key), _) if key.address == frontend.ip());
        elements.iter().filter(|element| is_its(&element.element.key)).count()
    };
    cluster.node().run(read).unwrap()
}

#[test]
fn slices_of_a_thousand_endpoints() {
    let cluster = cluster();
    // Nobody lives there; only the last slice's pod answers.
    let many = |range: u8| -> Vec<Endpoint> {
        (0..1000u16)
            .map(|index| {
                Endpoint::at(format!("10.{range}.{}.{}", index / 250, 1 + index % 250), "vmap-proxy-test-other")
            })
            .collect()
    };
    let big = frontend(&cluster_ip(4), 80);
    apply(&cluster, &[service("big", &cluster_ip(4), |_| {})]);
    apply(&cluster, &[named_slice("big-1", "big", &many(201)), named_slice("big-2", "big", &many(202))]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    assert_eq!(endpoints_in_kernel(&cluster, big), 2000);
    apply(&cluster, &[named_slice("big-3", "big", &[Endpoint::local(1)])]);
    agent.wait_for_lines(" synced in ", 1);
    assert_eq!(endpoints_in_kernel(&cluster, big), 2001);
    cluster.api.delete(Resource::EndpointSlices, NAMESPACE, "big-1").unwrap();
    cluster.api.delete(Resource::EndpointSlices, NAMESPACE, "big-2").unwrap();
    cluster.eventually_reaches(CLIENT_POD, big, &[local_pod(1)]);
}

#[test]
fn a_restart_sends_nothing_and_cuts_nothing() {
    let cluster = cluster();
    let endpoints = [Endpoint::local(1), Endpoint::remote(1), Endpoint::local(2)];
    let shop = apply_service(&cluster, "shop", 2, &endpoints);
    apply(&cluster, &[service("lonely", &cluster_ip(5), |_| {})]);
    let mut agent = cluster.agent();
    agent.wait_until_ready();
    let traffic = cluster.traffic(CLIENT_POD, shop);
    let before = cluster.generation();
    for terminated in [true, false, true] {
        let _ = if terminated { agent.terminate() } else { agent.kill() };
        agent = cluster.agent();
        let line = agent.wait_until_ready();
        assert!(line.contains("0 elements added, 0 removed, 0 commits"), "{line}");
        assert_eq!(cluster.generation(), before, "{line}");
    }
    // It sends only the changes during its absence.
    let _ = agent.terminate();
    apply(
        &cluster,
        &[slice("shop", &[Endpoint::local(1), Endpoint::remote(1), Endpoint::local(2), Endpoint::local(3)])],
    );
    agent = cluster.agent();
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1), remote_pod(1), local_pod(2), local_pod(3)]);
    traffic.stop();
}

#[test]
fn a_shortest_time_between_syncs_that_is_set_is_kept() {
    let cluster = cluster();
    let endpoints = [Endpoint::local(1)];
    apply_service(&cluster, "shop", 2, &endpoints);
    let agent = cluster.agent_with(&cluster.configuration(&[("/nftables/minSyncPeriod", json!("10s"))]));
    agent.wait_until_ready();
    apply_service(&cluster, "second", 3, &endpoints);
    agent.wait_for_lines(" synced in ", 1);
    let second = Instant::now();
    apply_service(&cluster, "third", 4, &endpoints);
    agent.wait_for_lines(" synced in ", 2);
    // Far from both 50 ms and 10 s: the machine may be busy.
    assert!(second.elapsed() > Duration::from_secs(4), "{:?}", second.elapsed());
}
