//! The least that a first sync can take: the transactions that the agent would
//! send, encoded before the clock starts, over a raw socket.

use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::model::{PerFamily, Store};
use vmap_proxy_compiler::plan::Planner;

use super::Failure;
use super::agent::config;
use super::raw_socket::RawSocket;
use super::statistics::{milliseconds, processor_ms};
use super::workload::{NODE, Workload, parse};

/// The duration of the lower bound.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Floor {
    /// All commits together, in milliseconds.
    pub commit_ms: f64,
    /// The processor time of that, in milliseconds.
    pub processor_ms: f64,
    /// Each of them, in order, in milliseconds.
    pub commits_ms: Vec<f64>,
    /// Their size, in MiB.
    pub mib: f64,
    /// The longest of them, in milliseconds.
    pub longest_commit_ms: f64,
}

/// Compiles and encodes a cluster, then sends it.
///
/// # Errors
/// If the kernel refuses anything.
pub fn run(cluster: Workload) -> Result<Floor, Failure> {
    let batches = batches(cluster)?;
    let mut socket = RawSocket::open()?;
    let mut floor = Floor::default();
    let begun = processor_ms()?;
    for batch in &batches {
        let took = milliseconds(socket.commit(batch)?);
        floor.commit_ms += took;
        floor.commits_ms.push(took);
        floor.longest_commit_ms = floor.longest_commit_ms.max(took);
        floor.mib += batch.len() as f64 / f64::from(1 << 20);
    }
    floor.processor_ms = processor_ms()? - begun;
    Ok(floor)
}

/// The bytes of every transaction of a first sync.
fn batches(cluster: Workload) -> Result<Vec<Vec<u8>>, Failure> {
    let mut store = Store::new(NODE);
    for manifest in cluster.manifests() {
        store.apply(parse(&manifest)?);
    }
    let mut planner = Planner::new(config(), store.node());
    let transactions = planner.resync(&mut store, PerFamily::default());
    Ok(transactions.map(|transaction| ::vmap_proxy_agent::netlink::encode(&transaction)).collect())
}
