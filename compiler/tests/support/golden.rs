//! Golden files: text that a test compares with what the code makes now.

use std::fs;
use std::path::Path;

/// Compares with the golden file, or writes it if `UPDATE_GOLDEN` is set.
pub(crate) fn check(golden: &Path, actual: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(golden, actual).unwrap();
    }
    let expected = fs::read_to_string(golden).unwrap_or_default();
    let line = expected.lines().zip(actual.lines()).position(|(expected, actual)| expected != actual);
    let line = line.unwrap_or_else(|| expected.lines().count().min(actual.lines().count()));
    assert!(
        expected == actual,
        "{} differs from line {} on:\n  expected: {}\n  actual:   {}\nIf the change is meant, set UPDATE_GOLDEN=1, run \
         again, and read the difference.",
        golden.display(),
        line + 1,
        expected.lines().nth(line).unwrap_or("(the end)"),
        actual.lines().nth(line).unwrap_or("(the end)"),
    );
}
