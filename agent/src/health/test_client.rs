//! Runs a test of a server, and sends it requests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::SocketAddr;
use std::time::Duration;

use vmap_proxy_lab::http;
pub(super) use vmap_proxy_lab::http::Reply;

/// Longest wait of a test, far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test to its end, or fails it.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await }).unwrap();
}

pub(super) async fn get(address: SocketAddr, path: &str) -> Reply {
    http::get(address, path).await.unwrap()
}

/// `headers` as they go over the wire, each ended by `\r\n`.
pub(super) async fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Reply {
    http::request(address, method, path, headers).await.unwrap()
}
