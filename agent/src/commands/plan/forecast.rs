//! How long a transaction keeps other writers of nftables waiting, predicted
//! from figures that were measured.

use std::fmt;

use serde::Serialize;
use vmap_proxy_compiler::plan::{Action, Planner, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::Data;
use vmap_proxy_compiler::words::count;

/// Nanoseconds for one element: measured in first syncs, where the kernel took
/// 1.5 us for each ("of that: planning alone, encoding, kernel" of
/// `docs/performance.md`), and twice as much in small transactions.
const ELEMENT: [u64; 2] = [1_500, 3_000];

/// Nanoseconds for a transaction as such: "one endpoint less" takes 10 us, and
/// `nft` on a busy machine ten times as long.
const TRANSACTION: [u64; 2] = [10_000, 100_000];

/// Nanoseconds for each element of a map of verdicts that a new verdict makes
/// the kernel walk over: "a new Service at 100,000 Services" takes 12 ms with
/// warm caches and 37 ms with cold ones.
const WALKED_VERDICT: [u64; 2] = [120, 370];

/// Nanoseconds for each element of a map of endpoints that a new balancing
/// chain makes the kernel walk over: 0.1 s at 500,000 elements, or twice that.
const WALKED_ENDPOINT: [u64; 2] = [200, 400];

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Forecast {
    pub(super) added: usize,
    pub(super) removed: usize,
    /// Operations on tables, chains, rules and maps.
    pub(super) objects: usize,
    /// The predicted time for which it holds the lock of nf_tables, in
    /// microseconds, from and to. The machine of `docs/performance.md` is meant.
    pub(super) lock_hold_microseconds: [u64; 2],
}

/// The sizes of the maps that the kernel walks over.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sizes {
    verdicts: u64,
    endpoints: u64,
}

impl Sizes {
    /// As they are after the plan.
    pub(super) fn of(planner: &Planner) -> Self {
        let mut sizes = Self::default();
        for family in Family::ALL {
            let (mut verdicts, mut endpoints) = (0, 0);
            for (name, _) in planner.all_compiled(family) {
                for element in planner.elements_of(name, family) {
                    match element.data {
                        Data::Verdict(_) => verdicts += 1,
                        Data::Endpoint(_) => endpoints += 1,
                        _ => {}
                    }
                }
            }
            sizes = Self { verdicts: sizes.verdicts.max(verdicts), endpoints: sizes.endpoints.max(endpoints) };
        }
        sizes
    }

    pub(super) fn forecast(&self, transaction: &Transaction) -> Forecast {
        let mut forecast = Forecast { added: 0, removed: 0, objects: 0, lock_hold_microseconds: [0; 2] };
        let (mut adds_verdict, mut adds_rule) = (false, false);
        for operation in &transaction.operations {
            match &operation.action {
                Action::AddElement(element) => {
                    forecast.added += 1;
                    adds_verdict |= matches!(element.data, Data::Verdict(_));
                }
                Action::DeleteElement(_) => forecast.removed += 1,
                action => {
                    forecast.objects += 1;
                    adds_rule |= matches!(action, Action::AddRule(..));
                }
            }
        }
        let operations = transaction.operations.len() as u64;
        forecast.lock_hold_microseconds = [0, 1].map(|end: usize| {
            let walked_verdicts = if adds_verdict { self.verdicts * WALKED_VERDICT[end] } else { 0 };
            let walked_endpoints = if adds_rule { self.endpoints * WALKED_ENDPOINT[end] } else { 0 };
            (TRANSACTION[end] + operations * ELEMENT[end] + walked_verdicts + walked_endpoints) / 1_000
        });
        forecast
    }
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, removed, objects, lock_hold_microseconds: [low, high] } = self;
        let milliseconds = |microseconds: &u64| std::time::Duration::from_micros(*microseconds).as_secs_f64() * 1000.0;
        write!(f, "{} added, {removed} removed, {}; ", count(*added, "element"), count(*objects, "other operation"))?;
        write!(f, "lock held {:.2} to {:.2} ms, predicted", milliseconds(low), milliseconds(high))
    }
}
