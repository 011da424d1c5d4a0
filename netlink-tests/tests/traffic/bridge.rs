//! Pods behind one bridge of the node, recognised by its name, with and without `bridge-nf-call-iptables`: kubenet, and the
//! `bridge` plugin of CNI.

use std::net::IpAddr;
use std::time::Duration;

use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_lab::Transport::{Sctp, Tcp, Udp};
use vmap_proxy_lab::{Lab, Probe, ProbeResult, Transport};
use vmap_proxy_testbed::cluster::{CLIENT, LOCAL, NODE, POD, POD_PORT, REMOTE, at, ip, node_object, proxy_config};
use vmap_proxy_testbed::namespaces::show_bridged_packets;
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::shop::{VIP, slices, web};

const BRIDGE: &str = "cbr0";
/// The bridge's own addresses.
const GATEWAY: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
const TRANSPORTS: [Transport; 3] = [Tcp, Udp, Sctp];
/// Below a second, so that no SYN is sent twice.
const PATIENT: Duration = Duration::from_millis(950);

/// In both families.
fn ips(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(ip)
}

/// A pod that asks and one that serves behind the bridge; a remote pod and a client outside.
fn lab(shows_its_packets: bool) -> Lab {
    let server = |family: usize| LOCAL[family][0];
    let outside = (0..2).flat_map(|family| [REMOTE[family][0], CLIENT[family]]).map(ip);
    let lab = Lab::builder()
        .node_addresses(ips(NODE))
        .host("pod", BRIDGE, ips(POD))
        .bridged()
        .host("server", BRIDGE, [ip(server(0)), ip(server(1))])
        .bridged()
        .node_side(ips(GATEWAY))
        .uplink("outside", "eth0", outside)
        .build()
        .unwrap();
    show_bridged_packets(lab.node(), shows_its_packets).unwrap();
    for pod in [server(0), server(1), REMOTE[0][0], REMOTE[1][0]] {
        TRANSPORTS.into_iter().for_each(|transport| lab.listen(at(pod, POD_PORT), transport).unwrap());
    }
    lab
}

/// Whom the endpoint sees when `from` connects to the cluster IP.
#[track_caller]
fn source_seen(lab: &Lab, from: &str, family: usize, transport: Transport) -> IpAddr {
    let probe = Probe { source: ip(from), target: at(VIP[family], 80), transport, timeout: PATIENT };
    match lab.probe(&probe).unwrap() {
        ProbeResult::Answered { seen_source, .. } => seen_source,
        other => panic!("{from} over {transport}: {other}"),
    }
}

/// Connects from everywhere to a Service with this one endpoint in each family.
fn assert_only_pods_keep_their_address(
    detect_local: &DetectLocal,
    shows_its_packets: bool,
    endpoint: [&'static str; 2],
) {
    let lab = lab(shows_its_packets);
    let config = ProxyConfig { detect_local: detect_local.clone(), ..proxy_config() };
    let mut objects = vec![node_object(), web().port(Sctp, 80).node_port(30081).build()];
    objects.extend(slices("shop/web", |family| vec![endpoint[family]]));
    let (_proxy, _) = Proxy::start(lab.node(), config, &objects);
    let on_bridge = endpoint[0] == LOCAL[0][0];
    let case = format!("{detect_local:?}, shown: {shows_its_packets}, {endpoint:?}");
    for family in 0..2 {
        for transport in TRANSPORTS {
            let seen = |from| source_seen(&lab, from, family, transport);
            let pods: &[&str] = if on_bridge { &[POD[family]] } else { &[POD[family], LOCAL[family][0]] };
            for from in pods {
                assert_eq!(seen(from), ip(from), "{case}, {transport}");
            }
            // Masquerading takes an address of the interface that leads to the endpoint. The last one reaches itself.
            let of_node = if on_bridge { GATEWAY[family] } else { NODE[family] };
            let itself = on_bridge.then_some(LOCAL[family][0]);
            let masqueraded = [NODE[family], CLIENT[family]].into_iter().chain(itself);
            for from in masqueraded {
                assert_eq!(seen(from), ip(of_node), "{from}: {case}, {transport}");
            }
        }
    }
}

fn detectors() -> [DetectLocal; 2] {
    [DetectLocal::BridgeInterface(BRIDGE.to_owned()), DetectLocal::InterfaceNamePrefix("cbr".to_owned())]
}

#[test]
fn pods_keep_their_address_on_a_bridge_that_shows_its_packets() {
    for detect_local in detectors() {
        assert_only_pods_keep_their_address(&detect_local, true, [LOCAL[0][0], LOCAL[1][0]]);
    }
}

#[test]
fn pods_keep_their_address_on_a_bridge_that_does_not() {
    for detect_local in detectors() {
        assert_only_pods_keep_their_address(&detect_local, false, [LOCAL[0][0], LOCAL[1][0]]);
    }
}

#[test]
fn pods_keep_their_address_on_the_way_off_the_bridge() {
    for shows_its_packets in [true, false] {
        for detect_local in detectors() {
            assert_only_pods_keep_their_address(&detect_local, shows_its_packets, [REMOTE[0][0], REMOTE[1][0]]);
        }
    }
}
