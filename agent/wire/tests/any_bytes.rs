//! Whatever bytes arrive, decoding neither panics nor runs for ever: bytes at random, and well-formed messages with some
//! bytes changed, which get further.

#[path = "support/decode.rs"]
mod decode;

use decode::{SEQUENCE, decode, reduce};
use proptest::prelude::*;
use vmap_proxy_wire::legacy_table::LegacyTable;
use vmap_proxy_wire::message::{Request, Writer};

/// An attribute: its type, and bytes or more attributes.
#[derive(Debug, Clone)]
enum Tree {
    Bytes(u16, Vec<u8>),
    Nested(u16, Vec<Tree>),
}

fn trees() -> impl Strategy<Value = Vec<Tree>> {
    // The types that the kernel's enums begin with, and now and then any.
    let kind = || prop_oneof![9 => 0_u16..24, 1 => any::<u16>()];
    let bytes = prop_oneof![
        any::<[u8; 4]>().prop_map(|bytes| bytes.to_vec()),
        any::<u32>().prop_map(|number| (number % 8).to_be_bytes().to_vec()),
        prop::sample::select(vec!["services", "affinity", "endpoints", "lb-2", "counter", "immediate", "lookup"])
            .prop_map(|text| [text.as_bytes(), b"\0"].concat()),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    let leaf = (kind(), bytes).prop_map(|(kind, bytes)| Tree::Bytes(kind, bytes));
    let tree = leaf.prop_recursive(5, 40, 6, move |inner| {
        (kind(), prop::collection::vec(inner, 0..6)).prop_map(|(kind, inside)| Tree::Nested(kind, inside))
    });
    prop::collection::vec(tree, 0..8)
}

fn write(writer: &mut Writer, trees: &[Tree]) {
    for tree in trees {
        match tree {
            Tree::Bytes(kind, bytes) => writer.attribute(*kind, bytes),
            Tree::Nested(kind, inside) => writer.nest(*kind, |writer| write(writer, inside)),
        }
    }
}

/// A datagram of one message, of which some bytes were changed.
fn datagrams() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![any::<u16>(), 2_u16..4, 0xa00_u16..0xa20, 0x100_u16..0x104];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (kind, any::<u8>(), any::<u16>(), trees(), changes).prop_map(|(kind, family, flags, trees, changes)| {
        let mut writer = Writer::default();
        Request::new(kind, family, |writer| write(writer, &trees)).write(&mut writer, flags, SEQUENCE);
        let mut bytes = writer.bytes().to_vec();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes
    })
}

/// A size that an entry of a legacy table may have, or an absurd one.
fn sizes() -> impl Strategy<Value = Vec<(prop::sample::Index, u16)>> {
    let size = prop::sample::select(vec![112_u16, 152, 168, 176, 208, 0, u16::MAX]);
    prop::collection::vec((any::<prop::sample::Index>(), size), 0..12)
}

proptest! {
    #[test]
    fn bytes_at_random_are_decoded_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        decode(&bytes);
    }

    #[test]
    fn messages_with_changed_bytes_are_decoded_to_an_end(bytes in datagrams()) {
        decode(&bytes);
    }

    #[test]
    fn a_legacy_table_of_any_bytes_is_reduced_or_refused(
        mut entries in prop::collection::vec(any::<u8>(), 2..2_000),
        sizes in sizes(),
        hook_entry in any::<[u16; 5]>(),
        underflow in any::<[u16; 5]>(),
        valid_hooks in 0_u32..32,
    ) {
        for (place, size) in sizes {
            let place = place.index(entries.len() - 1);
            entries[place..place + 2].copy_from_slice(&size.to_ne_bytes());
        }
        let table = LegacyTable {
            count: entries.len() / 112,
            entries,
            hook_entry: hook_entry.map(u32::from),
            underflow: underflow.map(u32::from),
            valid_hooks,
        };
        reduce(&table);
    }
}
