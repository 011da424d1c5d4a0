//! `netlink-tests vectors DIR...`: what `vmap-proxy-conformance DIR...` does, under the name that it had before.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmap_proxy_conformance::command;

/// The conformance vectors of vmap-proxy. Measurements are in the program vmap-proxy-bench.
#[derive(Debug, Parser)]
#[command(name = "netlink-tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run conformance vectors (format: docs/vectors.md), as vmap-proxy-conformance does.
    Vectors(command::Options),
}

fn main() -> ExitCode {
    let Cli { command: Command::Vectors(options) } = Cli::parse();
    // Namespaces must be entered before any thread exists.
    command::run(&options, vmap_proxy_lab::enter_user_namespace())
}
