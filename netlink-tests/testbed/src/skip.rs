//! A test, or a part of one, that cannot run on this machine.

use std::fmt::Display;
use std::io::Write;

/// Prints that a test was skipped and why, past the test runner's capture, which hides the output of tests that pass.
pub fn skipped(why: impl Display) {
    // Nobody is left to report an unwritable standard error to.
    let _ = writeln!(std::io::stderr(), "SKIPPED, {why}");
}

/// As [`skipped`], for what a machine of CI must have.
///
/// # Panics
///
/// If `CI` is set.
pub fn skipped_outside_ci(why: impl Display) {
    assert!(std::env::var_os("CI").is_none(), "CI tests everything: {why}");
    skipped(why);
}
