//! Ends TCP connections to endpoints that are gone, if the configuration wants
//! it: on a thread of its own, because it reads the kernel's table of
//! connections.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use vmap_proxy_compiler::words::count;

use super::{Observer, SyncDone};
use crate::conntrack::resets::Resets;
use crate::conntrack::{Conntrack, ConntrackError};
use crate::metrics::Metrics;
use crate::netlink::FlowRelease;
use crate::sync::gone::GoneEndpoints;

/// The wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3600);

/// Hands endpoints that are gone to the thread, and never waits.
pub struct ConnectionResets {
    grace: Duration,
    metrics: Metrics,
    /// Has connections meet the rules again, if there is a flow table.
    release: Option<FlowRelease>,
    /// Reaches the thread, once there is one.
    queue: Option<Sender<GoneEndpoints>>,
}

impl ConnectionResets {
    /// Connections go on for `grace` after their endpoint is gone. `release`
    /// reaches the flow table, if there is one.
    pub fn new(grace: Duration, metrics: Metrics, release: Option<FlowRelease>) -> Self {
        Self { grace, metrics, release, queue: None }
    }

    fn start(&self) -> Option<Sender<GoneEndpoints>> {
        let (queue, queued) = channel();
        let (grace, metrics, release) = (self.grace, self.metrics.clone(), self.release.clone());
        let work = move || {
            if let Err(error) = reset_all(&queued, grace, &metrics, release.as_ref()) {
                tracing::warn!("connections to endpoints that are gone are not reset: {error}");
            }
        };
        match std::thread::Builder::new().name("resets".to_owned()).spawn(work) {
            Ok(_) => Some(queue),
            Err(error) => {
                tracing::warn!("connections to endpoints that are gone go on: no thread could be created: {error}");
                None
            }
        }
    }
}

impl Observer for ConnectionResets {
    fn on_sync(&mut self, done: &SyncDone) {
        let changes = &done.report.gone;
        if changes.gone.is_empty() && changes.back.is_empty() {
            return;
        }
        if self.queue.is_none() {
            self.queue = self.start();
        }
        // A thread that has ended said why.
        self.queue.iter().for_each(|queue| _ = queue.send(changes.clone()));
    }
}

/// Takes endpoints and resets their connections when it is time; returns when
/// the channel closes.
fn reset_all(
    queued: &Receiver<GoneEndpoints>,
    grace: Duration,
    metrics: &Metrics,
    release: Option<&FlowRelease>,
) -> Result<(), ConntrackError> {
    let mut conntrack = Conntrack::open()?;
    let mut resets = Resets::new(grace);
    loop {
        let now = Instant::now();
        let wait = resets.next().map_or(IDLE, |due| due.saturating_duration_since(now));
        match queued.recv_timeout(wait) {
            Ok(changes) => resets.take(&changes, Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        match resets.advance(&mut conntrack, Instant::now()) {
            Ok(0) => {}
            Ok(connections) => {
                metrics.connections_reset(connections);
                // The flow table would carry their packets past the rule that resets them.
                release.into_iter().for_each(FlowRelease::request);
                tracing::info!("resets for {} to endpoints that are gone", count(connections, "connection"));
            }
            Err(error) => tracing::warn!("some connections to endpoints that are gone go on: {error}"),
        }
    }
}
