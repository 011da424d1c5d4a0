//! `netlink-tests agent -- ARGUMENTS`: the agent itself, as `vmap-proxy` with
//! these arguments, for tests that need it as a process.

use std::ffi::OsString;
use std::process::ExitCode;

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
    let program = std::iter::once(OsString::from("vmap-proxy"));
    vmap_proxy_agent::program::run(program.chain(options.arguments))
}
