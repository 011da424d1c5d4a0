//! Sources and destinations as they are written on the command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use vmap_proxy_compiler::explain::answer::Question as PacketQuestion;
use vmap_proxy_compiler::model::convert::parse_address;
use vmap_proxy_compiler::model::{Family, Protocol};

use crate::commands::asked::{AskError, Asked};
use crate::query::answer::service_name;
use crate::query::protocol::{Answer, Detector, NodeAnswer, Place, Question};

/// Addresses for documentation (RFC 5737, RFC 3849): a client outside.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 51, 100, 1), Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1));

/// The interface of a packet from elsewhere, where its name does not matter.
pub(super) const UPLINK: &str = "eth0";

/// A source or destination that can't be used.
#[derive(Debug, Error)]
pub enum PlaceError {
    /// `--to` is not of a known form.
    #[error(
        "--to {0:?}: give ADDRESS:PORT[/PROTOCOL], svc:NAMESPACE/NAME[:PORT], pod:NAMESPACE/NAME:PORT or node:PORT"
    )]
    Destination(String),
    /// `--from` is not of a known form.
    #[error("--from {0:?}: give an address, pod:NAMESPACE/NAME, node or outside")]
    Source(String),
    /// `--from` is missing.
    #[error(
        "--from is missing: give an address, pod:NAMESPACE/NAME, node or outside; only svc:NAMESPACE/NAME can be asked about without it"
    )]
    NoSource,
    /// No Pod object in files, and no slice, has the Pod.
    #[error(
        "the address of Pod {namespace}/{name} is not known here: a proxy follows no Pods, and none of the EndpointSlices \
         refers to this one (those of headless Services are not followed on an API server); give its address: kubectl \
         get pod -n {namespace} {name} -o jsonpath={{.status.podIP}}"
    )]
    UnknownPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A Service has no port of that name.
    #[error(
        "Service {service} has no port of the name {port:?}; `vmap-proxy explain --to svc:{service}` lists its ports"
    )]
    NoPort {
        /// The Service.
        service: String,
        /// The name.
        port: String,
    },
    /// The node has no address of the family.
    #[error("this node has no {0} address")]
    NoNodeAddress(Family),
    /// Source and destination are of two families.
    #[error("{source_address} and {destination} are of two address families; no packet goes from one to the other")]
    TwoFamilies {
        /// The source.
        source_address: IpAddr,
        /// The destination.
        destination: IpAddr,
    },
    /// Without an agent names mean nothing.
    #[error("without an agent only addresses and `node` are known: give the address in place of {0:?}")]
    NoAgent(String),
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
}

impl PlaceError {
    /// Returns whether the arguments alone are wrong, whatever the state is.
    pub(super) fn is_wrong_usage(&self) -> bool {
        matches!(self, Self::Destination(_) | Self::Source(_) | Self::NoSource | Self::TwoFamilies { .. })
    }
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Destination {
    Address(Place),
    Service { name: String, port: Option<String> },
    Pod { name: String, port: u16, protocol: Protocol },
    Node { port: u16, protocol: Protocol },
}

fn pair(text: &str) -> (String, String) {
    let name = service_name(text);
    (name.namespace().to_owned(), name.name().to_owned())
}

/// Cuts `/TCP`, `/udp` and the like from the end.
fn without_protocol(text: &str) -> (&str, Option<Protocol>) {
    let found = text.rsplit_once('/').and_then(|(rest, word)| {
        let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.keyword().eq_ignore_ascii_case(word))?;
        Some((rest, protocol))
    });
    found.map_or((text, None), |(rest, protocol)| (rest, Some(protocol)))
}

impl Destination {
    pub(crate) fn parse(text: &str) -> Result<Self, PlaceError> {
        Self::read(text).ok_or_else(|| PlaceError::Destination(text.to_owned()))
    }

    fn read(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("svc:") {
            // A Service may be named like a protocol: `svc:shop/udp`.
            let (head, _) = match without_protocol(rest) {
                (head, Some(_)) if head.contains(':') => (head, ()),
                _ => (rest, ()),
            };
            let (name, port) = head.split_once(':').map_or((head, None), |(name, port)| (name, Some(port.to_owned())));
            let (namespace, name) = pair(name);
            return (!name.is_empty()).then(|| Self::Service { name: format!("{namespace}/{name}"), port });
        }
        let (rest, protocol) = without_protocol(text);
        let protocol = protocol.unwrap_or(Protocol::Tcp);
        let (host, port) = rest.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        if let Some(pod) = host.strip_prefix("pod:") {
            return Some(Self::Pod { name: pod.to_owned(), port, protocol });
        }
        if host == "node" {
            return Some(Self::Node { port, protocol });
        }
        let address = match rest.parse::<SocketAddr>() {
            Ok(address) => address.ip(),
            Err(_) => parse_address(host)?,
        };
        Some(Self::Address(Place { address, protocol, port }))
    }
}

/// The packet of a question; `None` if a Service has no address.
pub(super) fn packet(
    asked: &mut Asked,
    from: &str,
    to: &Destination,
    interface: Option<&str>,
) -> Result<Option<PacketQuestion>, PlaceError> {
    let node = asked.node()?;
    if let Some(name) = from.strip_prefix("pod:") {
        return packet_from_pod(asked, &node, name, to, interface);
    }
    let family = parse_address(from).map(Family::of);
    let Some(place) = destination(asked, &node, to, family)? else { return Ok(None) };
    let source = source(&node, from, Family::of(place.address))?;
    Ok(Some(question(&node, source, place, interface)?))
}

/// The packet from a Pod, in the first family that it has in common with the
/// destination.
fn packet_from_pod(
    asked: &mut Asked,
    node: &NodeAnswer,
    name: &str,
    to: &Destination,
    interface: Option<&str>,
) -> Result<Option<PacketQuestion>, PlaceError> {
    let mut other_family = None;
    for source in pod(asked, name)? {
        let family = Family::of(source);
        match destination(asked, node, to, Some(family))? {
            Some(place) if Family::of(place.address) == family => {
                return Ok(Some(question(node, source, place, interface)?));
            }
            Some(place) => other_family = Some((source, place)),
            None => {}
        }
    }
    other_family.map(|(source, place)| question(node, source, place, interface)).transpose()
}

/// The packet of a question, where no agent answers.
pub(super) fn packet_without_agent(
    node: &NodeAnswer,
    from: &str,
    to: &Destination,
    interface: Option<&str>,
) -> Result<PacketQuestion, PlaceError> {
    let place = match to {
        Destination::Address(place) => *place,
        Destination::Node { port, protocol } => {
            let family = parse_address(from).map_or(Family::Ipv4, Family::of);
            Place { address: node_address(node, family)?, protocol: *protocol, port: *port }
        }
        Destination::Service { name, .. } | Destination::Pod { name, .. } => {
            return Err(PlaceError::NoAgent(name.clone()));
        }
    };
    if from.starts_with("pod:") {
        return Err(PlaceError::NoAgent(from.to_owned()));
    }
    question(node, source(node, from, Family::of(place.address))?, place, interface)
}

fn question(
    node: &NodeAnswer,
    source: IpAddr,
    place: Place,
    interface: Option<&str>,
) -> Result<PacketQuestion, PlaceError> {
    let family = Family::of(place.address);
    if Family::of(source) != family {
        return Err(PlaceError::TwoFamilies { source_address: source, destination: place.address });
    }
    let is_own = source.is_loopback() || node.interface_addresses.contains(&source);
    let interface = match interface {
        Some(name) => Some(name.to_owned()),
        None if is_own => None,
        None => Some(usual_interface(node, source)),
    };
    let Place { address: destination, protocol, port } = place;
    Ok(PacketQuestion { source, destination, protocol, port, interface })
}

/// The cluster IP of a Service with one of its ports, the first one unless a name
/// or number is given. A number that is no port of the Service is kept, so that
/// the answer is about a packet to it.
fn service(
    asked: &mut Asked,
    name: &str,
    port: Option<&str>,
    family: Option<Family>,
) -> Result<Option<Place>, PlaceError> {
    let mut place = |port: Option<&str>| {
        let question = Question::Destination { name: name.to_owned(), port: port.map(str::to_owned), family };
        match asked.ask(&question)? {
            Answer::Destination(place) => Ok::<_, PlaceError>(place),
            _ => Err(AskError::Unexpected.into()),
        }
    };
    let found = place(port)?;
    let (None, Some(port)) = (found, port) else { return Ok(found) };
    let Some(first) = place(None)? else { return Ok(None) };
    let no_port = |_| PlaceError::NoPort { service: name.to_owned(), port: port.to_owned() };
    Ok(Some(Place { port: port.parse().map_err(no_port)?, ..first }))
}

fn destination(
    asked: &mut Asked,
    node: &NodeAnswer,
    to: &Destination,
    family: Option<Family>,
) -> Result<Option<Place>, PlaceError> {
    Ok(Some(match to {
        Destination::Address(place) => *place,
        Destination::Service { name, port } => {
            return service(asked, name, port.as_deref(), family);
        }
        Destination::Pod { name, port, protocol } => {
            let addresses = pod(asked, name)?;
            let is_wanted = |address: &&IpAddr| family.is_none_or(|family| Family::of(**address) == family);
            let Some(address) = addresses.iter().find(is_wanted).or(addresses.first()) else { return Ok(None) };
            Place { address: *address, protocol: *protocol, port: *port }
        }
        Destination::Node { port, protocol } => {
            let family = family.unwrap_or(Family::Ipv4);
            Place { address: node_address(node, family)?, protocol: *protocol, port: *port }
        }
    }))
}

fn source(node: &NodeAnswer, from: &str, family: Family) -> Result<IpAddr, PlaceError> {
    match (from, family) {
        ("node", family) => node_address(node, family),
        ("outside", family) => Ok(outside(family)),
        _ => parse_address(from).ok_or_else(|| PlaceError::Source(from.to_owned())),
    }
}

/// The addresses of a Pod, at least one.
fn pod(asked: &mut Asked, name: &str) -> Result<Vec<IpAddr>, PlaceError> {
    let (namespace, name) = pair(name);
    let addresses = asked.pod_addresses(&namespace, &name)?;
    if addresses.is_empty() { Err(PlaceError::UnknownPod { namespace, name }) } else { Ok(addresses) }
}

/// The address of a client outside of the cluster.
pub(crate) fn outside(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => OUTSIDE.0.into(),
        Family::Ipv6 => OUTSIDE.1.into(),
    }
}

/// An address of this node.
pub(crate) fn node_address(node: &NodeAnswer, family: Family) -> Result<IpAddr, PlaceError> {
    let own = node.addresses.iter().chain(node.interface_addresses.iter().filter(|address| !address.is_loopback()));
    own.copied().find(|address| Family::of(*address) == family).ok_or(PlaceError::NoNodeAddress(family))
}

/// The interface that a packet with this source arrives on, where a setting looks
/// at it: pods of this node are behind the one that the setting names.
pub(crate) fn usual_interface(node: &NodeAnswer, source: IpAddr) -> String {
    let rules = node.rules.iter().find(|rules| rules.family == Family::of(source));
    let is_local_pod = node.pod_cidrs.iter().any(|range| range.contains(&source));
    match rules.and_then(|rules| rules.detector.as_ref()) {
        Some(Detector::Interface(name)) if is_local_pod => name.clone(),
        Some(Detector::InterfacePrefix(prefix)) if is_local_pod => format!("{prefix}0"),
        _ => UPLINK.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn place(address: &str, port: u16, protocol: Protocol) -> Destination {
        Destination::Address(Place { address: address.parse().unwrap(), protocol, port })
    }

    #[test]
    fn destinations_are_read() {
        let service = |name: &str, port: Option<&str>| Destination::Service {
            name: name.to_owned(),
            port: port.map(str::to_owned),
        };
        for (text, expected) in [
            ("10.96.0.10:80", place("10.96.0.10", 80, Protocol::Tcp)),
            ("10.96.0.10:53/udp", place("10.96.0.10", 53, Protocol::Udp)),
            ("[fd00::1]:80/SCTP", place("fd00::1", 80, Protocol::Sctp)),
            ("svc:shop/cart", service("shop/cart", None)),
            ("svc:cart:http", service("default/cart", Some("http"))),
            ("svc:shop/cart:80/TCP", service("shop/cart", Some("80"))),
            ("svc:shop/udp", service("shop/udp", None)),
            (
                "pod:shop/cart-0:8080",
                Destination::Pod { name: "shop/cart-0".to_owned(), port: 8080, protocol: Protocol::Tcp },
            ),
            ("node:30080", Destination::Node { port: 30080, protocol: Protocol::Tcp }),
        ] {
            assert_eq!(Destination::parse(text).unwrap(), expected, "{text}");
        }
        for bad in
            ["", "10.96.0.10", "10.96.0.10:0", "10.96.0.10:http", "cart:80", "svc:", "10.96.0.10:80/ICMP", "node"]
        {
            assert!(Destination::parse(bad).is_err(), "{bad}");
        }
    }
}
