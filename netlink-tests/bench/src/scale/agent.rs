//! The agent's own path: store, planner, kernel, as `vmap-proxy run` wires
//! them, fed object by object as a source feeds them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use vmap_proxy_agent::netlink::{Kernel, OwnTable, local_addresses};
use vmap_proxy_agent::source::{ObjectChange, Origin};
use vmap_proxy_agent::sync::Syncer;
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;

use super::Failure;
use super::memory::{Resident, kernel_bytes, resident};
use super::statistics::{milliseconds, processor_ms};
use super::workload::{NODE, Workload, parse};

/// The configuration that all measurements run with.
pub fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: NODE.to_owned(),
        detect_local: DetectLocal::ClusterCidr("10.128.0.0/9".parse().into_iter().collect()),
        ..ProxyConfig::default()
    }
}

/// A [`Syncer`] and the event loop it runs in.
#[derive(Debug)]
pub struct Agent {
    /// The event loop.
    pub runtime: Runtime,
    /// The syncer.
    pub syncer: Syncer,
}

/// One kind of sync, taken apart. Times in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct SyncTimes {
    /// From the call to the last commit.
    pub sync_ms: f64,
    /// Of that: reading the kernel, selecting, comparing, planning, as far as no
    /// commit ran beside it.
    pub compile_ms: f64,
    /// Of that: encoding.
    pub encode_ms: f64,
    /// Of that: the kernel.
    pub commit_ms: f64,
    /// The number of committed transactions.
    pub transactions: usize,
    /// Elements added.
    pub added: usize,
    /// Elements removed.
    pub removed: usize,
    /// The longest single transaction: for so long other writers wait.
    pub longest_commit_ms: f64,
}

impl SyncTimes {
    /// Takes a report apart.
    pub fn of(report: &SyncReport) -> Self {
        let commits: Duration = report.commits.iter().sum();
        Self {
            sync_ms: milliseconds(report.duration),
            compile_ms: milliseconds(report.duration.saturating_sub(commits)),
            encode_ms: milliseconds(report.encoding),
            commit_ms: milliseconds(commits.saturating_sub(report.encoding)),
            transactions: report.transactions,
            added: report.added,
            removed: report.removed,
            longest_commit_ms: milliseconds(report.commits.iter().max().copied().unwrap_or_default()),
        }
    }
}

/// The duration of a first sync.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct FirstSync {
    /// Parsing the manifests, in milliseconds.
    pub parse_ms: f64,
    /// Taking them into the store, in milliseconds.
    pub take_ms: f64,
    /// The sync itself.
    pub sync: SyncTimes,
    /// Its processor time, in milliseconds.
    pub processor_ms: f64,
    /// The process afterwards.
    pub resident: Resident,
    /// The growth of kernel memory, in bytes, of the whole machine.
    pub kernel_bytes: u64,
    /// The kernel's state.
    pub objects: Objects,
}

/// The number of objects in the kernel, both families together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objects {
    /// Tables.
    pub tables: usize,
    /// Chains.
    pub chains: usize,
    /// Rules.
    pub rules: usize,
    /// Sets and maps.
    pub maps: usize,
}

/// A change as a source hands it on.
pub fn read(change: &Change) -> ObjectChange {
    ObjectChange::read(change, NODE, Origin::ApiServer).0
}

impl Agent {
    /// Opens the kernel in this thread's namespace; nothing is programmed yet.
    ///
    /// # Errors
    /// Without root or nf_tables.
    pub fn start(families: &[Family]) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kernel = Kernel::open()?;
        let mut syncer = Syncer::new(config(), kernel, families);
        syncer.set_interface_addresses(runtime.block_on(local_addresses())?);
        Ok(Self { runtime, syncer })
    }

    /// Feeds a cluster, object by object. Returns what parsing and what taking
    /// took, in milliseconds.
    ///
    /// # Errors
    /// If a manifest is not of the form that we follow.
    pub fn feed(&mut self, cluster: Workload) -> Result<(f64, f64), Failure> {
        let (mut parsing, mut taking) = (Duration::ZERO, Duration::ZERO);
        for manifest in cluster.manifests() {
            let begun = Instant::now();
            let change = parse(&manifest)?;
            let parsed = Instant::now();
            self.take(change)?;
            parsing += parsed - begun;
            taking += parsed.elapsed();
        }
        Ok((milliseconds(parsing), milliseconds(taking)))
    }

    /// Takes one change.
    ///
    /// # Errors
    /// If anything in it can't be used: our own manifests are sound.
    pub fn take(&mut self, change: Change) -> Result<(), Failure> {
        match self.syncer.take_changes([change]).first() {
            Some(problem) => Err(problem.to_string().into()),
            None => Ok(()),
        }
    }

    /// Programs what was taken.
    ///
    /// # Errors
    /// If the kernel refuses anything.
    pub fn sync(&mut self) -> Result<SyncReport, Failure> {
        let report = self.runtime.block_on(async { self.syncer.sync() })?;
        match report.refused.first() {
            Some(refused) => Err(refused.description.clone().into()),
            None => Ok(report),
        }
    }

    /// Feeds and programs a cluster.
    ///
    /// # Errors
    /// As [`Self::feed`] and [`Self::sync`].
    pub fn first_sync(&mut self, cluster: Workload) -> Result<FirstSync, Failure> {
        let (parse_ms, take_ms) = self.feed(cluster)?;
        let before = kernel_bytes()?;
        let begun = processor_ms()?;
        let report = self.sync()?;
        let processor_ms = processor_ms()? - begun;
        let after = kernel_bytes()?;
        Ok(FirstSync {
            parse_ms,
            take_ms,
            sync: SyncTimes::of(&report),
            processor_ms,
            resident: resident()?,
            kernel_bytes: after.saturating_sub(before),
            objects: self.objects()?,
        })
    }

    /// Counts what the kernel holds.
    ///
    /// # Errors
    /// If it can't be listed.
    pub fn objects(&mut self) -> Result<Objects, Failure> {
        let mut objects = Objects::default();
        for family in Family::ALL {
            let Some(table) = self.syncer.kernel().read_table(OwnTable::Main, family)? else { continue };
            objects.tables += 1;
            objects.maps += table.map_names().count();
            for name in table.chain_names() {
                objects.chains += 1;
                objects.rules += table.chain(name).map_or(0, |chain| chain.rule_count());
            }
        }
        Ok(objects)
    }
}
