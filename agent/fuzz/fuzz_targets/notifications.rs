//! Any bytes as notifications of the kernel about changes of the rule set, in datagrams of any size.
#![no_main]

use vmap_proxy_agent::netlink::{Observed, follow_datagrams};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    for observed in follow_datagrams(bytes.chunks(usize::from(*size) * 4 + 16)) {
        if let Observed::Foreign(change) = observed {
            assert!(!change.families.is_empty());
            assert!(!change.process_name.chars().any(char::is_control), "{:?}", change.process_name);
        }
    }
});
