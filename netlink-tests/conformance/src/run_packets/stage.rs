//! The namespaces of a vector: who sits behind which interface, and where echo servers listen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;
use vmap_proxy_lab::{Lab, LabError, Transport};

use crate::schema::{OriginKind, Probe, TransportProtocol, Vector};
use vmap_proxy_testbed::namespaces::show_bridged_packets;

/// Interface to this node's pods, where the vector names none.
const POD_INTERFACE: &str = "podlink";
/// Interface to the pods of other nodes and to endpoints elsewhere, where the vector names none.
const OVERLAY_INTERFACE: &str = "overlay0";
/// Interface to everybody else.
const UPLINK_INTERFACE: &str = "eth0";

/// A vector's lab.
pub(super) struct Stage {
    pub(super) lab: Lab,
}

impl Stage {
    /// Builds the namespaces and starts every echo server.
    pub(super) fn build(vector: &Vector) -> Result<Self, LabError> {
        let servers = servers(vector);
        let mut uplink = Vec::new();
        let mut builder = Lab::builder().node_addresses(node_addresses(vector));
        for (number, (interface, addresses)) in (1..).zip(places(vector, &servers)) {
            if interface == UPLINK_INTERFACE {
                uplink = addresses;
                continue;
            }
            if vector.node.bridge.as_ref() == Some(&interface) {
                for (port, address) in (1..).zip(addresses) {
                    builder = builder.host(format!("{interface}-{port}"), &interface, [address]).bridged();
                }
            } else {
                builder = builder.host(&interface, &interface, addresses);
            }
            // Each interface has an address of its own, as a bridge or tunnel has, so that a
            // masqueraded connection of the node shows: it would keep its address else.
            builder = builder.node_side([
                IpAddr::V4(Ipv4Addr::new(172, 31, 255, number)),
                IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0xff, 0, 0, 0, 0, number.into())),
            ]);
        }
        let lab = builder.uplink("outside", UPLINK_INTERFACE, uplink).build()?;
        if vector.node.bridge.is_some() {
            show_bridged_packets(lab.node(), true)?;
        }
        for (address, transport) in servers {
            lab.listen(address, transport)?;
        }
        Ok(Self { lab })
    }
}

/// Returns whether any packet is SCTP.
pub(super) fn uses_sctp(vector: &Vector) -> bool {
    probes(vector).any(|probe| probe.to.proto == TransportProtocol::Sctp)
}

/// The lab's word for a vector's protocol.
pub(super) fn transport(protocol: TransportProtocol) -> Transport {
    match protocol {
        TransportProtocol::Tcp => Transport::Tcp,
        TransportProtocol::Udp => Transport::Udp,
        TransportProtocol::Sctp => Transport::Sctp,
    }
}

fn probes(vector: &Vector) -> impl Iterator<Item = &Probe> {
    vector.phases().flat_map(|(_, probes)| probes)
}

/// Primary addresses first: masquerading takes the first one.
fn node_addresses(vector: &Vector) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = vector.node.primary_ips().collect();
    let further = vector.node.addresses();
    addresses.extend(further.into_iter().filter(|address| !vector.node.primary_ips().any(|ip| ip == *address)));
    addresses
}

/// Every address and port a packet may reach: those it is sent to, those it must be translated to, and
/// whatever else is in a slice.
fn servers(vector: &Vector) -> BTreeSet<(SocketAddr, Transport)> {
    let mut servers = BTreeSet::new();
    for Probe { to, expect, .. } in probes(vector) {
        let transport = transport(to.proto);
        servers.insert((SocketAddr::new(to.ip, to.port), transport));
        servers.extend(expect.endpoints.iter().map(|endpoint| (*endpoint, transport)));
    }
    let applied = vector.steps.iter().flat_map(|step| &step.apply);
    vector.objects.iter().chain(applied).for_each(|manifest| servers.extend(slice_servers(manifest)));
    servers
}

/// The addresses and ports of an EndpointSlice. What a proxy would have to refuse is left out.
fn slice_servers(manifest: &Value) -> Vec<(SocketAddr, Transport)> {
    let list = |key: &str| manifest[key].as_array().map(Vec::as_slice).unwrap_or_default();
    if manifest["kind"] != "EndpointSlice" {
        return Vec::new();
    }
    let addresses = list("endpoints").iter().filter_map(|endpoint| endpoint["addresses"].as_array()).flatten();
    let addresses: Vec<IpAddr> = addresses.filter_map(|address| address.as_str()?.parse().ok()).collect();
    let ports = list("ports").iter().filter_map(|port| {
        let number = u16::try_from(port["port"].as_u64()?).ok()?;
        let transport = match port["protocol"].as_str().unwrap_or("TCP") {
            "TCP" => Transport::Tcp,
            "UDP" => Transport::Udp,
            "SCTP" => Transport::Sctp,
            _ => return None,
        };
        Some((number, transport))
    });
    let pairs = ports.flat_map(|(port, transport)| {
        addresses.iter().map(move |address| (SocketAddr::new(*address, port), transport))
    });
    pairs.collect()
}

/// Returns the addresses behind each interface of the node.
fn places(vector: &Vector, servers: &BTreeSet<(SocketAddr, Transport)>) -> BTreeMap<String, Vec<IpAddr>> {
    let mut places: BTreeMap<IpAddr, &str> = BTreeMap::new();
    let pod_interface = vector.node.bridge.as_deref().unwrap_or(POD_INTERFACE);
    let is_local_pod = |ip: &IpAddr| vector.node.pod_cidrs.iter().any(|range| range.contains(ip));
    // The interface a packet has to arrive on outranks everything.
    for Probe { from, .. } in probes(vector) {
        if let Some(interface) = &from.iif {
            places.entry(from.ip).or_insert(interface);
        }
    }
    let targets: BTreeSet<IpAddr> = probes(vector).map(|probe| probe.to.ip).collect();
    for (server, _) in servers.iter().filter(|(server, _)| !targets.contains(&server.ip())) {
        let interface = if is_local_pod(&server.ip()) { pod_interface } else { OVERLAY_INTERFACE };
        places.entry(server.ip()).or_insert(interface);
    }
    for Probe { from, .. } in probes(vector) {
        places.entry(from.ip).or_insert(match from.kind {
            OriginKind::LocalPod => pod_interface,
            OriginKind::RemotePod => OVERLAY_INTERFACE,
            OriginKind::Node | OriginKind::External => UPLINK_INTERFACE,
        });
    }
    for target in targets {
        places.entry(target).or_insert(UPLINK_INTERFACE);
    }
    let mut by_interface: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for (address, interface) in places {
        if !vector.node.has_address(address) {
            by_interface.entry(interface.to_owned()).or_default().push(address);
        }
    }
    by_interface
}
