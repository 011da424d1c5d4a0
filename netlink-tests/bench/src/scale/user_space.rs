//! The cost of one change outside the kernel, without a kernel: taken into the
//! store, planned and encoded, and then dropped.
//!
//! Beside the changes of a programmed cluster this tells two things apart that
//! the clock can't: how much work there is, and how long the same work takes
//! after the kernel's walk over all verdicts has emptied the processor's
//! caches. Here nothing empties them, or a sweep over a large buffer does, in
//! a cluster of any size alike.
//!
//! For a profiler, [`one_change`] is all that counts, and [`pass`] ends where a
//! kind of change ends.

use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::model::{Change, PerFamily, Store};
use vmap_proxy_compiler::plan::Planner;

use super::Failure;
use super::agent::config;
use super::statistics::{Summary, milliseconds};
use super::workload::{NODE, Pods, Workload, parse, slice_at};

/// Larger than the caches that a processor of a server has for one core.
const SWEEP: usize = 64 << 20;
/// As processors have them.
const CACHE_LINE: usize = 64;

/// One kind of change, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Caches {
    /// One after the other, each of another Service.
    pub warm_us: Summary,
    /// Each after a sweep that leaves nothing of it in the caches.
    pub emptied_us: Summary,
}

/// Every kind of change of a slice.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct UserSpace {
    /// A pod is replaced by another.
    pub replace: Caches,
    /// A Service gets one endpoint more.
    pub grow: Caches,
    /// A Service loses one endpoint.
    pub shrink: Caches,
}

/// The programmed state in the planner.
struct Node {
    store: Store,
    planner: Planner,
}

/// Measures `count` changes of each kind, on Services spread over the cluster.
///
/// # Errors
/// If a change changes nothing.
pub fn run(cluster: Workload, count: u32) -> Result<UserSpace, Failure> {
    let mut node = Node::with(cluster)?;
    let count = count.min(cluster.services).max(1);
    let service = |nth: u32| (u64::from(nth) * u64::from(cluster.services) / u64::from(count)) as u32;
    let changes = |pods: &dyn Fn(u32) -> Pods, position: u32| -> Result<Vec<Change>, Failure> {
        (0..count).map(|nth| parse(&slice_at(service(nth), pods(nth), position))).collect()
    };
    let first = |nth: u32| cluster.pods(service(nth));
    let replaced = |nth: u32| Pods { replaced: Some((cluster.endpoints / 2, cluster.spare_pod(nth))), ..first(nth) };
    let grown = |nth: u32| Pods {
        count: cluster.endpoints + 1,
        replaced: Some((cluster.endpoints, cluster.spare_pod(count + nth))),
        ..first(nth)
    };
    let mut measured = UserSpace::default();
    let mut buffer = vec![0; SWEEP];
    // The planner believes that everything it planned was committed, so every
    // change is taken back before the next kind of change.
    for sweep in [None, Some(&mut buffer)] {
        let emptied = sweep.is_some();
        let sweep = &mut sweep.map(Vec::as_mut_slice);
        let mut kind = |caches: &mut Caches, changes: Vec<Change>| -> Result<(), Failure> {
            let times = if emptied { &mut caches.emptied_us } else { &mut caches.warm_us };
            *times = pass(&mut node, changes, sweep)?;
            Ok(())
        };
        kind(&mut measured.replace, changes(&replaced, cluster.endpoints / 2)?)?;
        kind(&mut Caches::default(), changes(&first, cluster.endpoints / 2)?)?;
        kind(&mut measured.grow, changes(&grown, cluster.endpoints)?)?;
        kind(&mut measured.shrink, changes(&first, cluster.endpoints)?)?;
    }
    Ok(measured)
}

/// Makes all these changes.
#[inline(never)]
fn pass(node: &mut Node, changes: Vec<Change>, sweep: &mut Option<&mut [u8]>) -> Result<Summary, Failure> {
    let mut times = Vec::with_capacity(changes.len());
    for change in changes {
        if let Some(buffer) = sweep {
            buffer.iter_mut().step_by(CACHE_LINE).for_each(|byte| *byte = byte.wrapping_add(1));
            black_box(buffer);
        }
        let begun = Instant::now();
        let bytes = one_change(node, change);
        let took = begun.elapsed();
        if bytes == 0 {
            return Err("a change that was to be measured changed nothing".into());
        }
        times.push(milliseconds(took) * 1e3);
    }
    Ok(Summary::of(times))
}

/// The work of one change, from the parsed object to the bytes for the kernel.
/// Returns how many there are.
#[inline(never)]
fn one_change(node: &mut Node, change: Change) -> usize {
    node.store.apply(change);
    let plan = node.planner.update(&mut node.store).unwrap_or_default();
    plan.transactions.iter().map(|transaction| black_box(::vmap_proxy_agent::netlink::encode(transaction)).len()).sum()
}

impl Node {
    /// A node on which the whole cluster counts as programmed.
    fn with(cluster: Workload) -> Result<Self, Failure> {
        let mut store = Store::new(NODE);
        for manifest in cluster.manifests() {
            store.apply(parse(&manifest)?);
        }
        let mut planner = Planner::new(config(), store.node());
        planner.resync(&mut store, PerFamily::default()).for_each(drop);
        Ok(Self { store, planner })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test of sound input")]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_planned_again_and_again() {
        let measured = run(Workload { services: 3, endpoints: 5 }, 2).unwrap();
        for caches in [measured.replace, measured.grow, measured.shrink] {
            assert_eq!((caches.warm_us.count, caches.emptied_us.count), (2, 2));
        }
    }
}
