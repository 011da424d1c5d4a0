//! A tracked connection of TCP, UDP or SCTP, for people and for the cut of
//! connections.

use std::net::SocketAddr;

use vmap_proxy_compiler::model::Protocol;

use super::{Identity, Tuple};
use crate::message::{Attributes, Message, Request};
use crate::uapi::*;

/// Packets and bytes of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Bytes, with the headers of IP.
    pub bytes: u64,
}

/// The state of a tracked TCP connection (`enum tcp_conntrack` of
/// `include/uapi/linux/netfilter/nf_conntrack_tcp.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// The client's SYN was seen.
    SynSent,
    /// The answer to it was seen.
    SynReceived,
    /// Both sides may send.
    Established,
    /// One side has closed.
    FinWait,
    /// The other one has acknowledged that.
    CloseWait,
    /// The other one has closed, too.
    LastAck,
    /// Both have closed.
    TimeWait,
    /// It was reset.
    Close,
    /// Both sides sent a SYN.
    SynSentBoth,
    /// None of these.
    Unknown,
}

impl TcpState {
    /// Reads the kernel's number.
    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::SynSent,
            2 => Self::SynReceived,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSentBoth,
            _ => Self::Unknown,
        }
    }

    /// The name that the kernel and `conntrack -L` use.
    pub fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::SynSentBoth => "SYN_SENT2",
            Self::Unknown => "NONE",
        }
    }

    /// Returns whether both sides are done with the connection: the entry only
    /// waits for its end.
    pub fn is_over(self) -> bool {
        matches!(self, Self::TimeWait | Self::Close | Self::Unknown)
    }
}

/// A tracked connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection<'a> {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The client.
    pub client: SocketAddr,
    /// The destination that the client chose.
    pub destination: SocketAddr,
    /// Where the replies come from: the endpoint, if the destination was
    /// translated.
    pub endpoint: SocketAddr,
    /// Where the endpoint sends its replies: the client, or the address of this
    /// node that stands in for it.
    pub seen_client: SocketAddr,
    /// Whether the destination was translated.
    pub translated: bool,
    /// Whether a flow table has it. Then the kernel gives neither state nor
    /// expiry.
    pub offloaded: bool,
    /// Whether it is tracked in a zone other than 0.
    pub in_zone: bool,
    /// The state, of TCP only.
    pub tcp: Option<TcpState>,
    /// Seconds until the entry expires, if nothing is sent.
    pub expires: Option<u32>,
    /// What was sent to the endpoint; only with the sysctl
    /// `net.netfilter.nf_conntrack_acct`.
    pub sent: Option<Direction>,
    /// What was sent to the client.
    pub received: Option<Direction>,
    pub(super) identity: Identity<'a>,
}

impl<'a> Connection<'a> {
    /// Reads an entry of a dump; `None` if its protocol has no ports, or it is
    /// malformed.
    pub fn decode(message: &Message<'a>) -> Option<Self> {
        let (family, attributes) = message.body()?;
        let mut identity = Identity { family, ..Identity::default() };
        let (mut original, mut reply, mut status) = (None, None, 0);
        let (mut tcp, mut expires, mut sent, mut received) = (None, None, None, None);
        for attribute in attributes {
            match attribute.kind {
                CTA_TUPLE_ORIG => {
                    identity.tuple = attribute.payload;
                    original = Some(Tuple::decode(attribute.nested())?);
                }
                CTA_TUPLE_REPLY => reply = Some(Tuple::decode(attribute.nested())?),
                CTA_STATUS => status = attribute.be32()?,
                CTA_ZONE => identity.zone = Some(attribute.payload),
                CTA_ID => identity.id = Some(attribute.payload),
                CTA_PROTOINFO => tcp = tcp_state(attribute.nested()),
                CTA_TIMEOUT => expires = attribute.be32(),
                CTA_COUNTERS_ORIG => sent = counters(attribute.nested()),
                CTA_COUNTERS_REPLY => received = counters(attribute.nested()),
                _ => {}
            }
        }
        let (original, reply): (Tuple, Tuple) = (original?, reply?);
        Some(Self {
            protocol: original.protocol,
            client: original.source?.into(),
            destination: original.destination?.into(),
            endpoint: reply.source?.into(),
            seen_client: reply.destination?.into(),
            translated: status & IPS_DST_NAT != 0,
            offloaded: status & IPS_OFFLOAD != 0,
            in_zone: original.in_zone || identity.zone.is_some_and(|zone| zone.iter().any(|byte| *byte != 0)),
            tcp,
            expires,
            sent,
            received,
            identity,
        })
    }

    /// Returns whether it goes on, as far as the kernel knows: neither closed by
    /// both sides nor reset.
    pub fn is_open(&self) -> bool {
        !self.tcp.is_some_and(TcpState::is_over)
    }

    /// The request to delete this entry and no other.
    pub fn deletion(&self) -> Request {
        self.identity.deletion()
    }
}

fn tcp_state(attributes: Attributes<'_>) -> Option<TcpState> {
    let state = attributes.get(CTA_PROTOINFO_TCP)?.nested().get(CTA_PROTOINFO_TCP_STATE)?;
    Some(TcpState::from_number(*state.payload.first()?))
}

fn counters(attributes: Attributes<'_>) -> Option<Direction> {
    let number = |kind| attributes.get(kind)?.be64();
    Some(Direction { packets: number(CTA_COUNTERS_PACKETS)?, bytes: number(CTA_COUNTERS_BYTES)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conntrack::ENTRY;
    use crate::conntrack::tests::write_ends;
    use crate::message::Writer;

    /// An entry of TCP as the kernel writes it: from a pod to 10.96.0.10:80,
    /// masqueraded, to 10.244.2.5:8080.
    fn entry(state: u8, with_counters: bool) -> Vec<u8> {
        let mut w = Writer::default();
        w.raw(&[2, 0, 0, 0]);
        let ends = [
            (CTA_TUPLE_ORIG, [10, 244, 1, 7], [10, 96, 0, 10], 40_000, 80),
            (CTA_TUPLE_REPLY, [10, 244, 2, 5], [192, 0, 2, 11], 8080, 51_000),
        ];
        write_ends(&mut w, 6, ends);
        w.be32(CTA_STATUS, IPS_DST_NAT);
        w.be32(CTA_TIMEOUT, 299);
        w.nest(CTA_PROTOINFO, |w| w.nest(CTA_PROTOINFO_TCP, |w| w.u8(CTA_PROTOINFO_TCP_STATE, state)));
        if with_counters {
            w.nest(CTA_COUNTERS_ORIG, |w| {
                w.be64(CTA_COUNTERS_PACKETS, 3);
                w.be64(CTA_COUNTERS_BYTES, 180);
            });
        }
        w.bytes().to_vec()
    }

    fn decode(payload: &[u8]) -> Option<Connection<'_>> {
        Connection::decode(&Message { kind: ENTRY, flags: 0, sequence: 1, payload })
    }

    #[test]
    fn a_connection_is_read_with_both_of_its_ends() {
        let entry = entry(3, true);
        let connection = decode(&entry).unwrap();
        assert_eq!(connection.client.to_string(), "10.244.1.7:40000");
        assert_eq!(connection.destination.to_string(), "10.96.0.10:80");
        assert_eq!(connection.endpoint.to_string(), "10.244.2.5:8080");
        assert_eq!(connection.seen_client.to_string(), "192.0.2.11:51000");
        assert_eq!((connection.tcp, connection.expires), (Some(TcpState::Established), Some(299)));
        assert_eq!(connection.sent, Some(Direction { packets: 3, bytes: 180 }));
        assert!(
            connection.translated && !connection.offloaded && connection.is_open() && connection.received.is_none()
        );
        assert_eq!(connection.deletion().kind, 0x0102);
    }

    #[test]
    fn closed_connections_are_over() {
        for (state, is_open) in [(1, true), (6, true), (7, false), (8, false), (99, false)] {
            assert_eq!(decode(&entry(state, false)).unwrap().is_open(), is_open, "{state}");
        }
    }

    #[test]
    fn no_length_of_an_entry_is_a_panic() {
        let entry = entry(3, true);
        for length in 0..entry.len() {
            let _ = decode(&entry[..length]);
        }
    }
}
