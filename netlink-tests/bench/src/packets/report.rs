//! The figures of packets.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::shapes::Shape;
use super::stage::Origin;
use crate::scale::report::Machine;
use crate::scale::statistics::Summary;

/// Everything measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The machine it ran on.
    pub machine: Machine,
    /// Flows and connections of each round.
    pub flows: usize,
    /// Rounds.
    pub rounds: usize,
    /// Where the connections came from.
    #[serde(default)]
    pub from: Origin,
    /// One entry for each stage.
    pub stages: Vec<StageFigures>,
}

/// One shape of rules, with one number of Services.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StageFigures {
    /// The rules on the node.
    pub shape: Shape,
    /// The number of Services, TCP and UDP in turn.
    pub services: u32,
    /// The base chain that was taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without: Option<String>,
    /// The time of loading the rules, in milliseconds, including parsing and,
    /// for `nft`, starting the program.
    pub load_ms: f64,
    /// The first packet of a UDP flow, in microseconds: each figure is the
    /// median over the rounds.
    pub first_packet_us: Summary,
    /// Opening a TCP connection, in microseconds.
    pub connect_us: Summary,
    /// TCP connections opened, one after the other, in a second: the median
    /// over the rounds.
    pub connections_per_second: f64,
}

impl StageFigures {
    /// For people: the rules, and what they lack.
    fn name(&self) -> String {
        let shape = self.shape.name();
        self.without.as_ref().map_or_else(|| shape.to_owned(), |chain| format!("{shape} without `{chain}`"))
    }
}

/// The median over rounds of each figure.
pub fn median(rounds: &[Summary]) -> Summary {
    let of = |value: fn(&Summary) -> f64| Summary::of(rounds.iter().map(value).collect()).p50;
    Summary {
        count: rounds.iter().map(|round| round.count).sum(),
        min: of(|round| round.min),
        p50: of(|round| round.p50),
        p90: of(|round| round.p90),
        p99: of(|round| round.p99),
        max: of(|round| round.max),
    }
}

impl Report {
    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = format!(
            "Kernel {}, {} CPUs ({}); from {}; {} flows a round, medians of {} rounds\n\n",
            machine.kernel,
            machine.cpus,
            machine.model,
            self.from.name(),
            self.flows,
            self.rounds
        );
        text.push_str("| rules | Services | first packet p50 / p90 / p99 | TCP connect p50 / p90 / p99 | connections/s | loaded in |\n");
        text.push_str("|---|---|---|---|---|---|\n");
        for stage in &self.stages {
            let us = |summary: &Summary| format!("{:.2} / {:.2} / {:.2} us", summary.p50, summary.p90, summary.p99);
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {:.0} | {:.0} ms |",
                stage.name(),
                if stage.shape.has_services() { stage.services.to_string() } else { "-".to_owned() },
                us(&stage.first_packet_us),
                us(&stage.connect_us),
                stage.connections_per_second,
                stage.load_ms
            );
        }
        text
    }
}
