//! The modules of the compiler depend on each other in one direction only, as
//! the front page of the crate draws it.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each module, and those that it may use. All of them stand above it here, so
/// the table itself has no cycle.
const MAY_USE: [(&str, &[&str]); 10] = [
    ("words", &[]),
    ("model", &[]),
    ("select", &["model"]),
    ("ruleset", &["model"]),
    ("render", &["model", "ruleset"]),
    ("evaluate", &["model", "ruleset", "render"]),
    ("limits", &["model", "select", "ruleset"]),
    ("plan", &["model", "select", "ruleset", "render", "limits"]),
    ("compile", &["model", "ruleset", "plan"]),
    ("explain", &["words", "model", "select", "ruleset", "evaluate", "limits", "plan"]),
];

fn source() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules that the code of a file names after `crate::`.
fn used(file: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(file).unwrap();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let names = code.flat_map(|line| line.split("crate::").skip(1));
    names.map(|rest| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect()).collect()
}

/// Every source file below a module.
fn files(path: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

#[test]
fn modules_depend_on_each_other_in_one_direction() {
    let (mut above, mut actual) = (BTreeSet::new(), 0);
    for (module, may_use) in MAY_USE {
        assert!(may_use.iter().all(|used| above.contains(used)), "{module}: the table has a cycle");
        above.insert(module);
        let mut sources = vec![source().join(format!("{module}.rs"))];
        sources.retain(|file| file.exists());
        if source().join(module).is_dir() {
            files(&source().join(module), &mut sources);
        }
        assert!(!sources.is_empty(), "there is no module {module}");
        for file in sources {
            for used in used(&file) {
                assert!(
                    used == module || may_use.contains(&used.as_str()),
                    "{}: {module} must not use {used}; see the picture in src/lib.rs",
                    file.display()
                );
                actual += usize::from(used != module);
            }
        }
    }
    assert!(actual > MAY_USE.len(), "the test reads no imports any more");
    let declared = fs::read_to_string(source().join("lib.rs")).unwrap();
    let declared: BTreeSet<&str> =
        declared.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(declared, above, "a module is missing in the table of this test");
}
