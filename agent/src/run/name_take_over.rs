//! Leads the packets of another DNS Service to our server, on a separate thread:
//! the kernel may let a commit wait for others, and nothing else must wait for it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use vmap_proxy_compiler::ruleset::Family;

use crate::netlink::{NameTakeOver, NetlinkError, default_addresses, remove_name_routes};

/// Time between two looks at the routes, which others may remove, and at the
/// addresses of this node.
const AGAIN: Duration = Duration::from_secs(30);

/// The same after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The thread. When this is dropped, packets go to the Service's endpoints again.
#[derive(Debug)]
pub(super) struct TakeOver {
    thread: Option<(oneshot::Sender<()>, thread::JoinHandle<()>)>,
}

impl TakeOver {
    /// Starts the thread. `addresses` are the cluster IPs on which our server
    /// listens.
    ///
    /// # Errors
    /// If there are no threads or descriptors left.
    pub(super) fn start(addresses: watch::Receiver<Vec<IpAddr>>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = follow(addresses) => {}
                    _ = stopped => {}
                }
                // Nothing that leads here outlives the server.
                if let Err(error) = remove_name_routes(&[]).await {
                    tracing::warn!("DNS: the route to the cluster IP stays: {error}; vmap-proxy cleanup removes it");
                }
            });
        };
        let thread = thread::Builder::new().name("dns-take-over".to_owned()).spawn(work)?;
        Ok(Self { thread: Some((stop, thread)) })
    }
}

impl Drop for TakeOver {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // It has logged why, if it panicked.
            let _ = thread.join();
        }
    }
}

/// Follows the addresses until the server ends. The tables end with this.
async fn follow(mut addresses: watch::Receiver<Vec<IpAddr>>) {
    let mut failed = false;
    let mut kernel = None;
    loop {
        let wanted = addresses.borrow_and_update().clone();
        let outcome = match &mut kernel {
            Some(kernel) => set(kernel, &wanted).await,
            none => match open(&wanted).await {
                Ok(opened) => set(none.insert(opened), &wanted).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = &outcome
            && !std::mem::replace(&mut failed, true)
        {
            tracing::error!(
                "DNS: the cluster IPs {wanted:?} cannot be led to this server: {error}; the Service's endpoints answer; next \
                 attempt in {RETRY:?}"
            );
        }
        failed &= outcome.is_err();
        let wait = if outcome.is_ok() { AGAIN } else { RETRY };
        if let Ok(Err(_)) = tokio::time::timeout(wait, addresses.changed()).await {
            return;
        }
    }
}

async fn open(wanted: &[IpAddr]) -> Result<NameTakeOver, NetlinkError> {
    let kernel = NameTakeOver::open()?;
    // Of an agent that was killed.
    remove_name_routes(wanted).await?;
    Ok(kernel)
}

async fn set(kernel: &mut NameTakeOver, wanted: &[IpAddr]) -> Result<(), NetlinkError> {
    let own = default_addresses().await?;
    let source = |address: &IpAddr| {
        let found = own.iter().copied().find(|own| Family::of(*own) == Family::of(*address) && own != address);
        if found.is_none() {
            tracing::warn!(
                "DNS: this node has no address of the family of {address}; the Service's endpoints answer there"
            );
        }
        Some((*address, found?))
    };
    kernel.set(&wanted.iter().filter_map(source).collect::<BTreeMap<IpAddr, IpAddr>>()).await
}
