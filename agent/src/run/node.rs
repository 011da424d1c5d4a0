//! Addresses of the node come and go.

use std::net::IpAddr;

use tokio::sync::mpsc;

use crate::netlink::{AddressWatcher, NetlinkError, local_addresses};

/// Reports until the receiver is gone. A failed watch is given up with a
/// warning: the proxy works without it.
pub(super) async fn watch(
    addresses: AddressWatcher,
    events: mpsc::Sender<Vec<IpAddr>>,
    names: Option<&super::names::Names>,
) {
    watch_addresses(addresses, &events, names).await;
    std::future::pending().await
}

async fn watch_addresses(
    mut watcher: AddressWatcher,
    events: &mpsc::Sender<Vec<IpAddr>>,
    names: Option<&super::names::Names>,
) {
    loop {
        let listed: Result<_, NetlinkError> = async {
            watcher.changed().await?;
            local_addresses().await
        }
        .await;
        match listed {
            Ok(addresses) => {
                if let Some(names) = names {
                    names.set_addresses(&addresses);
                }
                if events.send(addresses).await.is_err() {
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
