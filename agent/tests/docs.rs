//! The documentation does not go stale: links lead somewhere, tests that are
//! named exist, the README's listing is what the compiler prints, and dashboards
//! ask for metrics that there are.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmap_proxy_agent::metrics::{Format, Metrics, Operation, SyncKind, TrafficPolicy};
use vmap_proxy_compiler::ruleset::Family;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files of a kind below a directory, but for what builds leave.
fn files(below: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path.file_name().is_some_and(|name| name == "target" || name == ".git");
        if path.is_dir() && !hidden {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

fn all(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&repository(), extension, &mut found);
    assert!(!found.is_empty(), "no file ends in .{extension}");
    found
}

/// What stands between `open` and `close`, each time.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

#[test]
fn links_lead_to_files() {
    for page in all("md") {
        let text = fs::read_to_string(&page).unwrap();
        for link in between(&text, "](", ')') {
            let target = link.split('#').next().unwrap_or_default();
            let outside = link.contains("://") || target.is_empty() || target.contains(char::is_whitespace);
            assert!(
                outside || page.with_file_name(target).exists(),
                "{}: the link {link} leads nowhere",
                page.display()
            );
        }
    }
}

#[test]
fn tests_that_the_docs_name_exist() {
    let mut functions = BTreeSet::new();
    for source in all("rs") {
        let text = fs::read_to_string(&source).unwrap();
        functions.extend(between(&text, "fn ", '(').map(str::to_owned));
    }
    let is_test_name = |word: &str| {
        word.matches('_').count() >= 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let (mut named, mut missing) = (0, BTreeSet::new());
    for page in ["docs/trial.md", "docs/acceptance.md", "docs/differences.md"] {
        let text = fs::read_to_string(repository().join(page)).unwrap();
        for word in text.split('`').skip(1).step_by(2).filter(|word| is_test_name(word)) {
            named += 1;
            // Metrics have such names, too.
            let is_metric = ["vmap_proxy_", "kubeproxy_", "rest_client_", "kubernetes_", "nf_"];
            if !functions.contains(word) && !is_metric.iter().any(|prefix| word.starts_with(prefix)) {
                missing.insert(format!("{page}: {word}"));
            }
        }
    }
    assert!(named > 50, "the pages name only {named} tests: are they still read?");
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}

/// A line of a listing, without what only its first and last element have.
fn without_braces(line: &str) -> &str {
    line.trim().trim_start_matches("elements = { ").trim_end_matches([',', ' ', '}'])
}

#[test]
fn the_readme_shows_rules_as_they_are() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let golden = fs::read_to_string(repository().join("agent/tests/golden/examples.nft")).unwrap();
    // The README leaves elements out, so another one may be the first or last.
    let golden: BTreeSet<&str> = golden.lines().map(without_braces).collect();
    let listing = readme.split("```nft\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    for line in listing.lines().map(without_braces) {
        assert!(line.is_empty() || golden.contains(line), "no such line in agent/tests/golden/examples.nft: {line}");
    }
}

#[test]
fn dashboards_and_alerts_ask_for_metrics_that_there_are() {
    let metrics = Metrics::new();
    // A metric with labels is shown once it has a value.
    metrics.sync_failed(Family::Ipv4, SyncKind::Full, Duration::ZERO);
    metrics.network_programmed(Family::Ipv4, Duration::ZERO);
    metrics.set_no_local_endpoints(Family::Ipv4, TrafficPolicy::External, 1);
    metrics.elements_changed(Operation::Add, 1);
    let known = metrics.encode(Format::Prometheus, &[]);
    let known: BTreeSet<&str> = between(&known, "# TYPE ", '\n').filter_map(|line| line.split(' ').next()).collect();
    let mut asked = 0;
    for file in ["dashboard.json", "rules.yaml"] {
        let text = fs::read_to_string(repository().join("deploy/monitoring").join(file)).unwrap();
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for word in words.filter(|word| word.starts_with("vmap_proxy_") || word.starts_with("kubeproxy_")) {
            asked += 1;
            let base = word.strip_suffix("_bucket").unwrap_or(word);
            let per_service = base == "vmap_proxy_service_connections_total";
            assert!(known.contains(base) || per_service, "{file}: there is no metric {word} in {known:?}");
        }
    }
    assert!(asked > 8, "only {asked} metrics are asked for: are the files still read?");
}
