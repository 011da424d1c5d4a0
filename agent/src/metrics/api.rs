//! Requests to the API server: client-go's metrics under their names, which
//! the usual dashboard of kube-proxy draws, and when we last heard of it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as MetricFamily;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use vmap_proxy_compiler::model::objects::Kind;

use super::{Seconds, unix_seconds};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    code: String,
    host: String,
    method: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    host: String,
    verb: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

/// Metrics of the requests to the API server.
#[derive(Debug, Clone)]
pub(super) struct ApiMetrics {
    requests: MetricFamily<RequestLabels, Counter>,
    duration: MetricFamily<DurationLabels, Histogram, fn() -> Histogram>,
    last_received: MetricFamily<ResourceLabel, Seconds>,
}

/// client-go's buckets.
fn histogram() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl ApiMetrics {
    /// None counted yet.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: MetricFamily::default(),
            duration: MetricFamily::new_with_constructor(histogram as fn() -> Histogram),
            last_received: MetricFamily::default(),
        };
        registry.register(
            "rest_client_requests",
            "Number of HTTP requests, partitioned by status code, method, and host",
            metrics.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Request latency in seconds. Broken down by verb, and host",
            metrics.duration.clone(),
        );
        registry.register(
            "vmap_proxy_api_last_received_timestamp_seconds",
            "When the API server last sent anything about a resource, a bookmark at least each minute; \
             time() less this is its age",
            metrics.last_received.clone(),
        );
        metrics
    }

    /// A request was answered with a status; `None`: it was not. Watches have
    /// no duration.
    pub(super) fn answered(&self, method: &str, host: &str, code: Option<u16>, took: Option<Duration>) {
        let (method, host) = (method.to_owned(), host.to_owned());
        // client-go's word for a request without an answer.
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.get_or_create(&RequestLabels { code, host: host.clone(), method: method.clone() }).inc();
        if let Some(took) = took {
            self.duration.get_or_create(&DurationLabels { host, verb: method }).observe(took.as_secs_f64());
        }
    }

    /// Something about a resource was received at this time.
    pub(super) fn received(&self, kind: Kind, time: SystemTime) {
        self.last_received.get_or_create(&ResourceLabel { resource: resource(kind) }).set(unix_seconds(time));
    }

    /// The resources of which something was received, and when that was last.
    pub(super) fn last_received(&self) -> BTreeMap<&'static str, SystemTime> {
        let last = |kind| {
            let seconds = self.last_received.get(&ResourceLabel { resource: resource(kind) })?.get();
            Some((resource(kind), UNIX_EPOCH + Duration::try_from_secs_f64(seconds).ok()?))
        };
        [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr].into_iter().filter_map(last).collect()
    }
}

/// The name of a kind in requests.
fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::Node => "nodes",
        Kind::ServiceCidr => "servicecidrs",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn requests_are_counted_as_client_go_counts_them() {
        let metrics = Metrics::new();
        metrics.api_answered("GET", "10.0.0.1:6443", Some(200), Some(Duration::from_millis(20)));
        metrics.api_answered("GET", "10.0.0.1:6443", Some(200), None);
        metrics.api_answered("POST", "10.0.0.1:6443", None, Some(Duration::from_secs(1)));
        let time = UNIX_EPOCH + Duration::from_millis(1_500);
        metrics.api_received(Kind::Node, time);
        assert_eq!(metrics.api_last_received(), BTreeMap::from([("nodes", time)]));
        let text = metrics.encode(Format::Prometheus, &[]);
        for line in [
            "# TYPE rest_client_requests_total counter",
            r#"rest_client_requests_total{code="200",host="10.0.0.1:6443",method="GET"} 2"#,
            r#"rest_client_requests_total{code="<error>",host="10.0.0.1:6443",method="POST"} 1"#,
            "# TYPE rest_client_request_duration_seconds histogram",
            r#"rest_client_request_duration_seconds_bucket{le="0.025",host="10.0.0.1:6443",verb="GET"} 1"#,
            r#"rest_client_request_duration_seconds_count{host="10.0.0.1:6443",verb="GET"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(r#"vmap_proxy_api_last_received_timestamp_seconds{resource="nodes"} 1.5"#), "{text}");
    }
}
