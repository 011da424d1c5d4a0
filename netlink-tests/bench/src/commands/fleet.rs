//! `vmap-proxy-bench fleet`: what many agents cost one API server, against the double: bytes of the first lists and of
//! each change, and how the agents come back after an outage. Only the sources run, in this process.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::resource::{Resource as Limit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_testbed::api_objects::{Endpoint, OTHER_NODE, named_slice, service};
use vmap_proxy_testbed::apiserver::{ApiServer, Resource};

use super::cluster::objects::like_a_cluster;
use crate::scale::Failure;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// The number of agents.
    #[arg(long, default_value_t = 200)]
    pub agents: usize,
    /// The number of Services.
    #[arg(long, default_value_t = 100)]
    pub services: usize,
    /// The number of endpoints of each.
    #[arg(long, default_value_t = 5)]
    pub endpoints: u8,
    /// The length of the outage in seconds.
    #[arg(long, default_value_t = 60)]
    pub outage: u64,
}

/// The number of changes of each kind.
const CHANGES: usize = 20;
/// The length of a step of the distribution of requests after an outage.
const STEP: Duration = Duration::from_millis(500);

/// Measures, and prints a line for each figure.
pub fn run(options: &Options) -> ExitCode {
    let measured = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(measure(options)));
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(options: &Options) -> Result<(), Failure> {
    // Four connections for each agent, and both ends are in this process.
    let (_, most) = getrlimit(Limit::RLIMIT_NOFILE)?;
    setrlimit(Limit::RLIMIT_NOFILE, most, most)?;
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let mut server = ApiServer::start().await?;
        fill(&server, options);
        let fleet = Fleet::start(&server, options.agents, encoding).await?;
        let per_agent = server.bytes_sent() as f64 / options.agents as f64;
        println!("{encoding:?}: {per_agent:.0} bytes for the first lists of an agent");
        for (what, endpoints) in [("an endpoint of 5 replaced", 5), ("an endpoint of 100 replaced", 100)] {
            let change = |number| like_a_cluster(slice_of(0, endpoints, number));
            report_changes(&server, &fleet, encoding, what, change).await?;
        }
        let new =
            |number: usize| like_a_cluster(service(&format!("new-{number}"), &format!("10.96.255.{number}"), |_| {}));
        report_changes(&server, &fleet, encoding, "a new Service", new).await?;
        if encoding == Encoding::Protobuf {
            outage(&mut server, options, false).await?;
            outage(&mut server, options, true).await?;
        }
    }
    Ok(())
}

fn fill(server: &ApiServer, options: &Options) {
    let services = (0..options.services).map(|index| {
        like_a_cluster(service(
            &format!("service-{index}"),
            &format!("10.96.{}.{}", index / 250, index % 250 + 1),
            |_| {},
        ))
    });
    let slices = (0..options.services).map(|index| like_a_cluster(slice_of(index, options.endpoints, 0)));
    server.apply_all(services.chain(slices));
    server.apply_all((0..options.agents).map(|agent| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node-{agent}")},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
    }));
}

/// The slice of a Service; its first endpoint depends on the version.
fn slice_of(index: usize, endpoints: u8, version: usize) -> Value {
    let members: Vec<Endpoint> = (0..endpoints)
        .map(|member| {
            let third = if member == 0 { 100 + version % 100 } else { index % 100 };
            Endpoint::at(format!("10.{}.{third}.{}", 200 + index / 100, member + 1), OTHER_NODE)
        })
        .collect();
    named_slice(&format!("service-{index}-abcde"), &format!("service-{index}"), &members)
}

/// Sources that run, and the number of changes that they have handed on.
struct Fleet {
    agents: usize,
    changes: Arc<AtomicUsize>,
    changed: watch::Receiver<()>,
}

impl Fleet {
    /// Starts them; returns when all watch all resources.
    async fn start(server: &ApiServer, agents: usize, encoding: Encoding) -> Result<Self, Failure> {
        let (changes, synced) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (tell, mut changed) = watch::channel(());
        for agent in 0..agents {
            let source = KubernetesSource::connect(KubernetesOptions {
                kubeconfig: Some(server.kubeconfig()),
                master: None,
                node_name: format!("node-{agent}"),
                encoding,
                timing: Timing::default(),
                metrics: Metrics::new(),
            });
            let (sender, mut events) = mpsc::channel(4);
            tokio::spawn(source.await?.run(sender));
            let (changes, synced, tell) = (changes.clone(), synced.clone(), tell.clone());
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    match event {
                        Event::Changes(received) => changes.fetch_add(received.len(), Ordering::Relaxed),
                        Event::Synced => synced.fetch_add(1, Ordering::Relaxed),
                        _ => continue,
                    };
                    // The other end lives as long as the measurement.
                    let _ = tell.send(());
                }
            });
        }
        while synced.load(Ordering::Relaxed) < agents {
            changed.changed().await?;
        }
        all_watch(server, agents).await;
        Ok(Self { agents, changes, changed })
    }

    /// Waits until each has handed on so many changes.
    async fn each_has(&self, changes: usize) -> Result<(), Failure> {
        let mut changed = self.changed.clone();
        while self.changes.load(Ordering::Relaxed) < changes * self.agents {
            changed.changed().await?;
        }
        Ok(())
    }
}

async fn all_watch(server: &ApiServer, agents: usize) {
    let watched = |server: &ApiServer| Resource::ALL.iter().all(|resource| server.open_watches(*resource) == agents);
    server.wait_until(watched).await;
}

async fn report_changes(
    server: &ApiServer,
    fleet: &Fleet,
    encoding: Encoding,
    what: &str,
    change: impl Fn(usize) -> Value,
) -> Result<(), Failure> {
    fleet.changes.store(0, Ordering::Relaxed);
    let (before, asked) = (server.bytes_sent(), server.requests().len());
    for number in 1..=CHANGES {
        server.apply(change(number));
        fleet.each_has(number).await?;
    }
    let events = fleet.changes.load(Ordering::Relaxed) as f64 / (fleet.agents * CHANGES) as f64;
    let bytes = (server.bytes_sent() - before) as f64 / (fleet.agents * CHANGES) as f64;
    let requests = server.requests().len() - asked;
    println!("{encoding:?}: {what}: {bytes:.0} bytes and {events:.2} events for each agent, {requests} requests");
    Ok(())
}

/// Ends the server for a while. `compacted`: it has lost its history, and all have to list again.
async fn outage(server: &mut ApiServer, options: &Options, compacted: bool) -> Result<(), Failure> {
    server.pause();
    // The length of the outage is what is measured.
    tokio::time::sleep(Duration::from_secs(options.outage)).await;
    if compacted {
        server.compact();
    }
    let asked = server.requests().len();
    server.resume().await?;
    let begun = Instant::now();
    let mut counts = vec![asked];
    let mut ticks = tokio::time::interval(STEP);
    let watching = all_watch(server, options.agents);
    tokio::pin!(watching);
    loop {
        tokio::select! {
            () = &mut watching => break,
            _ = ticks.tick() => counts.push(server.requests().len()),
        }
    }
    counts.push(server.requests().len());
    let most = counts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
    println!(
        "after an outage of {} s{}: {} requests in {:.1} s, at most {most} within {} ms",
        options.outage,
        if compacted { " that cost the history" } else { "" },
        server.requests().len() - asked,
        begun.elapsed().as_secs_f64(),
        STEP.as_millis(),
    );
    Ok(())
}
