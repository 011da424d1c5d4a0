//! `vmap-proxy-bench packets`: what new connections pay, against the number of
//! Services.

use std::process::ExitCode;

use clap::Args;
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_lab::LabError;

use crate::packets::report::{Report, StageFigures, median};
use crate::packets::shapes::Shape;
use crate::packets::stage::{Origin, Plan, Stage};
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
    #[arg(long, value_enum, value_delimiter = ',', default_value = "no-rules,one-rule,maps,chain-per-service")]
    pub shapes: Vec<Shape>,
    /// Where connections come from.
    #[arg(long, value_enum, default_value_t)]
    pub from: Origin,
    /// Measure our rules also without each of their base chains, to see what
    /// each costs (with the last number of Services).
    #[arg(long)]
    pub each_chain: bool,
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

/// The base chains that a new connection to a cluster IP passes and works
/// without, if it comes from a client or from the node.
fn passed(from: Origin) -> &'static [Chain] {
    match from {
        Origin::Outside | Origin::Pod => &[Chain::FilterForward, Chain::NatPostrouting, Chain::NatOutput],
        Origin::Node => &[Chain::FilterOutput, Chain::NatPostrouting, Chain::NatPrerouting],
    }
}

fn plans(options: &Options) -> Vec<Plan> {
    let from = options.from;
    let mut plans = Vec::new();
    for &shape in &options.shapes {
        let sizes: &[u32] = if shape.has_services() { &options.services } else { &[0] };
        for &services in sizes {
            if shape == Shape::ChainPerService && services > options.chain_limit {
                eprintln!("{} with {services} services: left out, see --chain-limit", shape.name());
                continue;
            }
            plans.push(Plan { shape, services, from, without: None });
        }
    }
    if let (true, Some(&services)) = (options.each_chain, options.services.last()) {
        let shape = Shape::Maps;
        plans.extend(passed(from).iter().map(|&chain| Plan { shape, services, from, without: Some(chain) }));
    }
    plans
}

fn stages(options: &Options) -> Result<Vec<Stage>, Failure> {
    let mut stages = Vec::new();
    for plan in plans(options) {
        let stage = Stage::new(plan)?;
        eprintln!("{} with {} services: loaded in {:.0} ms", plan.shape.name(), plan.services, stage.load_ms);
        stages.push(stage);
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
        shape: stage.plan.shape,
        services: stage.plan.services,
        without: stage.plan.without.map(|chain| chain.to_string()),
        load_ms: stage.load_ms,
        first_packet_us: median(&rounds.first_packets),
        connect_us: median(&rounds.connects),
        connections_per_second: Summary::of(rounds.rates).p50,
    });
    let (flows, rounds, from) = (options.flows, options.rounds, options.from);
    Ok(Report { machine: Machine::this(), flows, rounds, from, stages: figures.collect() })
}
