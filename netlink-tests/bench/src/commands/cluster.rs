//! `vmap-proxy-bench cluster`: how fast the real agent is, and how much memory it
//! takes, against the API server double.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use vmap_proxy_lab::LabError;
use vmap_proxy_lab::http::get_blocking;

use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::api_objects::{Endpoint, OTHER_NODE, named_slice, service};
use vmap_proxy_testbed::end_to_end::EndToEnd;

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
    /// Refuse streaming lists, as API servers before 1.32 do.
    #[arg(long)]
    pub paged: bool,
    /// Refuse protobuf, so that everything is sent in JSON.
    #[arg(long)]
    pub json: bool,
    /// The number of starts of the agent on an empty kernel; the figures are printed for each.
    #[arg(long, default_value_t = 3)]
    pub starts: usize,
}

/// Longer than the gap that the agent keeps between syncs: each change is
/// then one of its own.
const PAUSE: Duration = Duration::from_millis(60);

/// The health server of kubeadm's configuration.
const LIVEZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// The pause between two questions to it.
const PROBE_GAP: Duration = Duration::from_millis(2);

/// Measures, and prints a line for each figure.
pub fn run(options: &Options, permitted: Result<(), LabError>) -> ExitCode {
    match permitted.map_err(Into::into).and_then(|()| measure(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let agent = match &options.agent {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("vmap-proxy"),
    };
    for start in 1..=options.starts.max(1) {
        let mut cluster = EndToEnd::start(&agent)?;
        fill(&mut cluster, options)?;
        let begun = Instant::now();
        let process = cluster.agent();
        let (line, answers) = wait_and_probe(&cluster, &process)?;
        let took = begun.elapsed();
        print_start("first sync", took, &line, &process)?;
        println!(
            "  /livez answered {} times meanwhile, after {:.1} ms at most; a server that does nothing else, after {:.1} ms \
             at most",
            answers.agent.count,
            answers.agent.slowest_ms(),
            answers.idle_server.slowest_ms()
        );
        if let Some(double) = cluster.api.double() {
            println!("  received {} bytes", double.server.bytes_sent());
        }
        if start == options.starts.max(1) {
            changes(&cluster, &process, options)?;
            println!("after the changes: peak RSS {}, RSS {}", memory(&process, "VmHWM")?, memory(&process, "VmRSS")?);
            restart(&cluster, process)?;
        }
    }
    Ok(())
}

/// The answers of a server, one after the other.
#[derive(Debug, Default)]
struct Answers {
    count: usize,
    slowest: Duration,
}

impl Answers {
    fn slowest_ms(&self) -> f64 {
        self.slowest.as_secs_f64() * 1000.0
    }

    /// Asks once, and waits for the answer.
    fn ask(&mut self, server: SocketAddr) {
        let begun = Instant::now();
        // The agent does not listen yet at the beginning.
        if get_blocking(server, "/livez").is_ok() {
            self.count += 1;
            self.slowest = self.slowest.max(begun.elapsed());
        }
    }
}

/// The answers of the agent's health server, and those of a thread that waits
/// for nothing but connections: so late is every server on this machine, while
/// the agent and the API server double keep it busy.
#[derive(Debug, Default)]
struct Probed {
    agent: Answers,
    idle_server: Answers,
}

/// Waits for the first sync, and asks both servers all the time.
fn wait_and_probe(cluster: &EndToEnd, process: &AgentProcess) -> Result<(String, Probed), Box<dyn std::error::Error>> {
    let node = cluster.node().try_clone()?;
    let is_ready = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| node.run(|| probe(&is_ready)));
        let line = process.wait_until_ready();
        is_ready.store(true, Ordering::Relaxed);
        let answers = probing.join().map_err(|_| "the probe panicked")???;
        Ok((line, answers))
    })
}

fn probe(is_ready: &AtomicBool) -> io::Result<Probed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let idle_server = listener.local_addr()?;
    let mut probed = Probed::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer_all(&listener, &is_over));
        while !is_ready.load(Ordering::Relaxed) {
            probed.agent.ask(LIVEZ);
            probed.idle_server.ask(idle_server);
            std::thread::sleep(PROBE_GAP);
        }
        is_over.store(true, Ordering::Relaxed);
        // The server's thread waits for a connection.
        Answers::default().ask(idle_server);
    });
    Ok(probed)
}

/// Answers one connection after the other, and one more when it is over.
fn answer_all(listener: &TcpListener, is_over: &AtomicBool) {
    for connection in listener.incoming().flatten() {
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        while connection.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        // Who has hung up misses nothing.
        let _ = connection.get_mut().write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        if is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn fill(cluster: &mut EndToEnd, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let Some(double) = cluster.api.double() else {
        return Err("the measurement needs the double: unset the variable of the real API server".into());
    };
    double.server.set_streaming_lists(!options.paged);
    double.server.set_protobuf(!options.json);
    let slices = (0..options.services).map(|index| like_a_cluster(slice_of(index, options.endpoints, 0)));
    let services =
        (0..options.services).map(|index| like_a_cluster(service(&name(index), &address(96, index), |_| {})));
    double.server.apply_all(services.chain(slices));
    Ok(())
}

fn name(index: usize) -> String {
    format!("service-{index}")
}

/// `10.B.x.y` (and the ranges behind it): one for each index.
fn address(second: usize, index: usize) -> String {
    format!("10.{}.{}.{}", second + (index >> 16), (index >> 8) & 255, index & 255)
}

/// The slice of a Service, its first endpoint in the given version.
fn slice_of(index: usize, endpoints: u8, version: usize) -> Value {
    let members: Vec<Endpoint> = (0..usize::from(endpoints))
        .map(|member| {
            let number = index * usize::from(endpoints) + member;
            let second = if member == 0 { 120 + 10 * (version % 8) } else { 200 };
            Endpoint::at(address(second, number), OTHER_NODE)
        })
        .collect();
    named_slice(&format!("{}-abcde", name(index)), &name(index), &members)
}

/// The parts of a real cluster's objects that a proxy does not need.
pub(super) fn like_a_cluster(mut object: Value) -> Value {
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!("6f1e7a52-8a0e-4a52-9c3e-1a2b3c4d5e6f");
    metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    metadata["generation"] = json!(3);
    metadata["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}":
            {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}}, "f:selector": {},
            "f:sessionAffinity": {}, "f:type": {}}},
    }]);
    object
}

fn changes(cluster: &EndToEnd, process: &AgentProcess, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let mut synced = process.log().iter().filter(|line| line.contains(" synced in ")).count();
    let mut time = |object: Value| -> Result<Duration, Box<dyn std::error::Error>> {
        std::thread::sleep(PAUSE);
        let begun = Instant::now();
        cluster.api.apply(&like_a_cluster(object))?;
        synced += 1;
        process.wait_for_lines(" synced in ", synced);
        Ok(begun.elapsed())
    };
    let spread = |change: usize| change * options.services / options.changes.max(1);
    let mut replaced = Vec::new();
    let mut scaled = Vec::new();
    for change in 0..options.changes {
        let index = spread(change) % options.services;
        replaced.push(time(slice_of(index, options.endpoints, 1))?);
        let endpoints = if change % 2 == 0 { options.endpoints + 1 } else { options.endpoints - 1 };
        scaled.push(time(slice_of(index, endpoints, 1))?);
    }
    print_quantiles("an endpoint replaced", replaced);
    print_quantiles("an endpoint more or less", scaled);
    Ok(())
}

fn print_quantiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: f64| {
        let last = times.len().saturating_sub(1);
        let index = (part * times.len() as f64) as usize;
        times.get(index.min(last)).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    println!(
        "{what}, from the API event to the committed transaction: median {:.2} ms, p99 {:.2} ms, of {}",
        at(0.5),
        at(0.99),
        times.len()
    );
}

/// Starts it again on the kernel that it left.
fn restart(cluster: &EndToEnd, process: AgentProcess) -> Result<(), Box<dyn std::error::Error>> {
    process.terminate();
    let begun = Instant::now();
    let process = cluster.agent();
    let line = process.wait_until_ready();
    print_start("restart", begun.elapsed(), &line, &process)
}

fn print_start(
    what: &str,
    took: Duration,
    line: &str,
    process: &AgentProcess,
) -> Result<(), Box<dyn std::error::Error>> {
    let (user, system) = processor_time(process)?;
    println!(
        "{what}: {:.0} ms from the start of the process; processor time {user} ms user, {system} ms system",
        took.as_secs_f64() * 1000.0
    );
    println!("  {}", line.split_once("follow: ").map_or(line, |(_, message)| message));
    println!(
        "  peak RSS {}; now {} of memory of its own and {} of mapped files",
        memory(process, "VmHWM")?,
        memory(process, "RssAnon")?,
        memory(process, "RssFile")?
    );
    Ok(())
}

/// Milliseconds that the process has spent in user space and in the kernel:
/// unlike the time that passed, these hardly depend on what else runs.
fn processor_time(process: &AgentProcess) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    // proc(5): the name in parentheses may contain anything; utime and stime
    // are the 12th and 13th behind it, in hundredths of a second.
    let (_, behind) = stat.rsplit_once(") ").ok_or("no name in stat")?;
    let mut times = behind.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
    match (times.next(), times.next()) {
        (Some(user), Some(system)) => Ok((user? * 10, system? * 10)),
        _ => Err("no times in stat".into()),
    }
}

fn memory(process: &AgentProcess, field: &str) -> Result<String, Box<dyn std::error::Error>> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes: f64 = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no such field")?.parse()?;
    Ok(format!("{:.1} MiB", kilobytes / 1024.0))
}
