//! What happens on the node besides: addresses come and go, and somebody else
//! may change our table.

use tokio::sync::{mpsc, watch};

use crate::follow::{NodeEvent, Status};
use crate::netlink::{AddressWatcher, Monitor, NetlinkError, Observed, local_addresses};

/// Reports until nobody listens any more. A watch that fails is given up with
/// a warning: the proxy works without it.
///
/// The table is watched only once it is programmed: while anybody listens, the
/// kernel makes a notification of every element, and a first sync takes several
/// times as long. `port` is the socket that commits what is ours.
pub(super) async fn watch(
    port: u32,
    addresses: AddressWatcher,
    mut status: watch::Receiver<Status>,
    events: mpsc::Sender<NodeEvent>,
) {
    let table = async {
        if status.wait_for(|status| status.ready).await.is_ok() {
            watch_table(port, &events).await;
        }
    };
    let ((), ()) = tokio::join!(table, watch_addresses(addresses, &events));
    std::future::pending().await
}

async fn watch_table(port: u32, events: &mpsc::Sender<NodeEvent>) {
    let mut monitor = match Monitor::open(port) {
        Ok(monitor) => monitor,
        Err(error) => {
            tracing::warn!("changes that others make to our tables will not be seen: {error}");
            return;
        }
    };
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
