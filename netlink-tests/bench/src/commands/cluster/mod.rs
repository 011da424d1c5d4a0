//! `vmap-proxy-bench cluster`: how fast the real agent is, and how much memory it
//! takes, against the API server double or a real API server.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

mod livez;
pub(super) mod objects;
mod proxies;
mod real_server;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;
use tempfile::TempDir;
use vmap_proxy_lab::{LabError, NetNs};
use vmap_proxy_testbed::api::Api;
use vmap_proxy_testbed::api_objects::{self, NAMESPACE};
use vmap_proxy_testbed::apiserver::{Lists, Resource};
use vmap_proxy_testbed::cluster::Cluster;

use self::livez::probe_until;
use self::objects::{like_a_cluster, service_of, slice_of};
use self::proxies::{PATIENCE, Proxy, Running};
use self::real_server::RealServer;
use crate::scale::Failure;

/// The measurement.
#[derive(Debug, Args)]
pub struct Options {
    /// The number of Services.
    #[arg(long, default_value_t = 10_000)]
    pub services: usize,
    /// The number of endpoints of each, at least 2.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(2..=200))]
    pub endpoints: u8,
    /// The number of single changes of each kind to time.
    #[arg(long, default_value_t = 200)]
    pub changes: usize,
    /// The binary `vmap-proxy`; by default the one beside this program.
    #[arg(long)]
    pub agent: Option<PathBuf>,
    /// The age of the API server double, by its lists.
    #[arg(long, value_enum, default_value_t)]
    pub lists: Lists,
    /// Refuse protobuf, so that everything is sent in JSON.
    #[arg(long)]
    pub json: bool,
    /// A real API server instead of the double, by a kubeconfig that may do everything; its server must be an address of
    /// the loopback interface. The objects are created in a namespace of their own, and deleted at the end.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["lists", "json"])]
    pub kubeconfig: Option<PathBuf>,
    /// The binary `kube-proxy`: measured in the same way after vmap-proxy, in its nftables mode. Changes are then 10 at
    /// most.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    pub kube_proxy: Option<PathBuf>,
    /// The number of starts of the agent on an empty kernel; the figures are printed for each.
    #[arg(long, default_value_t = 3)]
    pub starts: usize,
}

/// Longer than the gap that the agent keeps between syncs: each change is
/// then one of its own.
const PAUSE: Duration = Duration::from_millis(60);

/// The most changes that are timed of kube-proxy, which takes seconds for one.
const KUBE_PROXY_CHANGES: usize = 10;

/// Measures, and prints a line for each figure.
///
/// `machine` is the namespace in which a real API server can be reached, from before the process left it.
pub fn run(options: &Options, machine: Result<NetNs, LabError>, permitted: Result<(), LabError>) -> ExitCode {
    match permitted.map_err(Into::into).and_then(|()| measure(options, machine)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options, machine: Result<NetNs, LabError>) -> Result<(), Failure> {
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("vmap-proxy"),
    };
    let real = match &options.kubeconfig {
        Some(kubeconfig) => Some(RealServer::fill(machine?, kubeconfig, options.services, options.endpoints)?),
        None => None,
    };
    measure_proxy(&Proxy::vmap_proxy(agent), real.as_ref(), options, options.starts.max(1), options.changes)?;
    if let Some(program) = &options.kube_proxy {
        println!("\nkube-proxy:");
        let changes = options.changes.min(KUBE_PROXY_CHANGES);
        measure_proxy(&Proxy::kube_proxy(program.clone()), real.as_ref(), options, 1, changes)?;
    }
    Ok(())
}

/// Starts a proxy several times on an empty kernel; then changes objects, and restarts it.
fn measure_proxy(
    proxy: &Proxy,
    real: Option<&RealServer>,
    options: &Options,
    starts: usize,
    number_of_changes: usize,
) -> Result<(), Failure> {
    for start in 1..=starts {
        let mut stage = Stage::new(real, options)?;
        let begun = Instant::now();
        let mut process = stage.start(proxy)?;
        let (line, answers) = probe_until(stage.node(), || process.first_sync())?;
        print_start("first sync", begun.elapsed(), &line?, &process)?;
        println!(
            "  /livez answered {} times meanwhile, after {:.1} ms at most; a server that does nothing else, after {:.1} ms \
             at most",
            answers.proxy.count,
            answers.proxy.slowest_ms(),
            answers.idle_server.slowest_ms()
        );
        if let Server::Double(api) = &mut stage.server
            && let Some(double) = api.double()
        {
            println!("  received {} bytes", double.server.bytes_sent());
        }
        if start == starts {
            changes(&stage, &mut process, options, number_of_changes)?;
            println!("after the changes: peak RSS {}, RSS {}", process.memory("VmHWM")?, process.memory("VmRSS")?);
            process.terminate()?;
            let process = start_again(&stage, proxy, "restart")?;
            process.terminate()?;
            stage.delete(&service_of(0))?;
            let mut process = start_again(&stage, proxy, "restart after a Service was deleted while no proxy ran")?;
            if process.seeks_leftovers() {
                changes_beside_a_search(&stage, &mut process, options)?;
            }
            stage.create(service_of(0))?;
        }
    }
    Ok(())
}

/// The elements of the deleted Service are found after the first sync of a restart; changes come meanwhile.
fn changes_beside_a_search(stage: &Stage<'_>, process: &mut Running, options: &Options) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut times = Vec::new();
    while !process.has_removed_leftovers() {
        if begun.elapsed() > PATIENCE {
            return Err("the elements of the deleted Service are not removed".into());
        }
        // One endpoint more, and one less again.
        let endpoints = if times.len() % 2 == 0 { options.endpoints + 1 } else { options.endpoints };
        process.forget_past_syncs();
        let changed = Instant::now();
        stage.replace(slice_of(1, endpoints, 0))?;
        process.next_sync()?;
        times.push(changed.elapsed());
        // The agent has a line for the first three hundred syncs of some minutes.
        std::thread::sleep(4 * PAUSE);
    }
    println!(
        "  what was left over is removed after {:.2} s at most; peak RSS {}",
        begun.elapsed().as_secs_f64(),
        process.memory("VmHWM")?
    );
    print_quantiles("  a change meanwhile, to the committed transaction", times);
    stage.replace(slice_of(1, options.endpoints, 0))?;
    process.settle();
    Ok(())
}

/// An API server with all objects, and a node that can reach it.
struct Stage<'a> {
    server: Server<'a>,
    cluster: Cluster,
    directory: TempDir,
}

enum Server<'a> {
    Double(Api),
    Real(&'a RealServer),
}

impl<'a> Stage<'a> {
    fn new(real: Option<&'a RealServer>, options: &Options) -> Result<Self, Failure> {
        let cluster = Cluster::new();
        let server = match real {
            Some(server) => {
                server.appear_in(cluster.node())?;
                Server::Real(server)
            }
            None => Server::Double(filled_double(cluster.node(), options)?),
        };
        Ok(Self { server, cluster, directory: tempfile::Builder::new().prefix("vmap-proxy-bench-").tempdir()? })
    }

    fn node(&self) -> &NetNs {
        self.cluster.node()
    }

    fn start(&self, proxy: &Proxy) -> Result<Running, Failure> {
        let of_double;
        let kubeconfig: &Path = match &self.server {
            Server::Double(api) => {
                of_double = api.kubeconfig();
                &of_double
            }
            Server::Real(server) => server.kubeconfig(),
        };
        proxy.start(self.node(), kubeconfig, self.directory.path())
    }

    fn delete(&self, service: &Value) -> Result<(), Failure> {
        match &self.server {
            Server::Double(api) => {
                let name = service["metadata"]["name"].as_str().unwrap_or_default();
                Ok(api.delete(Resource::Services, NAMESPACE, name)?)
            }
            Server::Real(server) => server.delete(service),
        }
    }

    fn create(&self, object: Value) -> Result<(), Failure> {
        match &self.server {
            Server::Double(_) => self.replace(object),
            Server::Real(server) => server.create(&object),
        }
    }

    /// Replaces an object.
    fn replace(&self, object: Value) -> Result<(), Failure> {
        match &self.server {
            Server::Double(api) => Ok(api.apply(&like_a_cluster(object))?),
            Server::Real(server) => server.replace(&object),
        }
    }
}

fn filled_double(node: &NetNs, options: &Options) -> Result<Api, Failure> {
    let mut api = Api::start(node)?;
    api.apply(&api_objects::node(|_| {}))?;
    let Some(double) = api.double() else {
        return Err("unset the variable of the tests' real API server; the measurement has --kubeconfig".into());
    };
    double.server.set_lists(options.lists);
    double.server.set_protobuf(!options.json);
    let slices = (0..options.services).map(|index| like_a_cluster(slice_of(index, options.endpoints, 0)));
    let services = (0..options.services).map(|index| like_a_cluster(service_of(index)));
    double.server.apply_all(services.chain(slices));
    Ok(api)
}

fn changes(stage: &Stage<'_>, process: &mut Running, options: &Options, number: usize) -> Result<(), Failure> {
    let mut answered = Vec::new();
    let mut time = |object: Value| -> Result<Duration, Failure> {
        std::thread::sleep(PAUSE);
        process.forget_past_syncs();
        let begun = Instant::now();
        stage.replace(object)?;
        answered.push(begun.elapsed());
        process.next_sync()?;
        Ok(begun.elapsed())
    };
    let spread = |change: usize| change * options.services / number.max(1);
    let mut replaced = Vec::new();
    let mut scaled = Vec::new();
    for change in 0..number {
        let index = spread(change) % options.services;
        replaced.push(time(slice_of(index, options.endpoints, 1))?);
        let endpoints = if change % 2 == 0 { options.endpoints + 1 } else { options.endpoints - 1 };
        scaled.push(time(slice_of(index, endpoints, 1))?);
    }
    if let Server::Real(server) = &stage.server {
        print_quantiles("a change, from its request to the API server's answer", answered);
        // The next proxy finds what this one found.
        process.forget_past_syncs();
        for change in 0..number {
            server.replace(&slice_of(spread(change) % options.services, options.endpoints, 0))?;
        }
        process.next_sync()?;
        process.settle();
    }
    let from = match &stage.server {
        Server::Double(_) => "from the API event",
        Server::Real(_) => "from the request to the API server",
    };
    print_quantiles(&format!("an endpoint replaced, {from} to the committed transaction"), replaced);
    print_quantiles(&format!("an endpoint more or less, {from} to the committed transaction"), scaled);
    Ok(())
}

fn print_quantiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| {
        let last = times.len().saturating_sub(1);
        let index = (part * times.len() as f64) as usize;
        times.get(index.min(last)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    println!("{what}: median {:.2} ms, p99 {:.2} ms, of {}", at(0.5), at(0.99), times.len());
}

/// Starts it on the kernel that an earlier process left.
fn start_again(stage: &Stage<'_>, proxy: &Proxy, what: &str) -> Result<Running, Failure> {
    let begun = Instant::now();
    let mut process = stage.start(proxy)?;
    let line = process.first_sync()?;
    print_start(what, begun.elapsed(), &line, &process)?;
    Ok(process)
}

fn print_start(what: &str, took: Duration, line: &str, process: &Running) -> Result<(), Failure> {
    let (user, system) = process.processor_time()?;
    println!(
        "{what}: {:.0} ms from the start of the process; processor time {user} ms user, {system} ms system",
        took.as_secs_f64() * 1000.0
    );
    println!("  {}", line.split_once("follow: ").map_or(line, |(_, message)| message));
    println!(
        "  peak RSS {}; now {} of memory of its own and {} of mapped files",
        process.memory("VmHWM")?,
        process.memory("RssAnon")?,
        process.memory("RssFile")?
    );
    Ok(())
}
