//! Any text as a configuration file. What is read is written and read again to the same.
#![no_main]

use vmap_proxy_agent::config::load::{load, to_yaml};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok((configuration, _)) = load(text) else { return };
    let Ok(written) = to_yaml(&configuration) else { return };
    match load(&written) {
        Ok((again, _)) => assert_eq!(again, configuration),
        Err(error) => panic!("{error}: {written}"),
    }
});
