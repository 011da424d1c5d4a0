//! Any bytes as a datagram from the kernel: answers, listings, tables, elements, tracked flows.
#![no_main]

#[path = "../../tests/support/decode.rs"]
mod decode;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| decode::decode(datagram));
