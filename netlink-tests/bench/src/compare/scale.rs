//! Two files of `vmap-proxy-bench scale --json`: of the same size, on the same
//! machine, before and after.
//!
//! A figure differs if its median moved by more than the threshold *and* by
//! more than nine tenths of the measurements of the other run reach. What was
//! measured once alone (a burst, a restart) tells nothing of noise, and is left
//! out; so is the processor time of syncs that take but a few milliseconds.

use super::{CompareError, Comparison, Judgement, LeftOut, Line};
use crate::scale::report::Report;
use crate::scale::statistics::Summary;

/// With this number of endpoints a first sync takes long enough for the kernel's
/// account of processor time: of ten milliseconds it counts two or eleven.
const LONG_ENOUGH: u32 = 50_000;

/// Compares two reports. `threshold` is relative: 0.05 is 5 %.
///
/// # Errors
/// If they are of clusters of different sizes.
pub fn compare(before: &Report, after: &Report, threshold: f64) -> Result<Comparison, CompareError> {
    let size = |report: &Report| (report.services, report.endpoints);
    if size(before) != size(after) {
        let text = |report: &Report| format!("{} Services x {} endpoints", report.services, report.endpoints);
        return Err(CompareError::OtherSize { before: text(before), after: text(after) });
    }
    let mut comparison = Comparison::default();
    for ((name, unit, before), (_, _, after)) in figures(before).into_iter().zip(figures(after)) {
        let lacks = match (before.count, after.count) {
            (0, _) => Some(LeftOut::NotBefore),
            (_, 0) => Some(LeftOut::NotRun),
            _ => None,
        };
        if let Some(lacks) = lacks {
            comparison.left_out.push((name.to_owned(), lacks));
            continue;
        }
        let shown = |summary: &Summary| format!("{:.2}{unit}", summary.p50);
        comparison.lines.push(Line {
            name: name.to_owned(),
            before: shown(&before),
            after: shown(&after),
            change: after.p50 / before.p50 - 1.0,
            interval: None,
            judgement: judge(&before, &after, threshold),
        });
    }
    Ok(comparison)
}

fn judge(before: &Summary, after: &Summary, threshold: f64) -> Judgement {
    let change = after.p50 / before.p50 - 1.0;
    if change > threshold && after.p50 > before.p90 {
        Judgement::Slower
    } else if change < -threshold && before.p50 > after.p90 {
        Judgement::Faster
    } else {
        Judgement::Same
    }
}

/// The compared figure: name, unit, and the measurements.
fn figures(report: &Report) -> Vec<(&'static str, &'static str, Summary)> {
    let (changes, large) = (&report.programmed.changes, &report.large_service);
    let mut figures = vec![
        ("first sync / floor", " x", report.ratio()),
        ("first sync", " ms", report.first(|first| first.sync.sync_ms)),
        ("first sync: longest commit", " ms", report.first(|first| first.sync.longest_commit_ms)),
        ("first sync: peak RSS", " MiB", report.first(|first| first.resident.peak_mib)),
        ("one endpoint replaced", " ms", changes.replace.total_ms),
        ("one endpoint replaced: user space", " us", changes.replace.user_us),
        ("one endpoint more", " ms", changes.grow.total_ms),
        ("one endpoint more: user space", " us", changes.grow.user_us),
        ("one endpoint less", " ms", changes.shrink.total_ms),
        ("one endpoint less: user space", " us", changes.shrink.user_us),
        ("one Service more", " ms", changes.add_service.total_ms),
        ("one Service more: user space", " us", changes.add_service.user_us),
        ("one Service less", " ms", changes.remove_service.total_ms),
        ("one Service less: user space", " us", changes.remove_service.user_us),
        ("one endpoint replaced, no kernel", " us", report.user_space.replace.warm_us),
        ("one endpoint more, no kernel", " us", report.user_space.grow.warm_us),
        ("one endpoint less, no kernel", " us", report.user_space.shrink.warm_us),
        ("large Service: one endpoint replaced", " ms", large.replace.total_ms),
        ("large Service: one endpoint more", " ms", large.grow.total_ms),
    ];
    if report.services.saturating_mul(report.endpoints) >= LONG_ENOUGH {
        figures.push(("first sync / floor, processor time", " x", report.processor_ratio()));
    }
    figures
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test of sound input")]
mod tests {
    use super::*;

    fn report(replace_ms: Vec<f64>) -> Report {
        let mut report = Report { services: 1000, endpoints: 5, ..Report::default() };
        report.programmed.changes.replace.total_ms = Summary::of(replace_ms);
        report
    }

    fn judgement(before: &[f64], after: &[f64]) -> Judgement {
        let comparison = compare(&report(before.to_vec()), &report(after.to_vec()), 0.05).unwrap();
        assert_eq!(comparison.lines.len(), 1, "the other figures were not measured");
        comparison.lines[0].judgement
    }

    #[test]
    fn a_median_must_leave_the_spread_of_the_other_run() {
        assert_eq!(judgement(&[1.0, 1.0, 1.1], &[1.3, 1.3, 1.3]), Judgement::Slower);
        assert_eq!(judgement(&[1.0, 1.0, 1.4], &[1.3, 1.3, 1.3]), Judgement::Same);
        assert_eq!(judgement(&[1.0, 1.0, 1.0], &[1.04, 1.04, 1.04]), Judgement::Same);
        assert_eq!(judgement(&[1.3, 1.3, 1.3], &[1.0, 1.0, 1.1]), Judgement::Faster);
        assert_eq!(judgement(&[1.3, 1.3, 1.3], &[1.0, 1.0, 1.4]), Judgement::Same);
    }

    #[test]
    fn clusters_of_different_sizes_are_not_compared() {
        let other = Report { services: 100, ..report(vec![1.0]) };
        assert!(matches!(compare(&report(vec![1.0]), &other, 0.05), Err(CompareError::OtherSize { .. })));
    }
}
