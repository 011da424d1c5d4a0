//! The measurements as tasks of child processes: this program, started again.

use std::process::{Command, Stdio};

use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmap_proxy_lab::NetNs;

use super::agent::{Agent, FirstSync, SyncTimes};
use super::changes::{self, Burst, Changes};
use super::memory::{Resident, resident};
use super::statistics::milliseconds;
use super::workload::Workload;
use super::{Failure, floor, large_change, second_writer, user_space};

/// Number of repetitions of each kind of change.
const CHANGES: u32 = 200;
/// Number of changes in a burst.
const BURST: u32 = 1000;
/// The endpoints of the one large Service.
const LARGE: u32 = 10_000;

/// The task of a child process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Task {
    /// The agent's first sync.
    FirstSync,
    /// The floor of a first sync.
    Floor,
    /// A first sync, changes, a burst, and a restart.
    Changes,
    /// A new agent over what another one programmed.
    Restart,
    /// One Service with very many endpoints beside the cluster.
    LargeService,
    /// Very many Services added and removed at once.
    LargeChange,
    /// Another writer beside a first sync.
    SecondWriter,
    /// Single changes with no kernel.
    UserSpace,
}

/// The result of [`Task::Changes`].
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Programmed {
    /// Single changes.
    pub changes: Changes,
    /// The process after them.
    pub resident: Resident,
    /// Many changes at once.
    pub burst: Burst,
    /// A restart with nothing changed.
    pub restart: Restart,
}

/// The result of [`Task::Restart`].
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Restart {
    /// Parsing the manifests, in milliseconds.
    pub parse_ms: f64,
    /// Taking them into the store, in milliseconds.
    pub take_ms: f64,
    /// Reading the kernel, comparing, and what was sent.
    pub sync: SyncTimes,
    /// From the start of the agent until it is ready, in milliseconds.
    pub ready_ms: f64,
    /// The process afterwards.
    pub resident: Resident,
}

/// Does a task in this process, and returns what it measured.
///
/// # Errors
/// If the kernel refuses anything.
pub fn perform(task: Task, cluster: Workload, namespace: Option<&str>) -> Result<Value, Failure> {
    let measured = match (task, namespace) {
        (Task::FirstSync, _) => serde_json::to_value(first_sync(cluster)?)?,
        (Task::Floor, _) => serde_json::to_value(floor::run(cluster)?)?,
        (Task::Changes, _) => serde_json::to_value(programmed(cluster)?)?,
        (Task::Restart, Some(path)) => {
            let restarted = NetNs::open("restart", path)?.run(|| restart(cluster))?;
            serde_json::to_value(restarted?)?
        }
        (Task::Restart, None) => serde_json::to_value(restart(cluster)?)?,
        (Task::LargeService, _) => {
            let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
            agent.first_sync(cluster)?;
            serde_json::to_value(changes::large_service(&mut agent, cluster, LARGE, CHANGES / 4)?)?
        }
        (Task::UserSpace, _) => serde_json::to_value(user_space::run(cluster, CHANGES)?)?,
        (Task::LargeChange, _) => serde_json::to_value(large_change::run(cluster)?)?,
        (Task::SecondWriter, _) => serde_json::to_value(second_writer::run(cluster)?)?,
    };
    Ok(measured)
}

/// Does a task in a new process, and so in a new network namespace, or in
/// that of a path.
///
/// # Errors
/// If the task fails there; its reason is on standard error.
pub fn spawn<T: DeserializeOwned>(task: Task, cluster: Workload, namespace: Option<&str>) -> Result<T, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    let name = task.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    command.args(["scale-task", &name]);
    command.args(["--services", &cluster.services.to_string(), "--endpoints", &cluster.endpoints.to_string()]);
    command.args(namespace.map(|path| format!("--namespace={path}")));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        return Err(format!("{name} with {} services: {}", cluster.services, output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn first_sync(cluster: Workload) -> Result<FirstSync, Failure> {
    let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
    let measured = agent.first_sync(cluster)?;
    // The process ends with it: so a heap profiler, for which what is never
    // given back is a leak, tells what the agent holds after a first sync.
    std::mem::forget(agent);
    Ok(measured)
}

fn programmed(cluster: Workload) -> Result<Programmed, Failure> {
    let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
    agent.first_sync(cluster)?;
    // A restart knows the cluster as it was at first: before any change.
    let namespace = format!("/proc/{}/ns/net", std::process::id());
    let restart = spawn(Task::Restart, cluster, Some(&namespace))?;
    let changes = changes::single(&mut agent, cluster, CHANGES)?;
    let resident = resident()?;
    let burst = changes::burst(&mut agent, cluster, BURST)?;
    Ok(Programmed { changes, resident, burst, restart })
}

fn restart(cluster: Workload) -> Result<Restart, Failure> {
    let mut agent = Agent::start(&vmap_proxy_agent::netlink::families())?;
    let (parse_ms, take_ms) = agent.feed(cluster)?;
    let begun = std::time::Instant::now();
    let report = agent.sync()?;
    let ready_ms = parse_ms + take_ms + milliseconds(begun.elapsed());
    Ok(Restart { parse_ms, take_ms, sync: SyncTimes::of(&report), ready_ms, resident: resident()? })
}
