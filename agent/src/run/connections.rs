//! Connections per Service, from the counters that the kernel keeps on the
//! elements of `services` and `nodeports`.

use std::collections::BTreeMap;
use std::sync::Arc;

use compiler::ruleset::maps::Map;
use futures::FutureExt;
use tokio::sync::Mutex;

use crate::metrics::{ConnectionSource, ServiceConnections};
use crate::netlink::{Kernel, NetlinkError};

/// Reads the counters each time it is asked, over a socket of its own: a scrape
/// does not hold up a sync.
pub(super) fn source() -> Result<ConnectionSource, NetlinkError> {
    let kernel = Arc::new(Mutex::new(Kernel::open()?));
    Ok(Arc::new(move || {
        let kernel = kernel.clone();
        async move { read(&mut *kernel.lock().await).await }.boxed()
    }))
}

async fn read(kernel: &mut Kernel) -> Vec<ServiceConnections> {
    let mut counts: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    for family in super::families() {
        for map in [Map::Services, Map::NodePorts] {
            // No table, no connections.
            for state in kernel.read_elements(family, map).await.unwrap_or_default() {
                if let (Some(comment), Some(counter)) = (state.element.comment, state.counter) {
                    *counts.entry(comment).or_default() += counter.packets;
                }
            }
        }
    }
    counts.into_iter().filter_map(|(comment, connections)| service_connections(&comment, connections)).collect()
}

/// Takes the comment of an element, `namespace/name:port`, apart.
fn service_connections(comment: &str, connections: u64) -> Option<ServiceConnections> {
    let (namespace, rest) = comment.split_once('/')?;
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    let [namespace, service, port] = [namespace, service, port].map(str::to_owned);
    Some(ServiceConnections { namespace, service, port, connections })
}
