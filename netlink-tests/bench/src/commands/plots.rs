//! `vmap-proxy-bench plots`: the JSON of `scale` and `packets` as SVG pictures, or
//! as tables in Markdown.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::packets;
use crate::packets::shapes::Shape;
use crate::plot::{Plot, Series};
use crate::scale::Failure;
use crate::scale::report::Report;
use crate::scale::statistics::Summary;

/// The plots to draw.
#[derive(Debug, Args)]
pub struct Options {
    /// Files that `scale --json` wrote, one for each size.
    #[arg(long, num_args = 0..)]
    pub scale: Vec<PathBuf>,
    /// The file that `packets --json` wrote.
    #[arg(long)]
    pub packets: Option<PathBuf>,
    /// Write the tables, as `figures.md`, instead of the pictures.
    #[arg(long)]
    pub markdown: bool,
    /// The directory to write to; it must exist.
    #[arg(long)]
    pub out: PathBuf,
}

/// Draws them.
pub fn run(options: &Options) -> ExitCode {
    match draw(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn draw(options: &Options) -> Result<(), Failure> {
    if options.markdown {
        return tables(options);
    }
    let mut plots = Vec::new();
    if !options.scale.is_empty() {
        let reports: Result<Vec<Report>, Failure> = options.scale.iter().map(|path| read(path)).collect();
        let mut reports = reports?;
        reports.sort_by_key(|report| report.services);
        plots.extend(scale_plots(&reports));
    }
    if let Some(path) = &options.packets {
        plots.extend(packet_plots(&read(path)?));
    }
    for (name, plot) in plots {
        let path = options.out.join(name);
        fs::write(&path, plot.svg())?;
        println!("{}", path.display());
    }
    Ok(())
}

fn tables(options: &Options) -> Result<(), Failure> {
    let mut text = String::new();
    for path in &options.scale {
        text.push_str(&read::<Report>(path)?.markdown());
        text.push('\n');
    }
    if let Some(path) = &options.packets {
        text.push_str(&read::<packets::report::Report>(path)?.markdown());
    }
    Ok(fs::write(options.out.join("figures.md"), text)?)
}

pub(super) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn scale_plots(reports: &[Report]) -> Vec<(&'static str, Plot)> {
    let series = |name: &str, value: &dyn Fn(&Report) -> f64| Series {
        name: name.to_owned(),
        points: reports.iter().map(|report| (f64::from(report.services), value(report))).collect(),
    };
    let endpoints = reports.first().map_or(0, |report| report.endpoints);
    let title = |text: &str| format!("{text}, {endpoints} endpoints per Service");
    let x = "Services".to_owned();
    let floor = |report: &Report| Summary::of(report.floors.iter().map(|floor| floor.commit_ms).collect()).p50;
    let sync = Plot {
        title: title("First sync"),
        x: x.clone(),
        y: "ms".to_owned(),
        series: vec![
            series("vmap-proxy", &|report| report.first(|first| first.sync.sync_ms).p50),
            series("floor: the same batches, raw socket", &floor),
        ],
    };
    let changes = Plot {
        title: title("One change, p50"),
        x: x.clone(),
        y: "ms".to_owned(),
        series: vec![
            series("endpoint replaced", &|report| report.programmed.changes.replace.total_ms.p50),
            series("endpoint added", &|report| report.programmed.changes.grow.total_ms.p50),
            series("Service added", &|report| report.programmed.changes.add_service.total_ms.p50),
        ],
    };
    let memory = Plot {
        title: title("Peak memory of the agent"),
        x,
        y: "MiB".to_owned(),
        series: vec![
            series("first sync", &|report| report.first(|first| first.resident.peak_mib).p50),
            series("restart", &|report| report.programmed.restart.resident.peak_mib),
        ],
    };
    vec![("first-sync.svg", sync), ("one-change.svg", changes), ("memory.svg", memory)]
}

fn packet_plots(report: &packets::report::Report) -> Vec<(&'static str, Plot)> {
    let largest = report.stages.iter().map(|stage| stage.services).max().unwrap_or(1);
    let plot = |title: &str, y: &str, value: &dyn Fn(&packets::report::StageFigures) -> f64| Plot {
        title: title.to_owned(),
        x: "Services".to_owned(),
        y: y.to_owned(),
        series: [Shape::Maps, Shape::ChainPerService, Shape::NoRules]
            .into_iter()
            .map(|shape| {
                let stages = report.stages.iter().filter(|stage| stage.shape == shape);
                let points: Vec<(f64, f64)> = stages
                    .flat_map(|stage| match shape {
                        // The same whatever the number of Services.
                        Shape::NoRules => vec![(1.0, value(stage)), (f64::from(largest), value(stage))],
                        _ => vec![(f64::from(stage.services), value(stage))],
                    })
                    .collect();
                Series { name: shape.name().to_owned(), points }
            })
            .filter(|series| !series.points.is_empty())
            .collect(),
    };
    vec![
        ("first-packet.svg", plot("First packet of a UDP flow, p50", "us", &|stage| stage.first_packet_us.p50)),
        ("connections.svg", plot("TCP connections a second, one client", "1/s", &|stage| stage.connections_per_second)),
    ]
}
