//! `vmap-proxy journal`: the last syncs of the agent, with their causes.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::Serialize;
use thiserror::Error;
use vmap_proxy_compiler::words::count;

use super::asked::{AskError, Asked};
use crate::cli::JournalOptions;
use crate::logging::escape::escaped;
use crate::query::protocol::JournalEntry;
use crate::terminal::{Paint, print, rendered};

/// Nothing matches.
const NOTHING: u8 = 3;

/// The reason why there is no journal.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The journal could not be printed.
    #[error("the journal could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The journal could not be written as JSON.
    #[error("the journal could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// What the JSON form has.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    /// The oldest first.
    entries: Vec<JournalEntry>,
    /// The Service that was asked about.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
}

/// Prints the syncs that match, the oldest first.
///
/// # Errors
/// If no agent answers.
pub fn journal(options: &JournalOptions) -> Result<ExitCode, Error> {
    let mut asked = Asked::agent(&options.socket)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = options.since.map(|since| now.saturating_sub(since));
    let (mut entries, mut before) = (Vec::new(), None);
    loop {
        let page = asked.journal(before)?;
        let is_old = |entry: &JournalEntry| since.is_some_and(|since| Duration::from_millis(entry.ended) < since);
        let reaches_end = page.entries.last().is_some_and(is_old);
        entries.extend(page.entries.into_iter().filter(|entry| !is_old(entry) && matches(entry, options)));
        match page.last.filter(|_| !reaches_end) {
            Some(last) => before = Some(last),
            None => break,
        }
    }
    entries.reverse();
    let is_named = |wanted: &&str| entries.iter().any(|entry| names_service(entry, wanted));
    if let Some(service) = options.service.as_deref().filter(|wanted| !is_named(wanted)) {
        // A deleted one may be in the journal, a misspelled one is not.
        match asked.existing_service(service) {
            Err(AskError::NoService { name, place }) => {
                eprintln!("{}", escaped(&format!("there is no Service {name} {place}")))
            }
            other => _ = other?,
        }
    }
    let status = if entries.is_empty() { ExitCode::from(NOTHING) } else { ExitCode::SUCCESS };
    print(&rendered(options.output, &Report { version: 1, entries, service: options.service.clone() }, text)?)?;
    Ok(status)
}

/// Returns whether a sync is about the Service and the address that were asked
/// for. One that touched more than it names may be: it is shown, with a line about
/// that.
fn matches(entry: &JournalEntry, options: &JournalOptions) -> bool {
    let is_of_service =
        options.service.as_ref().is_none_or(|wanted| names_service(entry, wanted) || entry.more_services);
    let is_of_address = options.address.is_none_or(|wanted| entry.more_addresses || entry.addresses.contains(&wanted));
    is_of_service && is_of_address
}

fn text(report: &Report, paint: Paint) -> String {
    if report.entries.is_empty() {
        return paint.warning("No sync in the agent's journal matches.");
    }
    let mut text = String::new();
    for entry in &report.entries {
        push_entry(&mut text, entry, paint);
        let is_certain = |wanted: &&String| names_service(entry, wanted) || !entry.more_services;
        if let Some(service) = report.service.as_ref().filter(|wanted| !is_certain(wanted)) {
            let line = format!("it is not known whether {service} is one of them");
            let _ = writeln!(text, "  {}", paint.warning(&line));
        }
    }
    text
}

fn names_service(entry: &JournalEntry, wanted: &str) -> bool {
    let object = format!("Service {wanted}");
    entry.services.iter().any(|service| service.name == *wanted)
        || entry.causes.iter().any(|cause| cause.object == object)
        || entry.refused.iter().any(|line| line.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(": ")))
}

fn push_entry(text: &mut String, entry: &JournalEntry, paint: Paint) {
    let _ = writeln!(text, "{}", paint.heading(&headline(entry)));
    if let Some(failure) = &entry.failure {
        let _ = writeln!(text, "  {}", paint.bad(&format!("failed: {failure}")));
    }
    if entry.repaired {
        let by = entry.culprit.as_ref().map(|who| format!("; the tables were changed by {who}")).unwrap_or_default();
        let _ = writeln!(text, "  {}", paint.warning(&format!("read and compared with the kernel{by}")));
    }
    for cause in &entry.causes {
        let line = format!("{} {}, {}", cause.object, cause.change, cause.origin);
        let _ = writeln!(text, "  because {}", escaped(&line));
    }
    if let Some(more) = entry.cause_count.checked_sub(entry.causes.len()).filter(|more| *more > 0) {
        let _ = writeln!(text, "  because {} changed", count(more, "more object"));
    }
    for service in &entry.services {
        let line = format!("{}: {} added, {} removed", service.name, count(service.added, "element"), service.removed);
        let _ = writeln!(text, "  changed {}", escaped(&line));
    }
    if entry.more_services {
        let _ = writeln!(text, "  changed more Services");
    }
    for (word, lines) in [("undid", &entry.cleaned), ("refused", &entry.refused)] {
        for line in lines {
            let _ = writeln!(text, "  {word} {}", paint.warning(line));
        }
    }
}

/// Time, number and figures of a sync in one line.
pub(super) fn headline(entry: &JournalEntry) -> String {
    let milliseconds = |microseconds: u64| Duration::from_micros(microseconds).as_secs_f64() * 1000.0;
    let time = i64::try_from(entry.ended).ok().and_then(|ended| Timestamp::from_millisecond(ended).ok());
    let time = time.map_or_else(|| format!("{} ms", entry.ended), |time| format!("{time:.3}"));
    format!(
        "{time}  #{}  {:.1} ms  +{} -{} elements, {}, lock held {:.1} ms at most",
        entry.number,
        milliseconds(entry.microseconds),
        entry.added,
        entry.removed,
        count(entry.commits, "commit"),
        milliseconds(entry.lock_hold_microseconds)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ReportFormat;
    use crate::query::protocol::{JournalCause, JournalService};

    fn entry() -> JournalEntry {
        JournalEntry {
            number: 7,
            ended: 1_790_000_000_123,
            microseconds: 2_300,
            added: 2,
            removed: 1,
            objects: 0,
            commits: 1,
            lock_hold_microseconds: 400,
            causes: vec![JournalCause {
                object: "EndpointSlice shop/cart\n\u{1b}[2J".to_owned(),
                change: "applied".to_owned(),
                origin: "resourceVersion 41".to_owned(),
            }],
            cause_count: 3,
            services: vec![JournalService { name: "shop/cart".to_owned(), added: 2, removed: 1 }],
            more_services: false,
            addresses: vec!["10.96.0.10".parse().unwrap()],
            more_addresses: false,
            repaired: true,
            culprit: Some("process 7 (nft)".to_owned()),
            cleaned: Vec::new(),
            refused: Vec::new(),
            failure: None,
        }
    }

    #[test]
    fn an_entry_is_printed_with_its_causes_escaped() {
        let text = text(&Report { version: 1, entries: vec![entry()], service: None }, Paint::plain());
        assert!(text.starts_with("2026-09-21T14:13:20.123Z  #7  2.3 ms  +2 -1 elements"), "{text}");
        assert!(text.contains(r"because EndpointSlice shop/cart\n\u{1b}[2J applied, resourceVersion 41"), "{text}");
        assert!(
            text.contains("because 2 more objects changed") && text.contains("changed by process 7 (nft)"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 5, "{text}");
    }

    #[test]
    fn filters_pick_the_service_and_the_address() {
        let options = |service: Option<&str>, address: Option<&str>| JournalOptions {
            service: service.map(str::to_owned),
            address: address.map(|address| address.parse().unwrap()),
            since: None,
            socket: "/".into(),
            output: ReportFormat::Text,
        };
        for (service, address, expected) in [
            (None, None, true),
            (Some("shop/cart"), Some("10.96.0.10"), true),
            (Some("shop/other"), None, false),
            (None, Some("10.96.0.11"), false),
        ] {
            assert_eq!(matches(&entry(), &options(service, address)), expected, "{service:?} {address:?}");
        }
        let more = JournalEntry { more_addresses: true, ..entry() };
        assert!(matches(&more, &options(None, Some("10.96.0.11"))));
        let refused = JournalEntry { refused: vec!["shop/other: no".to_owned()], ..entry() };
        assert!(matches(&refused, &options(Some("shop/other"), None)));
        assert!(!matches(&refused, &options(Some("shop/oth"), None)));
    }

    #[test]
    fn an_entry_that_may_be_about_the_service_has_a_line_about_that() {
        let shown = |service: &str, more_services: bool| {
            let entries = vec![JournalEntry { more_services, ..entry() }];
            text(&Report { version: 1, entries, service: Some(service.to_owned()) }, Paint::plain())
        };
        assert!(shown("shop/other", true).ends_with("it is not known whether shop/other is one of them\n"));
        assert!(!shown("shop/cart", true).contains("not known"));
        assert!(!shown("shop/cart", false).contains("not known"));
    }
}
