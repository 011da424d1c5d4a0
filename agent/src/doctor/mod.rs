//! `vmap-proxy doctor`: examines this node for whatever stands in the way of
//! Service traffic, and names the remedy of each finding.
//!
//! [`facts`] reads the node and changes nothing, each of the [`checks`] judges
//! the facts without reading anything itself.

mod checks;
pub mod facts;
mod probe;
mod report;

use std::fmt;

use serde::Serialize;

use facts::Facts;
pub use report::{json, text};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing to do, but an operator should know it.
    Note,
    /// Some traffic may fail, or will when something else changes.
    Warning,
    /// Traffic to Services fails.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that an operator should know about this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The examined thing, such as `net.ipv4.ip_forward` or `chain inet filter forward`.
    pub subject: String,
    /// The finding and its consequence.
    pub finding: String,
    /// The remedy; empty if none is needed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        subject: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity, subject: subject.into(), finding: finding.into(), remedy: remedy.into() }
    }
}

/// Judges the facts; the worst findings come first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = checks::all(facts);
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// Returns the exit status for scripts: 0 if nothing is worse than a note, 3
/// for warnings, 1 for errors. (2 is wrong usage.)
pub fn exit_status(findings: &[Finding]) -> u8 {
    match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Note) => 0,
        Some(Severity::Warning) => 3,
        Some(Severity::Error) => 1,
    }
}
