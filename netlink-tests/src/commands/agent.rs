//! `netlink-tests agent -- ARGUMENTS`: the agent itself, as `vmap-proxy` with
//! these arguments, for tests that need it as a process.

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use agent::cli::{self, Action};
use agent::{logging, run};
use clap::Args;

/// The agent's own arguments.
#[derive(Debug, Args)]
pub struct Options {
    /// As on the command line of `vmap-proxy`.
    #[arg(last = true)]
    pub arguments: Vec<OsString>,
}

/// Runs it in the network namespace of the caller.
pub fn run(options: Options) -> ExitCode {
    match start(options.arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Vec<OsString>) -> Result<(), Box<dyn Error>> {
    let program = std::iter::once(OsString::from("vmap-proxy"));
    let resolved = cli::parse(program.chain(arguments))?.resolve()?;
    logging::init(&resolved.logging);
    for warning in &resolved.warnings {
        tracing::warn!("{warning}");
    }
    match resolved.action {
        Action::Run(options) => Ok(run::run(*options)?),
        other => Err(format!("only the agent itself can be started here, not {other:?}").into()),
    }
}
