//! The last syncs with their causes, for `vmap-proxy journal` and `status`.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use super::protocol::{JournalAnswer, JournalCause, JournalEntry, JournalService, SYNCS};
use crate::source::{ObjectChange, Origin};
use crate::sync::report::SyncReport;

/// The memory that the entries may take, in bytes, as [`size`] counts it. An
/// entry takes from 0.3 to some 10 KiB, so these are hundreds to thousands of
/// syncs.
const BYTES: usize = 1024 * 1024;

/// Objects, foreign objects and refused Services that an entry names, at most
/// of each.
const NAMED: usize = 8;

/// Bytes of a text that are kept, at most: the message of a failure may be
/// long.
const TEXT: usize = 1024;

/// Entries in one page.
const PAGE_ENTRIES: usize = 64;

/// The last syncs, the newest first.
#[derive(Debug, Default)]
pub struct Journal {
    entries: VecDeque<JournalEntry>,
    bytes: usize,
    last: u64,
    causes: Vec<JournalCause>,
    cause_count: usize,
    /// What the kernel refused in the last sync that ended.
    refused: Vec<String>,
}

impl Journal {
    /// Notes a change that the next sync programs.
    pub fn note(&mut self, change: &ObjectChange) {
        if change.is_kept() {
            return;
        }
        self.cause_count += 1;
        if self.causes.len() < NAMED {
            self.causes.push(cause(change));
        }
    }

    /// The objects that the next sync programs, the first of them.
    pub fn waiting(&self) -> &[JournalCause] {
        &self.causes
    }

    /// Adds a sync that succeeded, unless nothing came of it: nothing was sent or
    /// undone, and the kernel refused what it refused before.
    pub fn add_success(&mut self, report: &SyncReport, culprit: Option<&str>) {
        let refused: Vec<String> = refusals(report).collect();
        let is_refused_anew = !refused.is_empty() && refused != self.refused;
        self.refused = refused;
        if report.is_empty() && report.cleaned.is_empty() && !is_refused_anew {
            self.forget_causes();
        } else {
            self.add(report, culprit, None);
        }
    }

    /// Adds a sync that has just ended. `culprit` changed our tables before it.
    pub fn add(&mut self, report: &SyncReport, culprit: Option<&str>, failure: Option<String>) {
        self.last += 1;
        // A failed sync is tried again, with the same causes.
        let (causes, cause_count) = match failure {
            None => (std::mem::take(&mut self.causes), std::mem::take(&mut self.cause_count)),
            Some(_) => (self.causes.clone(), self.cause_count),
        };
        self.push(JournalEntry { causes, cause_count, ..entry(self.last, report, culprit, failure) });
    }

    /// Adds a removal of elements of an earlier state. What waits for the next sync
    /// did not cause it.
    pub fn add_removal(&mut self, report: &SyncReport) {
        self.last += 1;
        self.push(entry(self.last, report, None, None));
    }

    fn push(&mut self, entry: JournalEntry) {
        self.bytes += size(&entry);
        self.entries.push_front(entry);
        while self.bytes > BYTES
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= size(&oldest);
        }
    }

    /// A sync came to an end that had nothing to send: its causes changed
    /// nothing.
    fn forget_causes(&mut self) {
        self.causes.clear();
        self.cause_count = 0;
    }

    /// The last syncs.
    pub fn syncs(&self) -> Vec<JournalEntry> {
        self.entries.iter().take(SYNCS).cloned().collect()
    }

    /// The last repairs.
    pub fn repairs(&self) -> Vec<JournalEntry> {
        self.entries.iter().filter(|entry| entry.repaired).take(SYNCS).cloned().collect()
    }

    /// The syncs before the one of this number, or the newest.
    pub fn page(&self, before: Option<u64>) -> JournalAnswer {
        let is_before = |entry: &&JournalEntry| before.is_none_or(|before| entry.number < before);
        let mut rest = self.entries.iter().filter(is_before);
        let entries: Vec<JournalEntry> = rest.by_ref().take(PAGE_ENTRIES).cloned().collect();
        let last = entries.last().map(|entry| entry.number).filter(|_| rest.next().is_some());
        JournalAnswer { entries, last }
    }
}

impl FromIterator<JournalEntry> for Journal {
    /// A journal of these syncs, the newest first.
    fn from_iter<T: IntoIterator<Item = JournalEntry>>(entries: T) -> Self {
        let entries: VecDeque<JournalEntry> = entries.into_iter().collect();
        let (bytes, last) = (entries.iter().map(size).sum(), entries.iter().map(|entry| entry.number).max());
        Self { entries, bytes, last: last.unwrap_or(0), ..Self::default() }
    }
}

fn cause(change: &ObjectChange) -> JournalCause {
    let origin = match (&change.origin, &change.resource_version) {
        (Origin::ApiServer, Some(version)) => format!("resourceVersion {version}"),
        (origin, _) => origin.to_string(),
    };
    let word = if change.is_gone() { "deleted" } else { "applied" };
    JournalCause { object: change.object().to_string(), change: word.to_owned(), origin: cut(origin) }
}

fn entry(number: u64, report: &SyncReport, culprit: Option<&str>, failure: Option<String>) -> JournalEntry {
    let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let whole = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    let touched = &report.touched;
    let services = touched.services.iter().map(|service| JournalService {
        name: service.name.to_string(),
        added: service.added,
        removed: service.removed,
    });
    let cleaned = report
        .cleaned
        .iter()
        .map(|cleaned| cut(format!("table {}: {} {}", cleaned.family.keyword(), cleaned.count, cleaned.description)));
    JournalEntry {
        number,
        ended: whole(ended.as_millis()),
        microseconds: whole(report.duration.as_micros()),
        added: report.added,
        removed: report.removed,
        objects: report.objects,
        commits: report.transactions,
        lock_hold_microseconds: whole(report.lock_holds.iter().max().map_or(0, std::time::Duration::as_micros)),
        causes: Vec::new(),
        cause_count: 0,
        services: services.collect(),
        more_services: touched.more_services,
        addresses: touched.addresses.clone(),
        more_addresses: touched.more_addresses,
        repaired: report.repaired,
        culprit: culprit.map(|who| cut(who.to_owned())),
        cleaned: cleaned.take(NAMED).collect(),
        refused: refusals(report).take(NAMED).collect(),
        failure: failure.map(cut),
    }
}

/// A line for each refused Service: its name, and the kernel's reason.
fn refusals(report: &SyncReport) -> impl Iterator<Item = String> {
    report.refused.iter().map(|refused| {
        let owner = refused.owner.as_deref().unwrap_or("the skeleton");
        cut(format!("{owner}: {}", refused.description))
    })
}

/// Bounds a text.
fn cut(mut text: String) -> String {
    if text.len() > TEXT {
        let end = (0..=TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// The memory of an entry, without what the allocator adds.
fn size(entry: &JournalEntry) -> usize {
    let causes = entry
        .causes
        .iter()
        .map(|cause| size_of::<JournalCause>() + cause.object.len() + cause.change.len() + cause.origin.len());
    let services = entry.services.iter().map(|service| size_of::<JournalService>() + service.name.len());
    let texts = entry.cleaned.iter().chain(&entry.refused).map(|text| size_of::<String>() + text.len());
    let single = entry.culprit.iter().chain(&entry.failure).map(String::len);
    let addresses = std::mem::size_of_val(entry.addresses.as_slice());
    size_of::<JournalEntry>() + addresses + causes.chain(services).chain(texts).chain(single).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use vmap_proxy_compiler::model::objects::Kind;
    use vmap_proxy_compiler::model::{Family, ObjectRef};

    use super::*;
    use crate::sync::report::Refused;

    fn slice(name: &str) -> ObjectRef {
        ObjectRef { kind: Kind::EndpointSlice, namespace: "shop".to_owned(), name: name.to_owned() }
    }

    /// A report that touches so many addresses.
    fn report(addresses: u8) -> SyncReport {
        let mut report = SyncReport { added: 1, transactions: 1, ..SyncReport::default() };
        report.touched.addresses = (0..addresses).map(|number| IpAddr::from([10, 244, 1, number])).collect();
        report
    }

    #[test]
    fn an_entry_has_the_objects_that_caused_it() {
        let mut journal = Journal::default();
        let mut applied = ObjectChange::gone(slice("a"), Origin::ApiServer);
        applied.resource_version = Some("41".into());
        journal.note(&applied);
        (0..20).for_each(|_| journal.note(&ObjectChange::gone(slice("b"), Origin::Agent)));
        journal.add(&report(1), None, Some("no".to_owned()));
        // What waits did not cause a removal.
        journal.add_removal(&report(1));
        journal.add(&report(1), Some("process 7 (nft)"), None);
        journal.add(&report(1), None, None);
        let entries = journal.page(None).entries;
        assert_eq!(entries.iter().map(|entry| entry.cause_count).collect::<Vec<_>>(), [0, 21, 0, 21]);
        assert_eq!(entries[1].causes.len(), NAMED);
        assert_eq!(entries[1].causes[0].origin, "resourceVersion 41");
        assert_eq!(entries[1].causes[0].object, "EndpointSlice shop/a");
        assert_eq!(entries[1].culprit.as_deref(), Some("process 7 (nft)"));
        assert_eq!(entries[3].failure.as_deref(), Some("no"));
    }

    /// The kernel's reason is kept, but not again with each attempt.
    #[test]
    fn a_sync_that_only_met_a_refusal_is_kept_once() {
        let refused = |reason: &str| {
            let owner = Some("shop/cart".into());
            let (lacking, description) = (None, reason.to_owned());
            let refused = Refused { owner, family: Family::Ipv4, lacking, keeps_earlier_rules: false, description };
            SyncReport { refused: vec![refused], ..SyncReport::default() }
        };
        let mut journal = Journal::default();
        for reports in [refused("no"), refused("no"), refused("still no"), SyncReport::default(), refused("still no")] {
            journal.add_success(&reports, None);
        }
        let entries = journal.page(None).entries;
        let lines: Vec<&str> = entries.iter().map(|entry| entry.refused[0].as_str()).collect();
        assert_eq!(lines, ["shop/cart: still no", "shop/cart: still no", "shop/cart: no"]);
    }

    #[test]
    fn the_memory_is_bounded_and_pages_reach_the_oldest() {
        let mut journal = Journal::default();
        for _ in 0..5_000 {
            journal.add(&report(64), None, Some("x".repeat(5_000)));
        }
        assert!(journal.bytes <= BYTES && journal.bytes > BYTES - 4_096, "{} bytes", journal.bytes);
        let kept = journal.entries.len();
        let (mut before, mut seen) = (None, Vec::new());
        loop {
            let page = journal.page(before);
            seen.extend(page.entries.iter().map(|entry| entry.number));
            match page.last {
                Some(last) => before = Some(last),
                None => break,
            }
        }
        assert_eq!(seen.len(), kept);
        assert!(seen.is_sorted_by(|one, next| *one == next + 1), "{seen:?}");
    }
}
