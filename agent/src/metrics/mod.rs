//! Metrics for Prometheus: kube-proxy's, under its names and labels, so that
//! existing dashboards go on working, and our own beside them.
//!
//! kube-proxy's names start with `kubeproxy_`
//! (`pkg/proxy/metrics/metrics.go`); ours with `vmap_proxy_`. Metrics of other
//! modes (`..._iptables_...`) are left out, as kube-proxy does in nftables
//! mode, and so are those of the Go runtime.

mod api;
mod buckets;
mod component_base;
mod connections;
pub(crate) mod counters;
mod exposition;
mod localhost;
mod process;
mod registered;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as MetricFamily;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_dns::DnsMetrics;

use buckets::{commit_histogram, network_programming_histogram, sync_histogram};
pub use connections::{ConnectionSource, ServiceConnections};
pub use exposition::Format;
pub use localhost::{LocalhostMetrics, Refusal};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    ip_family: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NoLocalEndpointsLabels {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabel {
    operation: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabel {
    version: &'static str,
}

type ByFamily<M, C = fn() -> M> = MetricFamily<FamilyLabel, M, C>;
type Seconds = Gauge<f64, AtomicU64>;

/// The kind of a sync. kube-proxy times the two separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncKind {
    /// The kernel's state was compared as a whole: at start and after a failure.
    Full,
    /// Only the changes were processed.
    Partial,
}

/// One of a Service's traffic policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// `spec.internalTrafficPolicy`
    Internal,
    /// `spec.externalTrafficPolicy`
    External,
}

/// An operation on elements of sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementOperation {
    /// An element was added.
    Add,
    /// An element was deleted.
    Delete,
}

/// Every metric of the agent. Cheap to clone; all clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    api: api::ApiMetrics,
    localhost: LocalhostMetrics,
    sync_duration: ByFamily<Histogram>,
    full_sync_duration: ByFamily<Histogram>,
    partial_sync_duration: ByFamily<Histogram>,
    last_sync: ByFamily<Seconds>,
    last_queued: ByFamily<Seconds>,
    network_programming: ByFamily<Histogram>,
    endpoint_changes_pending: Gauge,
    endpoint_changes: Counter,
    service_changes_pending: Gauge,
    service_changes: Counter,
    no_local_endpoints: MetricFamily<NoLocalEndpointsLabels, Gauge>,
    sync_failures: ByFamily<Counter>,
    cleanup_failures: ByFamily<Counter>,
    healthz_replies: MetricFamily<CodeLabel, Counter>,
    livez_replies: MetricFamily<CodeLabel, Counter>,
    conntrack_duration: ByFamily<Histogram>,
    conntrack_deleted: ByFamily<Counter>,
    commit_duration: Histogram,
    lock_hold: Histogram,
    elements_changed: MetricFamily<OperationLabel, Counter>,
    quarantined_services: Gauge,
    flush_proof: Gauge,
    flow_table_interfaces: Gauge,
    state_digest: Gauge,
    connections_reset: Counter,
    drift_repairs: Counter,
    foreign_removed: MetricFamily<KindLabel, Counter>,
    dns: Option<DnsMetrics>,
}

fn by_family(family: Family) -> FamilyLabel {
    FamilyLabel {
        ip_family: match family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        },
    }
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics at zero; those of the process are read from `/proc`.
    pub fn new() -> Self {
        Self::with_proc("/proc".into())
    }

    /// Like [`Metrics::new`], with another root for the process's own figures.
    pub fn with_proc(proc: PathBuf) -> Self {
        let sync: fn() -> Histogram = sync_histogram;
        let network: fn() -> Histogram = network_programming_histogram;
        let mut registry = Registry::default();
        let mut metrics = Self {
            registry: Arc::default(),
            api: api::ApiMetrics::register(&mut registry),
            localhost: LocalhostMetrics::register(&mut registry),
            sync_duration: ByFamily::new_with_constructor(sync),
            full_sync_duration: ByFamily::new_with_constructor(sync),
            partial_sync_duration: ByFamily::new_with_constructor(sync),
            last_sync: ByFamily::default(),
            last_queued: ByFamily::default(),
            network_programming: ByFamily::new_with_constructor(network),
            endpoint_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            no_local_endpoints: MetricFamily::default(),
            sync_failures: ByFamily::default(),
            cleanup_failures: ByFamily::default(),
            healthz_replies: MetricFamily::default(),
            livez_replies: MetricFamily::default(),
            conntrack_duration: ByFamily::new_with_constructor(sync),
            conntrack_deleted: ByFamily::default(),
            commit_duration: commit_histogram(),
            lock_hold: commit_histogram(),
            elements_changed: MetricFamily::default(),
            quarantined_services: Gauge::default(),
            flush_proof: Gauge::default(),
            flow_table_interfaces: Gauge::default(),
            state_digest: Gauge::default(),
            connections_reset: Counter::default(),
            drift_repairs: Counter::default(),
            foreign_removed: MetricFamily::default(),
            dns: None,
        };
        metrics.register_kube_proxy(&mut registry);
        metrics.register_own(&mut registry);
        component_base::register(&mut registry);
        registry.register_collector(Box::new(process::Process::new(proc)));
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics of NodePorts on localhost.
    pub fn localhost(&self) -> &LocalhostMetrics {
        &self.localhost
    }

    /// Connections to endpoints that are gone get a reset.
    pub fn connections_reset(&self, count: usize) {
        self.connections_reset.inc_by(count as u64);
    }

    /// The digest of the state: its upper 52 bits, which a number of Prometheus
    /// holds exactly.
    pub fn set_state_digest(&self, digest: u64) {
        self.state_digest.set((digest >> 12).cast_signed());
    }

    /// Serves the metrics of the DNS server as well.
    #[must_use]
    pub fn with_dns(self, dns: DnsMetrics) -> Self {
        Self { dns: Some(dns), ..self }
    }

    /// Records a request for a sync, by a change or by the start of the sync
    /// loop.
    pub fn sync_queued(&self, family: Family, at: SystemTime) {
        self.last_queued.get_or_create(&by_family(family)).set(unix_seconds(at));
    }

    /// A sync ended well.
    pub fn sync_succeeded(&self, family: Family, kind: SyncKind, took: Duration, at: SystemTime) {
        self.sync_took(family, kind, took);
        self.last_sync.get_or_create(&by_family(family)).set(unix_seconds(at));
    }

    /// A sync failed: the kernel refused the transaction, or can't be reached.
    pub fn sync_failed(&self, family: Family, kind: SyncKind, took: Duration) {
        self.sync_took(family, kind, took);
        self.sync_failures.get_or_create(&by_family(family)).inc();
    }

    /// Both successes and failures are timed, as kube-proxy does.
    fn sync_took(&self, family: Family, kind: SyncKind, took: Duration) {
        let label = by_family(family);
        let of_kind = match kind {
            SyncKind::Full => &self.full_sync_duration,
            SyncKind::Partial => &self.partial_sync_duration,
        };
        self.sync_duration.get_or_create(&label).observe(took.as_secs_f64());
        of_kind.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Records that unused objects could not be deleted; it will be tried
    /// again.
    pub fn cleanup_failed(&self, family: Family) {
        self.cleanup_failures.get_or_create(&by_family(family)).inc();
    }

    /// From the trigger time of an EndpointSlice (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`) to its rules being
    /// in place. One sample for each change of a slice.
    pub fn network_programmed(&self, family: Family, latency: Duration) {
        self.network_programming.get_or_create(&by_family(family)).observe(latency.as_secs_f64());
    }

    /// Events of EndpointSlices that arrived.
    pub fn endpoint_changes(&self, events: usize) {
        self.endpoint_changes.inc_by(events as u64);
    }

    /// EndpointSlice changes that wait for the next sync.
    pub fn set_endpoint_changes_pending(&self, changes: usize) {
        self.endpoint_changes_pending.set(gauge_value(changes));
    }

    /// Events of Services that arrived.
    pub fn service_changes(&self, events: usize) {
        self.service_changes.inc_by(events as u64);
    }

    /// Services with changes that wait for the next sync.
    pub fn set_service_changes_pending(&self, services: usize) {
        self.service_changes_pending.set(gauge_value(services));
    }

    /// Service ports that have endpoints, but a Local policy and none here.
    pub fn set_no_local_endpoints(&self, family: Family, policy: TrafficPolicy, service_ports: usize) {
        let traffic_policy = match policy {
            TrafficPolicy::Internal => "internal",
            TrafficPolicy::External => "external",
        };
        let labels = NoLocalEndpointsLabels { ip_family: by_family(family).ip_family, traffic_policy };
        self.no_local_endpoints.get_or_create(&labels).set(gauge_value(service_ports));
    }

    /// `/healthz` was answered with this status code.
    pub fn healthz_replied(&self, code: u16) {
        self.healthz_replies.get_or_create(&CodeLabel { code }).inc();
    }

    /// `/livez` was answered with this status code.
    pub fn livez_replied(&self, code: u16) {
        self.livez_replies.get_or_create(&CodeLabel { code }).inc();
    }

    /// Records a search for stale flows with its deletions, if the listing
    /// succeeded.
    pub fn conntrack_reconciled(&self, family: Family, took: Duration, deleted: usize) {
        self.conntrack_duration.get_or_create(&by_family(family)).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&by_family(family)).inc_by(deleted as u64);
    }

    /// A transaction was answered by the kernel.
    pub fn committed(&self, took: Duration) {
        self.commit_duration.observe(took.as_secs_f64());
    }

    /// A transaction kept the kernel's nftables lock this long.
    pub fn lock_held(&self, held: Duration) {
        self.lock_hold.observe(held.as_secs_f64());
    }

    /// Elements were added or deleted.
    pub fn elements_changed(&self, operation: ElementOperation, elements: usize) {
        let operation = match operation {
            ElementOperation::Add => "add",
            ElementOperation::Delete => "delete",
        };
        self.elements_changed.get_or_create(&OperationLabel { operation }).inc_by(elements as u64);
    }

    /// Sets the number of Services that are not programmed because of a fault
    /// in them.
    pub fn set_quarantined_services(&self, services: usize) {
        self.quarantined_services.set(gauge_value(services));
    }

    /// Sets whether the kernel keeps other programs from flushing our tables.
    pub fn set_flush_proof(&self, flush_proof: bool) {
        self.flush_proof.set(flush_proof.into());
    }

    /// Sets the number of interfaces in the flow table.
    pub fn set_flow_table_interfaces(&self, interfaces: usize) {
        self.flow_table_interfaces.set(gauge_value(interfaces));
    }

    /// Records that a foreign change to our tables was undone.
    pub fn drift_repaired(&self) {
        self.drift_repairs.inc();
    }

    /// Records that foreign objects in our tables were removed, or foreign
    /// changes to them undone. `kind`: chain, set, object, flowtable, element,
    /// flags, policy.
    pub fn foreign_removed(&self, kind: &'static str, count: usize) {
        self.foreign_removed.get_or_create(&KindLabel { kind }).inc_by(count as u64);
    }

    /// The API server answered a request with a status; `None`: it did not.
    /// Watches have no duration.
    pub fn api_answered(&self, method: &str, host: &str, code: Option<u16>, took: Option<Duration>) {
        self.api.answered(method, host, code, took);
    }

    /// The API server sent something about a resource at this time.
    pub fn api_received(&self, kind: Kind, time: SystemTime) {
        self.api.received(kind, time);
    }

    /// The resources about which the API server sent something, and the last time that it did. Empty without an API
    /// server.
    pub fn api_last_received(&self) -> BTreeMap<&'static str, SystemTime> {
        self.api.last_received()
    }

    /// Every metric as text.
    ///
    /// `connections` are appended as `vmap_proxy_service_connections_total`.
    pub fn encode(&self, format: Format, connections: &[ServiceConnections]) -> String {
        let mut openmetrics = String::new();
        // Writing into a String doesn't fail.
        if text::encode_registry(&mut openmetrics, &self.registry).is_err() {
            tracing::error!("metrics could not be encoded");
        }
        if let Some(dns) = &self.dns {
            dns.encode(&mut openmetrics);
        }
        connections::encode(connections, &mut openmetrics);
        openmetrics.push_str("# EOF\n");
        format.convert(openmetrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: Family = Family::Ipv4;

    #[test]
    fn names_labels_and_buckets_are_kube_proxys() {
        let metrics = Metrics::new();
        let second = Duration::from_secs(1);
        metrics.sync_queued(FAMILY, UNIX_EPOCH + second);
        metrics.sync_succeeded(FAMILY, SyncKind::Full, Duration::from_millis(3), UNIX_EPOCH + second);
        metrics.sync_failed(Family::Ipv6, SyncKind::Partial, second);
        metrics.cleanup_failed(FAMILY);
        metrics.network_programmed(FAMILY, Duration::from_millis(400));
        metrics.endpoint_changes(3);
        metrics.set_endpoint_changes_pending(2);
        metrics.service_changes(5);
        metrics.set_service_changes_pending(4);
        metrics.set_no_local_endpoints(FAMILY, TrafficPolicy::External, 6);
        metrics.healthz_replied(503);
        metrics.livez_replied(200);
        metrics.conntrack_reconciled(FAMILY, second, 7);
        let text = metrics.encode(Format::Prometheus, &[]);
        for line in [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.001",ip_family="IPv4"} 0"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="0.004",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="16.384",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_proxy_rules_duration_seconds_bucket{le="+Inf",ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1"#,
            r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1"#,
            r#"kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.0"#,
            r#"kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"} 1.0"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="0",ip_family="IPv4"} 0"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="0.5",ip_family="IPv4"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="59",ip_family="IPv4"} 1"#,
            r#"kubeproxy_network_programming_duration_seconds_bucket{le="300",ip_family="IPv4"} 1"#,
            "# TYPE kubeproxy_sync_proxy_rules_endpoint_changes_total counter",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 3",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 2",
            "kubeproxy_sync_proxy_rules_service_changes_total 5",
            "kubeproxy_sync_proxy_rules_service_changes_pending 4",
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            r#"kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 6"#,
            r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv6"} 1"#,
            r#"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 1"#,
            r#"kubeproxy_proxy_healthz_total{code="503"} 1"#,
            r#"kubeproxy_proxy_livez_total{code="200"} 1"#,
            r#"kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le="1.024",ip_family="IPv4"} 1"#,
            r#"kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 7"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn our_own_stand_beside_them() {
        let metrics = Metrics::new();
        metrics.committed(Duration::from_millis(2));
        metrics.lock_held(Duration::from_millis(1));
        metrics.elements_changed(ElementOperation::Add, 10);
        metrics.elements_changed(ElementOperation::Delete, 1);
        metrics.set_quarantined_services(2);
        metrics.drift_repaired();
        let connections = [ServiceConnections {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port: "http".to_owned(),
            connections: 9,
        }];
        let text = metrics.encode(Format::Prometheus, &connections);
        for line in [
            "vmap_proxy_commit_duration_seconds_count 1",
            r#"vmap_proxy_commit_lock_hold_seconds_bucket{le="0.001"} 1"#,
            r#"vmap_proxy_elements_changed_total{operation="add"} 10"#,
            r#"vmap_proxy_elements_changed_total{operation="delete"} 1"#,
            "vmap_proxy_quarantined_services 2",
            "vmap_proxy_drift_repairs_total 1",
            "# TYPE vmap_proxy_service_connections_total counter",
            r#"vmap_proxy_service_connections_total{namespace="default",service="web",port="http"} 9"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn clones_count_together() {
        let metrics = Metrics::new();
        metrics.clone().drift_repaired();
        assert!(metrics.encode(Format::OpenMetrics, &[]).contains("vmap_proxy_drift_repairs_total 1"));
    }
}
