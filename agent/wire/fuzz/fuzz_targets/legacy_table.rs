//! Any bytes as a table of legacy iptables: eleven numbers of two bytes, then the entries.
#![no_main]

#[path = "../../tests/support/decode.rs"]
mod decode;

use vmap_proxy_wire::legacy_table::LegacyTable;

/// The hooks and underflows of a table, and which of its hooks count.
const NUMBERS: usize = 11;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((head, entries)) = bytes.split_at_checked(2 * NUMBERS) else { return };
    let number = |index: usize| u32::from(u16::from_ne_bytes([head[2 * index], head[2 * index + 1]]));
    decode::reduce(&LegacyTable {
        // The smallest entry has 112 bytes.
        count: entries.len() / 112,
        entries: entries.to_vec(),
        hook_entry: std::array::from_fn(number),
        underflow: std::array::from_fn(|index| number(5 + index)),
        valid_hooks: number(10) % 32,
    });
});
