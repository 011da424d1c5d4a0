//! Kubernetes Events about Services that don't work as they ask.

use vmap_proxy_compiler::limits::MAX_ELEMENTS;
use vmap_proxy_compiler::model::types::ServiceName;

use super::{Observer, SyncDone};
use crate::k8s_events::Recorder;

/// Records Events on the Services concerned.
#[derive(Debug)]
pub struct ServiceEvents {
    recorder: Recorder,
}

impl ServiceEvents {
    /// Records them there.
    pub fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }
}

impl Observer for ServiceEvents {
    fn on_sync(&mut self, done: &SyncDone) {
        for refused in &done.report.refused {
            if let Some(name) = refused.owner.as_deref().and_then(ServiceName::parse) {
                self.recorder.quarantined(&name, &refused.description);
            }
        }
        for large in &done.report.too_large {
            self.recorder.too_large(&large.name, large.elements, MAX_ELEMENTS);
        }
        for contested in &done.report.contested {
            self.recorder.frontend_taken(contested);
        }
    }
}
