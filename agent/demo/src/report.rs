//! The demo's table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::DemoError;
use crate::checks::{ByName, Check, Expected, Flow, Source};
use crate::comparison::{BUILD, Figures};
use crate::objects::Objects;
use vmap_proxy_lab::{Lab, LabError, PodResolver, ProbeResult, ResolveError};

/// Prints a line for every check and counts unexpected results.
pub(crate) struct Report {
    names: BTreeMap<IpAddr, &'static str>,
    passed: usize,
    failed: usize,
}

impl Report {
    pub(crate) fn new(names: BTreeMap<IpAddr, &'static str>) -> Self {
        Self { names, passed: 0, failed: 0 }
    }

    pub(crate) fn section(&self, title: &str) {
        say!("{title}");
        say!(
            "  {:<40} {:<27} {:<38} {:<22} expected",
            "connection",
            "destination",
            "answered by (times)",
            "source seen by the pod"
        );
    }

    pub(crate) fn run(&mut self, lab: &Lab, checks: &[Check]) -> Result<(), LabError> {
        self.run_checks(lab, checks)?;
        say!("");
        Ok(())
    }

    fn run_checks(&mut self, lab: &Lab, checks: &[Check]) -> Result<(), LabError> {
        for check in checks {
            let results = check.run(lab)?;
            let right = self.is_expected(check, &results);
            self.count(right);
            let verdict = if right { "yes" } else { "NO" };
            let (who, from) = (self.answers(&results), self.sources(&results));
            say!("  {:<40} {:<27} {who:<38} {from:<22} {verdict}", check.what, check.target.to_string());
        }
        Ok(())
    }

    /// Looks names up, and connects to the addresses. A name without the expected number of addresses is a line, too.
    pub(crate) fn run_names(&mut self, lab: &Lab, resolver: &PodResolver, names: &[ByName]) -> Result<(), LabError> {
        for name in names {
            let checks = match name.resolve(lab, resolver) {
                Ok(checks) => checks,
                Err(ResolveError::Lab(error)) => return Err(error),
                Err(ResolveError::NotFound { source, .. }) => {
                    self.missing(name, &source.to_string());
                    continue;
                }
            };
            if checks.len() != name.expected_checks() {
                self.missing(name, &format!("{} addresses in place of {}", checks.len(), name.expected_checks()));
            }
            self.run_checks(lab, &checks)?;
        }
        say!("");
        Ok(())
    }

    fn missing(&mut self, name: &ByName, why: &str) {
        self.count(false);
        say!("  {:<40} {why:<89} NO", name.name);
    }

    pub(crate) fn flow(&mut self, flow: &Flow) {
        let right = flow.connections > 0 && flow.failures.is_empty();
        self.count(right);
        let verdict = if right { "yes" } else { "NO" };
        let outcome = format!("{} connections meanwhile, {} failed", flow.connections, flow.failures.len());
        // As wide as the first four columns of a line.
        say!("  {outcome:<130} {verdict}");
    }

    /// The same agent with few and with many Services. Only the number of objects is compared.
    pub(crate) fn comparison(&mut self, all: &[Figures]) {
        say!("more Services, the same rules: agents beside the cluster, 5 endpoints for each Service ({BUILD})");
        say!(
            "  {:>8} {:>8} {:>8} {:>8} {:>14} {:>10} {:>12} {:>19} {:>15}    {:<17} expected",
            "Services",
            "tables",
            "chains",
            "rules",
            "sets and maps",
            "elements",
            "first sync",
            "one endpoint more",
            "peak memory",
            ""
        );
        for one in all {
            let Figures { services, objects, elements, first_sync, change, memory } = one;
            let Objects { tables, chains, rules, maps } = objects;
            let right = all.iter().all(|other| other.objects == *objects);
            self.count(right);
            let verdict = if right { "yes" } else { "NO" };
            say!(
                "  {services:>8} {tables:>8} {chains:>8} {rules:>8} {maps:>14} {elements:>10} {first_sync:>12} {change:>19} {memory:>15}    {:<17} {verdict}",
                ""
            );
        }
        say!("");
    }

    /// Prints the last line.
    ///
    /// # Errors
    /// If any check was not as expected.
    pub(crate) fn finish(self) -> Result<(), DemoError> {
        say!("{} as expected, {} not", self.passed, self.failed);
        if self.failed == 0 { Ok(()) } else { Err(DemoError::Unexpected(self.failed)) }
    }

    fn count(&mut self, right: bool) {
        if right {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    fn name(&self, address: IpAddr) -> String {
        self.names.get(&address).map_or_else(|| address.to_string(), |name| (*name).to_owned())
    }

    fn answers(&self, results: &[ProbeResult]) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for result in results {
            let who = match result {
                ProbeResult::Answered { by, .. } => self.name(by.ip()),
                other => other.to_string(),
            };
            *counts.entry(who).or_default() += 1;
        }
        let short = |name: String| name.strip_prefix("my-").map(str::to_owned).unwrap_or(name);
        let parts: Vec<String> = counts.into_iter().map(|(who, count)| format!("{} ({count})", short(who))).collect();
        parts.join(" ")
    }

    fn sources(&self, results: &[ProbeResult]) -> String {
        let seen: BTreeSet<String> = results
            .iter()
            .filter_map(|result| match result {
                ProbeResult::Answered { seen_source, .. } => Some(self.name(*seen_source)),
                _ => None,
            })
            .collect();
        seen.into_iter().collect::<Vec<_>>().join(" ")
    }

    fn is_expected(&self, check: &Check, results: &[ProbeResult]) -> bool {
        let (pods, source, every) = match &check.expected {
            Expected::Refused => return results.iter().all(ProbeResult::is_port_unreachable),
            Expected::AllOf(pods, source) => (pods, *source, true),
            Expected::OneOf(pods, source) => (pods, *source, false),
        };
        let mut seen = BTreeSet::new();
        for result in results {
            let ProbeResult::Answered { by, seen_source } = result else { return false };
            let Some(name) = self.names.get(&by.ip()) else { return false };
            let from_node = source == Source::Node || (source == Source::NodeIfItself && by.ip() == check.from);
            let right = if from_node { self.name(*seen_source) == "node-1" } else { *seen_source == check.from };
            if !pods.contains(name) || !right {
                return false;
            }
            seen.insert(*name);
        }
        if every { seen.len() == pods.len() } else { seen.len() == 1 }
    }
}
