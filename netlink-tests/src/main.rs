//! Long runs: conformance vectors and scale.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use netlink_tests::commands;

/// Conformance and scale runs of vmap-proxy, in network namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "netlink-tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run conformance vectors (format: docs/vectors.md) against the model,
    /// the compiled rules, and a real kernel with real packets.
    Vectors(commands::vectors::Options),
}

fn main() -> ExitCode {
    // Before any thread exists: a user namespace can't be entered later.
    let permitted = agent::lab::enter_user_namespace();
    match Cli::parse().command {
        Command::Vectors(options) => commands::vectors::run(&options, permitted),
    }
}
