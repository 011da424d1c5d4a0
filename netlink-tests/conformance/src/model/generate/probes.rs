//! Packets of interest in a scenario.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Scenario;
use super::slices::PODS;
use crate::model::address::{self, Family};
use crate::model::{Packet, Protocol, json};

/// Sources per frontend in [`some`].
const SOURCES: usize = 6;

/// A source address, and the interface its packets arrive on.
type Source = (IpAddr, Option<&'static str>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    ip: IpAddr,
    port: u16,
    protocol: Protocol,
}

/// Every target from every source.
pub(super) fn all(scenario: &Scenario) -> Vec<Packet> {
    let sources = sources(scenario);
    let (frontends, near_misses) = targets(scenario);
    frontends
        .iter()
        .chain(&near_misses)
        .flat_map(|target| sources.iter().filter_map(|source| packet(*source, *target)))
        .collect()
}

/// Every frontend from several sources, and near misses from one. Which ones
/// depends on `turn` and changes from target to target.
pub(super) fn some(scenario: &Scenario, turn: usize) -> Vec<Packet> {
    let (frontends, near_misses) = targets(scenario);
    let sources = sources(scenario);
    let targets = frontends.iter().map(|target| (target, SOURCES));
    let targets = targets.chain(near_misses.iter().map(|target| (target, 1)));
    let mut packets = Vec::new();
    for (index, (target, count)) in targets.enumerate() {
        let fitting = sources.iter().filter_map(|source| packet(*source, *target));
        let mut fitting: Vec<Packet> = fitting.collect();
        // Steps that share no factor with the usual number of sources.
        let start = (turn + 5 * index) % fitting.len().max(1);
        fitting.rotate_left(start);
        packets.extend(fitting.into_iter().take(count));
    }
    packets
}

fn packet((from, iif): Source, target: Target) -> Option<Packet> {
    (Family::of(from) == Family::of(target.ip)).then(|| Packet {
        from,
        iif: iif.map(str::to_owned),
        to: target.ip,
        port: target.port,
        protocol: target.protocol,
    })
}

/// Pods of this and other nodes, endpoints or not; other nodes; clients inside
/// and outside the source ranges; all the node's own addresses.
fn sources(scenario: &Scenario) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    let mut add = |text: &str, iif| sources.extend(address::parse(text).map(|ip| (ip, iif)));
    for family in ["IPv4", "IPv6"] {
        for pod in PODS {
            let iif = if pod.is_local() { "cni0" } else { "eth0" };
            add(&pod.address(family), Some(iif));
        }
    }
    for text in ["10.244.1.77", "fd00:10:244:1::77"] {
        add(text, Some("cni0"));
    }
    for text in [
        "10.244.2.88",
        "198.51.100.5",
        "198.51.100.50",
        "198.51.100.200",
        "192.0.2.12",
        "fd00:10:244:2::88",
        "2001:db8:2::5",
        "2001:db8:2::50",
        "2001:db8:1::12",
    ] {
        add(text, Some("eth0"));
    }
    for text in ["127.0.0.1", "::1"] {
        add(text, None);
    }
    sources.extend(own_addresses(scenario).map(|ip| (ip, None)));
    sources
}

fn own_addresses(scenario: &Scenario) -> impl Iterator<Item = IpAddr> {
    scenario.node.primary_ips.iter().chain(&scenario.node.local_addresses).copied()
}

/// Frontends of any manifest, and near misses.
fn targets(scenario: &Scenario) -> (BTreeSet<Target>, BTreeSet<Target>) {
    let mut frontends = BTreeSet::new();
    let mut near_misses = BTreeSet::new();
    for service in scenario.manifests().filter(|m| json::text(m, "/kind") == Some("Service")) {
        let ingress = json::list(service, "/status/loadBalancer/ingress");
        let service_ips: Vec<IpAddr> = json::texts(service, "/spec/clusterIPs")
            .into_iter()
            .chain(json::texts(service, "/spec/externalIPs"))
            .chain(ingress.iter().filter_map(|entry| json::text(entry, "/ip")))
            .filter_map(address::parse)
            .collect();
        for port in json::list(service, "/spec/ports") {
            let protocol = json::text(port, "/protocol").and_then(Protocol::from_name);
            let protocol = protocol.unwrap_or(Protocol::Tcp);
            let target = |port| move |ip| Target { ip, port, protocol };
            if let Some(port) = json::port(port, "/port") {
                frontends.extend(service_ips.iter().copied().map(target(port)));
            }
            if let Some(port) = json::port(port, "/nodePort") {
                frontends.extend(own_addresses(scenario).map(target(port)));
                near_misses.extend(not_for_node_ports().map(target(port)));
            }
        }
    }
    near_misses.extend(frontends.iter().flat_map(|target| misses(*target)));
    // Addresses of no Service, within and outside of ServiceCIDRs.
    for text in ["10.96.0.200", "10.97.0.5", "10.98.0.5", "fd00:10:96::200", "fd00:10:97::5"] {
        let target = |ip| Target { ip, port: 80, protocol: Protocol::Tcp };
        near_misses.extend(address::parse(text).map(target));
    }
    near_misses.retain(|target| !frontends.contains(target));
    (frontends, near_misses)
}

/// The next port, and another protocol.
fn misses(target: Target) -> [Target; 2] {
    let protocol = match target.protocol {
        Protocol::Tcp => Protocol::Udp,
        Protocol::Udp => Protocol::Sctp,
        Protocol::Sctp => Protocol::Tcp,
    };
    [Target { port: target.port + 1, ..target }, Target { protocol, ..target }]
}

/// Addresses that serve no node port: loopback, and another node's.
fn not_for_node_ports() -> impl Iterator<Item = IpAddr> {
    let texts = ["127.0.0.1", "127.8.8.8", "::1", "192.0.2.12", "2001:db8:1::12"];
    texts.into_iter().filter_map(address::parse)
}
