//! Any text as a file of manifests, YAML and JSON: cut into documents, each of which is read.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| vmap_proxy_agent::source::manifests::fuzzing::read(text));
