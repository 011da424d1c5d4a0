//! Any text as a duration of Go. What is read is written and read again to the same.
#![no_main]

use vmap_proxy_agent::config::GoDuration;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(duration) = text.parse::<GoDuration>() else { return };
    assert_eq!(duration.to_string().parse::<GoDuration>().ok(), Some(duration));
    assert!(duration.is_negative() || duration.to_duration().as_secs() as i64 == duration.whole_seconds());
});
