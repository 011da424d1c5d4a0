//! The agent's syncer as a proxy under test, in the node's namespace.

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::syncer_thread::SyncerThread;

use crate::run_packets::{ProxyError, ProxyUnderTest};
use crate::schema::{ObjectRef, Vector};
use crate::under_test;

/// [`SyncerThread`] as the proxy of a vector: it is started once, and every
/// step is applied incrementally.
#[derive(Debug, Default)]
pub struct LibraryProxy(Option<SyncerThread>);

impl ProxyUnderTest for LibraryProxy {
    fn start(&mut self, node: &NetNs, vector: &Vector) -> Result<(), ProxyError> {
        let config = under_test::proxy_config(&vector.config, &vector.node.name)?;
        let syncer = SyncerThread::start(node, config)?;
        syncer.apply(under_test::changes(&[], &vector.objects)?)?;
        self.0 = Some(syncer);
        Ok(())
    }

    fn step(&mut self, delete: &[ObjectRef], apply: &[Value]) -> Result<(), ProxyError> {
        let syncer = self.0.as_ref().ok_or("the proxy was not started")?;
        syncer.apply(under_test::changes(delete, apply)?)?;
        Ok(())
    }
}
