//! `vmap-proxy-bench packets`: what new connections pay, against the number of
//! Services.

use std::process::ExitCode;

use clap::Args;
use vmap_proxy_lab::LabError;

use crate::packets::report::{Report, StageFigures, median};
use crate::packets::shapes::Shape;
use crate::packets::stage::Stage;
use crate::scale::Failure;
use crate::scale::report::Machine;
use crate::scale::statistics::Summary;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// Numbers of Services, TCP and UDP in turn.
    #[arg(long, value_delimiter = ',', default_value = "1,1000,10000,100000")]
    pub services: Vec<u32>,
    /// Shapes of rules.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "no-rules,maps,chain-per-service")]
    pub shapes: Vec<Shape>,
    /// The most Services for the shape of a chain per Service: loading more
    /// takes `nft` very long.
    #[arg(long, default_value_t = 10_000)]
    pub chain_limit: u32,
    /// New flows and connections in a round.
    #[arg(long, default_value_t = 5000)]
    pub flows: usize,
    /// Rounds over all stages.
    #[arg(long, default_value_t = 9)]
    pub rounds: usize,
    /// Everything measured, as JSON instead of a Markdown table.
    #[arg(long)]
    pub json: bool,
}

/// Measures, with progress on standard error, and prints it.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    let measured = permitted.map_err(Failure::from).and_then(|()| measure(options));
    super::print(
        measured.and_then(|report| Ok(if options.json { serde_json::to_string(&report)? } else { report.markdown() })),
    )
}

fn stages(options: &Options) -> Result<Vec<Stage>, Failure> {
    let mut stages = Vec::new();
    for shape in &options.shapes {
        let sizes: &[u32] = if *shape == Shape::NoRules { &[0] } else { &options.services };
        for services in sizes {
            if *shape == Shape::ChainPerService && *services > options.chain_limit {
                eprintln!("{} with {services} services: left out, see --chain-limit", shape.name());
                continue;
            }
            let stage = Stage::new(*shape, *services)?;
            eprintln!("{} with {services} services: loaded in {:.0} ms", shape.name(), stage.load_ms);
            stages.push(stage);
        }
    }
    Ok(stages)
}

#[derive(Default)]
struct Rounds {
    first_packets: Vec<Summary>,
    connects: Vec<Summary>,
    rates: Vec<f64>,
}

fn measure(options: &Options) -> Result<Report, Failure> {
    let mut stages = stages(options)?;
    let mut rounds: Vec<Rounds> = stages.iter().map(|_| Rounds::default()).collect();
    // The first round warms up.
    for round in 0..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for (stage, rounds) in stages.iter_mut().zip(&mut rounds) {
            let first_packets = stage.first_packets(options.flows)?;
            let connects = stage.connections(options.flows)?;
            if round > 0 {
                let seconds: f64 = connects.iter().sum::<f64>() / 1e6;
                rounds.rates.push(connects.len() as f64 / seconds);
                rounds.first_packets.push(Summary::of(first_packets));
                rounds.connects.push(Summary::of(connects));
            }
        }
    }
    let figures = stages.iter().zip(rounds).map(|(stage, rounds)| StageFigures {
        shape: stage.shape,
        services: stage.services,
        load_ms: stage.load_ms,
        first_packet_us: median(&rounds.first_packets),
        connect_us: median(&rounds.connects),
        connections_per_second: Summary::of(rounds.rates).p50,
    });
    Ok(Report { machine: Machine::this(), flows: options.flows, rounds: options.rounds, stages: figures.collect() })
}
