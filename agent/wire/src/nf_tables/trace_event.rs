//! Trace events of nf_tables (`NFT_MSG_TRACE`): what one rule, policy or chain
//! did with a packet that is traced.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;

use super::{message_family, message_type};
use crate::message::{Attributes, Message};
use crate::uapi::*;

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceKind {
    /// A rule matched and gave the verdict.
    Rule,
    /// A chain ended and went back.
    Return,
    /// The policy of a base chain gave the verdict.
    Policy,
}

/// The verdict of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceVerdict<'a> {
    /// The packet goes on to the next hook.
    Accept,
    /// It ends here.
    Drop,
    /// The next rule follows.
    Continue,
    /// The calling chain goes on.
    Return,
    /// Another chain follows, and then the next rule.
    Jump(&'a str),
    /// Another chain follows, and nothing else.
    Goto(&'a str),
    /// None of these: it was stolen, or queued for a program.
    Other,
}

/// The addresses and ports in the headers of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracePacket {
    /// The source address.
    pub source: IpAddr,
    /// The destination address at this point: translated or not.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP; `None` for others.
    pub protocol: Option<Protocol>,
    /// Source and destination port, if the protocol has them.
    pub ports: Option<(u16, u16)>,
}

/// One event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceEvent<'a> {
    /// The packet: the same number in all its events.
    pub id: u32,
    /// The table.
    pub table: &'a str,
    /// The family of the table: ours, or `None` for inet and others.
    pub family: Option<Family>,
    /// The chain.
    pub chain: &'a str,
    /// The kind.
    pub kind: TraceKind,
    /// The verdict.
    pub verdict: TraceVerdict<'a>,
    /// The headers: in the first event of each base chain.
    pub packet: Option<TracePacket>,
    /// The number of the interface on which it arrived.
    pub input: Option<u32>,
}

impl<'a> TraceEvent<'a> {
    /// Reads a message; `None` if it is another one, or malformed.
    pub fn decode(message: &Message<'a>) -> Option<Self> {
        if message.kind != message_type(NFT_MSG_TRACE) {
            return None;
        }
        let (family, attributes) = message.body()?;
        let kind = match attributes.be32(NFTA_TRACE_TYPE)? {
            NFT_TRACETYPE_POLICY => TraceKind::Policy,
            NFT_TRACETYPE_RETURN => TraceKind::Return,
            NFT_TRACETYPE_RULE => TraceKind::Rule,
            _ => return None,
        };
        let verdict = match attributes.get(NFTA_TRACE_VERDICT) {
            Some(verdict) => verdict_of(verdict.nested())?,
            None => verdict_of_code(attributes.be32(NFTA_TRACE_POLICY).unwrap_or(0).cast_signed()),
        };
        Some(Self {
            id: attributes.be32(NFTA_TRACE_ID)?,
            table: attributes.string(NFTA_TRACE_TABLE)?,
            family: message_family(family),
            chain: attributes.string(NFTA_TRACE_CHAIN)?,
            kind,
            verdict,
            packet: packet(attributes),
            input: attributes.be32(NFTA_TRACE_IIF),
        })
    }
}

fn verdict_of(attributes: Attributes<'_>) -> Option<TraceVerdict<'_>> {
    let chain = attributes.string(NFTA_VERDICT_CHAIN);
    Some(match attributes.be32(NFTA_VERDICT_CODE)?.cast_signed() {
        NFT_JUMP => TraceVerdict::Jump(chain?),
        NFT_GOTO => TraceVerdict::Goto(chain?),
        code => verdict_of_code(code),
    })
}

fn verdict_of_code(code: i32) -> TraceVerdict<'static> {
    match code {
        NF_ACCEPT => TraceVerdict::Accept,
        // The upper half may hold an errno for the sender.
        code if code & 0xff == NF_DROP && code >= 0 => TraceVerdict::Drop,
        NFT_CONTINUE => TraceVerdict::Continue,
        NFT_RETURN => TraceVerdict::Return,
        _ => TraceVerdict::Other,
    }
}

fn packet(attributes: Attributes<'_>) -> Option<TracePacket> {
    let header = attributes.get(NFTA_TRACE_NETWORK_HEADER)?.payload;
    let (source, destination, number): (IpAddr, IpAddr, u8) = match header.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(header.get(at..at + 4)?).ok()?));
            (address(12)?.into(), address(16)?.into(), *header.get(9)?)
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
            (address(8)?.into(), address(24)?.into(), *header.get(6)?)
        }
        _ => return None,
    };
    let protocol = Protocol::from_number(number);
    let transport = attributes.get(NFTA_TRACE_TRANSPORT_HEADER).map(|header| header.payload);
    let ports = transport.filter(|_| protocol.is_some()).and_then(|header| {
        let port = |at: usize| Some(u16::from_be_bytes(header.get(at..at + 2)?.try_into().ok()?));
        Some((port(0)?, port(2)?))
    });
    Some(TracePacket { source, destination, protocol, ports })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Writer;

    fn event() -> Vec<u8> {
        let mut w = Writer::default();
        w.raw(&[2, 0, 0, 0]);
        w.string(NFTA_TRACE_TABLE, "vmap-proxy");
        w.string(NFTA_TRACE_CHAIN, "services");
        w.be32(NFTA_TRACE_TYPE, NFT_TRACETYPE_RULE);
        w.nest(NFTA_TRACE_VERDICT, |w| {
            w.be32(NFTA_VERDICT_CODE, NFT_GOTO.cast_unsigned());
            w.string(NFTA_VERDICT_CHAIN, "lb-3");
        });
        w.be32(NFTA_TRACE_ID, 7);
        let mut header = [0_u8; 20];
        header[0] = 0x45;
        header[9] = 6;
        header[12..16].copy_from_slice(&[10, 244, 1, 7]);
        header[16..20].copy_from_slice(&[10, 96, 0, 10]);
        w.attribute(NFTA_TRACE_NETWORK_HEADER, &header);
        w.attribute(NFTA_TRACE_TRANSPORT_HEADER, &[0x9c, 0x40, 0, 80]);
        w.be32(NFTA_TRACE_IIF, 3);
        w.bytes().to_vec()
    }

    fn decode(payload: &[u8]) -> Option<TraceEvent<'_>> {
        TraceEvent::decode(&Message { kind: message_type(NFT_MSG_TRACE), flags: 0, sequence: 0, payload })
    }

    #[test]
    fn an_event_is_read_with_its_packet() {
        let bytes = event();
        let event = decode(&bytes).unwrap();
        assert_eq!((event.id, event.table, event.chain), (7, "vmap-proxy", "services"));
        assert_eq!((event.verdict, event.kind), (TraceVerdict::Goto("lb-3"), TraceKind::Rule));
        let packet = event.packet.unwrap();
        assert_eq!((packet.ports, packet.protocol), (Some((40_000, 80)), Some(Protocol::Tcp)));
        assert_eq!((event.input, event.family), (Some(3), Some(Family::Ipv4)));
    }

    #[test]
    fn verdicts_are_told_apart() {
        assert_eq!(verdict_of_code(0), TraceVerdict::Drop);
        assert_eq!(verdict_of_code(111 << 16), TraceVerdict::Drop);
        assert_eq!(verdict_of_code(-1), TraceVerdict::Continue);
        assert_eq!(verdict_of_code(3), TraceVerdict::Other);
    }

    #[test]
    fn no_length_of_an_event_is_a_panic() {
        let bytes = event();
        for length in 0..bytes.len() {
            let _ = decode(&bytes[..length]);
        }
    }
}
