//! Checks that the documentation is up to date: links lead to files, named tests
//! exist, every page is in the book, every decision is in the index, the README
//! shows real rules and measured figures, and dashboards use metrics that exist.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vmap_proxy_agent::metrics::{ElementOperation, Format, Metrics, SyncKind, TrafficPolicy};
use vmap_proxy_compiler::ruleset::Family;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All files with an extension below a directory, without build output.
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

/// The texts between each `open` and the next `close`.
fn between<'a>(text: &'a str, open: &'a str, close: char) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split(close).next())
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    let headings = prose.iter().flat_map(|prose| prose.lines()).filter(|line| line.starts_with('#'));
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    headings
        .map(|line| line.trim_start_matches('#').trim().to_lowercase())
        .map(|heading| heading.chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect())
        .collect()
}

#[test]
fn links_lead_to_files_and_headings() {
    for page in all("md") {
        let text = fs::read_to_string(&page).unwrap();
        for link in between(&text, "](", ')') {
            if link.contains("://") || link.contains(char::is_whitespace) {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { page.clone() } else { page.with_file_name(file) };
            assert!(target.exists(), "{}: the link {link} leads nowhere", page.display());
            let found = anchor.is_empty() || anchors(&target).contains(anchor);
            assert!(found, "{}: the link {link} names no heading of that page", page.display());
        }
    }
}

/// A path of this repository in a text, such as `compiler/src/limits.rs`.
fn is_path(word: &str) -> bool {
    let tops = ["compiler/", "agent/", "netlink-tests/", "scripts/", "deploy/", "docs/", "examples/"];
    tops.iter().any(|top| word.starts_with(top)) && !word.contains('*')
}

#[test]
fn files_that_the_docs_name_exist() {
    let mut named = 0;
    for page in all("md") {
        let text = fs::read_to_string(&page).unwrap();
        let prose = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
        for path in prose.filter_map(|code| code.split_whitespace().next()).filter(|word| is_path(word)) {
            named += 1;
            assert!(repository().join(path).exists(), "{}: there is no {path}", page.display());
        }
    }
    assert!(named > 50, "the pages name only {named} files: are they still read?");
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

/// A line of a listing, without the braces that only its first and last element have.
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
    metrics.elements_changed(ElementOperation::Add, 1);
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

#[test]
fn every_alert_has_its_runbook() {
    let rules = fs::read_to_string(repository().join("deploy/monitoring/rules.yaml")).unwrap();
    let headings = anchors(&repository().join("docs/operations.md"));
    let runbooks: Vec<&str> = between(&rules, "docs/operations.md#", '\n').collect();
    assert_eq!(runbooks.len(), rules.matches("- alert:").count(), "each alert needs a runbook_url: {runbooks:?}");
    for anchor in runbooks {
        assert!(headings.contains(anchor), "docs/operations.md has no heading #{anchor}");
    }
}

#[test]
fn every_page_is_in_the_book() {
    let docs = repository().join("docs");
    let summary = fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let listed: BTreeSet<&str> = between(&summary, "](", ')').collect();
    let mut pages = Vec::new();
    files(&docs, "md", &mut pages);
    for page in pages {
        let page = page.strip_prefix(&docs).unwrap().to_str().unwrap();
        assert!(
            page == "SUMMARY.md" || listed.contains(page),
            "docs/SUMMARY.md has no line for docs/{page}; without one the book leaves the page out"
        );
    }
}

#[test]
fn every_decision_is_in_the_index() {
    let decisions = repository().join("docs/decisions");
    let index = fs::read_to_string(decisions.join("README.md")).unwrap();
    let summary = fs::read_to_string(repository().join("docs/SUMMARY.md")).unwrap();
    let mut records = Vec::new();
    files(&decisions, "md", &mut records);
    for record in records.iter().filter(|record| !record.ends_with("README.md")) {
        let file = record.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(record).unwrap();
        let heading = text.lines().next().unwrap().trim_start_matches("# ");
        let (number, title) = heading.split_once(". ").unwrap();
        let row = format!("| [{number}]({file}) | {title} | ");
        let rest = index.lines().find_map(|line| line.strip_prefix(&row));
        let cells = rest.map(|rest| rest.trim_end_matches(" |").split(" | ").count());
        assert_eq!(cells, Some(2), "docs/decisions/README.md needs the row `{row}DATE | STATUS |`");
        let line = format!("  - [{heading}](decisions/{file})");
        assert!(summary.contains(&line), "docs/SUMMARY.md needs the line `{line}`");
        assert!(text.contains("**Decision"), "{file} has no paragraph that begins with `**Decision`");
    }
}

#[test]
fn the_picture_of_the_readme_shows_its_figures() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    let picture = fs::read_to_string(repository().join("docs/performance/kube-proxy.svg")).unwrap();
    let table: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("| process start") || line.starts_with("| one endpoint more,"))
        .collect();
    // The labels of bars stand to their right; those of the axis are centred, those of the rows end at the axis.
    let bars = between(&picture, "<text x=", '<')
        .filter(|text| !text.contains("text-anchor") && !text.contains("font-weight"));
    let figures: Vec<&str> = bars.filter_map(|text| text.split_once('>').map(|(_, figure)| figure)).collect();
    assert_eq!(figures.len(), 4, "{figures:?}");
    for figure in figures {
        assert!(table.iter().any(|row| row.contains(&format!("| {figure} |"))), "the README's table lacks {figure}");
    }
}

/// The modules of a crate, from its front page.
fn modules(crate_root: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(crate_root)).unwrap();
    let name = |line: &str| Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';')?.to_owned());
    text.lines().filter_map(name).collect()
}

#[test]
fn the_architecture_names_every_module() {
    let page = fs::read_to_string(repository().join("docs/architecture.md")).unwrap();
    let words: BTreeSet<&str> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for crate_root in ["compiler/src/lib.rs", "compiler/src/plan/mod.rs", "agent/src/lib.rs", "agent/wire/src/lib.rs"] {
        let modules = modules(crate_root);
        assert!(modules.len() > 3, "{crate_root} has no modules?");
        let missing: Vec<_> = modules.iter().filter(|module| !words.contains(module.as_str())).collect();
        assert!(missing.is_empty(), "docs/architecture.md lacks {missing:?} of {crate_root}");
    }
}
