//! Findings as text for people, and as JSON for programs.

use std::fmt::Write as _;

use serde_json::json;
use vmap_proxy_compiler::words::count;

use super::{Finding, Severity};
use crate::logging::escape::escaped;
use crate::terminal::Paint;

/// The findings for people, the worst first, and a last line that counts them.
pub fn text(findings: &[Finding], paint: Paint) -> String {
    let mut text = String::new();
    for Finding { severity, subject, finding, remedy } in findings {
        // Writing to a String can't fail.
        let label = format!("{:<8}", severity.to_string());
        let label = match severity {
            Severity::Note => paint.faint(&label),
            Severity::Warning => paint.warning(&label),
            Severity::Error => paint.bad(&label),
        };
        let _ = writeln!(text, "{label} {}", paint.heading(subject));
        let _ = writeln!(text, "         {}", escaped(finding));
        if !remedy.is_empty() {
            let _ = writeln!(text, "         remedy: {}", escaped(remedy));
        }
    }
    if !findings.is_empty() {
        text.push('\n');
    }
    let number = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let counts = [(Severity::Error, "error"), (Severity::Warning, "warning"), (Severity::Note, "note")];
    let counts = counts.map(|(severity, word)| count(number(severity), word));
    let _ = writeln!(text, "{}", counts.join(", "));
    text
}

/// `{"version": 1, "findings": [{"severity", "subject", "finding", "remedy"}]}`;
/// `remedy` is absent if there is nothing to do.
pub fn json(findings: &[Finding]) -> String {
    json!({"version": 1, "findings": findings}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::exit_status;

    #[test]
    fn findings_are_printed_without_harm() {
        let findings = [
            Finding::new(Severity::Error, "chain ip a\u{1b}[2Jb c", "bad", "mend it"),
            Finding::new(Severity::Note, "nft", "old", ""),
        ];
        let text = text(&findings, Paint::plain());
        assert_eq!(
            text,
            "error    chain ip a\\u{1b}[2Jb c\n         bad\n         remedy: mend it\nnote     nft\n         old\n\n\
             1 error, 0 warnings, 1 note\n"
        );
        let parsed: serde_json::Value = serde_json::from_str(&json(&findings)).unwrap();
        assert_eq!(parsed["findings"][0]["severity"], "error");
        assert!(parsed["findings"][1].get("remedy").is_none());
        assert_eq!((exit_status(&findings), exit_status(&findings[1..]), exit_status(&[])), (1, 0, 0));
    }
}
