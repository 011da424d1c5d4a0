//! `vmap-proxy-conformance DIR...`: conformance vectors against the model, the compiled rules, and a real kernel.

use std::process::ExitCode;

use clap::Parser;
use vmap_proxy_conformance::command;

/// Run conformance vectors (format: docs/vectors.md) against the reference model, the compiled rules, and a real kernel
/// with real packets, in network namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "vmap-proxy-conformance")]
struct Cli {
    #[command(flatten)]
    options: command::Options,
}

fn main() -> ExitCode {
    let Cli { options } = Cli::parse();
    // Namespaces must be entered before any thread exists.
    command::run(&options, vmap_proxy_lab::enter_user_namespace())
}
