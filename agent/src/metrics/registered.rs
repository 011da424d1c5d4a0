//! The names and helps of the metrics.

use prometheus_client::metrics::family::Family as MetricFamily;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Metrics, VersionLabel};

impl Metrics {
    /// Counters are registered without their `_total`, which the library adds.
    pub(super) fn register_kube_proxy(&self, all: &mut Registry) {
        let registry = all.sub_registry_with_prefix("kubeproxy");
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            self.sync_duration.clone(),
        );
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for full resyncs",
            self.full_sync_duration.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds for partial resyncs",
            self.partial_sync_duration.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
            self.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
            self.last_queued.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            self.network_programming.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Pending proxy rules Endpoint changes",
            self.endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Cumulative proxy rules Endpoint changes",
            self.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Pending proxy rules Service changes",
            self.service_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Cumulative proxy rules Service changes",
            self.service_changes.clone(),
        );
        // A gauge in spite of its name, in kube-proxy too.
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            self.no_local_endpoints.clone(),
        );
        registry.register(
            "sync_proxy_rules_nftables_sync_failures",
            "Cumulative proxy nftables sync failures",
            self.sync_failures.clone(),
        );
        registry.register(
            "sync_proxy_rules_nftables_cleanup_failures",
            "Cumulative proxy nftables cleanup failures",
            self.cleanup_failures.clone(),
        );
        registry.register("proxy_healthz", "Cumulative proxy healthz HTTP status", self.healthz_replies.clone());
        registry.register("proxy_livez", "Cumulative proxy livez HTTP status", self.livez_replies.clone());
        registry.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Latency of conntrack reconciliation in seconds",
            self.conntrack_duration.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Cumulative conntrack flows deleted by the reconciler",
            self.conntrack_deleted.clone(),
        );
    }

    pub(super) fn register_own(&self, all: &mut Registry) {
        let registry = all.sub_registry_with_prefix("vmap_proxy");
        registry.register(
            "commit_duration_seconds",
            "Time of a transaction: encoding, the kernel, and its answer",
            self.commit_duration.clone(),
        );
        registry.register(
            "commit_lock_hold_seconds",
            "Time a transaction kept other nftables writers waiting, at most: its system call",
            self.lock_hold.clone(),
        );
        registry.register(
            "elements_changed",
            "Elements of sets and maps added and deleted",
            self.elements_changed.clone(),
        );
        registry.register(
            "quarantined_services",
            "Services whose latest state is not programmed because the kernel refused it",
            self.quarantined_services.clone(),
        );
        registry.register(
            "flush_proof",
            "1 if the kernel keeps other programs from flushing or changing our tables, else 0",
            self.flush_proof.clone(),
        );
        registry.register(
            "flow_table_interfaces",
            "Interfaces in the flow table, on which established connections bypass the rules; 0 without a flow table",
            self.flow_table_interfaces.clone(),
        );
        registry.register(
            "state_digest",
            "Digest of the programmed Services and endpoints, the same on every node that was told the same",
            self.state_digest.clone(),
        );
        registry.register(
            "connections_reset",
            "TCP connections that got a reset because no slice lists their endpoint any more",
            self.connections_reset.clone(),
        );
        registry.register(
            "drift_repairs",
            "Times that changes made by others to our tables were undone",
            self.drift_repairs.clone(),
        );
        registry.register(
            "foreign_removed",
            "Things in our tables that were not ours and were removed or undone",
            self.foreign_removed.clone(),
        );
        let build: MetricFamily<VersionLabel, Gauge> = MetricFamily::default();
        build.get_or_create(&VersionLabel { version: env!("CARGO_PKG_VERSION") }).set(1);
        registry.register("build_info", "The version of vmap-proxy, always 1", build);
    }
}
