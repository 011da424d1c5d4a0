//! Removes the leftovers of kube-proxy, once our own rules serve.

use tokio::sync::watch;

use crate::sync_loop::Status;
use crate::takeover::remove_kube_proxy;

/// Waits for the first complete sync, then removes kube-proxy's leftovers if
/// requested. Never ends. Failures are logged: the proxy works beside the
/// leftovers, but new connections follow the old rules.
pub(super) async fn once_ready(asked: bool, mut status: watch::Receiver<Status>) {
    if asked && status.wait_for(|status| status.ready).await.is_ok() {
        tracing::info!("our rules are in place; removing the leftovers of kube-proxy");
        // It waits for the kernel, and the syncs must not wait for it.
        match tokio::task::spawn_blocking(remove_kube_proxy).await {
            Ok(report) => report.log(),
            Err(error) => tracing::error!("the leftovers of kube-proxy were not removed: {error}"),
        }
    }
    std::future::pending().await
}
