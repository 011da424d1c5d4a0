//! `vmap-proxy-bench established`: what the flow table saves.

use std::process::ExitCode;

use clap::Args;
use vmap_proxy_lab::LabError;

use crate::packets::established::measure;
use crate::scale::Failure;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// The number of Services.
    #[arg(long, default_value_t = 1000)]
    pub services: u32,
    /// Packets in a round.
    #[arg(long, default_value_t = 20_000)]
    pub packets: usize,
    /// Rounds, each with and without the flow table.
    #[arg(long, default_value_t = 15)]
    pub rounds: usize,
}

/// Measures and prints a table.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    let measured =
        permitted.map_err(Failure::from).and_then(|()| measure(options.services, options.packets, options.rounds));
    super::print(measured.map(|measured| measured.markdown()))
}
