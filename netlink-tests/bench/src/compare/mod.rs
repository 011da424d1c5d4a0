//! Results beside those of an earlier run: what got slower, and what faster.
//!
//! Two things must hold before a difference counts: it is larger than the
//! threshold, and larger than the spread of the measurements explains.
//!
//! | file | what |
//! |---|---|
//! | [`criterion`] | what the criterion benches left on disk, against a saved baseline |
//! | [`scale`] | two files of `vmap-proxy-bench scale --json` |

pub mod criterion;
pub mod scale;

use std::fmt::{self, Write};

/// The reason why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The baseline was never saved, or elsewhere.
    #[error("there is no baseline \"{name}\" in {directory}; save one first: scripts/compare-benchmarks save {name}")]
    NoBaseline {
        /// The baseline's name.
        name: String,
        /// The folder of criterion's results.
        directory: String,
    },
    /// There is a baseline, but no benchmark has run against it.
    #[error("no benchmark has run against the baseline \"{name}\" since it was saved")]
    NothingRun {
        /// The baseline's name.
        name: String,
    },
    /// A file is not what its writer makes.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: String,
        /// Its defect.
        reason: String,
    },
    /// A file or directory can't be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file or directory.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Two reports of clusters that differ in size.
    #[error("{before} against {after}: only clusters of one size can be compared")]
    OtherSize {
        /// The size of the earlier one.
        before: String,
        /// The size of the later one.
        after: String,
    },
}

/// The classification of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// Slower, or larger, beyond noise and threshold.
    Slower,
    /// Faster, or smaller, beyond noise and threshold.
    Faster,
    /// Neither.
    Same,
}

impl Judgement {
    /// Judges an interval of relative change (0.1: a tenth more), all of which
    /// must lie beyond the threshold.
    pub fn of_interval(lower: f64, upper: f64, threshold: f64) -> Self {
        if lower > threshold {
            Self::Slower
        } else if upper < -threshold {
            Self::Faster
        } else {
            Self::Same
        }
    }
}

/// One figure of both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The measured figure.
    pub name: String,
    /// Then, with its unit.
    pub before: String,
    /// Now, with its unit.
    pub after: String,
    /// The relative change of the median: 0.1 is a tenth more.
    pub change: f64,
    /// From where to where that change may be, if that is known.
    pub interval: Option<(f64, f64)>,
    /// The classification.
    pub judgement: Judgement,
}

/// All figures of two runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Figures that both have.
    pub lines: Vec<Line>,
    /// The figures that could not be compared: name and reason.
    pub left_out: Vec<(String, LeftOut)>,
}

/// The reason why a figure could not be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftOut {
    /// The earlier run lacks it.
    NotBefore,
    /// The later run lacks it.
    NotRun,
}

impl LeftOut {
    const ALL: [Self; 2] = [Self::NotBefore, Self::NotRun];

    fn text(self) -> &'static str {
        match self {
            Self::NotBefore => "not in the baseline",
            Self::NotRun => "not run against the baseline",
        }
    }
}

/// Maximum number of omitted figures that are named, of each kind.
const NAMED: usize = 3;

impl Comparison {
    /// The figures that got slower.
    pub fn slower(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.judgement == Judgement::Slower)
    }

    /// Returns whether anything got slower.
    pub fn any_slower(&self) -> bool {
        self.slower().next().is_some()
    }

    fn count(&self, judgement: Judgement) -> usize {
        self.lines.iter().filter(|line| line.judgement == judgement).count()
    }
}

impl fmt::Display for Comparison {
    /// A table of what differs, slower first, worst first; then a summary.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut different: Vec<&Line> = self.lines.iter().filter(|line| line.judgement != Judgement::Same).collect();
        different.sort_by(|a, b| {
            let size = |line: &Line| line.change.abs();
            a.judgement.cmp(&b.judgement).then(size(b).total_cmp(&size(a)))
        });
        let width = different.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
        for line in different {
            let word = if line.judgement == Judgement::Slower { "SLOWER" } else { "faster" };
            let mut change = percent(line.change);
            if let Some((lower, upper)) = line.interval {
                // Writing to a String can't fail.
                let _ = write!(change, " ({} to {})", percent(lower), percent(upper));
            }
            writeln!(formatter, "{word}  {:width$}  {} -> {}  {change}", line.name, line.before, line.after)?;
        }
        for reason in LeftOut::ALL {
            let of_reason = self.left_out.iter().filter(|(_, of)| *of == reason);
            let names: Vec<&str> = of_reason.map(|(name, _)| name.as_str()).collect();
            if let Some(named) = names.get(..NAMED.min(names.len())).filter(|named| !named.is_empty()) {
                let more = if names.len() > NAMED { ", ..." } else { "" };
                writeln!(formatter, "{} {}: {}{more}", names.len(), reason.text(), named.join(", "))?;
            }
        }
        let [slower, faster, same] = [Judgement::Slower, Judgement::Faster, Judgement::Same].map(|of| self.count(of));
        writeln!(formatter, "{slower} slower, {faster} faster, {same} as before")
    }
}

fn percent(change: f64) -> String {
    format!("{:+.1} %", change * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, change: f64, judgement: Judgement) -> Line {
        let (before, after) = ("1 us".to_owned(), "2 us".to_owned());
        Line { name: name.to_owned(), before, after, change, interval: None, judgement }
    }

    fn left_out(names: &[&str]) -> Vec<(String, LeftOut)> {
        names.iter().map(|name| ((*name).to_owned(), LeftOut::NotRun)).collect()
    }

    #[test]
    fn an_interval_must_lie_beyond_the_threshold_as_a_whole() {
        for (lower, upper, expected) in [
            (0.06, 0.10, Judgement::Slower),
            (0.04, 0.30, Judgement::Same),
            (-0.02, 0.02, Judgement::Same),
            (-0.30, -0.04, Judgement::Same),
            (-0.10, -0.06, Judgement::Faster),
        ] {
            assert_eq!(Judgement::of_interval(lower, upper, 0.05), expected, "{lower} to {upper}");
        }
    }

    #[test]
    fn the_worst_stands_first_and_what_is_the_same_is_only_counted() {
        let lines = vec![
            line("same", 0.01, Judgement::Same),
            line("better", -0.5, Judgement::Faster),
            line("bad", 0.1, Judgement::Slower),
            line("worse", 0.7, Judgement::Slower),
        ];
        let comparison = Comparison { lines, left_out: left_out(&["a", "b", "c", "d"]) };
        assert!(comparison.any_slower());
        assert_eq!(comparison.slower().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["bad", "worse"]);
        assert_eq!(
            comparison.to_string(),
            "SLOWER  worse   1 us -> 2 us  +70.0 %\n\
             SLOWER  bad     1 us -> 2 us  +10.0 %\n\
             faster  better  1 us -> 2 us  -50.0 %\n\
             4 not run against the baseline: a, b, c, ...\n\
             2 slower, 1 faster, 1 as before\n"
        );
    }
}
