//! ctnetlink messages: those that cleaning and lists of connections need.
//!
//! The identity of a flow is kept as the kernel wrote it and sent back without interpretation, so that new attributes
//! of a newer kernel still name the same flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::FrontendKey;

use crate::message::{Attributes, Message, Request};
use crate::nf_tables::family_number;
use crate::uapi::*;

mod connection;

pub use connection::{Connection, Direction, TcpState};

/// The message type of a dump's answer.
pub const ENTRY: u16 = message_type(IPCTNL_MSG_CT_NEW);

const fn message_type(message: u8) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message as u16
}

/// The flows that a dump should contain. The kernel ignores filters that it does not know, so the reader of the
/// dump checks each flow again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DumpFilter {
    /// Only this family.
    pub family: Family,
    /// Only flows of this protocol.
    pub protocol: Option<Protocol>,
    /// Only flows whose original destination is this port. Linux compares it only for TCP and UDP.
    pub port: Option<u16>,
    /// Only flows whose original destination is this address. There is none for IPv6: there every Linux since 5.8
    /// takes "equal" for "different" (`ctnetlink_filter_match_tuple` tests `!ipv6_addr_cmp()`).
    pub address: Option<Ipv4Addr>,
}

/// The request for a dump.
pub fn dump(filter: DumpFilter) -> Request {
    Request::new(message_type(IPCTNL_MSG_CT_GET), family_number(filter.family), |w| {
        let Some(protocol) = filter.protocol else { return };
        let mut compared = CT_FILTER_PROTO_NUM;
        w.nest(CTA_TUPLE_ORIG, |w| {
            if let Some(address) = filter.address {
                compared |= CT_FILTER_IP_DST;
                w.nest(CTA_TUPLE_IP, |w| w.attribute(CTA_IP_V4_DST, &address.octets()));
            }
            w.nest(CTA_TUPLE_PROTO, |w| {
                w.u8(CTA_PROTO_NUM, protocol.number());
                if let Some(port) = filter.port {
                    compared |= CT_FILTER_PROTO_DST_PORT;
                    w.be16(CTA_PROTO_DST_PORT, port);
                }
            });
        });
        w.nest(CTA_FILTER, |w| w.ne32(CTA_FILTER_ORIG_FLAGS, compared));
    })
}

/// A tracked flow of UDP or SCTP, with the fields that cleaning needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow<'a> {
    /// The original destination of the client's packets.
    pub frontend: FrontendKey,
    /// The translated destination, which is the source of the replies.
    pub endpoint: Endpoint,
    /// Whether the destination was translated.
    pub translated: bool,
    /// Whether it is tracked in a zone other than 0.
    pub in_zone: bool,
    identity: Identity<'a>,
}

/// The attributes that identify a flow, as the kernel wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Identity<'a> {
    family: u8,
    tuple: &'a [u8],
    zone: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
}

impl<'a> Flow<'a> {
    /// Reads an entry of a dump; `None` if it isn't UDP or SCTP, or is malformed.
    pub fn decode(message: &Message<'a>) -> Option<Self> {
        let connection = Connection::decode(message).filter(|connection| connection.protocol != Protocol::Tcp)?;
        let Connection { protocol, destination, endpoint, translated, in_zone, identity, .. } = connection;
        Some(Self {
            frontend: FrontendKey { address: destination.ip(), protocol, port: destination.port() },
            endpoint: Endpoint { address: endpoint.ip(), port: endpoint.port() },
            translated,
            in_zone,
            identity,
        })
    }

    /// Returns a synthetic flow in zone 0, for tests of the treatment of flows.
    #[doc(hidden)]
    pub fn sample(frontend: FrontendKey, endpoint: Endpoint, translated: bool) -> Self {
        Self { frontend, endpoint, translated, in_zone: false, identity: Identity::default() }
    }

    /// The request to delete this flow and no other: by its original tuple, and, since another flow may have taken
    /// its place since it was read, by its identifier, which depends on the reply tuple too.
    pub fn deletion(&self) -> Request {
        self.identity.deletion()
    }
}

impl Identity<'_> {
    fn deletion(&self) -> Request {
        Request::new(message_type(IPCTNL_MSG_CT_DELETE), self.family, |w| {
            // Never without a tuple, which would mean "all flows" to the kernel.
            w.nest(CTA_TUPLE_ORIG, |w| w.raw(self.tuple));
            for (kind, value) in [(CTA_ZONE, self.zone), (CTA_ID, self.id)] {
                if let Some(value) = value {
                    w.attribute(kind, value);
                }
            }
        })
    }
}

/// One direction of a flow.
struct Tuple {
    protocol: Protocol,
    source: Option<(IpAddr, u16)>,
    destination: Option<(IpAddr, u16)>,
    in_zone: bool,
}

impl Tuple {
    fn decode(attributes: Attributes<'_>) -> Option<Self> {
        let (mut protocol, mut in_zone) = (None, false);
        let (mut addresses, mut ports) = ([None, None], [None, None]);
        for attribute in attributes {
            match attribute.kind {
                CTA_TUPLE_IP => addresses = decode_addresses(attribute.nested()),
                CTA_TUPLE_PROTO => (protocol, ports) = decode_protocol(attribute.nested()),
                CTA_TUPLE_ZONE => in_zone = true,
                _ => {}
            }
        }
        let [source, destination] = [0, 1].map(|end| Some((addresses[end]?, ports[end]?)));
        Some(Self { protocol: protocol?, source, destination, in_zone })
    }
}

/// Source and destination address.
fn decode_addresses(attributes: Attributes<'_>) -> [Option<IpAddr>; 2] {
    let v4 = |value: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into());
    let v6 = |value: &[u8]| Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into());
    let mut addresses = [None, None];
    for attribute in attributes {
        match attribute.kind {
            CTA_IP_V4_SRC => addresses[0] = v4(attribute.payload),
            CTA_IP_V4_DST => addresses[1] = v4(attribute.payload),
            CTA_IP_V6_SRC => addresses[0] = v6(attribute.payload),
            CTA_IP_V6_DST => addresses[1] = v6(attribute.payload),
            _ => {}
        }
    }
    addresses
}

/// The protocol, if it has ports, with source and destination port.
fn decode_protocol(attributes: Attributes<'_>) -> (Option<Protocol>, [Option<u16>; 2]) {
    let (mut protocol, mut ports) = (None, [None, None]);
    for attribute in attributes {
        match attribute.kind {
            CTA_PROTO_NUM => protocol = attribute.payload.first().and_then(|number| Protocol::from_number(*number)),
            CTA_PROTO_SRC_PORT => ports[0] = attribute.be16(),
            CTA_PROTO_DST_PORT => ports[1] = attribute.be16(),
            _ => {}
        }
    }
    (protocol, ports)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{NFGENMSG, Writer};

    /// Tuple, addresses and ports of one direction.
    type End = (u16, [u8; 4], [u8; 4], u16, u16);

    /// Writes both tuples of an entry.
    pub(super) fn write_ends(w: &mut Writer, protocol: u8, ends: [End; 2]) {
        for (kind, source, destination, source_port, destination_port) in ends {
            w.nest(kind, |w| {
                w.nest(CTA_TUPLE_IP, |w| {
                    w.attribute(CTA_IP_V4_SRC, &source);
                    w.attribute(CTA_IP_V4_DST, &destination);
                });
                w.nest(CTA_TUPLE_PROTO, |w| {
                    w.u8(CTA_PROTO_NUM, protocol);
                    w.be16(CTA_PROTO_SRC_PORT, source_port);
                    w.be16(CTA_PROTO_DST_PORT, destination_port);
                });
            });
        }
    }

    /// An entry as the kernel writes it, of a flow from a client to 10.96.0.10:53 that went to 10.244.1.5:5353.
    fn entry(protocol: u8, status: u32, zone: Option<u16>) -> Vec<u8> {
        let mut w = Writer::default();
        let ends = [
            (CTA_TUPLE_ORIG, [10, 244, 1, 7], [10, 96, 0, 10], 40_000, 53),
            (CTA_TUPLE_REPLY, [10, 244, 1, 5], [10, 244, 1, 7], 5353, 40_000),
        ];
        w.raw(&[2, 0, 0, 0]);
        write_ends(&mut w, protocol, ends);
        w.be32(CTA_STATUS, status);
        w.be32(CTA_ID, 7);
        if let Some(zone) = zone {
            w.be16(CTA_ZONE, zone);
        }
        w.bytes().to_vec()
    }

    fn decode(payload: &[u8]) -> Option<Flow<'_>> {
        Flow::decode(&Message { kind: ENTRY, flags: 0, sequence: 1, payload })
    }

    #[test]
    fn a_flow_is_read_with_both_of_its_ends() {
        let entry = entry(17, IPS_DST_NAT | 1, None);
        let flow = decode(&entry).unwrap();
        assert_eq!(
            flow.frontend,
            FrontendKey { address: "10.96.0.10".parse().unwrap(), protocol: Protocol::Udp, port: 53 }
        );
        assert_eq!(flow.endpoint, Endpoint { address: "10.244.1.5".parse().unwrap(), port: 5353 });
        assert!(flow.translated && !flow.in_zone);
    }

    #[test]
    fn tcp_and_what_has_no_ports_is_never_looked_at() {
        assert!(decode(&entry(132, 0, None)).is_some());
        for protocol in [6, 1, 47] {
            assert_eq!(decode(&entry(protocol, 0, None)), None);
        }
    }

    #[test]
    fn a_deletion_names_the_tuple_the_zone_and_the_identifier() {
        let entry = entry(17, 0, Some(9));
        let flow = decode(&entry).unwrap();
        assert!(flow.in_zone && !flow.translated);
        let deletion = flow.deletion();
        assert_eq!((deletion.kind, deletion.family), (0x0102, 2));
        let names: Vec<u16> = Attributes::new(&deletion.body).map(|attribute| attribute.kind).collect();
        assert_eq!(names, [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID]);
        let tuple = Attributes::new(&deletion.body).next().unwrap();
        assert_eq!(tuple.payload, flow.identity.tuple);
    }

    #[test]
    fn half_an_entry_is_no_flow_and_no_panic() {
        let entry = entry(17, 0, Some(9));
        // Everything behind the reply tuple may be absent; nothing before it may.
        let needed = 2 * (4 + 20 + 28) + NFGENMSG;
        for length in 0..needed {
            assert_eq!(decode(&entry[..length]), None, "{length} bytes");
        }
        assert!(decode(&entry[..needed]).is_some());
    }
}
