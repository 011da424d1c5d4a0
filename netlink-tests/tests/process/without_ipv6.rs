//! A node without IPv6 serves IPv4.
//!
//! On a kernel that has IPv6 it is switched off in the node's namespace. `scripts/kernel-matrix --suites without_ipv6 6.1`
//! boots a kernel with `ipv6.disable=1`.

use std::net::{IpAddr, Ipv4Addr};

use vmap_proxy_lab::{Lab, Probe, ProbeResult, has_ipv6};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{CLIENT, LOCAL, NODE, POD_PORT, at};
use vmap_proxy_testbed::manifests::slice;
use vmap_proxy_testbed::skip::skipped;

use super::*;

/// The servers listen on all addresses in the way of a cluster with both families.
const FLAGS: [&str; 3] =
    ["--metrics-bind-address=[::]:10249", "--healthz-bind-address=[::]:10256", "--bind-address=::"];
const SERVICE: &str = "10.96.0.30";
const NODE_PORT: u16 = 30_030;

/// A node with a pod and a client outside, all without IPv6.
fn world() -> Lab {
    let ips = |address: &str| [address.parse::<IpAddr>().unwrap()];
    let lab = Lab::builder()
        .node_addresses(ips(NODE[0]))
        .host("pod", "vethpod", ips(LOCAL[0][0]))
        .uplink("outside", "eth0", ips(CLIENT[0]))
        .build()
        .unwrap();
    lab.listen(at(LOCAL[0][0], POD_PORT), Tcp).unwrap();
    if has_ipv6() {
        lab.node().set_sysctls(&[("net.ipv6.conf.all.disable_ipv6", "1")]).unwrap();
    }
    lab
}

/// Services of IPv4, of both families and of IPv6.
fn services() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let service = |name: &str| service(&format!("shop/{name}")).port(Tcp, 80);
    let endpoint = slice("shop/four", "4").port(Tcp, POD_PORT.into()).endpoint(LOCAL[0][0]).build();
    let [both, six] = [service("both"), service("six")];
    manifests.write_objects(
        "shop.json",
        &[
            vmap_proxy_testbed::manifests::node([NODE[0]]),
            service("four").cluster_ip(SERVICE).node_port(NODE_PORT.into()).build(),
            endpoint,
            both.cluster_ip("10.96.0.31").cluster_ip("fd00:10:96::31").build(),
            six.cluster_ip("fd00:10:96::32").build(),
        ],
    );
    manifests
}

fn agent(lab: &Lab, manifests: &ManifestDirectory, flags: &[&str]) -> AgentProcess {
    AgentProcess::start(PROGRAM, lab.node(), manifests, &[&FLAGS, flags].concat())
}

#[track_caller]
fn assert_answered(lab: &Lab, source: &str, address: &str, port: u16) {
    let probe = Probe { source: source.parse().unwrap(), target: at(address, port), transport: Tcp, timeout: PATIENCE };
    let result = lab.probe(&probe).unwrap();
    assert!(matches!(result, ProbeResult::Answered { .. }), "{address} from {source}: {result}");
}

/// Returns whether a server answers this with success at an address of the node.
fn is_served(lab: &Lab, address: IpAddr, port: u16, path: &str) -> bool {
    get_from(lab.node(), SocketAddr::new(address, port), path).is_some_and(|reply| reply.contains(" 200 "))
}

#[test]
fn ipv4_is_served_alone() {
    let lab = world();
    let manifests = services();
    let agent = agent(&lab, &manifests, &[]);
    let lines = |text: &str| agent.log().iter().filter(|line| line.contains(text)).count();
    assert_eq!(lines("this node has no IPv6"), 1, "{:#?}", agent.log());
    let named = agent.wait_for_line("IPv6 addresses, which this node does not serve");
    assert!(named.contains("2 Services") && named.contains("(1 without any other): shop/six, shop/both"), "{named}");
    assert_eq!(nft_in(lab.node(), &["list", "tables"], "").unwrap(), "table ip vmap-proxy\n");
    assert_answered(&lab, CLIENT[0], SERVICE, 80);
    assert_answered(&lab, CLIENT[0], NODE[0], NODE_PORT);
    for address in [Ipv4Addr::LOCALHOST.into(), NODE[0].parse().unwrap()] {
        eventually("/healthz answers", || is_served(&lab, address, HEALTH, "/healthz"));
        eventually("/metrics answers", || is_served(&lab, address, METRICS, "/metrics"));
    }
    let metrics = get_from(lab.node(), at(NODE[0], METRICS), "/metrics").unwrap();
    assert!(metrics.contains(r#"ip_family="IPv4""#) && !metrics.contains(r#"ip_family="IPv6""#), "{metrics}");

    // A Service that comes later is named as well.
    let late = service("shop/late").port(Tcp, 80).cluster_ip("fd00:10:96::33").build();
    manifests.write_objects("late.json", &[late]);
    agent
        .wait_for_line("1 Service has IPv6 addresses, which this node does not serve (1 without any other): shop/late");
    assert_eq!(lines("cannot listen"), 0, "{:#?}", agent.log());
    agent.stop();
}

#[test]
fn node_port_addresses_of_either_family_serve_ipv4() {
    let lab = world();
    let manifests = services();
    for flag in ["--nodeport-addresses=192.0.2.0/24", "--nodeport-addresses=192.0.2.0/24,2001:db8::/32"] {
        let agent = agent(&lab, &manifests, &[flag]);
        assert_answered(&lab, CLIENT[0], NODE[0], NODE_PORT);
        agent.stop();
    }
}

#[test]
fn the_doctor_notes_it() {
    let lab = world();
    let output = lab.node().run(|| vmap_proxy(&["doctor", "-o", "json"]).output().unwrap()).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let of_kernel: Vec<&Value> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["subject"].as_str().unwrap().starts_with("kernel"))
        .collect();
    assert!(output.status.success() && of_kernel.len() == 1, "{text}");
    assert!(of_kernel[0]["severity"] == "note" && of_kernel[0]["subject"] == "kernel, IPv6", "{text}");
}

/// Half of the demo is about IPv6: it ends with a line about that.
#[test]
fn the_demo_asks_for_a_kernel_with_ipv6() {
    if has_ipv6() {
        skipped("the demo on a kernel without IPv6 was not tested: this one has it");
        return;
    }
    let output = vmap_proxy(&["demo"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("this kernel has no IPv6"), "{text}");
}
