//! Another writer of the same namespace, while the agent loads a cluster: one
//! commit blocks every other, so its latency shows how long the agent holds
//! the kernel's commit lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;

use super::Failure;
use super::agent::{Agent, SyncTimes};
use super::raw_socket::RawSocket;
use super::statistics::{Summary, milliseconds};
use super::workload::Workload;

/// The pause of the writer between two commits.
const REST: Duration = Duration::from_millis(1);

/// The results of both.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct SecondWriter {
    /// One small commit of the second writer while nobody else writes, in
    /// milliseconds.
    pub alone_ms: Summary,
    /// The same while the agent programs the cluster.
    pub beside_ms: Summary,
    /// The duration of the agent's sync beside the writer.
    pub agent: SyncTimes,
}

/// Loads a cluster while a second writer adds and removes an element of
/// another table. The agent has the IPv4 table alone here, the writer that of
/// IPv6.
///
/// # Errors
/// If the kernel refuses anything.
pub fn run(cluster: Workload) -> Result<SecondWriter, Failure> {
    let mut agent = Agent::start(&[Family::Ipv4])?;
    agent.feed(cluster)?;
    let mut writer = Writer::start()?;
    let alone = writer.write_for(Duration::from_millis(200))?;
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let (running, runs) = mpsc::channel();
    let thread = thread::spawn(move || writer.write_until(&seen, &running));
    runs.recv()?;
    let report = agent.sync();
    stop.store(true, Ordering::Relaxed);
    let beside = thread.join().map_err(|_| "the second writer panicked")??;
    Ok(SecondWriter { alone_ms: Summary::of(alone), beside_ms: Summary::of(beside), agent: SyncTimes::of(&report?) })
}

struct Writer {
    socket: RawSocket,
    add: Vec<u8>,
    remove: Vec<u8>,
}

impl Writer {
    fn start() -> Result<Self, Failure> {
        let mut socket = RawSocket::open()?;
        socket.commit(&encode(vec![Action::AddTable, Action::AddMap(Map::ClusterIps)]))?;
        let element =
            Element { map: Map::ClusterIps, key: Key::Address("fd00::1".parse()?), data: Data::Nothing, comment: None };
        let add = encode(vec![Action::AddElement(element.clone())]);
        let remove = encode(vec![Action::DeleteElement(element)]);
        Ok(Self { socket, add, remove })
    }

    /// One element in, one element out.
    fn write(&mut self, latencies: &mut Vec<f64>) -> Result<(), Failure> {
        latencies.push(milliseconds(self.socket.commit(&self.add)?));
        latencies.push(milliseconds(self.socket.commit(&self.remove)?));
        thread::sleep(REST);
        Ok(())
    }

    fn write_for(&mut self, time: Duration) -> Result<Vec<f64>, Failure> {
        let begun = Instant::now();
        let mut latencies = Vec::new();
        while begun.elapsed() < time {
            self.write(&mut latencies)?;
        }
        Ok(latencies)
    }

    fn write_until(&mut self, stop: &AtomicBool, running: &mpsc::Sender<()>) -> Result<Vec<f64>, Failure> {
        let mut latencies = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            self.write(&mut latencies)?;
            // Nobody listens any more after the first.
            let _ = running.send(());
        }
        Ok(latencies)
    }
}

fn encode(actions: Vec<Action>) -> Vec<u8> {
    let operations = actions.into_iter().map(|action| Operation { family: Family::Ipv6, action, owner: None });
    vmap_proxy_agent::netlink::encode(&Transaction { operations: operations.collect() })
}
