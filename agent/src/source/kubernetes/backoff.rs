//! Waiting times between attempts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Doubles with every failure, with jitter, as client-go's reflector does.
#[derive(Debug)]
pub(super) struct Backoff {
    shortest: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// No failure yet.
    pub(super) fn new(shortest: Duration, longest: Duration) -> Self {
        Self { shortest, longest, failures: 0 }
    }

    /// Forgets the failures: something has worked.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Counts a failure and returns the wait: between the delay and twice the
    /// delay.
    pub(super) fn next(&mut self) -> Duration {
        let delay =
            self.shortest.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX)).min(self.longest);
        self.failures = self.failures.saturating_add(1).min(31);
        delay + random_up_to(delay)
    }
}

/// A random part of `limit`. Only spreads load: the seed of the standard
/// library's hash maps is random enough.
pub(super) fn random_up_to(limit: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() as u32;
    limit.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
