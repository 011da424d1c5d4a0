//! The buckets of histograms.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// Buckets of kube-proxy's durations: 1 ms to 16.384 s, doubling.
pub(super) fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Commits are short, and one that holds the kernel's lock for 50 ms is long.
pub(super) fn commit_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 15))
}

/// kube-proxy's: 0, 0.25 s, 0.5 s, each second to 59 s, then every 5 s to 115 s
/// and every 30 s to 5 minutes.
pub(super) fn network_programming_histogram() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new([0.0, 0.25, 0.5].into_iter().chain(seconds))
}
