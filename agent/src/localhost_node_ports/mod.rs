//! NodePorts on localhost, as in kube-proxy 1.37 (KEP-6032): a relay in this
//! process listens on 127.0.0.1 and ::1 at each NodePort that has endpoints.
//!
//! No rule can do that: a packet from a loopback address may not leave the node
//! unless `route_localnet` is set, which opens services on 127.0.0.1 to
//! neighbours (CVE-2020-8558) and does not exist for IPv6.
//!
//! * [`changes`]: the NodePorts of Services, as the sync loop reports them;
//! * `relay`: the ports that are served, and their changes;
//! * `listening`: one socket, and attempts to open it;
//! * `tcp`, `udp`: connections and flows from there to an endpoint;
//! * `endpoints`: the choice of one;
//! * `limits`: how many sockets all of them may have.
//!
//! The relay has a thread of its own, so that its traffic delays nothing else.
//! All its tasks are on that thread and share state without locks.

pub mod changes;
mod endpoints;
pub mod limits;
mod listening;
mod port;
mod relay;
mod tcp;
mod udp;

use std::io;
use std::thread;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use crate::metrics::LocalhostMetrics;
use changes::NodePortChanges;
use limits::Limits;
use relay::Relay;

/// The relay could not be started.
#[derive(Debug, Error)]
#[error(
    "the relay for NodePorts on localhost could not be started: {0}; they are not served on localhost until the next \
     start"
)]
pub struct StartError(#[from] io::Error);

/// A running relay. When this is dropped, it closes its sockets and ends.
#[derive(Debug)]
pub struct LocalhostNodePorts {
    changes: mpsc::UnboundedSender<NodePortChanges>,
}

impl LocalhostNodePorts {
    /// Starts the thread. It serves nothing yet.
    ///
    /// # Errors
    /// If there are no threads or descriptors left.
    pub fn start(limits: Limits, metrics: LocalhostMetrics) -> Result<Self, StartError> {
        let (changes, received) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("localhost".to_owned()).spawn(move || {
            LocalSet::new().block_on(&runtime, follow(received, Relay::new(limits, metrics)));
        })?;
        Ok(Self { changes })
    }

    /// Hands changes on. It never waits. Returns false if the relay has ended.
    pub fn change(&self, changes: NodePortChanges) -> bool {
        self.changes.send(changes).is_ok()
    }
}

/// Applies changes until no more can come.
async fn follow(mut changes: mpsc::UnboundedReceiver<NodePortChanges>, mut relay: Relay) {
    while let Some(changes) = changes.recv().await {
        relay.apply(changes);
    }
}

#[cfg(test)]
mod tests;
