//! Compares the results of the criterion benches on disk with a saved baseline.
//!
//! Every benchmark has a directory with `new` (its last run), a directory for
//! each baseline, and `change` (the last comparison that criterion made, with
//! anything). `change` holds confidence intervals by resampling, and is what
//! counts here, but only if it fits `new` and the baseline: one that an earlier
//! run left behind does not.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{CompareError, Comparison, Judgement, LeftOut, Line};

/// Medians that follow from each other agree to this, after a way through text.
const AGREEMENT: f64 = 1e-6;

/// `estimates.json`: in `new` and in a baseline nanoseconds, in `change`
/// relative.
#[derive(Debug, Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Debug, Deserialize)]
struct Estimate {
    confidence_interval: Interval,
    point_estimate: f64,
}

#[derive(Debug, Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// `benchmark.json`: whose results these are.
#[derive(Debug, Deserialize)]
struct Benchmark {
    full_id: String,
}

/// Compares the last run of every benchmark with a baseline. `threshold` is
/// relative: 0.05 lets everything pass that is less than 5 % slower.
///
/// # Errors
/// If there is no such baseline, if nothing ran against it, or if a file is
/// not what criterion writes.
pub fn compare(directory: &Path, baseline: &str, threshold: f64) -> Result<Comparison, CompareError> {
    let mut places = Vec::new();
    find_benchmarks(directory, baseline, &mut places)?;
    places.sort();
    if !places.iter().any(|place| place.join(baseline).is_dir()) {
        let directory = directory.display().to_string();
        return Err(CompareError::NoBaseline { name: baseline.to_owned(), directory });
    }
    let mut comparison = Comparison::default();
    for place in places {
        match judge(&place, baseline, threshold)? {
            Ok(line) => comparison.lines.push(line),
            Err(left_out) => comparison.left_out.push(left_out),
        }
    }
    if comparison.lines.is_empty() {
        return Err(CompareError::NothingRun { name: baseline.to_owned() });
    }
    Ok(comparison)
}

/// Every directory that holds the results of one benchmark.
fn find_benchmarks(directory: &Path, baseline: &str, found: &mut Vec<PathBuf>) -> Result<(), CompareError> {
    let unreadable = |source| CompareError::Unreadable { path: directory.display().to_string(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // Nothing ever ran: there is no baseline, and that is what to say.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(error)),
    };
    if [baseline, "new"].iter().any(|results| directory.join(results).join("benchmark.json").is_file()) {
        found.push(directory.to_owned());
        return Ok(());
    }
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if path.is_dir() {
            find_benchmarks(&path, baseline, found)?;
        }
    }
    Ok(())
}

/// Judges one benchmark; the inner error names it and says why it can't be
/// compared.
fn judge(place: &Path, baseline: &str, threshold: f64) -> Result<Result<Line, (String, LeftOut)>, CompareError> {
    let (then, now) = (place.join(baseline), place.join("new"));
    let Some(before) = read::<Estimates>(&then.join("estimates.json"))? else {
        return Ok(Err((name(&now, place)?, LeftOut::NotBefore)));
    };
    let name = name(&then, place)?;
    let after = read::<Estimates>(&now.join("estimates.json"))?;
    let change = read::<Estimates>(&place.join("change").join("estimates.json"))?;
    let (Some(after), Some(change)) = (after, change) else { return Ok(Err((name, LeftOut::NotRun))) };
    let (before, after, change) = (before.median.point_estimate, after.median.point_estimate, change.median);
    let expected = after / before - 1.0;
    if (change.point_estimate - expected).abs() > AGREEMENT * (1.0 + expected.abs()) {
        return Ok(Err((name, LeftOut::NotRun)));
    }
    let Interval { lower_bound, upper_bound } = change.confidence_interval;
    Ok(Ok(Line {
        name,
        before: time(before),
        after: time(after),
        change: change.point_estimate,
        interval: Some((lower_bound, upper_bound)),
        judgement: Judgement::of_interval(lower_bound, upper_bound, threshold),
    }))
}

/// The benchmark's name as criterion prints it.
fn name(results: &Path, place: &Path) -> Result<String, CompareError> {
    let benchmark = read::<Benchmark>(&results.join("benchmark.json"))?;
    Ok(benchmark.map_or_else(|| place.display().to_string(), |benchmark| benchmark.full_id))
}

/// A JSON file; `None` if there is none.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CompareError> {
    let shown = || path.display().to_string();
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(CompareError::Unreadable { path: shown(), source }),
    };
    let malformed = |error: serde_json::Error| CompareError::Malformed { path: shown(), reason: error.to_string() };
    serde_json::from_str(&text).map(Some).map_err(malformed)
}

/// Nanoseconds for people.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ..1e3 => format!("{nanoseconds:.1} ns"),
        ..1e6 => format!("{:.2} us", nanoseconds / 1e3),
        _ => format!("{:.2} ms", nanoseconds / 1e6),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test of sound input")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::{Value, json};

    /// A made-up tree of criterion's results, removed at the end.
    struct Results(PathBuf);

    impl Drop for Results {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Results {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("vmap-proxy-compare-{}-{number}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn estimates(&self, path: &str, lower: f64, median: f64, upper: f64) {
            let estimate = |lower: f64, point: f64, upper: f64| -> Value {
                json!({"confidence_interval": {"confidence_level": 0.95, "lower_bound": lower, "upper_bound": upper},
                    "point_estimate": point, "standard_error": 0.0})
            };
            // A mean far off: one slow run says nothing.
            let text = json!({"mean": estimate(9.0, 9.0, 9.0), "median": estimate(lower, median, upper)});
            self.write(&format!("{path}/estimates.json"), &text.to_string());
        }

        fn run(&self, benchmark: &str, results: &str, median: f64) {
            let text = json!({"group_id": "g", "full_id": benchmark, "directory_name": benchmark});
            self.write(&format!("{benchmark}/{results}/benchmark.json"), &text.to_string());
            self.estimates(&format!("{benchmark}/{results}"), median, median, median);
        }

        /// A run of 1000 ns then and a comparison with it now.
        fn compared(&self, benchmark: &str, lower: f64, change: f64, upper: f64) {
            self.run(benchmark, "main", 1000.0);
            self.run(benchmark, "new", 1000.0 * (1.0 + change));
            self.estimates(&format!("{benchmark}/change"), lower, change, upper);
        }

        fn compare(&self) -> Result<Comparison, CompareError> {
            compare(&self.0, "main", 0.05)
        }
    }

    fn judgements(comparison: &Comparison) -> Vec<(&str, Judgement)> {
        comparison.lines.iter().map(|line| (line.name.as_str(), line.judgement)).collect()
    }

    #[test]
    fn slower_and_faster_are_distinguished_from_noise() {
        let results = Results::new();
        results.compared("encode/1", -0.20, -0.15, -0.10);
        results.compared("encode/100", 0.08, 0.10, 0.12);
        results.compared("encode/1000", 0.04, 0.20, 0.40);
        results.compared("encode/10000", 0.01, 0.02, 0.03);
        // Criterion's own pages lie beside.
        results.write("report/index.html", "");
        let comparison = results.compare().unwrap();
        assert_eq!(
            judgements(&comparison),
            [
                ("encode/1", Judgement::Faster),
                ("encode/100", Judgement::Slower),
                ("encode/1000", Judgement::Same),
                ("encode/10000", Judgement::Same),
            ]
        );
        assert!(comparison.any_slower());
        assert!(comparison.to_string().contains("SLOWER  encode/100  1.00 us -> 1.10 us  +10.0 % (+8.0 % to +12.0 %)"));
    }

    #[test]
    fn what_only_one_run_has_is_named_and_fails_nothing() {
        let results = Results::new();
        results.compared("diff/100", -0.01, 0.0, 0.01);
        results.run("gone", "main", 1000.0);
        results.run("added", "new", 1000.0);
        let comparison = results.compare().unwrap();
        assert_eq!(judgements(&comparison), [("diff/100", Judgement::Same)]);
        assert!(!comparison.any_slower());
        assert_eq!(
            comparison.left_out,
            [("added".to_owned(), LeftOut::NotBefore), ("gone".to_owned(), LeftOut::NotRun)]
        );
    }

    #[test]
    fn a_comparison_that_an_earlier_run_left_behind_does_not_count() {
        let results = Results::new();
        results.compared("diff/100", -0.01, 0.0, 0.01);
        results.compared("diff/1000", 0.4, 0.5, 0.6);
        // The baseline was saved again, and this one has not run since.
        results.run("diff/1000", "main", 1500.0);
        let comparison = results.compare().unwrap();
        assert_eq!(judgements(&comparison), [("diff/100", Judgement::Same)]);
        assert_eq!(comparison.left_out, [("diff/1000".to_owned(), LeftOut::NotRun)]);
    }

    #[test]
    fn without_a_baseline_nothing_is_judged() {
        let results = Results::new();
        assert!(matches!(results.compare(), Err(CompareError::NoBaseline { .. })));
        results.run("diff/100", "new", 1000.0);
        assert!(matches!(results.compare(), Err(CompareError::NoBaseline { .. })));
        let missing = results.0.join("missing");
        assert!(matches!(compare(&missing, "main", 0.05), Err(CompareError::NoBaseline { .. })));
        results.run("diff/100", "main", 1000.0);
        assert!(matches!(results.compare(), Err(CompareError::NothingRun { .. })));
    }

    #[test]
    fn a_malformed_file_is_an_error_that_names_it() {
        for content in ["", "{\"median\": 3}", "not JSON"] {
            let results = Results::new();
            results.compared("diff/100", -0.01, 0.0, 0.01);
            results.write("diff/100/change/estimates.json", content);
            let error = results.compare().unwrap_err();
            assert!(matches!(error, CompareError::Malformed { .. }), "{content}: {error}");
            assert!(error.to_string().contains("diff/100/change/estimates.json"), "{error}");
        }
    }

    #[test]
    fn times_are_shown_in_a_unit_that_fits() {
        assert_eq!([12.34, 1234.0, 12_345_678.0].map(time), ["12.3 ns", "1.23 us", "12.35 ms"]);
    }
}
