//! Sets and maps: how each is declared to the kernel.
//!
//! The types and the userdata mean nothing to the kernel; they are how nft
//! knows what to print. Both are written as nft 1.0.6 writes them, so that
//! `nft list` shows our maps and its output can be loaded again. But for one
//! type: the slot's, see [`TYPE_MARK`].

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::maps::{AFFINITY_SIZE, DataKind, KeyField, Map};

use crate::message::Writer;
use crate::uapi::*;

// nft's numbers for its data types (`include/datatype.h` of nftables).
const TYPE_IPADDR: u32 = 7;
const TYPE_IP6ADDR: u32 = 8;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
/// The slot's type: nft's `mark`, four bytes in host byte order.
///
/// By its typeof the slot is an `integer`, and nft writes that type. It has no
/// size, and an nft that does not know the typeof of a `numgen` (before 1.0.4)
/// splits the key by the types: it ends at an assertion at every listing, even
/// of other tables. With `mark` it lists the slot as 0x00000001.
const TYPE_MARK: u32 = 19;
const TYPE_CLASSID: u32 = 23;
/// A concatenation's type is its fields' types, six bits each.
const TYPE_BITS: u32 = 6;

/// The longest concatenation of ours.
const MAX_FIELDS: usize = 4;

/// The bytes of one field of a key, without padding.
fn field_bytes(family: Family, field: KeyField) -> u32 {
    match field {
        KeyField::Address => family.address_bytes() as u32,
        KeyField::Protocol => 1,
        KeyField::Port => 2,
        KeyField::Slot | KeyField::List => 4,
    }
}

/// The bytes of a whole key: in a concatenation each field fills full words.
fn key_bytes(family: Family, map: Map) -> u32 {
    map.key().iter().map(|field| field_bytes(family, *field).next_multiple_of(4)).sum()
}

/// The bytes of an endpoint: address and padded port.
fn endpoint_bytes(family: Family) -> u32 {
    family.address_bytes() as u32 + 4
}

fn field_type(family: Family, field: KeyField) -> u32 {
    match (field, family) {
        (KeyField::Address, Family::Ipv4) => TYPE_IPADDR,
        (KeyField::Address, Family::Ipv6) => TYPE_IP6ADDR,
        (KeyField::Protocol, _) => TYPE_INET_PROTOCOL,
        (KeyField::Port, _) => TYPE_INET_SERVICE,
        (KeyField::Slot, _) => TYPE_MARK,
        (KeyField::List, _) => TYPE_CLASSID,
    }
}

fn concat_type(family: Family, fields: &[KeyField]) -> u32 {
    fields.iter().fold(0, |kind, field| kind << TYPE_BITS | field_type(family, *field))
}

/// The part of a set's declaration that the kernel keeps, as [`declaration`]
/// makes it and as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Declaration {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_bytes: u32,
    pub(super) data_type: Option<u32>,
    pub(super) data_bytes: Option<u32>,
    /// The most elements, 0 for no limit.
    pub(super) size: u32,
    /// The fields of an interval concatenation, in bytes.
    pub(super) fields: Vec<u32>,
    /// Whether every element counts packets.
    pub(super) counter: bool,
    /// The default lifetime of elements, in milliseconds; 0 for ever. The agent
    /// never sets it, but another program may (Linux 6.5).
    pub(super) timeout: u64,
    /// The interval at which expired elements are collected, in milliseconds; 0
    /// for the kernel's choice. Set like `timeout`.
    pub(super) collects_every: u32,
    pub(super) userdata: Vec<u8>,
}

/// The declaration of one of our maps.
pub(super) fn declaration(family: Family, map: Map) -> Declaration {
    let concatenation = map.key().len() > 1;
    let mut flags = 0;
    let (data_type, data_bytes) = match map.data() {
        DataKind::Nothing => (None, None),
        DataKind::Verdict => (Some(NFT_DATA_VERDICT), Some(0)),
        DataKind::Endpoint => {
            (Some(concat_type(family, &[KeyField::Address, KeyField::Port])), Some(endpoint_bytes(family)))
        }
        DataKind::List => (Some(field_type(family, KeyField::List)), Some(field_bytes(family, KeyField::List))),
    };
    if data_type.is_some() {
        flags |= NFT_SET_MAP;
    }
    let mut fields = Vec::new();
    if map.is_interval() {
        flags |= NFT_SET_INTERVAL;
        if concatenation {
            flags |= NFT_SET_CONCAT;
            fields = map.key().iter().map(|field| field_bytes(family, *field)).collect();
        }
    }
    if map.is_dynamic() {
        flags |= NFT_SET_TIMEOUT | NFT_SET_EVAL;
    }
    Declaration {
        flags,
        key_type: concat_type(family, map.key()),
        key_bytes: key_bytes(family, map),
        data_type,
        data_bytes,
        size: if map.is_dynamic() { AFFINITY_SIZE } else { 0 },
        fields,
        counter: map.has_counter(),
        timeout: 0,
        collects_every: 0,
        userdata: userdata::of(family, map),
    }
}

/// Writes the attributes of a `NFT_MSG_NEWSET`. `id` is any number that is
/// unique in the batch: the kernel demands one.
pub(super) fn write_set(writer: &mut Writer, table: &str, family: Family, map: Map, id: u32) {
    let set = declaration(family, map);
    writer.string(NFTA_SET_TABLE, table);
    writer.string(NFTA_SET_NAME, map.name());
    writer.be32(NFTA_SET_FLAGS, set.flags);
    writer.be32(NFTA_SET_KEY_TYPE, set.key_type);
    writer.be32(NFTA_SET_KEY_LEN, set.key_bytes);
    if let (Some(data_type), Some(data_bytes)) = (set.data_type, set.data_bytes) {
        writer.be32(NFTA_SET_DATA_TYPE, data_type);
        writer.be32(NFTA_SET_DATA_LEN, data_bytes);
    }
    writer.be32(NFTA_SET_ID, id);
    if set.size > 0 || !set.fields.is_empty() {
        writer.nest(NFTA_SET_DESC, |w| {
            if set.size > 0 {
                w.be32(NFTA_SET_DESC_SIZE, set.size);
            }
            if !set.fields.is_empty() {
                w.nest(NFTA_SET_DESC_CONCAT, |w| {
                    for field in &set.fields {
                        w.nest(NFTA_LIST_ELEM, |w| w.be32(NFTA_SET_FIELD_LEN, *field));
                    }
                });
            }
        });
    }
    writer.attribute(NFTA_SET_USERDATA, &set.userdata);
    if set.counter {
        writer.nest(NFTA_SET_EXPR, |w| {
            w.string(NFTA_EXPR_NAME, "counter");
            w.nest(NFTA_EXPR_DATA, |_| {});
        });
    }
}

/// The notes nft keeps with a set: entries of type `u8`, length `u8`, payload,
/// nested for expressions; integers in host byte order (nftables'
/// `src/mnl.c`, `src/expression.c`, libnftnl's `include/libnftnl/udata.h`).
pub(super) mod userdata {
    use super::*;

    // `enum nftnl_udata_set_types`
    const NFTNL_UDATA_SET_KEYBYTEORDER: u8 = 0;
    const NFTNL_UDATA_SET_DATABYTEORDER: u8 = 1;
    pub(in crate::nf_tables) const NFTNL_UDATA_SET_KEY_TYPEOF: u8 = 3;
    pub(in crate::nf_tables) const NFTNL_UDATA_SET_DATA_TYPEOF: u8 = 4;
    const NFTNL_UDATA_SET_DATA_INTERVAL: u8 = 6;
    // `enum nftnl_udata_set_typeof_types`
    const NFTNL_UDATA_SET_TYPEOF_EXPR: u8 = 0;
    const NFTNL_UDATA_SET_TYPEOF_DATA: u8 = 1;
    // `enum expr_types` of nft
    const EXPR_PAYLOAD: u32 = 7;
    const EXPR_META: u32 = 9;
    const EXPR_CONCAT: u32 = 13;
    const EXPR_NUMGEN: u32 = 23;
    // The entries of a payload expression, of a meta expression, of a numgen
    // expression: `NFTNL_UDATA_SET_KEY_PAYLOAD_*`, `..._META_*`, `..._NUMGEN_*`.
    const PAYLOAD_DESC: u8 = 0;
    const PAYLOAD_TYPE: u8 = 1;
    const META_KEY: u8 = 0;
    const NUMGEN_TYPE: u8 = 0;
    const NUMGEN_MOD: u8 = 1;
    const NUMGEN_OFFSET: u8 = 2;
    // `enum proto_desc_id`, and the fields of these headers
    const PROTO_DESC_TCP: u32 = 8;
    const PROTO_DESC_TH: u32 = 11;
    const PROTO_DESC_IP: u32 = 12;
    const PROTO_DESC_IP6: u32 = 13;
    const IPHDR_DADDR: u32 = 12;
    const IP6HDR_DADDR: u32 = 9;
    const THDR_DPORT: u32 = 2;
    // `enum byteorder`: none for a concatenation
    const BYTEORDER_INVALID: u32 = 0;
    const BYTEORDER_HOST_ENDIAN: u32 = 1;
    const BYTEORDER_BIG_ENDIAN: u32 = 2;
    /// `numgen random mod 65536`: nft has no other way to express "an integer".
    const SLOTS: u32 = 65536;

    /// The userdata of one of our maps.
    pub(in crate::nf_tables) fn of(family: Family, map: Map) -> Vec<u8> {
        let mut out = Vec::new();
        let is_map = map.data() != DataKind::Nothing;
        let key_order = match map.key() {
            [KeyField::List] => BYTEORDER_HOST_ENDIAN,
            [_] => BYTEORDER_BIG_ENDIAN,
            _ => BYTEORDER_INVALID,
        };
        number(&mut out, NFTNL_UDATA_SET_KEYBYTEORDER, key_order);
        if is_map {
            let is_number = map.data() == DataKind::List;
            let data_order = if is_number { BYTEORDER_HOST_ENDIAN } else { BYTEORDER_INVALID };
            number(&mut out, NFTNL_UDATA_SET_DATABYTEORDER, data_order);
        }
        if map.key().len() > 1 {
            // A map that is declared by `type` has empty concatenations here.
            let key = if map.is_typeof() { map.key() } else { &[] };
            concatenation(&mut out, NFTNL_UDATA_SET_KEY_TYPEOF, key.iter().map(|field| key_field(family, *field)));
        }
        if map.data() == DataKind::Endpoint {
            let fields = [destination_address(family), payload(PROTO_DESC_TCP, THDR_DPORT)];
            let fields = fields.into_iter().filter(|_| map.is_typeof());
            concatenation(&mut out, NFTNL_UDATA_SET_DATA_TYPEOF, fields);
        }
        if is_map {
            number(&mut out, NFTNL_UDATA_SET_DATA_INTERVAL, 0);
        }
        out
    }

    fn key_field(family: Family, field: KeyField) -> Vec<u8> {
        match field {
            KeyField::Address => destination_address(family),
            KeyField::Protocol => {
                let mut key = Vec::new();
                number(&mut key, META_KEY, NFT_META_L4PROTO);
                expression(EXPR_META, &key)
            }
            KeyField::List => {
                let mut key = Vec::new();
                number(&mut key, META_KEY, NFT_META_PRIORITY);
                expression(EXPR_META, &key)
            }
            KeyField::Port => payload(PROTO_DESC_TH, THDR_DPORT),
            KeyField::Slot => {
                let mut key = Vec::new();
                number(&mut key, NUMGEN_TYPE, NFT_NG_RANDOM);
                number(&mut key, NUMGEN_MOD, SLOTS);
                number(&mut key, NUMGEN_OFFSET, 0);
                expression(EXPR_NUMGEN, &key)
            }
        }
    }

    /// `ip daddr`, `ip6 daddr`
    fn destination_address(family: Family) -> Vec<u8> {
        match family {
            Family::Ipv4 => payload(PROTO_DESC_IP, IPHDR_DADDR),
            Family::Ipv6 => payload(PROTO_DESC_IP6, IP6HDR_DADDR),
        }
    }

    fn payload(header: u32, field: u32) -> Vec<u8> {
        let mut key = Vec::new();
        number(&mut key, PAYLOAD_DESC, header);
        number(&mut key, PAYLOAD_TYPE, field);
        expression(EXPR_PAYLOAD, &key)
    }

    fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        number(&mut out, NFTNL_UDATA_SET_TYPEOF_EXPR, kind);
        entry(&mut out, NFTNL_UDATA_SET_TYPEOF_DATA, data);
        out
    }

    fn concatenation(out: &mut Vec<u8>, kind: u8, fields: impl Iterator<Item = Vec<u8>>) {
        let mut data = Vec::new();
        for (index, field) in fields.enumerate().take(MAX_FIELDS) {
            entry(&mut data, index as u8, &field);
        }
        entry(out, kind, &expression(EXPR_CONCAT, &data));
    }

    fn number(out: &mut Vec<u8>, kind: u8, value: u32) {
        entry(out, kind, &value.to_ne_bytes());
    }

    fn entry(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
        debug_assert!(payload.len() <= usize::from(u8::MAX));
        out.extend_from_slice(&[kind, payload.len() as u8]);
        out.extend_from_slice(payload);
    }

    /// The payload of the first entry of a type.
    pub(in crate::nf_tables) fn find(mut bytes: &[u8], kind: u8) -> Option<&[u8]> {
        while let [this, length, rest @ ..] = bytes {
            let payload = rest.get(..usize::from(*length))?;
            if *this == kind {
                return Some(payload);
            }
            bytes = &rest[payload.len()..];
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::ruleset::target::{Domain, Pool};

    use super::*;

    /// The sizes in bits of the types of nft that our maps may be made of;
    /// `None` for a type without a size, or that some nft does not know.
    fn type_bits(kind: u32) -> Option<u32> {
        match kind {
            TYPE_IPADDR | TYPE_MARK | TYPE_CLASSID => Some(32),
            TYPE_IP6ADDR => Some(128),
            TYPE_INET_PROTOCOL => Some(8),
            TYPE_INET_SERVICE => Some(16),
            _ => None,
        }
    }

    /// The bytes that nft computes from a type: each field of a concatenation
    /// fills full words.
    fn type_bytes(mut kind: u32) -> u32 {
        let single = kind >> TYPE_BITS == 0;
        let mut bytes = 0;
        while kind != 0 {
            let field = kind & ((1 << TYPE_BITS) - 1);
            let bits = type_bits(field).unwrap_or_else(|| panic!("a field of type {field}, which has no size"));
            bytes += if single { bits / 8 } else { (bits / 8).next_multiple_of(4) };
            kind >>= TYPE_BITS;
        }
        bytes
    }

    /// An nft that does not know a typeof splits key and value by their types,
    /// and must get the right sizes.
    #[test]
    fn every_field_has_a_type_with_a_size() {
        for family in Family::ALL {
            for map in Map::all() {
                let set = declaration(family, map);
                assert_eq!(type_bytes(set.key_type), set.key_bytes, "key of {family} {map}");
                if let (Some(kind), Some(bytes)) =
                    (set.data_type.filter(|kind| *kind != NFT_DATA_VERDICT), set.data_bytes)
                {
                    assert_eq!(type_bytes(kind), bytes, "value of {family} {map}");
                }
            }
        }
    }

    /// Captured with `nft --debug=mnl` (1.0.6).
    #[test]
    fn userdata_is_what_nft_writes() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let endpoints = "00040000000001040000000003600004\
            0d0000000158001400040700000001\
            0c00040c00000001040c000000010e0004090000000106000410000000\
            021400040700000001\
            0c00040b000000010402000000031a0004170000000112000401000000010400000100020400000000\
            043400040d000000012c001400040700000001\
            0c00040c00000001040c00000001140004070000000\
            10c00040800000001040200000006040000\
            0000";
        assert_eq!(hex(&userdata::of(Family::Ipv4, Map::Endpoints(Domain::Frontend, Pool::Main))), endpoints);
        assert_eq!(
            hex(&userdata::of(Family::Ipv4, Map::Frontends(Domain::Frontend))),
            "000400000000010400000000030800040d0000000100060400000000"
        );
        assert_eq!(hex(&userdata::of(Family::Ipv4, Map::ClusterIps)), "000402000000");
        assert_eq!(
            hex(&userdata::of(Family::Ipv4, Map::Affinity)),
            "000400000000010400000000030800040d0000000100040800040d0000000100060400000000"
        );
        assert_eq!(
            hex(&userdata::of(Family::Ipv4, Map::AffinityLists(Domain::Frontend, Pool::Main))),
            "000400000000010401000000030800040d0000000100060400000000"
        );
        assert_eq!(hex(&userdata::of(Family::Ipv4, Map::AffinityTimeouts)), "000401000000010400000000060400000000");
        assert_eq!(declaration(Family::Ipv4, Map::AffinityLists(Domain::Frontend, Pool::Main)).data_type, Some(23));
        assert_eq!(declaration(Family::Ipv4, Map::Affinity).key_type, 471);
        assert_eq!(declaration(Family::Ipv4, Map::Endpoints(Domain::Frontend, Pool::Main)).key_type, 0x001c_c353);
        assert_eq!(declaration(Family::Ipv6, Map::SourceRanges).key_type, 0x0830_d208);
    }
}
