//! The agent's syncer on a node, step by step: when [`Proxy::apply`] returns,
//! the change is programmed and stale flows are deleted, as the agent does it.

use serde_json::Value;
use vmap_proxy_agent::conntrack::{Conntrack, StaleFlows};
use vmap_proxy_agent::sync::Syncer;
use vmap_proxy_agent::sync::report::SyncReport;
use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_lab::NetNs;

use crate::manifests::{ObjectName, changes};
use crate::syncer_thread::SyncerThread;

/// A proxy in a network namespace.
#[derive(Debug)]
pub struct Proxy {
    thread: SyncerThread,
}

impl Proxy {
    /// Starts it on what exists already.
    ///
    /// # Panics
    ///
    /// If it can't start, or a manifest is not of its form.
    #[track_caller]
    pub fn start(namespace: &NetNs, config: ProxyConfig, objects: &[Value]) -> (Self, SyncReport) {
        let thread = SyncerThread::start(namespace, config).unwrap_or_else(|error| panic!("{error}"));
        let proxy = Self { thread };
        let report = proxy.apply(objects);
        (proxy, report)
    }

    /// Applies manifests in one go, and cleans up after them.
    ///
    /// # Panics
    ///
    /// If the sync fails. What the kernel refuses is in the report.
    #[track_caller]
    pub fn apply(&self, objects: &[Value]) -> SyncReport {
        self.change(&[], objects)
    }

    /// Deletes an object: kind, namespace and name, as `Service shop/web`.
    ///
    /// # Panics
    ///
    /// As [`Self::apply`].
    #[track_caller]
    pub fn delete(&self, object: &str) -> SyncReport {
        self.change(&[object], &[])
    }

    /// Deletes and applies in one go.
    ///
    /// # Panics
    ///
    /// As [`Self::apply`].
    #[track_caller]
    pub fn change(&self, delete: &[&str], apply: &[Value]) -> SyncReport {
        let delete: Vec<ObjectName<'_>> = delete.iter().map(|text| object_name(text)).collect();
        let changes = changes(&delete, apply).unwrap_or_else(|error| panic!("{error}"));
        self.with(move |syncer| {
            syncer.take_changes(changes);
            sync_and_clean(syncer)
        })
        .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Applies manifests and lets stale flows be: a datagram whose pod leaves
    /// before it answers would lose its answer with its flow.
    ///
    /// # Panics
    ///
    /// If the sync fails, or the kernel refuses anything.
    #[track_caller]
    pub fn program(&self, objects: &[Value]) -> SyncReport {
        let changes = changes(&[], objects).unwrap_or_else(|error| panic!("{error}"));
        self.thread.apply(changes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs a job with the syncer.
    ///
    /// # Panics
    ///
    /// If its thread is gone.
    #[track_caller]
    pub fn with<T: Send + 'static>(&self, job: impl FnOnce(&mut Syncer) -> T + Send + 'static) -> T {
        self.thread.with(job).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// One turn of the agent's loop (`vmap_proxy_agent::follow` and `vmap_proxy_agent::run::observer`).
fn sync_and_clean(syncer: &mut Syncer) -> Result<SyncReport, String> {
    let report = syncer.sync().map_err(|error| error.to_string())?;
    let (planner, node) = (syncer.planner(), syncer.store().node());
    let stale = StaleFlows::of_sync(planner, node, &report);
    if !stale.is_empty() {
        let mut conntrack = Conntrack::open().map_err(|error| error.to_string())?;
        conntrack.clean(&stale).map_err(|error| error.to_string())?;
    }
    Ok(report)
}

fn object_name(text: &str) -> ObjectName<'_> {
    let (kind, name) = text.split_once(' ').unwrap_or_else(|| panic!("no kind and name: {text}"));
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectName { kind, namespace, name }
}
