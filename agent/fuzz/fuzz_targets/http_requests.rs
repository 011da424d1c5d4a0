//! Any bytes of a client of the health and metrics servers. What is answered is HTTP, with a status that these servers
//! give.
#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use vmap_proxy_agent::config::KubeProxyConfiguration;
use vmap_proxy_agent::health::{Clock, HealthState, metrics_server, proxy_server, zpages};
use vmap_proxy_agent::metrics::Metrics;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_current_thread().enable_time().build().expect("a runtime"));

static SERVERS: LazyLock<[Router; 2]> = LazyLock::new(|| {
    let metrics = Metrics::new();
    let configuration = KubeProxyConfiguration::default();
    let health = HealthState::new(Clock::system(), Duration::from_secs(60));
    [
        proxy_server::router(health, metrics.clone()),
        metrics_server::router(metrics, None, &configuration).merge(zpages::router(&BTreeMap::new())),
    ]
});

/// What is answered to these bytes.
async fn answer(router: &Router, bytes: &[u8]) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.expect("a pipe");
    client.shutdown().await.expect("a pipe");
    let service = TowerToHyperService::new(router.clone());
    // Malformed requests end the connection with an error.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service).await;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.expect("a pipe");
    answer
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for router in &*SERVERS {
        let answer = RUNTIME.block_on(answer(router, bytes));
        if answer.is_empty() {
            continue;
        }
        let status = answer.strip_prefix(b"HTTP/1.1 ").or(answer.strip_prefix(b"HTTP/1.0 ")).expect("HTTP");
        let known: [&[u8]; 8] = [b"200", b"400", b"404", b"405", b"406", b"414", b"431", b"503"];
        assert!(known.iter().any(|code| status.starts_with(code)), "{}", answer.escape_ascii());
    }
});
