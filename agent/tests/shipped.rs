//! Checks that the shipped binary has no laboratory: `scripts/build-static` builds `vmap-proxy` without the feature
//! `demo`. CI runs these tests once more without it:
//! `cargo test -p vmap-proxy --no-default-features --test shipped`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vmap-proxy");
const CRATES: [&str; 2] = ["vmap-proxy-demo", "vmap-proxy-lab"];

/// The crates that are linked into the program.
fn dependencies(flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--offline", "--locked", "-p", "vmap-proxy", "-e", "normal", "--prefix", "none"]);
    let output = command.args(flags).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_laboratory_is_linked_only_with_the_demo() {
    let (with, without) = (dependencies(&[]), dependencies(&["--no-default-features"]));
    for name in CRATES {
        assert!(with.contains(name), "no {name} in: {with}");
        assert!(!without.contains(name), "{name} in: {without}");
    }
}

#[test]
fn the_static_binary_is_built_without_the_demo() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/build-static");
    let text = fs::read_to_string(script).unwrap();
    let build = text.lines().find(|line| line.trim_start().starts_with("cargo build")).unwrap();
    assert!(build.contains("--no-default-features"), "{build}");
}

#[test]
fn the_demo_is_in_the_program_and_its_help_or_in_neither() {
    let output = Command::new(PROGRAM).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert_eq!(help.contains("demo"), cfg!(feature = "demo"), "{help}");
    let program = fs::read(PROGRAM).unwrap();
    for name in CRATES.map(|name| name.replace('-', "_")) {
        let is_there = program.windows(name.len()).any(|bytes| bytes == name.as_bytes());
        assert_eq!(is_there, cfg!(feature = "demo"), "{name}");
    }
}
