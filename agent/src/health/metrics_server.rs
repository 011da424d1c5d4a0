//! `/metrics` and the other pages that kube-proxy serves there.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::task::spawn_blocking;

use crate::config::KubeProxyConfiguration;
use crate::metrics::{ConnectionSource, Format, Metrics};

/// The name under which kube-proxy registers its configuration.
const CONFIGURATION_NAME: &str = "kubeproxy.config.k8s.io";

/// The proxy mode; tools read it to find the right rules.
const MODE: &str = "nftables";

struct Served {
    metrics: Metrics,
    connections: Option<ConnectionSource>,
    configuration: String,
    /// The counter of answers to `/healthz`.
    pings: AtomicU64,
    /// The encodings in progress, by format.
    scrapes: Mutex<Vec<(Format, WeakShared<Scrape>)>>,
}

/// All metrics as text; `None`: it could not be made.
type Scrape = BoxFuture<'static, Option<Bytes>>;

/// The routes `/metrics`, `/metrics/slis`, `/healthz` (always "ok"),
/// `/proxyMode` and `/configz`; everything else is 404. kube-proxy's profiles of the Go runtime
/// have no counterpart.
///
/// `connections` is called for each reply of `/metrics`.
pub fn router(
    metrics: Metrics,
    connections: Option<ConnectionSource>,
    configuration: &KubeProxyConfiguration,
) -> Router {
    let configuration = serde_json::json!({ CONFIGURATION_NAME: configuration }).to_string();
    Router::new()
        .route("/metrics", any(metrics_text))
        .route("/metrics/slis", any(slis))
        .route("/healthz", any(healthz))
        .route("/proxyMode", any(|| async { plain(MODE) }))
        .route("/configz", any(configz))
        .with_state(Arc::new(Served {
            metrics,
            connections,
            configuration,
            pings: AtomicU64::new(0),
            scrapes: Mutex::default(),
        }))
}

fn plain(body: &'static str) -> Response {
    let headers = [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (StatusCode::OK, headers, body).into_response()
}

async fn healthz(State(served): State<Arc<Served>>) -> Response {
    served.pings.fetch_add(1, Ordering::Relaxed);
    plain("ok")
}

/// The results of this server's health check, as
/// `k8s.io/component-base/metrics/prometheus/slis` counts them: the one check of
/// kube-proxy's `/healthz` here is `ping`, and it never fails.
async fn slis(State(served): State<Arc<Served>>) -> Response {
    let pings = served.pings.load(Ordering::Relaxed);
    let mut text = String::new();
    if pings > 0 {
        text = format!(
            "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
             # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {pings}\n"
        );
    }
    (StatusCode::OK, [(CONTENT_TYPE, Format::Prometheus.content_type())], text).into_response()
}

async fn metrics_text(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    let format = Format::accepted_by(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    let headers = [(CONTENT_TYPE, format.content_type())];
    match served.scrape(format).await {
        Some(text) => (StatusCode::OK, headers, text).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

impl Served {
    /// However many clients ask at a time, the text is encoded once, and on
    /// another thread, so that no change waits for it.
    fn scrape(&self, format: Format) -> Shared<Scrape> {
        let mut scrapes = self.scrapes.lock().unwrap_or_else(PoisonError::into_inner);
        let running = scrapes.iter().find(|(of, _)| *of == format).and_then(|(_, scrape)| scrape.upgrade());
        if let Some(running) = running.filter(|scrape| scrape.peek().is_none()) {
            return running;
        }
        scrapes.retain(|(of, _)| *of != format);
        let (metrics, source) = (self.metrics.clone(), self.connections.clone());
        let scrape: Scrape = async move {
            let connections = match source {
                Some(source) => source().await,
                None => Arc::default(),
            };
            let encoded = spawn_blocking(move || metrics.encode(format, &connections)).await;
            encoded.inspect_err(|error| tracing::error!("the metrics were not encoded: {error}")).ok().map(Bytes::from)
        }
        .boxed();
        let scrape = scrape.shared();
        scrapes.extend(scrape.downgrade().map(|weak| (format, weak)));
        scrape
    }
}

async fn configz(State(served): State<Arc<Served>>) -> Response {
    let headers = [(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (StatusCode::OK, headers, served.configuration.clone()).into_response()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::*;
    use crate::health::listen::Listen;
    use crate::health::test_client::{get, request, run};
    use crate::metrics::ServiceConnections;

    async fn start() -> SocketAddr {
        let source: ConnectionSource = Arc::new(|| {
            Box::pin(async {
                Arc::from([ServiceConnections {
                    namespace: "default".to_owned(),
                    service: "web".to_owned(),
                    port: String::new(),
                    connections: 3,
                }])
            })
        });
        let configuration = KubeProxyConfiguration { cluster_cidr: "10.0.0.0/8".to_owned(), ..Default::default() };
        let listen = Listen::new("metrics", "metricsBindAddress", "127.0.0.1:0".parse().unwrap(), true);
        let mut listening = listen.listening.subscribe();
        tokio::spawn(listen.serve(router(Metrics::new(), Some(source), &configuration)));
        listening.wait_for(Option::is_some).await.unwrap().unwrap()
    }

    #[test]
    fn every_path_answers_as_kube_proxy_does() {
        run(async {
            let address = start().await;
            for (path, body) in [("/healthz", "ok"), ("/proxyMode", "nftables")] {
                let reply = get(address, path).await;
                assert_eq!((reply.status, reply.body.as_str()), (200, body));
                assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
            }
            let slis = get(address, "/metrics/slis").await;
            let checks = r#"kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 1"#;
            assert!(slis.status == 200 && slis.body.lines().any(|line| line == checks), "{}", slis.body);
            let configuration: serde_json::Value = serde_json::from_str(&get(address, "/configz").await.body).unwrap();
            assert_eq!(configuration["kubeproxy.config.k8s.io"]["clusterCIDR"], "10.0.0.0/8");
            assert_eq!(get(address, "/").await.status, 404);
        });
    }

    #[test]
    fn metrics_are_in_the_format_asked_for() {
        run(async {
            let address = start().await;
            let line = r#"vmap_proxy_service_connections_total{namespace="default",service="web",port=""} 3"#;
            let reply = get(address, "/metrics").await;
            assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
            assert!(reply.body.contains(line));
            let accept = "accept: application/openmetrics-text;version=1.0.0,text/plain\r\n";
            let reply = request(address, "GET", "/metrics", accept).await;
            assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
            assert!(reply.body.contains(line) && reply.body.ends_with("# EOF\n"));
        });
    }
}
