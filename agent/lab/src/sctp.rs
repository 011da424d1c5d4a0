//! The first two packets of an SCTP association, made by hand.
//!
//! Many kernels (and most laptops) have no SCTP sockets, but netfilter tracks and translates SCTP all the same.
//! So a probe sends an INIT chunk from a raw socket, and the server answers with an INIT ACK that carries its
//! identity as the state cookie. That is enough for connection tracking to see both directions. It is used even
//! where the kernel has SCTP, so that a result means the same everywhere.
//!
//! Layout: RFC 9260, sections 3.1 (common header), 3.3.2 (INIT) and 3.3.3 (INIT ACK).

/// How SCTP is probed, for reports.
pub const METHOD: &str = "SCTP: hand-made INIT and INIT ACK over raw sockets (no SCTP sockets of the kernel)";

const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const STATE_COOKIE: u16 = 7;
const COMMON_HEADER: usize = 12;
/// Chunk header and the fixed part of INIT and INIT ACK.
const INIT_CHUNK: usize = 20;

/// One INIT or INIT ACK packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_port: u16,
    pub(crate) target_port: u16,
    /// The tag the receiver chose; 0 in an INIT.
    pub(crate) verification_tag: u32,
    /// The tag that the sender chooses for packets to it.
    pub(crate) initiate_tag: u32,
    /// The state cookie: present in an INIT ACK only.
    pub(crate) cookie: Option<Vec<u8>>,
}

impl Packet {
    /// The first packet of an association.
    pub(crate) fn init(source_port: u16, target_port: u16) -> Self {
        Self {
            source_port,
            target_port,
            verification_tag: 0,
            initiate_tag: 0x5eed_0000 | u32::from(source_port),
            cookie: None,
        }
    }

    /// The answer to an INIT, with `cookie` in it.
    pub(crate) fn answer(&self, cookie: Vec<u8>) -> Self {
        Self {
            source_port: self.target_port,
            target_port: self.source_port,
            verification_tag: self.initiate_tag,
            initiate_tag: !self.initiate_tag,
            cookie: Some(cookie),
        }
    }

    /// The bytes from the SCTP common header on, with a valid checksum: connection tracking drops others.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(COMMON_HEADER + INIT_CHUNK + 64);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.target_port.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        bytes.extend([0; 4]);
        let parameters = self.cookie.as_deref().map(parameter).unwrap_or_default();
        let length = (INIT_CHUNK + parameters.len()) as u16;
        bytes.extend([if self.cookie.is_some() { INIT_ACK } else { INIT }, 0]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(65_536_u32.to_be_bytes()); // advertised receiver window
        bytes.extend(1_u16.to_be_bytes()); // outbound streams
        bytes.extend(1_u16.to_be_bytes()); // inbound streams
        bytes.extend(1_u32.to_be_bytes()); // initial TSN
        bytes.extend(parameters);
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        bytes.extend(&[0; 3][..padding]);
        let checksum = crc32c(&bytes).to_le_bytes();
        bytes[8..COMMON_HEADER].copy_from_slice(&checksum);
        bytes
    }

    /// Reads a packet that starts with an INIT or INIT ACK chunk; anything else is `None`. The checksum is
    /// the kernel's business.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, length) = (*bytes.get(COMMON_HEADER)?, be16(bytes, COMMON_HEADER + 2)?);
        let chunk = bytes.get(COMMON_HEADER..COMMON_HEADER + usize::from(length))?;
        let cookie = match kind {
            INIT => None,
            INIT_ACK => Some(find_cookie(chunk.get(INIT_CHUNK..)?)?),
            _ => return None,
        };
        Some(Self {
            source_port: be16(bytes, 0)?,
            target_port: be16(bytes, 2)?,
            verification_tag: be32(bytes, 4)?,
            initiate_tag: be32(chunk, 4)?,
            cookie,
        })
    }
}

fn parameter(cookie: &[u8]) -> Vec<u8> {
    let mut bytes = STATE_COOKIE.to_be_bytes().to_vec();
    bytes.extend((cookie.len() as u16 + 4).to_be_bytes());
    bytes.extend(cookie);
    bytes
}

fn find_cookie(mut parameters: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (kind, length) = (be16(parameters, 0)?, usize::from(be16(parameters, 2)?));
        if kind == STATE_COOKIE {
            return parameters.get(4..length).map(<[u8]>::to_vec);
        }
        parameters = parameters.get(length.max(4).next_multiple_of(4)..)?;
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    field.try_into().ok().map(u16::from_be_bytes)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let field = bytes.get(at..at + 4)?;
    field.try_into().ok().map(u32::from_be_bytes)
}

/// CRC32c, bit by bit: a few dozen bytes a probe need no table.
fn crc32c(bytes: &[u8]) -> u32 {
    const POLYNOMIAL_REFLECTED: u32 = 0x82f6_3b78;
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            let shifted = crc >> 1;
            if crc & 1 == 1 { shifted ^ POLYNOMIAL_REFLECTED } else { shifted }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_matches_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn init_and_its_answer_survive_encoding() {
        let init = Packet::init(40_000, 2905);
        assert_eq!(Packet::decode(&init.encode()), Some(init.clone()));
        let answer = init.answer(b"10.244.1.9:2905".to_vec());
        assert_eq!(answer.encode().len() % 4, 0);
        assert_eq!(Packet::decode(&answer.encode()), Some(answer));
    }

    #[test]
    fn foreign_and_cut_packets_are_ignored() {
        assert_eq!(Packet::decode(&[]), None);
        let whole = Packet::init(1, 2).encode();
        assert_eq!(Packet::decode(&whole[..whole.len() - 1]), None);
        let mut abort = whole;
        abort[COMMON_HEADER] = 6;
        assert_eq!(Packet::decode(&abort), None);
    }
}
