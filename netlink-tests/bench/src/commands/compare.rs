//! `vmap-proxy-bench compare`: what got slower since an earlier run.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::plots::read;
use crate::compare::{self, Comparison};
use crate::scale::Failure;

/// The files to compare.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
    /// Differences up to this many percent do not count.
    #[arg(long, global = true, default_value_t = 5.0)]
    threshold: f64,
    /// Print only the names of what got slower, one a line.
    #[arg(long, global = true)]
    names: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The last runs of the criterion benches with a saved baseline;
    /// scripts/compare-benchmarks makes both.
    Criterion {
        /// The baseline's name.
        #[arg(long, default_value = "main")]
        baseline: String,
        /// The folder of criterion's results.
        #[arg(long, default_value = "target/criterion")]
        directory: PathBuf,
    },
    /// Two files that `scale --json` wrote for clusters of one size.
    Scale {
        /// The earlier one.
        before: PathBuf,
        /// The later one.
        after: PathBuf,
    },
}

/// Compares, prints what differs, and fails if anything got slower.
pub fn run(options: &Options) -> ExitCode {
    let threshold = options.threshold / 100.0;
    let comparison = match &options.what {
        What::Criterion { baseline, directory } => {
            compare::criterion::compare(directory, baseline, threshold).map_err(Failure::from)
        }
        What::Scale { before, after } => compare_scale(before, after, threshold),
    };
    match comparison {
        Ok(comparison) => {
            if options.names {
                comparison.slower().for_each(|line| println!("{}", line.name));
            } else {
                print!("{comparison}");
            }
            ExitCode::from(u8::from(comparison.any_slower()))
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::from(2)
        }
    }
}

fn compare_scale(before: &Path, after: &Path, threshold: f64) -> Result<Comparison, Failure> {
    Ok(compare::scale::compare(&read(before)?, &read(after)?, threshold)?)
}
