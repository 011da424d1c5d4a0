//! The consequences of a sync other than rules.
//!
//! The sync loop makes one owned value of each sync, [`SyncDone`], and hands it to
//! small listeners. None of them queries the syncer or knows another, and the work
//! of each is bounded by the size of the change:
//!
//! * [`metrics`]: counts and times it;
//! * [`health`]: whether the proxy keeps up;
//! * [`health_checks`]: the health check ports of Services;
//! * [`flows`]: deletes tracked flows that must not go on;
//! * [`resets`]: ends connections to endpoints that are gone;
//! * [`localhost_node_ports`]: serves NodePorts on localhost;
//! * [`events`]: Kubernetes Events about Services that can't be programmed.

mod done;
pub mod events;
pub mod flows;
pub mod health;
pub mod health_checks;
pub mod localhost_node_ports;
pub mod metrics;
pub mod resets;

pub use done::{HealthChecks, LocalCounts, SyncDone, WithoutLocal};

use crate::source::Event;

/// The reason why the kernel may not have the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// In one sentence.
    pub reason: String,
    /// Whether Services may have lost rules, as opposed to a change that is
    /// only late.
    pub rules_missing: bool,
}

/// A listener of the sync loop. The loop waits for each call, so none may
/// block.
pub trait Observer {
    /// A source reported something. Nothing of it is programmed yet.
    fn on_event(&mut self, _event: &Event) {}
    /// Something waits to be programmed.
    fn on_queued(&mut self) {}
    /// A sync ended, well or badly. A failed one will be tried again.
    fn on_sync(&mut self, _done: &SyncDone) {}
    /// Elements of an earlier state were removed. No change was programmed.
    fn on_removal(&mut self, _done: &SyncDone) {}
    /// Chains that nothing uses any more could not be deleted. That will be
    /// tried again.
    fn on_cleanup_failed(&mut self) {}
    /// The kernel may not have the desired state. Called again when the reason
    /// changes.
    fn on_trouble(&mut self, _trouble: &Trouble) {}
    /// The kernel has the desired state, and no program is about to change
    /// that.
    fn on_recovery(&mut self) {}
}

/// An observer that does nothing.
#[derive(Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

/// Several observers, called one after the other.
pub type Observers = Vec<Box<dyn Observer + Send>>;

impl Observer for Observers {
    fn on_event(&mut self, event: &Event) {
        self.iter_mut().for_each(|observer| observer.on_event(event));
    }

    fn on_queued(&mut self) {
        self.iter_mut().for_each(|observer| observer.on_queued());
    }

    fn on_sync(&mut self, done: &SyncDone) {
        self.iter_mut().for_each(|observer| observer.on_sync(done));
    }

    fn on_removal(&mut self, done: &SyncDone) {
        self.iter_mut().for_each(|observer| observer.on_removal(done));
    }

    fn on_cleanup_failed(&mut self) {
        self.iter_mut().for_each(|observer| observer.on_cleanup_failed());
    }

    fn on_trouble(&mut self, trouble: &Trouble) {
        self.iter_mut().for_each(|observer| observer.on_trouble(trouble));
    }

    fn on_recovery(&mut self) {
        self.iter_mut().for_each(|observer| observer.on_recovery());
    }
}
