//! `vmap-proxy demo`, as a user starts it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::PROGRAM;

#[test]
fn every_check_of_the_demo_is_as_expected() {
    let output = Command::new(PROGRAM).arg("demo").output().unwrap();
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}\n{log}");
    assert!(table.lines().any(|line| line.ends_with(" as expected, 0 not")), "{table}");
    // The comparison: the objects of 10 and of 10,000 Services are the same, the elements are not.
    let row = |services: &str| -> Vec<String> {
        let rows = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        rows.into_iter().find(|row| row.first().is_some_and(|first| first == services)).unwrap()
    };
    let (few, many) = (row("10"), row("10000"));
    assert_eq!(few[1..5], many[1..5], "{table}");
    assert_eq!((&*few[5], &*many[5]), ("70", "70000"), "{table}");
}

#[test]
fn a_kept_demo_can_be_explored_and_goes_with_its_shell() {
    let mut demo = Command::new(PROGRAM);
    demo.args(["demo", "--keep"]).env("SHELL", "/bin/sh");
    demo.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = demo.spawn().unwrap();
    let commands = "vmap-proxy status --socket $SOCKET\n\
                    vmap-proxy explain --socket $SOCKET --from outside --to node:30080\n\
                    vmap-proxy verify --socket $SOCKET\n\
                    echo manifests $MANIFESTS socket $SOCKET\n";
    demo.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = demo.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    for part in ["Commands to try", "everything is programmed", "Service default/web", "and no others"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let places: Vec<&str> = text.lines().last().unwrap().split(' ').collect();
    assert_eq!((places[0], places[2]), ("manifests", "socket"), "{text}");
    for place in [places[1], places[3]] {
        assert!(!Path::new(place).exists(), "{place} stays behind");
    }
}
