//! Measurements: scale, packets, the whole agent against an API server; see `docs/performance.md`.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vmap_proxy_bench::commands;
use vmap_proxy_lab::NetNs;

/// Measurements of vmap-proxy, in network namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "vmap-proxy-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the real agent against the API server double or a real API server,
    /// and kube-proxy beside it: time to the first sync, memory, and the time from
    /// an API event to the kernel.
    Cluster(commands::cluster::Options),
    /// Measure what many agents cost one API server, against the double.
    Fleet(commands::fleet::Options),
    /// Measure first sync, changes, restart and memory at one size of cluster,
    /// beside the floor of the kernel.
    Scale(commands::scale::Options),
    /// Measure what new connections pay, against the number of Services.
    Packets(commands::packets::Options),
    /// Measure what packets of an established flow pay with and without the flow
    /// table.
    Established(commands::established::Options),
    /// Measure what the relay for NodePorts on localhost costs.
    Localhost(commands::localhost::Options),
    /// Draw the JSON of `scale` and `packets` as SVG pictures.
    Plots(commands::plots::Options),
    /// Say what got slower since an earlier run. Exit status 1 if anything did,
    /// 2 if there is nothing to compare with.
    Compare(commands::compare::Options),
    /// One measurement of `scale`, in this process.
    #[command(hide = true)]
    ScaleTask(commands::scale::TaskOptions),
}

fn main() -> ExitCode {
    // Namespaces of its own must be entered before any thread exists.
    match Cli::parse().command {
        Command::Cluster(options) => {
            let machine = NetNs::open("machine", "/proc/self/ns/net");
            commands::cluster::run(&options, machine, vmap_proxy_lab::enter_user_namespace())
        }
        Command::Scale(options) => commands::scale::run(&options, vmap_proxy_lab::enter_user_namespace()),
        Command::Packets(options) => commands::packets::run(&options, vmap_proxy_lab::enter_user_namespace()),
        Command::Established(options) => commands::established::run(&options, vmap_proxy_lab::enter_user_namespace()),
        Command::Localhost(options) => commands::localhost::run(&options, vmap_proxy_lab::enter_user_namespace()),
        Command::Plots(options) => commands::plots::run(&options),
        Command::Fleet(options) => commands::fleet::run(&options),
        Command::Compare(options) => commands::compare::run(&options),
        Command::ScaleTask(options) => commands::scale::run_task(&options, vmap_proxy_lab::enter_user_namespace()),
    }
}
