//! The command line: every vector of some directories, at four levels.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde::Serialize;
use vmap_proxy_lab::{LabError, SCTP_METHOD};

use crate::library_proxy::LibraryProxy;
use crate::schema::{self, Vector};
use crate::{run_compiled, run_explained, run_model, run_packets};

/// The vectors to run.
#[derive(Debug, Args)]
pub struct Options {
    /// Directories with vectors (*.yaml, *.yml, *.json).
    #[arg(required = true, value_name = "DIR")]
    pub directories: Vec<PathBuf>,
    /// Only these levels; all by default.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub level: Vec<Level>,
    /// Only vectors whose name contains this text.
    #[arg(long, default_value = "")]
    pub filter: String,
    /// One JSON object a vector and level instead of a line, and one for the sums.
    #[arg(long)]
    pub json: bool,
    /// Number of vectors to run with packets at a time.
    #[arg(long, default_value_t = 4)]
    pub parallel: usize,
}

/// How deep a vector is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The independent reference model.
    Model,
    /// The compiled rules, evaluated.
    Compiled,
    /// The explanations of its packets.
    Explained,
    /// Real packets through a real kernel.
    Packets,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Model => "model",
            Level::Compiled => "compiled",
            Level::Explained => "explained",
            Level::Packets => "packets",
        })
    }
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    vector: &'a str,
    level: Level,
    result: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<String>,
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    passed: usize,
    failed: usize,
    skipped: usize,
}

struct Printer {
    json: bool,
    sums: Sums,
}

impl Printer {
    fn line(&mut self, vector: &str, level: Level, result: &'static str, details: Vec<String>) {
        match result {
            "passed" => self.sums.passed += 1,
            "failed" => self.sums.failed += 1,
            _ => self.sums.skipped += 1,
        }
        if self.json {
            let line = Line { vector, level, result, details };
            println!("{}", serde_json::to_string(&line).unwrap_or_default());
            return;
        }
        println!("{result} {level:<9} {vector}");
        for detail in details {
            println!("  {}", detail.replace('\n', "\n  "));
        }
    }

    fn verdict(&mut self, vector: &str, level: Level, failures: Vec<String>) {
        let result = if failures.is_empty() { "passed" } else { "failed" };
        self.line(vector, level, result, failures);
    }
}

/// Runs them, and prints a line for each vector and level.
///
/// `permitted` says whether this process has network namespaces of its own; if
/// not, the packet level is skipped, loudly, or fails with the environment
/// variable `CI`.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    let mut printer = Printer { json: options.json, sums: Sums::default() };
    let mut vectors = Vec::new();
    for directory in &options.directories {
        let files = match schema::files(directory) {
            Ok(files) => files,
            Err(error) => {
                eprintln!("Error: {error}");
                return ExitCode::FAILURE;
            }
        };
        for file in files
            .iter()
            .filter(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains(&options.filter)))
        {
            match schema::load_file(file) {
                Ok(vector) => vectors.push(vector),
                // It fails at its first level; the others are run all the same.
                Err(error) => {
                    printer.line(&file.display().to_string(), Level::Model, "failed", vec![error.to_string()]);
                }
            }
        }
    }
    let wanted = |level| options.level.is_empty() || options.level.contains(&level);
    for vector in &vectors {
        if wanted(Level::Model) {
            let failures = run_model::run(vector).iter().map(ToString::to_string).collect();
            printer.verdict(&vector.name, Level::Model, failures);
        }
        if wanted(Level::Compiled) {
            let failures = match run_compiled::run(vector) {
                Ok(mismatches) => mismatches.iter().map(ToString::to_string).collect(),
                Err(error) => vec![error.to_string()],
            };
            printer.verdict(&vector.name, Level::Compiled, failures);
        }
    }
    for vector in vectors.iter().filter(|_| wanted(Level::Explained)) {
        let failures = match run_explained::run(vector) {
            Ok(wrong) => wrong.iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        };
        printer.verdict(&vector.name, Level::Explained, failures);
    }
    if wanted(Level::Packets) {
        packets(&vectors, options.parallel, permitted, &mut printer);
    }
    let sums = printer.sums;
    if options.json {
        println!("{}", serde_json::to_string(&sums).unwrap_or_default());
    }
    println!("{} passed, {} failed, {} skipped", sums.passed, sums.failed, sums.skipped);
    if sums.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn packets(vectors: &[Vector], parallel: usize, permitted: Result<(), LabError>, printer: &mut Printer) {
    if let Err(error) = permitted {
        let result = if std::env::var_os("CI").is_some() { "failed" } else { "skipped" };
        for vector in vectors {
            printer.line(&vector.name, Level::Packets, result, vec![format!("no packets: {error}")]);
        }
        return;
    }
    let reports = run_packets::run_all(vectors, parallel, &|| Box::<LibraryProxy>::default());
    let sctp = reports.iter().any(|report| report.sctp);
    for report in reports {
        let failures = report.failures.iter().map(ToString::to_string).collect();
        printer.verdict(&report.name, Level::Packets, failures);
    }
    if sctp && !printer.json {
        println!("note: {SCTP_METHOD}");
    }
}
