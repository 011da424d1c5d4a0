//! The encoding of answers: whole sets of records, as many as fit.

use std::iter;
use std::net::IpAddr;

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode, emit_message_parts};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// The size that each client takes without EDNS (RFC 1035, section 4.2.1).
pub(crate) const SMALLEST: usize = 512;

/// The most that is sent in a datagram, whatever a client offers: it fits into
/// an IPv6 packet on every link, so that nothing is fragmented
/// (<https://www.dnsflagday.net/2020/>).
pub(crate) const LARGEST_DATAGRAM: u16 = 1232;

/// The most that a TCP message can hold.
const LARGEST: usize = u16::MAX as usize;

/// The transport of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// The parts of a question that its answer needs.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    metadata: Metadata,
    pub(crate) query: Query,
    edns: Option<Edns>,
    transport: Transport,
}

/// A pointer to the name of the question, which follows the header (RFC 1035,
/// section 4.1.4).
const ASKED_NAME: u16 = 0xC000 | 12;

/// A record of the answer section.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a few records for an answer, and no allocation for each")]
pub(crate) enum Answered {
    /// Any record.
    Record(Record),
    /// An address of the asked name. It costs no copy of the name, and the library
    /// would compress the first 120 names of a message only.
    Address { address: IpAddr, ttl: u32 },
}

impl Answered {
    /// Returns whether both belong to one set: same owner, same type.
    fn is_in_set_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Record(one), Self::Record(other)) => {
                one.record_type() == other.record_type() && one.name == other.name
            }
            (Self::Address { address: one, .. }, Self::Address { address: other, .. }) => {
                one.is_ipv4() == other.is_ipv4()
            }
            _ => false,
        }
    }
}

impl BinEncodable for Answered {
    fn emit(&self, encoder: &mut BinEncoder<'_>) -> Result<(), ProtoError> {
        let (address, ttl) = match self {
            Self::Record(record) => return record.emit(encoder),
            Self::Address { address, ttl } => (address, *ttl),
        };
        encoder.emit_u16(ASKED_NAME)?;
        let record_type = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
        record_type.emit(encoder)?;
        DNSClass::IN.emit(encoder)?;
        encoder.emit_u32(ttl)?;
        match address {
            IpAddr::V4(address) => {
                encoder.emit_u16(4)?;
                encoder.emit_vec(&address.octets())
            }
            IpAddr::V6(address) => {
                encoder.emit_u16(16)?;
                encoder.emit_vec(&address.octets())
            }
        }
    }
}

/// An answer before its encoding.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// Whether it comes from the zone.
    pub(crate) authoritative: bool,
    /// Whether other names can be asked for.
    pub(crate) recursion_available: bool,
    /// Sets of records: one owner and one type each.
    pub(crate) answers: Vec<Vec<Answered>>,
    pub(crate) authorities: Vec<Record>,
    /// Sets of records that may be left out.
    pub(crate) additionals: Vec<Vec<Answered>>,
    /// Whether a set was left out already.
    pub(crate) truncated: bool,
}

impl Reply {
    /// An answer without records.
    pub(crate) fn empty(code: ResponseCode) -> Self {
        Self { code, ..Self::default() }
    }
}

impl Request {
    /// Takes the parts of a message with one question.
    pub(crate) fn new(mut message: Message, transport: Transport) -> Option<Self> {
        let query = message.queries.pop()?;
        Some(Self { metadata: message.metadata, query, edns: message.edns.take(), transport })
    }

    pub(crate) fn transport(&self) -> Transport {
        self.transport
    }

    pub(crate) fn wants_recursion(&self) -> bool {
        self.metadata.recursion_desired
    }

    /// The version of EDNS, if it is used.
    pub(crate) fn edns_version(&self) -> Option<u8> {
        self.edns.as_ref().map(Edns::version)
    }

    /// The most bytes that the answer may have.
    pub(crate) fn limit(&self) -> usize {
        match (self.transport, &self.edns) {
            (Transport::Tcp, _) => LARGEST,
            (Transport::Udp, None) => SMALLEST,
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().min(LARGEST_DATAGRAM)).max(SMALLEST),
        }
    }

    /// Encodes the answer, with whole sets of records only. Sets of the answer
    /// section that do not fit are left out, and the truncation bit is set
    /// (RFC 2181, section 9); additional sets are left out silently.
    ///
    /// # Errors
    /// If the library cannot encode it: a name of an upstream server's record.
    pub(crate) fn encode(&self, reply: &Reply, out: &mut Vec<u8>) -> Result<(), ProtoError> {
        let (answers, additionals) = (reply.answers.len(), reply.additionals.len());
        if self.fits(reply, answers, additionals, out)? {
            return Ok(());
        }
        if self.fits(reply, answers, 0, out)? {
            let fitting = most(additionals, |count| self.fits(reply, answers, count, out))?;
            return self.fits(reply, answers, fitting, out).map(drop);
        }
        let fitting = most(answers, |count| self.fits(reply, count, 0, out))?;
        self.fits(reply, fitting, 0, out).map(drop)
    }

    /// Encodes the first sets; whether the result fits.
    fn fits(&self, reply: &Reply, answers: usize, additionals: usize, out: &mut Vec<u8>) -> Result<bool, ProtoError> {
        out.clear();
        let mut encoder = BinEncoder::new(out);
        let mut metadata = Metadata::new(self.metadata.id, MessageType::Response, OpCode::Query);
        metadata.recursion_desired = self.metadata.recursion_desired;
        metadata.checking_disabled = self.metadata.checking_disabled;
        metadata.recursion_available = reply.recursion_available;
        metadata.authoritative = reply.authoritative;
        metadata.response_code = reply.code;
        metadata.truncation = reply.truncated || answers < reply.answers.len();
        let edns = self.edns.as_ref().map(|_| {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_DATAGRAM);
            edns
        });
        let header = emit_message_parts(
            &metadata,
            &mut iter::once(&self.query),
            &mut reply.answers.iter().take(answers).flatten(),
            &mut reply.authorities.iter(),
            &mut reply.additionals.iter().take(additionals).flatten(),
            edns.as_ref(),
            None,
            &mut encoder,
        )?;
        // The library drops records beyond 64 KiB, and marks the message.
        let is_complete = header.metadata.truncation == metadata.truncation;
        Ok(is_complete && out.len() <= self.limit())
    }
}

/// The largest number up to `highest` that fits; 0 fits or nothing does.
fn most(highest: usize, mut fits: impl FnMut(usize) -> Result<bool, ProtoError>) -> Result<usize, ProtoError> {
    let (mut fitting, mut above) = (0, highest);
    while above - fitting > 1 {
        let middle = fitting + (above - fitting) / 2;
        if fits(middle)? {
            fitting = middle;
        } else {
            above = middle;
        }
    }
    Ok(fitting)
}

/// Groups records into sets of one owner and type, in their order.
pub(crate) fn sets(records: impl IntoIterator<Item = Record>) -> Vec<Vec<Answered>> {
    let mut sets: Vec<Vec<Answered>> = Vec::new();
    for record in records.into_iter().map(Answered::Record) {
        match sets.last_mut() {
            Some(set) if set.first().is_some_and(|first| record.is_in_set_of(first)) => set.push(record),
            _ => sets.push(vec![record]),
        }
    }
    sets
}

/// The header alone, for messages whose question cannot be read.
pub(crate) fn header_only(question: &[u8], code: ResponseCode, out: &mut Vec<u8>) {
    out.clear();
    let Some([id0, id1, flags, ..]) = question.first_chunk::<12>() else { return };
    // The answer bit, and the operation and the wish for recursion of the question.
    out.extend([*id0, *id1, 0x80 | (flags & 0x79), code.low(), 0, 0, 0, 0, 0, 0, 0, 0]);
}
