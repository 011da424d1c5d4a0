//! Runs a test of a server, and sends it requests.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use vmap_proxy_lab::http;
pub(super) use vmap_proxy_lab::http::Reply;

/// Longest wait of a test, far more than it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test to its end, or fails it.
pub(crate) fn run(test: impl Future<Output = ()>) {
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

/// A port that nobody else takes between now and the moment the server binds it: below those that the kernel hands
/// out by itself, and each test process looks in another part.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u32 = 10_000;
    const PARTS: u32 = 500;
    const PART: u16 = 40;
    let start = FIRST + std::process::id() % PARTS * u32::from(PART);
    loop {
        let port = u16::try_from(start).unwrap() + NEXT.fetch_add(1, Ordering::Relaxed);
        if std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
