//! The agent's syncer on a thread of its own, in a network namespace.

use std::sync::mpsc;
use std::thread::JoinHandle;

use vmap_proxy_agent::netlink::{Kernel, local_addresses};
use vmap_proxy_agent::sync::Syncer;
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::{LabError, NetNs};

use crate::Failure;

type Job = Box<dyn FnOnce(&mut Syncer) + Send>;

/// A [`Syncer`] on a thread of its own, in a network namespace.
#[derive(Debug)]
pub struct SyncerThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<Result<Result<(), String>, LabError>>>,
}

impl SyncerThread {
    /// Starts it; nothing is programmed yet.
    ///
    /// # Errors
    /// If the namespace can't be entered or has no nf_tables.
    pub fn start(namespace: &NetNs, config: ProxyConfig) -> Result<Self, Failure> {
        let (jobs, received) = mpsc::channel::<Job>();
        let (opened, open) = mpsc::channel();
        let thread = namespace.spawn(move || serve(config, &received, &opened))?;
        open.recv().map_err(|_| "the syncer's thread did not start")??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a job with the syncer and waits for its answer.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn with<T: Send + 'static>(&self, job: impl FnOnce(&mut Syncer) -> T + Send + 'static) -> Result<T, Failure> {
        let (answer, answered) = mpsc::channel();
        let job: Job = Box::new(move |syncer| {
            // It fails only if the receiver is gone.
            let _ = answer.send(job(syncer));
        });
        self.jobs.as_ref().ok_or("the syncer has stopped")?.send(job).map_err(|_| "the syncer's thread ended")?;
        Ok(answered.recv()?)
    }

    /// Takes changes, and programs them.
    ///
    /// # Errors
    /// If the sync fails or the kernel refuses anything.
    pub fn apply(&self, changes: Vec<Change>) -> Result<SyncReport, Failure> {
        let report = self.with(move |syncer| {
            syncer.take_changes(changes);
            syncer.sync().map_err(|error| error.to_string())
        })??;
        match report.refused.first() {
            Some(refused) => Err(refused.description.clone().into()),
            None => Ok(report),
        }
    }
}

impl Drop for SyncerThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was already reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn serve(
    config: ProxyConfig,
    jobs: &mpsc::Receiver<Job>,
    opened: &mpsc::Sender<Result<(), String>>,
) -> Result<(), String> {
    let start = || -> Result<_, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let kernel = Kernel::open().map_err(|error| error.to_string())?;
        let mut syncer = Syncer::new(config, kernel, &Family::ALL);
        syncer.set_interface_addresses(runtime.block_on(local_addresses()).map_err(|error| error.to_string())?);
        Ok((runtime, syncer))
    };
    let started = start();
    let _ = opened.send(started.as_ref().map(|_| ()).map_err(Clone::clone));
    let (runtime, mut syncer) = started?;
    // A syncer watches for changes of others, on an event loop.
    let _context = runtime.enter();
    while let Ok(job) = jobs.recv() {
        job(&mut syncer);
    }
    Ok(())
}
