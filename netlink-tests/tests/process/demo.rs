//! `vmap-proxy demo`, as a user starts it.

use std::process::Command;

use crate::PROGRAM;

#[test]
fn every_check_of_the_demo_is_as_expected() {
    let output = Command::new(PROGRAM).arg("demo").output().unwrap();
    let (table, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{table}\n{log}");
    assert!(table.lines().any(|line| line.ends_with(" as expected, 0 not")), "{table}");
}
