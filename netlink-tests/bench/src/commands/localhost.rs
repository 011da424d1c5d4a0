//! `vmap-proxy-bench localhost`: what the relay for NodePorts on localhost costs.

use std::process::ExitCode;

use clap::Args;
use vmap_proxy_lab::LabError;

use crate::localhost::{Extent, measure};
use crate::scale::Failure;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// Rounds over all ways to the pod.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// New connections in a round.
    #[arg(long, default_value_t = 1000)]
    pub connections: usize,
    /// Questions on an open connection in a round.
    #[arg(long, default_value_t = 5000)]
    pub questions: usize,
    /// MiB that are sent in a round.
    #[arg(long, default_value_t = 512)]
    pub mib: u64,
    /// NodePorts that are served at once in both families, at most 20,000. Each takes two sockets, and they may be a
    /// quarter of the limit of open files.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u16).range(1..=20_000))]
    pub node_ports: u16,
}

/// Measures, and prints it.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    let Options { rounds, connections, questions, mib, node_ports } = *options;
    let extent = Extent { rounds, connections, questions, bytes: mib << 20, node_ports };
    super::print(permitted.map_err(Failure::from).and_then(|()| measure(&extent)))
}
