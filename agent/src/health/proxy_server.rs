//! `/healthz` and `/livez`: whether the proxy keeps up, and whether load
//! balancers should use this node.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use serde::Serialize;

use super::state::{HealthReport, HealthState, NodeEligibility};
use crate::metrics::Metrics;

/// Headers of every reply in JSON.
pub(super) const JSON_HEADERS: [(HeaderName, &str); 2] =
    [(CONTENT_TYPE, "application/json"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// Go's zero time, for "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The routes `/healthz` and `/livez`, for any method; everything else is 404.
pub fn router(health: HealthState, metrics: Metrics) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state((health, metrics))
}

/// Answers whether the node should get traffic: 200 while the proxy keeps up,
/// has its rules in place (or had them until a second ago), and the node is not
/// about to go.
async fn healthz(State((health, metrics)): State<(HealthState, Metrics)>) -> Response {
    let report = health.report();
    let body = Body::healthz(&report, &metrics.api_last_received());
    metrics.healthz_replied(body.status().as_u16());
    body.into_response()
}

/// Answers whether the proxy should keep running: 200 while it keeps up.
async fn livez(State((health, metrics)): State<(HealthState, Metrics)>) -> Response {
    let report = health.report();
    let body = Body::livez(&report);
    metrics.livez_replied(body.status().as_u16());
    body.into_response()
}

/// kube-proxy's body, plus `reason` and, with an API server, `apiLastReceived`.
/// In kube-proxy a body may contain `healthy: true` under a 503 without an
/// explanation. Under a 200 the reason is a warning: it does not yet require
/// traffic to go elsewhere.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Families::is_empty")]
    status: Families,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    api_last_received: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip)]
    unavailable: bool,
}

type Families = BTreeMap<String, FamilyBody>;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: String,
    healthy: bool,
}

impl Body {
    fn healthz(report: &HealthReport, api_last_received: &BTreeMap<&'static str, SystemTime>) -> Self {
        let missing = report.trouble.as_ref().is_some_and(|trouble| trouble.rules_missing);
        let not_synced = (!report.synced).then_some("the first sync is not done, rules may be missing");
        let others = not_synced.or(report.node.reason());
        let unavailable = !report.healthy || missing || others.is_some();
        let stale = stale(report.now, api_last_received);
        let reasons: Vec<String> = explain(report).into_iter().chain(others.map(str::to_owned)).chain(stale).collect();
        let reason = (!reasons.is_empty()).then(|| reasons.join("; "));
        Self {
            node_eligible: Some(report.node == NodeEligibility::Eligible),
            api_last_received: api_last_received.iter().map(|(name, time)| (*name, rfc3339(Some(*time)))).collect(),
            ..Self::new(report, unavailable, reason)
        }
    }

    fn livez(report: &HealthReport) -> Self {
        Self::new(report, !report.healthy, explain(report))
    }

    /// A reply of 200 counts as an update, as in kube-proxy.
    fn new(report: &HealthReport, unavailable: bool, reason: Option<String>) -> Self {
        let last_updated = if unavailable { report.last_updated() } else { Some(report.now) };
        let family_body = |updated, healthy| FamilyBody { last_updated: rfc3339(updated), healthy };
        Self {
            last_updated: rfc3339(last_updated),
            current_time: rfc3339(Some(report.now)),
            node_eligible: None,
            healthy: report.healthy,
            status: report
                .families
                .iter()
                .map(|family| (family.family.to_string(), family_body(family.last_updated, family.healthy)))
                .collect(),
            api_last_received: BTreeMap::new(),
            reason,
            unavailable,
        }
    }

    fn status(&self) -> StatusCode {
        if self.unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    }

    fn into_response(self) -> Response {
        match serde_json::to_string(&self) {
            Ok(body) => (self.status(), JSON_HEADERS, body).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    }
}

/// The defect of the rules. With a 200 it is a warning.
fn explain(report: &HealthReport) -> Option<String> {
    const OVERDUE: &str = "a change has waited too long for its sync";
    match (report.healthy, &report.trouble) {
        (true, trouble) => trouble.as_ref().map(|trouble| trouble.reason.clone()),
        (false, None) => Some(OVERDUE.to_owned()),
        (false, Some(trouble)) => Some(format!("{OVERDUE}: {}", trouble.reason)),
    }
}

/// The API server sends a bookmark at least once a minute for each watch.
const SILENT: Duration = Duration::from_secs(180);

/// The resources that the API server has been silent about for too long. Rules
/// go on as they are, so this is a warning, and other nodes are no better off.
fn stale(now: SystemTime, api_last_received: &BTreeMap<&'static str, SystemTime>) -> Option<String> {
    let age = |time: &SystemTime| now.duration_since(*time).unwrap_or_default();
    let silent: Vec<_> = api_last_received.iter().filter(|(_, time)| age(time) > SILENT).collect();
    let longest = silent.iter().map(|(_, time)| age(time)).max()?;
    let names: Vec<_> = silent.iter().map(|(name, _)| **name).collect();
    Some(format!(
        "the API server has sent nothing about {} for {} s; the rules may be out of date",
        names.join(", "),
        longest.as_secs()
    ))
}

/// RFC 3339 with as many digits of a second as needed, as Go prints it.
fn rfc3339(time: Option<SystemTime>) -> String {
    time.and_then(|time| Timestamp::try_from(time).ok()).map_or_else(|| NEVER.to_owned(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::UNIX_EPOCH;

    use vmap_proxy_compiler::model::objects::Kind;
    use vmap_proxy_compiler::ruleset::Family;

    use super::*;
    use crate::health::listen::Listen;
    use crate::health::state::tests::HandClock;
    use crate::health::test_client::{Reply, get, request, run};
    use crate::metrics::Format;

    struct Proxy {
        clock: HandClock,
        health: HealthState,
        metrics: Metrics,
        address: SocketAddr,
    }

    impl Proxy {
        async fn start() -> Self {
            let clock = HandClock::default();
            let health = HealthState::new(clock.clock(), Duration::from_secs(60));
            let metrics = Metrics::new();
            let listen = Listen::new("health", "healthzBindAddress", "127.0.0.1:0".parse().unwrap(), true);
            let mut listening = listen.listening.subscribe();
            tokio::spawn(listen.serve(router(health.clone(), metrics.clone())));
            let address = listening.wait_for(Option::is_some).await.unwrap().unwrap();
            Self { clock, health, metrics, address }
        }

        async fn get(&self, path: &str) -> Reply {
            get(self.address, path).await
        }
    }

    #[test]
    fn a_proxy_that_keeps_up_answers_as_kube_proxy_does() {
        run(async {
            let proxy = Proxy::start().await;
            proxy.health.initialized(&Family::ALL);
            proxy.health.set_node(NodeEligibility::Eligible);
            proxy.health.updated(Family::Ipv4);
            proxy.clock.forward(1_500);
            proxy.health.updated(Family::Ipv6);
            proxy.clock.forward(500);
            let reply = proxy.get("/healthz").await;
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("content-type"), Some("application/json"));
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
            assert_eq!(
                reply.body,
                r#"{"lastUpdated":"1970-01-01T00:00:02Z","currentTime":"1970-01-01T00:00:02Z","nodeEligible":true,"#
                    .to_owned()
                    + r#""healthy":true,"status":{"IPv4":{"lastUpdated":"1970-01-01T00:00:00Z","healthy":true},"#
                    + r#""IPv6":{"lastUpdated":"1970-01-01T00:00:01.5Z","healthy":true}}}"#
            );
            let live = proxy.get("/livez").await;
            assert_eq!(live.status, 200);
            assert!(!live.body.contains("nodeEligible"));
        });
    }

    #[test]
    fn an_overdue_change_is_503_on_both_paths() {
        run(async {
            let proxy = Proxy::start().await;
            proxy.health.initialized(&[Family::Ipv4]);
            proxy.health.set_node(NodeEligibility::Eligible);
            proxy.health.updated(Family::Ipv4);
            proxy.health.queued(Family::Ipv4);
            proxy.clock.forward(60_000);
            for path in ["/healthz", "/livez"] {
                let reply = proxy.get(path).await;
                assert_eq!(reply.status, 503, "{path}");
                let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
                assert_eq!(body["healthy"], false);
                assert_eq!(body["lastUpdated"], "1970-01-01T00:00:00Z");
                assert!(body["reason"].as_str().unwrap().contains("waited too long"));
            }
            let text = proxy.metrics.encode(Format::Prometheus, &[]);
            assert!(text.contains(r#"kubeproxy_proxy_healthz_total{code="503"} 1"#));
            assert!(text.contains(r#"kubeproxy_proxy_livez_total{code="503"} 1"#));
        });
    }

    #[test]
    fn the_node_decides_about_healthz_alone() {
        run(async {
            let proxy = Proxy::start().await;
            proxy.health.initialized(&[Family::Ipv4]);
            proxy.health.updated(Family::Ipv4);
            for (node, status) in [
                (NodeEligibility::Unknown, 503),
                (NodeEligibility::BeingDeleted, 503),
                (NodeEligibility::TaintedForRemoval, 503),
                (NodeEligibility::Eligible, 200),
            ] {
                proxy.health.set_node(node);
                let reply = proxy.get("/healthz").await;
                assert_eq!(reply.status, status, "{node:?}");
                let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
                assert_eq!(body["healthy"], true);
                assert_eq!(body["nodeEligible"], status == 200);
                assert_eq!(body["reason"].is_string(), status == 503);
                assert_eq!(proxy.get("/livez").await.status, 200);
            }
        });
    }

    #[test]
    fn before_the_first_sync_it_lives_but_is_not_ready() {
        run(async {
            let proxy = Proxy::start().await;
            proxy.health.set_node(NodeEligibility::Eligible);
            let reply = proxy.get("/healthz").await;
            assert_eq!(reply.status, 503);
            assert!(reply.body.contains(r#""lastUpdated":"0001-01-01T00:00:00Z""#) && !reply.body.contains("status"));
            assert_eq!(proxy.get("/livez").await.status, 200);
        });
    }

    #[test]
    fn a_silent_api_server_is_a_warning() {
        run(async {
            let proxy = Proxy::start().await;
            proxy.health.initialized(&[Family::Ipv4]);
            proxy.health.set_node(NodeEligibility::Eligible);
            proxy.health.updated(Family::Ipv4);
            proxy.metrics.api_received(Kind::Service, UNIX_EPOCH);
            let body = async || {
                let reply = proxy.get("/healthz").await;
                assert_eq!(reply.status, 200);
                serde_json::from_str::<serde_json::Value>(&reply.body).unwrap()
            };
            proxy.clock.forward(180_000);
            let fresh = body().await;
            assert_eq!(fresh["apiLastReceived"], serde_json::json!({"services": "1970-01-01T00:00:00Z"}));
            assert!(fresh["reason"].is_null());
            proxy.clock.forward(20_000);
            proxy.metrics.api_received(Kind::Node, UNIX_EPOCH + Duration::from_secs(199));
            let reason = body().await["reason"].clone();
            assert!(reason.as_str().unwrap().contains("nothing about services for 200 s"), "{reason}");
            assert!(!proxy.get("/livez").await.body.contains("apiLastReceived"));
        });
    }

    #[test]
    fn any_method_and_no_other_path() {
        run(async {
            let proxy = Proxy::start().await;
            assert_eq!(request(proxy.address, "POST", "/livez", "content-length: 0\r\n").await.status, 200);
            assert_eq!(proxy.get("/").await.status, 404);
        });
    }
}
