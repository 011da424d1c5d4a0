//! What happens on the node besides: addresses come and go, and somebody else
//! may change our table.

use tokio::sync::mpsc;

use crate::follow::NodeEvent;
use crate::netlink::{AddressWatcher, Monitor, NetlinkError, Observed, local_addresses};

/// Reports until nobody listens any more. A watch that fails is given up with
/// a warning: the proxy works without it.
pub(super) async fn watch(monitor: Monitor, addresses: AddressWatcher, events: mpsc::Sender<NodeEvent>) {
    let ((), ()) = tokio::join!(watch_table(monitor, &events), watch_addresses(addresses, &events));
    std::future::pending().await
}

async fn watch_table(mut monitor: Monitor, events: &mpsc::Sender<NodeEvent>) {
    loop {
        let who = match monitor.next().await {
            Ok(Observed::Foreign(change)) => format!("process {} ({})", change.pid, change.process_name),
            Ok(Observed::Unknown) => "an unknown process (notifications were lost)".to_owned(),
            Err(error) => {
                tracing::warn!("changes that others make to our tables are not seen any more: {error}");
                return;
            }
        };
        if events.send(NodeEvent::ForeignChange(who)).await.is_err() {
            return;
        }
    }
}

async fn watch_addresses(mut watcher: AddressWatcher, events: &mpsc::Sender<NodeEvent>) {
    loop {
        let listed: Result<_, NetlinkError> = async {
            watcher.changed().await?;
            local_addresses().await
        }
        .await;
        match listed {
            Ok(addresses) => {
                if events.send(NodeEvent::Addresses(addresses)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!("changes of this node's addresses are not seen any more: {error}");
                return;
            }
        }
    }
}
