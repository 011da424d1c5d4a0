//! Any bytes as the body of a list or of a watch, in chunks of any size. The cutting must not depend on the chunks.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((size, body)) = bytes.split_first() else { return };
    vmap_proxy_agent::source::kubernetes::fuzzing::read(body, usize::from(*size) + 1);
});
