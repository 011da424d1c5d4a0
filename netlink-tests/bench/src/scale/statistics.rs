//! Medians, percentiles and spread.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Deserialize, Serialize};

use super::Failure;

/// A list of measurements, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The number of measurements.
    pub count: usize,
    /// The least.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile; of fewer than 100 measurements, the largest.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Sums up values of any unit; all zero if there are none.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let rank = (part * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self {
            count: values.len(),
            min: values.first().copied().unwrap_or_default(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: values.last().copied().unwrap_or_default(),
        }
    }
}

/// The processor time of this process so far, in the kernel and outside, in
/// milliseconds: what else the machine does lengthens it little.
///
/// # Errors
/// If the kernel does not tell.
pub fn processor_ms() -> Result<f64, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let milliseconds = |time: TimeVal| time.num_microseconds() as f64 / 1e3;
    Ok(milliseconds(usage.user_time()) + milliseconds(usage.system_time()))
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_rank() {
        let summary = Summary::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(
            (summary.min, summary.p50, summary.p90, summary.p99, summary.max),
            (1.0, 100.0, 180.0, 198.0, 200.0)
        );
        let few = Summary::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((few.p50, few.p99), (2.0, 3.0));
        assert_eq!(Summary::of(Vec::new()).count, 0);
    }
}
