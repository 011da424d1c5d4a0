//! Kubernetes Events (`events.k8s.io/v1`), which `kubectl describe` shows:
//! those of kube-proxy under its names, and a few about Services that cannot be
//! programmed as they ask.
//!
//! Best effort: a [`Recorder`] queues an Event and never waits; [`post`] sends it
//! in its own time. What the API server does not take is dropped.
//!
//! Not to be confused with [`crate::source::Event`], which is about objects.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder as Publisher, Reporter};
use tokio::sync::mpsc;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::plan::planner::Denied;

/// kube-proxy's name, so that filters on its events keep working.
const REPORTING_CONTROLLER: &str = "kube-proxy";

/// Maximum number of waiting Events; further ones are dropped.
const QUEUE: usize = 128;

/// The shortest time between two Events. A change that hits every Service must
/// not become a storm from every node.
const PACE: Duration = Duration::from_millis(200);

/// Longest time for posting one.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;

/// The action of kube-proxy's own Events.
const START: &str = "StartKubeProxy";

/// An event to report.
#[derive(Debug)]
pub struct Notice {
    regarding: ObjectReference,
    is_warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
}

impl Notice {
    fn event(&self) -> Event {
        Event {
            type_: if self.is_warning { EventType::Warning } else { EventType::Normal },
            reason: self.reason.to_owned(),
            action: self.action.to_owned(),
            note: (!self.note.is_empty()).then(|| self.note.clone()),
            secondary: None,
        }
    }
}

/// Queues Events without blocking; drops them if the queue is full or closed.
#[derive(Debug, Clone)]
pub struct Recorder {
    node: String,
    sender: mpsc::Sender<Notice>,
}

/// Returns a recorder for this node's agent, and the queue for [`post`].
pub fn channel(node_name: &str) -> (Recorder, mpsc::Receiver<Notice>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Recorder { node: node_name.to_owned(), sender }, receiver)
}

impl Recorder {
    /// `Starting`, on the Node.
    pub fn starting(&self) {
        let regarding = self.node_reference();
        self.send(Notice { regarding, is_warning: false, reason: "Starting", action: START, note: String::new() });
    }

    /// `FailedToStartProxierHealthcheck`, on the Node: the health server cannot
    /// listen on its address.
    pub fn health_server_failed(&self, why: &str) {
        let note = format!("failed to start proxy healthz: {why}");
        self.warn(self.node_reference(), "FailedToStartProxierHealthcheck", START, note);
    }

    /// `FailedToStartServiceHealthcheck`, on the Service: its
    /// `healthCheckNodePort` can't be listened on.
    pub fn service_health_server_failed(&self, service: &ServiceName, why: &str) {
        let note = format!("node {} failed to start healthcheck: {why}", self.node);
        self.warn(reference(service), "FailedToStartServiceHealthcheck", "Listen", note);
    }

    /// `FailedToProgram`, on the Service: the kernel refused a part of it, and
    /// it is left as it was.
    pub fn quarantined(&self, service: &ServiceName, why: &str) {
        let note = format!(
            "node {} cannot program the latest state of this Service, and tries again when it changes and after 30 s to 1 h: {why}",
            self.node
        );
        self.warn(reference(service), "FailedToProgram", "SyncRules", note);
    }

    /// `ServiceTooLarge`, on the Service: it asks for more elements than one
    /// Service may have, and is not programmed.
    pub fn too_large(&self, service: &ServiceName, elements: u64, limit: u64) {
        let note = format!(
            "node {} does not program this Service: its ports, addresses and endpoints may need {elements} elements, and \
             the limit is {limit}; make several Services of it",
            self.node
        );
        self.warn(reference(service), "ServiceTooLarge", "SyncRules", note);
    }

    /// `FrontendConflict`, on the Service: another one holds an address and
    /// port that it asks for.
    pub fn frontend_taken(&self, denied: &Denied) {
        let Denied { name, claim, holder, reason } = denied;
        let note = format!("{claim} belongs to Service {holder}, which {reason} and keeps it");
        self.warn(reference(name), "FrontendConflict", "SyncRules", note);
    }

    /// kube-proxy uses the Node's name as its uid, and `kubectl describe node`
    /// searches for that.
    fn node_reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(self.node.clone()),
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        }
    }

    fn warn(&self, regarding: ObjectReference, reason: &'static str, action: &'static str, mut note: String) {
        let end = (0..=note.len().min(MAX_NOTE)).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or(0));
        self.send(Notice { regarding, is_warning: true, reason, action, note });
    }

    fn send(&self, notice: Notice) {
        let reason = notice.reason;
        if self.sender.try_send(notice).is_err() {
            tracing::debug!("an Event was dropped: {reason}");
        }
    }
}

/// kube-proxy puts namespace and name for the Service's uid, which neither it
/// nor this agent keeps.
fn reference(service: &ServiceName) -> ObjectReference {
    ObjectReference {
        kind: Some("Service".to_owned()),
        api_version: Some("v1".to_owned()),
        namespace: Some(service.namespace().to_owned()),
        name: Some(service.name().to_owned()),
        uid: Some(service.to_string()),
        ..ObjectReference::default()
    }
}

/// Posts Events until no recorder is left. The same Event again, within minutes,
/// becomes one with a count.
pub async fn post(client: kube::Client, node_name: &str, mut notices: mpsc::Receiver<Notice>) {
    let reporter =
        Reporter { controller: REPORTING_CONTROLLER.to_owned(), instance: Some(format!("kube-proxy-{node_name}")) };
    let publisher = Publisher::new(client, reporter);
    while let Some(notice) = notices.recv().await {
        let (event, reason) = (notice.event(), notice.reason);
        match tokio::time::timeout(PATIENCE, publisher.publish(&event, &notice.regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!("the Event {reason} was not taken: {error}"),
            Err(_) => tracing::debug!("the Event {reason} was not taken within {PATIENCE:?}"),
        }
        tokio::time::sleep(PACE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_queue_holds_is_dropped_and_nobody_waits() {
        let (recorder, mut notices) = channel("n1");
        for _ in 0..QUEUE + 10 {
            recorder.starting();
        }
        let mut count = 0;
        while notices.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
        drop(notices);
        recorder.starting();
    }

    #[test]
    fn long_notes_are_cut_between_characters() {
        let (recorder, mut notices) = channel("n1");
        recorder.quarantined(&ServiceName::new("a", "b"), &"\u{20ac}".repeat(1000));
        let notice = notices.try_recv().unwrap();
        let note = notice.event().note.unwrap();
        assert!(note.len() <= MAX_NOTE && note.len() > MAX_NOTE - 3, "{}", note.len());
        assert_eq!(notice.regarding.uid.as_deref(), Some("a/b"));
    }
}
