//! One stream of checked changes, whichever the source: manifests on disk or the
//! Kubernetes API.
//!
//! A source reads each object once, logs its unusable parts, and hands on an
//! [`ObjectChange`]; no other module sees the object.

mod change;
pub mod kubernetes;
pub mod manifests;
mod typed;

use tokio::sync::mpsc;
use vmap_proxy_compiler::model::objects::Kind;

pub use change::{NodeMarks, ObjectChange, Origin};

/// An event of a source for the sync loop, in order.
#[derive(Debug)]
pub enum Event {
    /// A complete list of one kind begins: objects that are not applied between
    /// this and [`Event::ListCompleted`] no longer exist. Sent before the first
    /// list and before every relist.
    ListStarted(Kind),
    /// Everything that exists of this kind has been applied.
    ListCompleted(Kind),
    /// Objects added, changed or gone. What arrives together is meant to be
    /// programmed together.
    Changes(Vec<ObjectChange>),
    /// Every kind that the source follows has been listed once: the rule set
    /// may be programmed. Sent exactly once.
    Synced,
    /// A source can't be reached or is slow; for the log and for health. The
    /// source goes on trying.
    Degraded(String),
}

/// The receiver of a source's events. It is bounded, so that a large first list
/// does not pile up in memory before it is compiled.
pub type EventSender = mpsc::Sender<Event>;
