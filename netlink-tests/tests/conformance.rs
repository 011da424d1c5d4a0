//! Every vector of this repository, at each of the three levels, as `netlink-tests vectors` runs them.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fmt::Display;
use std::path::Path;

use netlink_tests::vectors::library_proxy::LibraryProxy;
use netlink_tests::vectors::schema::Vector;
use netlink_tests::vectors::{repository_dir, run_compiled, run_model, run_packets, schema};

netlink_tests::in_own_namespaces!();

/// How many vectors have a cluster of namespaces at a time.
const PARALLEL: usize = 4;

fn all_vectors() -> Vec<Vector> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("own-vectors");
    [repository_dir(), own].iter().flat_map(|directory| schema::load_dir(directory).unwrap()).collect()
}

/// Collects what fails, so that one run tells all of it.
#[derive(Default)]
struct Failures(Vec<String>);

impl Failures {
    fn add(&mut self, vector: &str, failures: impl IntoIterator<Item = impl Display>) {
        self.0.extend(failures.into_iter().map(|failure| format!("{vector}: {failure}")));
    }

    fn assert_none(self) {
        assert!(self.0.is_empty(), "{} failures:\n{}", self.0.len(), self.0.join("\n"));
    }
}

#[test]
fn the_reference_model_passes() {
    let mut failures = Failures::default();
    for vector in all_vectors() {
        failures.add(&vector.name, run_model::run(&vector));
    }
    failures.assert_none();
}

#[test]
fn the_compiled_rules_pass() {
    let mut failures = Failures::default();
    for vector in all_vectors() {
        match run_compiled::run(&vector) {
            Ok(mismatches) => failures.add(&vector.name, mismatches),
            Err(error) => failures.add(&vector.name, [error]),
        }
    }
    failures.assert_none();
}

#[test]
fn real_packets_pass() {
    let vectors = all_vectors();
    let mut failures = Failures::default();
    for report in run_packets::run_all(&vectors, PARALLEL, &|| Box::<LibraryProxy>::default()) {
        failures.add(&report.name, &report.failures);
    }
    failures.assert_none();
}
