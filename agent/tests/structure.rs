//! Holds that the modules of the agent depend on each other in one direction:
//! no chain of `use crate::…` leads from a module back to it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files below a path, without those of tests.
fn files(path: &Path, found: &mut Vec<PathBuf>) {
    let is_of_tests = path.file_stem().is_some_and(|name| name == "tests" || name == "test_client");
    if is_of_tests {
        return;
    }
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| files(&entry.unwrap().path(), found));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        found.push(path.to_owned());
    }
}

/// The names behind `crate::` in the code of a file, without comments and its tests.
fn named(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = lines.flat_map(|line| line.split("crate::").skip(1));
    words.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn modules_depend_on_each_other_in_one_direction() {
    let front = fs::read_to_string(source().join("lib.rs")).unwrap();
    let modules: Vec<&str> =
        front.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for module in &modules {
        let mut found = Vec::new();
        let (file, folder) = (source().join(format!("{module}.rs")), source().join(module));
        [file, folder].iter().filter(|path| path.exists()).for_each(|path| files(path, &mut found));
        let texts = found.iter().map(|file| fs::read_to_string(file).unwrap());
        let names: BTreeSet<String> = texts.flat_map(|text| named(&text)).collect();
        uses.insert(
            module,
            modules.iter().copied().filter(|other| other != module && names.contains(*other)).collect(),
        );
    }
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > modules.len(), "the uses are not found: {uses:?}");

    // Modules that use none of the others that are left can be taken away; those of a circle never can.
    while let Some(lowest) = uses.iter().find(|(_, used)| used.is_empty()).map(|(module, _)| *module) {
        uses.remove(lowest);
        uses.values_mut().for_each(|used| {
            used.remove(lowest);
        });
    }
    assert!(uses.is_empty(), "these modules depend on each other in circles, or on such: {uses:#?}");
}
