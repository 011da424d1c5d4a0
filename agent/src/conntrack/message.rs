//! ctnetlink messages: the few that cleaning needs.
//!
//! Numbers are those of `linux/netfilter/nfnetlink_conntrack.h`. What identifies a flow is kept as the kernel wrote
//! it and sent back unread, so that whatever a newer kernel puts into it still names the same flow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nlink::netlink::{AttrIter, MessageBuilder};
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::FrontendKey;

/// `NFNL_SUBSYS_CTNETLINK`, the upper byte of the message type.
const SUBSYSTEM: u16 = 1 << 8;
/// `IPCTNL_MSG_CT_NEW`: what a dump answers with.
pub(super) const ENTRY: u16 = SUBSYSTEM;
/// `IPCTNL_MSG_CT_GET`
pub(super) const GET: u16 = SUBSYSTEM | 1;
/// `IPCTNL_MSG_CT_DELETE`
pub(super) const DELETE: u16 = SUBSYSTEM | 2;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;

const CTA_FILTER_ORIG_FLAGS: u16 = 1;

const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;

const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;

const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// What a filter compares (`net/netfilter/nf_internals.h`, since Linux 5.8; in host byte order).
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;

/// `IPS_DST_NAT`: the destination was translated.
const STATUS_DST_NAT: u32 = 1 << 5;

/// Size of `struct nfgenmsg`, in front of the attributes.
const FAMILY_HEADER: usize = 4;

/// Which flows a dump is to hold. What the kernel does not know to filter by it ignores, so whoever reads the dump
/// looks at each flow again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DumpFilter {
    /// Only this family.
    pub(super) family: Family,
    /// Only flows of this protocol.
    pub(super) protocol: Option<Protocol>,
    /// Only flows whose original destination is this port. Linux compares it for TCP and UDP alone.
    pub(super) port: Option<u16>,
    /// Only flows whose original destination is this address. There is none for IPv6: there every Linux since 5.8
    /// takes "equal" for "different" (`ctnetlink_filter_match_tuple` tests `!ipv6_addr_cmp()`).
    pub(super) address: Option<Ipv4Addr>,
}

/// The request for a dump.
pub(super) fn dump(filter: DumpFilter, seq: u32) -> Vec<u8> {
    let mut message = MessageBuilder::new(GET, NLM_F_REQUEST | NLM_F_DUMP);
    message.set_seq(seq);
    append_family(&mut message, family_number(filter.family));
    let Some(protocol) = filter.protocol else { return message.finish() };
    let mut compared = FILTER_PROTO_NUM;
    let tuple = message.nest_start(CTA_TUPLE_ORIG);
    if let Some(address) = filter.address {
        compared |= FILTER_IP_DST;
        let ip = message.nest_start(CTA_TUPLE_IP);
        message.append_attr(CTA_IP_V4_DST, &address.octets());
        message.nest_end(ip);
    }
    let proto = message.nest_start(CTA_TUPLE_PROTO);
    message.append_attr_u8(CTA_PROTO_NUM, protocol.number());
    if let Some(port) = filter.port {
        compared |= FILTER_PROTO_DST_PORT;
        message.append_attr_u16_be(CTA_PROTO_DST_PORT, port);
    }
    message.nest_end(proto);
    message.nest_end(tuple);
    let filter = message.nest_start(CTA_FILTER);
    message.append_attr_u32(CTA_FILTER_ORIG_FLAGS, compared);
    message.nest_end(filter);
    message.finish()
}

/// A tracked flow of UDP or SCTP, as far as cleaning looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow<'a> {
    /// Where the client sent its packets: the original destination.
    pub(super) frontend: FrontendKey,
    /// Where they went: the source of the replies.
    pub(super) endpoint: Endpoint,
    /// Whether somebody translated the destination.
    pub(super) translated: bool,
    /// Whether it is tracked in a zone other than 0.
    pub(super) in_zone: bool,
    identity: Identity<'a>,
}

/// What names a flow to the kernel, as the kernel wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Identity<'a> {
    family: u8,
    tuple: &'a [u8],
    zone: Option<&'a [u8]>,
    id: Option<&'a [u8]>,
}

impl<'a> Flow<'a> {
    /// Reads an entry of a dump; `None` if it isn't UDP or SCTP, or is malformed.
    pub(super) fn decode(payload: &'a [u8]) -> Option<Self> {
        let mut identity = Identity { family: *payload.first()?, ..Identity::default() };
        let (mut original, mut reply, mut status) = (None, None, 0);
        for (kind, value) in AttrIter::new(payload.get(FAMILY_HEADER..)?) {
            match kind {
                CTA_TUPLE_ORIG => {
                    identity.tuple = value;
                    original = Some(Tuple::decode(value)?);
                }
                CTA_TUPLE_REPLY => reply = Some(Tuple::decode(value)?),
                CTA_STATUS => status = u32::from_be_bytes(value.try_into().ok()?),
                CTA_ZONE => identity.zone = Some(value),
                CTA_ID => identity.id = Some(value),
                _ => {}
            }
        }
        let (original, reply) = (original?, reply?);
        let (address, port) = original.destination?;
        let (endpoint_address, endpoint_port) = reply.source?;
        Some(Self {
            frontend: FrontendKey { address, protocol: original.protocol, port },
            endpoint: Endpoint { address: endpoint_address, port: endpoint_port },
            translated: status & STATUS_DST_NAT != 0,
            in_zone: original.in_zone || identity.zone.is_some_and(|zone| zone.iter().any(|byte| *byte != 0)),
            identity,
        })
    }

    /// A flow in zone 0 for tests.
    #[cfg(test)]
    pub(super) fn sample(frontend: FrontendKey, endpoint: Endpoint, translated: bool) -> Self {
        Self { frontend, endpoint, translated, in_zone: false, identity: Identity::default() }
    }

    /// The request to delete this flow and no other: by its original tuple, and, since another flow may have taken
    /// its place since it was read, by its identifier, which depends on the reply tuple too.
    pub(super) fn deletion(&self) -> Vec<u8> {
        let mut message = MessageBuilder::new(DELETE, NLM_F_REQUEST);
        append_family(&mut message, self.identity.family);
        // Never without a tuple: the kernel would take that for "all flows".
        let tuple = message.nest_start(CTA_TUPLE_ORIG);
        message.append_bytes(self.identity.tuple);
        message.nest_end(tuple);
        for (kind, value) in [(CTA_ZONE, self.identity.zone), (CTA_ID, self.identity.id)] {
            if let Some(value) = value {
                message.append_attr(kind, value);
            }
        }
        message.finish()
    }
}

/// Sets the sequence number of a finished message, and whether the kernel is to acknowledge it.
pub(super) fn number(message: &mut [u8], seq: u32, acknowledge: bool) {
    let flags = if acknowledge { NLM_F_REQUEST | NLM_F_ACK } else { NLM_F_REQUEST };
    // struct nlmsghdr: length (4 bytes), type (2), flags (2), sequence number (4), port (4).
    if let Some(header) = message.get_mut(6..12) {
        header[..2].copy_from_slice(&flags.to_ne_bytes());
        header[2..].copy_from_slice(&seq.to_ne_bytes());
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
    fn decode(attributes: &[u8]) -> Option<Self> {
        let (mut protocol, mut in_zone) = (None, false);
        let (mut addresses, mut ports) = ([None, None], [None, None]);
        for (kind, value) in AttrIter::new(attributes) {
            match kind {
                CTA_TUPLE_IP => addresses = decode_addresses(value),
                CTA_TUPLE_PROTO => (protocol, ports) = decode_protocol(value),
                CTA_TUPLE_ZONE => in_zone = true,
                _ => {}
            }
        }
        let [source, destination] = [0, 1].map(|end| Some((addresses[end]?, ports[end]?)));
        Some(Self { protocol: protocol?, source, destination, in_zone })
    }
}

/// Source and destination address.
fn decode_addresses(attributes: &[u8]) -> [Option<IpAddr>; 2] {
    let v4 = |value: &[u8]| Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into());
    let v6 = |value: &[u8]| Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into());
    let mut addresses = [None, None];
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            CTA_IP_V4_SRC => addresses[0] = v4(value),
            CTA_IP_V4_DST => addresses[1] = v4(value),
            CTA_IP_V6_SRC => addresses[0] = v6(value),
            CTA_IP_V6_DST => addresses[1] = v6(value),
            _ => {}
        }
    }
    addresses
}

/// The protocol, if it is UDP or SCTP, with source and destination port.
fn decode_protocol(attributes: &[u8]) -> (Option<Protocol>, [Option<u16>; 2]) {
    let port = |value: &[u8]| Some(u16::from_be_bytes(value.try_into().ok()?));
    let (mut protocol, mut ports) = (None, [None, None]);
    for (kind, value) in AttrIter::new(attributes) {
        match kind {
            CTA_PROTO_NUM => protocol = value.first().and_then(|number| Protocol::from_number(*number)),
            CTA_PROTO_SRC_PORT => ports[0] = port(value),
            CTA_PROTO_DST_PORT => ports[1] = port(value),
            _ => {}
        }
    }
    (protocol.filter(|protocol| *protocol != Protocol::Tcp), ports)
}

/// `struct nfgenmsg` with version 0.
fn append_family(message: &mut MessageBuilder, family: u8) {
    message.append_bytes(&[family, 0, 0, 0]);
}

/// `AF_INET`, `AF_INET6`
fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    /// An entry as the kernel writes it, of a flow from a client to 10.96.0.10:53 that went to 10.244.1.5:5353.
    fn entry(protocol: u8, status: u32, zone: Option<u16>) -> Vec<u8> {
        let mut message = MessageBuilder::new(ENTRY, 0);
        append_family(&mut message, 2);
        let ends = [
            (CTA_TUPLE_ORIG, [10, 244, 1, 7], [10, 96, 0, 10], 40_000, 53),
            (CTA_TUPLE_REPLY, [10, 244, 1, 5], [10, 244, 1, 7], 5353, 40_000),
        ];
        for (kind, source, destination, source_port, destination_port) in ends {
            let tuple = message.nest_start(kind);
            let ip = message.nest_start(CTA_TUPLE_IP);
            message.append_attr(CTA_IP_V4_SRC, &source);
            message.append_attr(CTA_IP_V4_DST, &destination);
            message.nest_end(ip);
            let proto = message.nest_start(CTA_TUPLE_PROTO);
            message.append_attr_u8(CTA_PROTO_NUM, protocol);
            message.append_attr_u16_be(CTA_PROTO_SRC_PORT, source_port);
            message.append_attr_u16_be(CTA_PROTO_DST_PORT, destination_port);
            message.nest_end(proto);
            message.nest_end(tuple);
        }
        message.append_attr_u32_be(CTA_STATUS, status);
        message.append_attr_u32_be(CTA_ID, 7);
        if let Some(zone) = zone {
            message.append_attr_u16_be(CTA_ZONE, zone);
        }
        message.finish().split_off(16)
    }

    #[test]
    fn a_flow_is_read_with_both_of_its_ends() {
        let entry = entry(17, STATUS_DST_NAT | 1, None);
        let flow = Flow::decode(&entry).unwrap();
        assert_eq!(
            flow.frontend,
            FrontendKey { address: "10.96.0.10".parse().unwrap(), protocol: Protocol::Udp, port: 53 }
        );
        assert_eq!(flow.endpoint, Endpoint { address: "10.244.1.5".parse().unwrap(), port: 5353 });
        assert!(flow.translated && !flow.in_zone);
    }

    #[test]
    fn tcp_and_what_has_no_ports_is_never_looked_at() {
        assert!(Flow::decode(&entry(132, 0, None)).is_some());
        for protocol in [6, 1, 47] {
            assert_eq!(Flow::decode(&entry(protocol, 0, None)), None);
        }
    }

    #[test]
    fn a_deletion_names_the_tuple_the_zone_and_the_identifier() {
        let entry = entry(17, 0, Some(9));
        let flow = Flow::decode(&entry).unwrap();
        assert!(flow.in_zone && !flow.translated);
        let deletion = flow.deletion();
        let names: Vec<u16> = AttrIter::new(&deletion[16 + FAMILY_HEADER..]).map(|(kind, _)| kind).collect();
        assert_eq!(names, [CTA_TUPLE_ORIG, CTA_ZONE, CTA_ID]);
        let (_, tuple) = AttrIter::new(&deletion[16 + FAMILY_HEADER..]).next().unwrap();
        assert_eq!(tuple, flow.identity.tuple);
    }

    #[test]
    fn half_an_entry_is_no_flow_and_no_panic() {
        let entry = entry(17, 0, Some(9));
        // Everything behind the reply tuple may be absent; nothing before it may.
        let needed = 2 * (4 + 20 + 28) + FAMILY_HEADER;
        for length in 0..needed {
            assert_eq!(Flow::decode(&entry[..length]), None, "{length} bytes");
        }
        assert!(Flow::decode(&entry[..needed]).is_some());
    }

    #[test]
    fn a_message_is_numbered_in_place() {
        let entry = entry(17, 0, None);
        let mut deletion = Flow::decode(&entry).unwrap().deletion();
        number(&mut deletion, 0x0102_0304, true);
        let header = nlink::netlink::NlMsgHdr::from_bytes(&deletion).unwrap();
        assert_eq!((header.nlmsg_seq, header.nlmsg_flags), (0x0102_0304, NLM_F_REQUEST | NLM_F_ACK));
        assert_eq!(header.nlmsg_type, DELETE);
    }
}
