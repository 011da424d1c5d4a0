//! The agent's syncer on a node, step by step: when [`Proxy::apply`] returns,
//! the change is programmed and stale flows are deleted, as the agent does it.

use serde_json::Value;
use vmap_proxy_agent::conntrack::{Conntrack, StaleFlows};
use vmap_proxy_agent::sync::report::{Cleaned, SyncReport};
use vmap_proxy_agent::sync::{Attempt, Syncer};
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_lab::NetNs;

use crate::manifests::{ObjectName, changes};
use crate::syncer_thread::SyncerThread;

/// More pieces than any test has.
const MOST_PIECES: usize = 10_000;

/// What was left over of an earlier state, and is removed.
#[derive(Debug, Default)]
pub struct Settled {
    /// The number of elements that we could have written.
    pub removed: usize,
    /// Foreign ones.
    pub cleaned: Vec<Cleaned>,
}

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
        Self::start_listing(u32::MAX, namespace, config, objects)
    }

    /// The same, with a proxy that lists maps of at most this many elements.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    #[track_caller]
    pub fn start_listing(
        at_most: u32,
        namespace: &NetNs,
        config: ProxyConfig,
        objects: &[Value],
    ) -> (Self, SyncReport) {
        let thread = SyncerThread::start(namespace, config).unwrap_or_else(|error| panic!("{error}"));
        let proxy = Self { thread };
        proxy.with(move |syncer| {
            syncer.list_at_most(at_most);
            // Tests have few Services, and these are to take several rounds and both threads.
            syncer.look_up_at_once(3, 2);
        });
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
        let changes = all_changes(delete, apply);
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
        self.program_all(&[], objects)
    }

    /// The same; deletes first.
    ///
    /// # Panics
    ///
    /// As [`Self::program`].
    #[track_caller]
    pub fn program_all(&self, delete: &[&str], apply: &[Value]) -> SyncReport {
        self.thread.apply(all_changes(delete, apply)).unwrap_or_else(|error| panic!("{error}"))
    }

    /// One pass of the comparison in the background: the number of its pieces, and the first difference.
    ///
    /// # Panics
    ///
    /// If the kernel can't be read, or nothing ends the pass.
    #[track_caller]
    pub fn compare_in_pieces(&self) -> (usize, Option<String>) {
        let pass = self.with(|syncer| {
            for pieces in 1..=MOST_PIECES {
                let piece = syncer.compare_piece().map_err(|error| error.to_string())?;
                if piece.is_last || piece.difference.is_some() {
                    return Ok((pieces, piece.difference));
                }
            }
            Err("a pass without an end".to_owned())
        });
        pass.unwrap_or_else(|error: String| panic!("{error}"))
    }

    /// The same; returns the number of pieces.
    ///
    /// # Panics
    ///
    /// If there is a difference.
    #[track_caller]
    pub fn assert_nothing_differs(&self) -> usize {
        let (pieces, difference) = self.compare_in_pieces();
        assert_eq!(difference, None);
        pieces
    }

    /// Waits until nothing is left over of an earlier state. Returns what was removed.
    ///
    /// # Panics
    ///
    /// If they can't be removed.
    #[track_caller]
    pub fn settle(&self) -> Settled {
        let settled = self.with(|syncer| {
            let mut settled = Settled::default();
            while syncer.seeks_leftovers() {
                tokio::runtime::Handle::current().block_on(syncer.leftovers_found());
                let Attempt { report, failure } = syncer.remove_leftovers();
                if let Some(error) = failure {
                    return Err(error.to_string());
                }
                if syncer.is_pending() {
                    return Err("the kernel refused it".to_owned());
                }
                clean(syncer, &report)?;
                settled.removed += report.removed;
                settled.cleaned.extend(report.cleaned);
            }
            Ok(settled)
        });
        settled.unwrap_or_else(|error: String| panic!("{error}"))
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
    clean(syncer, &report)?;
    Ok(report)
}

fn clean(syncer: &Syncer, report: &SyncReport) -> Result<(), String> {
    let stale = StaleFlows::of_sync(syncer.planner(), syncer.store().node(), report);
    if !stale.is_empty() {
        let mut conntrack = Conntrack::open().map_err(|error| error.to_string())?;
        conntrack.clean(&stale).map_err(|error| error.to_string())?;
    }
    Ok(())
}

#[track_caller]
fn all_changes(delete: &[&str], apply: &[Value]) -> Vec<Change> {
    let delete: Vec<ObjectName<'_>> = delete.iter().map(|text| object_name(text)).collect();
    changes(&delete, apply).unwrap_or_else(|error| panic!("{error}"))
}

fn object_name(text: &str) -> ObjectName<'_> {
    let (kind, name) = text.split_once(' ').unwrap_or_else(|| panic!("no kind and name: {text}"));
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectName { kind, namespace, name }
}
