//! Any bytes as a line that arrives at the query socket.
#![no_main]

use vmap_proxy_agent::query::protocol::{Ask, Reply};

libfuzzer_sys::fuzz_target!(|line: &[u8]| {
    // A client of the agent reads replies of the same socket.
    let _ = serde_json::from_slice::<Reply>(line);
    let Ok(ask) = serde_json::from_slice::<Ask>(line) else { return };
    let written = serde_json::to_vec(&ask).unwrap_or_default();
    assert!(serde_json::from_slice::<Ask>(&written).is_ok());
});
