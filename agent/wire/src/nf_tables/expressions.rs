//! Rules as the expressions of nf_tables' register machine.
//!
//! Each statement becomes the expressions that nft 1.0.6 makes of its text, in
//! the same registers: `nft --debug=netlink` shows them, and the kernel tests
//! compare the two. The attributes are in the order in which the kernel lists
//! them.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::rule::{KeyPart, Op, Rule, Side, Statement, Way};

use super::{family_number, write_value};
use crate::message::Writer;
use crate::uapi::*;

/// nft's bit of `ct state new`: `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 8;
/// The chain of a verdict that leads to none.
pub(super) const NO_CHAIN: Option<&str> = None;
/// `IFNAMSIZ`: an interface name fills this many bytes.
const IFNAMSIZ: usize = 16;

/// The word of four bytes where a value starts, of the 16 there are.
pub(super) type Word = u32;

/// The number of words that nft reserves for one value: a full register.
const REGISTER_WORDS: Word = 4;

/// The kernel's number of a word: the four full registers are 1 to 4 (0 is the
/// verdict), the words in between 8 to 23 (`NFT_REG32_00`...).
pub(super) fn register(word: Word) -> u32 {
    if word.is_multiple_of(REGISTER_WORDS) { 1 + word / REGISTER_WORDS } else { 8 + word }
}

/// Writes a rule's expressions: the content of `NFTA_RULE_EXPRESSIONS`.
pub fn write_rule(writer: &mut Writer, family: Family, rule: &Rule) {
    let mut expressions = Expressions { writer, family };
    for statement in &rule.0 {
        expressions.statement(statement);
    }
}

/// Writes a verdict: the content of a data attribute.
pub(super) fn write_verdict(writer: &mut Writer, code: i32, chain: Option<impl Display>) {
    writer.nest(NFTA_DATA_VERDICT, |w| {
        w.be32(NFTA_VERDICT_CODE, code as u32);
        if let Some(chain) = chain {
            write_chain_name(w, NFTA_VERDICT_CHAIN, chain);
        }
    });
}

/// Writes a chain's name without making a string of it first: verdict maps
/// hold one in every element.
pub(super) fn write_chain_name(writer: &mut Writer, kind: u16, chain: impl Display) {
    struct Raw<'a>(&'a mut Writer);
    impl std::fmt::Write for Raw<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.raw(text.as_bytes());
            Ok(())
        }
    }
    let open = writer.begin_attribute(kind);
    // A writer into memory can't fail.
    let _ = std::fmt::Write::write_fmt(&mut Raw(writer), format_args!("{chain}"));
    writer.raw(&[0]);
    writer.end(open);
}

fn interface_name(way: Way) -> u32 {
    match way {
        Way::In => NFT_META_IIFNAME,
        Way::Out => NFT_META_OIFNAME,
    }
}

/// Writes expressions one after the other, for the main table and for side tables.
#[derive(Debug)]
pub(super) struct Expressions<'a> {
    pub(super) writer: &'a mut Writer,
    pub(super) family: Family,
}

impl Expressions<'_> {
    pub(super) fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::CtStateNew(Op::Is) => self.conntrack_bits(NFT_CT_STATE, CT_STATE_NEW),
            // A packet has one state; nft reads and writes this without a mask.
            Statement::CtStateNew(Op::IsNot) => {
                self.conntrack(NFT_CT_STATE, None, 0);
                self.compare(Op::IsNot, &CT_STATE_NEW.to_ne_bytes());
            }
            Statement::CtStatusDnat => self.conntrack_bits(NFT_CT_STATUS, IPS_DST_NAT),
            Statement::Protocol(protocol) => self.match_protocol(protocol.number()),
            Statement::Address(side, op, net) => self.match_prefix(*side, *op, net),
            Statement::Interface(way, op, name) => {
                let mut padded = [0; IFNAMSIZ];
                let length = name.len().min(IFNAMSIZ - 1);
                padded[..length].copy_from_slice(&name.as_bytes()[..length]);
                self.meta(interface_name(*way), 0);
                self.compare(*op, &padded);
            }
            Statement::InterfacePrefix(way, op, prefix) => {
                self.meta(interface_name(*way), 0);
                self.compare(*op, &prefix.as_bytes()[..prefix.len().min(IFNAMSIZ)]);
            }
            Statement::NoInputInterface(op) => {
                self.meta(NFT_META_IIF, 0);
                self.compare(*op, &0u32.to_ne_bytes());
            }
            Statement::FibLocal(side) => {
                self.fib_address_type(*side);
                self.compare(Op::Is, &RTN_LOCAL.to_ne_bytes());
            }
            Statement::Lookup(key, op, map) => {
                self.key(key);
                self.lookup(map.name(), *op, None);
            }
            Statement::Vmap(key, map) => {
                self.key(key);
                self.lookup(map.name(), Op::Is, Some(NFT_REG_VERDICT));
            }
            Statement::Dnat(key, map) => {
                self.key(key);
                self.lookup(map.name(), Op::Is, Some(register(0)));
                self.dnat();
            }
            Statement::SetPriority(key, map) => {
                self.key(key);
                self.lookup(map.name(), Op::Is, Some(register(0)));
                self.set_meta(NFT_META_PRIORITY);
            }
            Statement::ClearPriority => {
                self.value(&[0; 4]);
                self.set_meta(NFT_META_PRIORITY);
            }
            Statement::LearnAffinity { seconds } => self.learn_affinity(*seconds),
            Statement::Jump(chain) => self.verdict(NFT_JUMP, Some(*chain)),
            Statement::Goto(chain) => self.verdict(NFT_GOTO, Some(*chain)),
            Statement::Return => self.verdict(NFT_RETURN, NO_CHAIN),
            Statement::Accept => self.verdict(NF_ACCEPT, NO_CHAIN),
            Statement::Drop => self.verdict(NF_DROP, NO_CHAIN),
            Statement::Reject => self.reject(),
            Statement::Masquerade => self.expression("masq", |w| {
                w.be32(NFTA_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY);
            }),
        }
    }

    pub(super) fn expression(&mut self, name: &str, data: impl FnOnce(&mut Writer)) {
        self.writer.nest(NFTA_LIST_ELEM, |w| {
            w.string(NFTA_EXPR_NAME, name);
            w.nest(NFTA_EXPR_DATA, data);
        });
    }

    pub(super) fn address_words(&self) -> Word {
        self.family.address_bytes() as Word / 4
    }

    /// Loads a key into consecutive words, each field padded to full words.
    fn key(&mut self, parts: &[KeyPart]) {
        if parts.contains(&KeyPart::TcpPort) {
            self.match_protocol(Protocol::Tcp.number());
        }
        let mut word = 0;
        for part in parts {
            self.key_part(*part, word);
            word += self.part_words(*part);
        }
    }

    fn part_words(&self, part: KeyPart) -> Word {
        match part {
            KeyPart::Address(_)
            | KeyPart::SourceNetwork(_)
            | KeyPart::SourceBroadcast(_)
            | KeyPart::OriginalDestination => self.address_words(),
            _ => 1,
        }
    }

    fn key_part(&mut self, part: KeyPart, word: Word) {
        match part {
            KeyPart::Address(side) => self.address(side, word),
            KeyPart::SourceNetwork(length) => self.source_prefix(length, false, word),
            KeyPart::SourceBroadcast(length) => self.source_prefix(length, true, word),
            KeyPart::Protocol => self.meta(NFT_META_L4PROTO, word),
            // `th dport`: bytes 2 and 3 of TCP, UDP and SCTP alike.
            KeyPart::Port | KeyPart::TcpPort => self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, word),
            KeyPart::OriginalDestination => self.conntrack_destination(word),
            KeyPart::OriginalPort => self.conntrack(NFT_CT_PROTO_DST, Some(IP_CT_DIR_ORIGINAL), word),
            KeyPart::Random(modulus) => self.expression("numgen", |w| {
                w.be32(NFTA_NG_DREG, register(word));
                w.be32(NFTA_NG_MODULUS, modulus);
                w.be32(NFTA_NG_TYPE, NFT_NG_RANDOM);
                w.be32(NFTA_NG_OFFSET, 0);
            }),
            KeyPart::Priority => self.meta(NFT_META_PRIORITY, word),
        }
    }

    fn address(&mut self, side: Side, word: Word) {
        let length = self.family.address_bytes() as u32;
        self.payload(NFT_PAYLOAD_NETWORK_HEADER, self.address_offset(side), length, word);
    }

    /// The first or the last address of the source's prefix: `(source & mask) ^ xor`.
    fn source_prefix(&mut self, length: u8, last: bool, word: Word) {
        self.address(Side::Source, word);
        let bytes = self.family.address_bytes();
        let mask = Octets::of(mask(self.family, length));
        let behind: Vec<u8> = mask.bytes().iter().map(|byte| if last { !byte } else { 0 }).collect();
        self.bitwise(word, mask.bytes(), &behind[..bytes]);
    }

    /// The offset of the address in the IPv4 or IPv6 header.
    fn address_offset(&self, side: Side) -> u32 {
        match (self.family, side) {
            (Family::Ipv4, Side::Source) => 12,
            (Family::Ipv4, Side::Destination) => 16,
            (Family::Ipv6, Side::Source) => 8,
            (Family::Ipv6, Side::Destination) => 24,
        }
    }

    /// A prefix on a byte boundary compares only its bytes, any other the
    /// whole address under a mask.
    pub(super) fn match_prefix(&mut self, side: Side, op: Op, net: &IpNet) {
        let network = Octets::of(net.network());
        let length = usize::from(net.prefix_len());
        if length % 8 == 0 && length > 0 {
            let bytes = length / 8;
            self.payload(NFT_PAYLOAD_NETWORK_HEADER, self.address_offset(side), bytes as u32, 0);
            self.compare(op, &network.bytes()[..bytes]);
        } else {
            self.address(side, 0);
            self.mask(Octets::of(net.netmask()).bytes());
            self.compare(op, network.bytes());
        }
    }

    pub(super) fn match_protocol(&mut self, number: u8) {
        self.meta(NFT_META_L4PROTO, 0);
        self.compare(Op::Is, &[number]);
    }

    /// Matches TCP by the flags SYN and ACK of a packet that begins a connection: SYN
    /// alone.
    pub(super) fn match_syn(&mut self, op: Op) {
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        self.match_protocol(Protocol::Tcp.number());
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1, 0);
        self.mask(&[SYN | ACK]);
        self.compare(op, &[SYN]);
    }

    pub(super) fn match_other_protocol(&mut self, number: u8) {
        self.meta(NFT_META_L4PROTO, 0);
        self.compare(Op::IsNot, &[number]);
    }

    /// Matches if any of the bits is set; conntrack's words are in host order.
    pub(super) fn conntrack_bits(&mut self, key: u32, bits: u32) {
        self.conntrack(key, None, 0);
        self.mask(&bits.to_ne_bytes());
        self.compare(Op::IsNot, &[0; 4]);
    }

    pub(super) fn payload(&mut self, base: u32, offset: u32, length: u32, word: Word) {
        self.expression("payload", |w| {
            w.be32(NFTA_PAYLOAD_DREG, register(word));
            w.be32(NFTA_PAYLOAD_BASE, base);
            w.be32(NFTA_PAYLOAD_OFFSET, offset);
            w.be32(NFTA_PAYLOAD_LEN, length);
        });
    }

    fn meta(&mut self, key: u32, word: Word) {
        self.expression("meta", |w| {
            w.be32(NFTA_META_KEY, key);
            w.be32(NFTA_META_DREG, register(word));
        });
    }

    /// Puts a constant at word 0.
    pub(super) fn value(&mut self, bytes: &[u8]) {
        self.expression("immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, register(0));
            write_value(w, NFTA_IMMEDIATE_DATA, bytes);
        });
    }

    /// Sets a field of the packet's metadata to the value at word 0.
    pub(super) fn set_meta(&mut self, key: u32) {
        self.expression("meta", |w| {
            w.be32(NFTA_META_KEY, key);
            w.be32(NFTA_META_SREG, register(0));
        });
    }

    fn conntrack_destination(&mut self, word: Word) {
        let key = match self.family {
            Family::Ipv4 => NFT_CT_DST_IP,
            Family::Ipv6 => NFT_CT_DST_IP6,
        };
        self.conntrack(key, Some(IP_CT_DIR_ORIGINAL), word);
    }

    pub(super) fn conntrack(&mut self, key: u32, direction: Option<u8>, word: Word) {
        self.expression("ct", |w| {
            w.be32(NFTA_CT_DREG, register(word));
            w.be32(NFTA_CT_KEY, key);
            if let Some(direction) = direction {
                w.u8(NFTA_CT_DIRECTION, direction);
            }
        });
    }

    fn fib_address_type(&mut self, side: Side) {
        let flag = match side {
            Side::Source => NFTA_FIB_F_SADDR,
            Side::Destination => NFTA_FIB_F_DADDR,
        };
        self.expression("fib", |w| {
            w.be32(NFTA_FIB_DREG, register(0));
            w.be32(NFTA_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE);
            w.be32(NFTA_FIB_FLAGS, flag);
        });
    }

    pub(super) fn compare(&mut self, op: Op, bytes: &[u8]) {
        let op = match op {
            Op::Is => NFT_CMP_EQ,
            Op::IsNot => NFT_CMP_NEQ,
        };
        self.expression("cmp", |w| {
            w.be32(NFTA_CMP_SREG, register(0));
            w.be32(NFTA_CMP_OP, op);
            write_value(w, NFTA_CMP_DATA, bytes);
        });
    }

    /// Masks the value at word 0.
    fn mask(&mut self, mask: &[u8]) {
        let zero = [0; 16];
        self.bitwise(0, mask, &zero[..mask.len()]);
    }

    fn bitwise(&mut self, word: Word, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |w| {
            w.be32(NFTA_BITWISE_SREG, register(word));
            w.be32(NFTA_BITWISE_DREG, register(word));
            w.be32(NFTA_BITWISE_LEN, mask.len() as u32);
            w.be32(NFTA_BITWISE_OP, NFT_BITWISE_BOOL);
            write_value(w, NFTA_BITWISE_MASK, mask);
            write_value(w, NFTA_BITWISE_XOR, xor);
        });
    }

    /// Looks up the key at word 0.
    pub(super) fn lookup(&mut self, set: &str, op: Op, destination: Option<u32>) {
        let flags = match op {
            Op::Is => 0,
            Op::IsNot => NFT_LOOKUP_F_INV,
        };
        self.expression("lookup", |w| {
            w.string(NFTA_LOOKUP_SET, set);
            w.be32(NFTA_LOOKUP_SREG, register(0));
            if let Some(destination) = destination {
                w.be32(NFTA_LOOKUP_DREG, destination);
            }
            w.be32(NFTA_LOOKUP_FLAGS, flags);
        });
    }

    /// Translates to the address at word 0 and the port behind it.
    fn dnat(&mut self) {
        let port = register(self.address_words());
        let family = u32::from(family_number(self.family));
        self.expression("nat", |w| {
            w.be32(NFTA_NAT_TYPE, NFT_NAT_DNAT);
            w.be32(NFTA_NAT_FAMILY, family);
            w.be32(NFTA_NAT_REG_ADDR_MIN, register(0));
            w.be32(NFTA_NAT_REG_PROTO_MIN, port);
        });
    }

    /// The key at word 0; the value at the next full register, or behind a key
    /// that is longer than one.
    ///
    /// For IPv6 later versions of nft make this from the text; 1.0.6 gives
    /// every key of an `update` with a value one register, and aborts.
    fn learn_affinity(&mut self, seconds: u32) {
        let address = self.address_words();
        self.address(Side::Source, 0);
        self.meta(NFT_META_PRIORITY, address);
        let value = (address + 1).max(REGISTER_WORDS);
        self.address(Side::Destination, value);
        self.payload(NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, value + address);
        self.expression("dynset", |w| {
            w.be32(NFTA_DYNSET_SREG_KEY, register(0));
            w.be32(NFTA_DYNSET_SREG_DATA, register(value));
            w.be32(NFTA_DYNSET_OP, NFT_DYNSET_OP_UPDATE);
            w.string(NFTA_DYNSET_SET_NAME, Map::Affinity.name());
            // Milliseconds.
            w.be64(NFTA_DYNSET_TIMEOUT, u64::from(seconds) * 1000);
            w.be32(NFTA_DYNSET_FLAGS, 0);
        });
    }

    pub(super) fn verdict(&mut self, code: i32, chain: Option<impl Display>) {
        self.expression("immediate", |w| {
            w.be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            w.nest(NFTA_IMMEDIATE_DATA, |w| write_verdict(w, code, chain));
        });
    }

    fn reject(&mut self) {
        let code = match self.family {
            Family::Ipv4 => ICMP_PORT_UNREACH,
            Family::Ipv6 => ICMPV6_PORT_UNREACH,
        };
        self.expression("reject", |w| {
            w.be32(NFTA_REJECT_TYPE, NFT_REJECT_ICMP_UNREACH);
            w.u8(NFTA_REJECT_ICMP_CODE, code);
        });
    }
}

/// The mask of a prefix length.
fn mask(family: Family, length: u8) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::V4((!u32::MAX.checked_shr(length.into()).unwrap_or(0)).into()),
        Family::Ipv6 => IpAddr::V6((!u128::MAX.checked_shr(length.into()).unwrap_or(0)).into()),
    }
}

/// The bytes of an address in network order.
pub(super) enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Octets {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Octets::V4(address.octets()),
            IpAddr::V6(address) => Octets::V6(address.octets()),
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Octets::V4(octets) => octets,
            Octets::V6(octets) => octets,
        }
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::ruleset::chains::Chain;
    use vmap_proxy_compiler::ruleset::target::{Domain, Pool};

    use std::collections::BTreeSet;

    use vmap_proxy_compiler::ruleset::skeleton::{LocalDetector, SkeletonConfig, rules};
    use vmap_proxy_compiler::ruleset::spread::Spread;

    use super::*;
    use crate::message::Attributes;

    fn chains() -> Vec<Chain> {
        let mut chains = Chain::FIXED.to_vec();
        chains.extend(Chain::LEARNING);
        chains.extend(Chain::FIREWALL);
        chains.push(Chain::LearnFor { seconds: 10800 });
        for (domain, sticky) in [(Domain::Frontend, false), (Domain::NodePort, true)] {
            for endpoints in [3, 100] {
                let balance = Chain::Balance { domain, pool: Pool::Main, sticky, spread: Spread::of(endpoints) };
                chains.extend(balance.needs());
                chains.push(balance);
            }
        }
        chains
    }

    /// Kernels differ in which forms they take: 6.12.115 and 7.3 refuse a
    /// `byteorder` whose length is not its size, which others took. A new
    /// expression is to be read up in the kernel's source, from 5.13 to the
    /// newest, before it joins this list.
    #[test]
    fn only_expressions_that_every_kernel_takes_are_written() {
        const KNOWN: [&str; 13] = [
            "bitwise",
            "cmp",
            "ct",
            "dynset",
            "fib",
            "immediate",
            "lookup",
            "masq",
            "meta",
            "nat",
            "numgen",
            "payload",
            "reject",
        ];
        let mut written = BTreeSet::new();
        for family in Family::ALL {
            let detector = Some(LocalDetector::InterfacePrefix("veth".to_owned()));
            let config = SkeletonConfig { family, detector, masquerade_all: false, nodeports_on_all_addresses: false };
            for rule in chains().into_iter().flat_map(|chain| rules(&config, chain)) {
                let mut writer = Writer::as_listed();
                write_rule(&mut writer, family, &rule);
                let names =
                    Attributes::new(writer.bytes()).map(|one| one.nested().string(NFTA_EXPR_NAME).map(str::to_owned));
                written.extend(names.flatten());
            }
        }
        assert_eq!(written, BTreeSet::from(KNOWN.map(str::to_owned)));
    }
}
