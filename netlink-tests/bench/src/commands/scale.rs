//! `vmap-proxy-bench scale`: sync time, change time and memory at one size of
//! cluster, beside the floor of the kernel and the project's goals.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::process::ExitCode;

use clap::Args;
use vmap_proxy_lab::LabError;

use crate::scale::Failure;
use crate::scale::child::{Task, perform, spawn};
use crate::scale::report::{Machine, Report};
use crate::scale::workload::Workload;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// The number of Services.
    #[arg(long, default_value_t = 1000)]
    pub services: u32,
    /// The number of endpoints of each Service.
    #[arg(long, default_value_t = 5)]
    pub endpoints: u32,
    /// The number of pairs of first sync and floor; by default 7, or 3 for more
    /// than 200,000 endpoints.
    #[arg(long)]
    pub pairs: Option<u32>,
    /// Everything measured, as JSON.
    #[arg(long)]
    pub json: bool,
    /// The figures beside their goals, as a Markdown table.
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
}

/// One measurement in this process; for the parent alone.
#[derive(Debug, Args)]
pub struct TaskOptions {
    /// The identity.
    pub task: Task,
    /// The number of Services.
    #[arg(long)]
    pub services: u32,
    /// The number of endpoints of each Service.
    #[arg(long)]
    pub endpoints: u32,
    /// The network namespace, if not a new one.
    #[arg(long)]
    pub namespace: Option<String>,
}

/// Measures everything, with progress on standard error, and prints it.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    if let Err(error) = permitted {
        eprintln!("Error: {error}");
        return ExitCode::FAILURE;
    }
    match measure(options) {
        Ok(report) if options.json => super::print(serde_json::to_string(&report).map_err(Failure::from)),
        Ok(report) => {
            print!("{}", if options.markdown { report.markdown() } else { report.plain() });
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Does one measurement in this process, and prints it as JSON.
pub fn run_task(options: &TaskOptions, permitted: Result<(), LabError>) -> ExitCode {
    let cluster = Workload { services: options.services, endpoints: options.endpoints };
    let measured =
        permitted.map_err(Failure::from).and_then(|()| perform(options.task, cluster, options.namespace.as_deref()));
    super::print(measured.and_then(|value| Ok(serde_json::to_string(&value)?)))
}

fn measure(options: &Options) -> Result<Report, Failure> {
    let cluster = Workload { services: options.services, endpoints: options.endpoints };
    let all = u64::from(cluster.services) * u64::from(cluster.endpoints);
    let pairs = options.pairs.unwrap_or(if all > 200_000 { 3 } else { 7 });
    let mut report = Report {
        services: cluster.services,
        endpoints: cluster.endpoints,
        machine: Machine::this(),
        ..Report::default()
    };
    for pair in 1..=pairs {
        eprintln!("{} services: first sync and floor, {pair} of {pairs}", cluster.services);
        report.first_syncs.push(spawn(Task::FirstSync, cluster, None)?);
        report.floors.push(spawn(Task::Floor, cluster, None)?);
    }
    eprintln!("{} services: changes, burst, restart", cluster.services);
    report.programmed = spawn(Task::Changes, cluster, None)?;
    eprintln!("{} services: one large service", cluster.services);
    report.large_service = spawn(Task::LargeService, cluster, None)?;
    eprintln!("{} services: as many more at once, and removed at once", cluster.services);
    report.large_change = spawn(Task::LargeChange, cluster, None)?;
    eprintln!("{} services: second writer", cluster.services);
    report.second_writer = spawn(Task::SecondWriter, cluster, None)?;
    eprintln!("{} services: changes with no kernel", cluster.services);
    report.user_space = spawn(Task::UserSpace, cluster, None)?;
    Ok(report)
}
