//! Counts and times syncs, and the changes that lead to them.

use std::time::{Duration, SystemTime};

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::ruleset::Family;

use super::{LocalCounts, Observer, SyncDone, WithoutLocal};
use crate::metrics::{ElementOperation, Metrics, TrafficPolicy};
use crate::source::{Event, ObjectChange};

/// Writes [`Metrics`].
#[derive(Debug)]
pub struct SyncMetrics {
    metrics: Metrics,
    families: Vec<Family>,
    started: SystemTime,
    /// The trigger time of each waiting slice change.
    triggers: Vec<(Family, SystemTime)>,
    changed_services: usize,
    changed_slices: usize,
    without_local: PerFamily<LocalCounts>,
}

impl SyncMetrics {
    /// For an agent that serves these families since `started`.
    pub fn new(metrics: Metrics, families: &[Family], started: SystemTime) -> Self {
        Self {
            metrics,
            families: families.to_vec(),
            started,
            triggers: Vec::new(),
            changed_services: 0,
            changed_slices: 0,
            without_local: PerFamily::default(),
        }
    }

    fn take_change(&mut self, change: &ObjectChange) {
        if change.is_kept() {
            return;
        }
        match change.object().kind {
            Kind::Service => {
                self.changed_services += 1;
                // kube-proxy counts the events of a Service once for each family.
                self.metrics.service_changes(self.families.len());
            }
            Kind::EndpointSlice => {
                self.changed_slices += 1;
                self.metrics.endpoint_changes(1);
                // Changes from before this process are not its latency.
                self.triggers.extend(change.trigger().filter(|(_, triggered)| *triggered >= self.started));
            }
            Kind::Node | Kind::ServiceCidr => {}
        }
    }

    fn show_pending(&self) {
        self.metrics.set_endpoint_changes_pending(self.changed_slices);
        self.metrics.set_service_changes_pending(self.changed_services);
    }

    /// Committed changes count, whether the sync succeeded or not.
    fn count_commits(&self, done: &SyncDone) {
        let report = &done.report;
        report.commits.iter().for_each(|took| self.metrics.committed(*took));
        report.lock_holds.iter().for_each(|held| self.metrics.lock_held(*held));
        self.metrics.elements_changed(ElementOperation::Add, report.added);
        self.metrics.elements_changed(ElementOperation::Delete, report.removed);
        for cleaned in &report.cleaned {
            self.metrics.foreign_removed(cleaned.kind, cleaned.count);
        }
        if report.cleanup_failed {
            self.count_cleanup_failure();
        }
        self.metrics.set_quarantined_services(done.quarantined);
    }

    fn count_cleanup_failure(&self) {
        self.families.iter().for_each(|family| self.metrics.cleanup_failed(*family));
    }

    fn count_success(&mut self, done: &SyncDone) {
        let now = SystemTime::now();
        for family in &self.families {
            self.metrics.sync_succeeded(*family, done.kind(), done.report.duration, now);
        }
        for (family, triggered) in self.triggers.drain(..).filter(|(family, _)| self.families.contains(family)) {
            self.metrics.network_programmed(family, now.duration_since(triggered).unwrap_or(Duration::ZERO));
        }
        self.changed_services = 0;
        self.changed_slices = 0;
        self.show_pending();
        if done.undid_foreign_change {
            self.metrics.drift_repaired();
            // Those that we could have written ourselves. What the sources removed at
            // the same time is counted with them.
            if done.report.removed > 0 {
                self.metrics.foreign_removed("element", done.report.removed);
            }
        }
        if let Some(digest) = done.digest {
            self.metrics.set_state_digest(digest);
        }
        self.count_without_local(&done.without_local);
    }

    fn count_without_local(&mut self, change: &WithoutLocal) {
        if change.is_complete {
            self.without_local = PerFamily::default();
        }
        for family in &self.families {
            let (before, after) = (change.before[*family], change.after[*family]);
            let counts = &mut self.without_local[*family];
            counts.internal = (counts.internal + after.internal).saturating_sub(before.internal);
            counts.external = (counts.external + after.external).saturating_sub(before.external);
            self.metrics.set_no_local_endpoints(*family, TrafficPolicy::Internal, counts.internal);
            self.metrics.set_no_local_endpoints(*family, TrafficPolicy::External, counts.external);
        }
    }
}

impl Observer for SyncMetrics {
    fn on_event(&mut self, event: &Event) {
        if let Event::Changes(changes) = event {
            changes.iter().for_each(|change| self.take_change(change));
            self.show_pending();
        }
    }

    fn on_queued(&mut self) {
        let now = SystemTime::now();
        self.families.iter().for_each(|family| self.metrics.sync_queued(*family, now));
    }

    fn on_sync(&mut self, done: &SyncDone) {
        self.families.retain(|family| !done.left_out.contains(family));
        self.count_commits(done);
        if done.failure.is_none() {
            self.count_success(done);
            return;
        }
        for family in &self.families {
            self.metrics.sync_failed(*family, done.kind(), done.report.duration);
        }
    }

    fn on_removal(&mut self, done: &SyncDone) {
        self.count_commits(done);
    }

    fn on_cleanup_failed(&mut self) {
        self.count_cleanup_failure();
    }
}

#[cfg(test)]
mod tests {
    use vmap_proxy_compiler::model::ObjectRef;

    use super::*;
    use crate::metrics::Format;
    use crate::source::Origin;
    use crate::sync::report::SyncReport;

    const FAMILY: Family = Family::Ipv4;

    /// Lets listeners hear of these syncs, and returns the lines of `/metrics`.
    fn lines_after(observe: impl FnOnce(&mut SyncMetrics)) -> Vec<String> {
        let metrics = Metrics::new();
        observe(&mut SyncMetrics::new(metrics.clone(), &[FAMILY], SystemTime::UNIX_EPOCH));
        metrics.encode(Format::Prometheus, &[]).lines().map(str::to_owned).collect()
    }

    fn assert_has(lines: &[String], wanted: &str) {
        assert!(lines.iter().any(|line| line == wanted), "{wanted} is not in {lines:#?}");
    }

    #[test]
    fn a_failure_has_its_kind_and_its_duration() {
        let report = SyncReport { duration: Duration::from_millis(100), repaired: false, ..SyncReport::default() };
        let failed = SyncDone { report, failure: Some("no".to_owned()), ..SyncDone::default() };
        let lines = lines_after(|listener| listener.on_sync(&failed));
        let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
        assert_has(&lines, &format!(r#"{partial}_bucket{{le="0.064",ip_family="IPv4"}} 0"#));
        assert_has(&lines, &format!(r#"{partial}_bucket{{le="0.128",ip_family="IPv4"}} 1"#));
        assert_has(&lines, r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 1"#);
        assert!(!lines.iter().any(|line| line.starts_with("kubeproxy_sync_full_proxy_rules_duration_seconds_count")));
    }

    /// No change was programmed with it.
    #[test]
    fn a_removal_between_two_syncs_is_no_sync() {
        let slice = ObjectRef { kind: Kind::EndpointSlice, namespace: "shop".to_owned(), name: "a".to_owned() };
        let report = SyncReport { removed: 7, removed_leftovers: true, ..SyncReport::default() };
        let lines = lines_after(|listener| {
            listener.on_event(&Event::Changes(vec![ObjectChange::gone(slice, Origin::ApiServer)]));
            listener.on_removal(&SyncDone { report, ..SyncDone::default() });
        });
        assert_has(&lines, r#"vmap_proxy_elements_changed_total{operation="delete"} 7"#);
        assert_has(&lines, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1");
        assert!(
            !lines.iter().any(|line| line.starts_with("kubeproxy_sync_partial_proxy_rules_duration_seconds_count"))
        );
    }

    #[test]
    fn lock_holds_and_commits_are_measured_apart() {
        let report = SyncReport {
            commits: vec![Duration::from_millis(100)],
            lock_holds: vec![Duration::from_millis(1)],
            ..SyncReport::default()
        };
        let lines = lines_after(|listener| listener.on_sync(&SyncDone { report, ..SyncDone::default() }));
        assert_has(&lines, "vmap_proxy_commit_duration_seconds_sum 0.1");
        assert_has(&lines, "vmap_proxy_commit_lock_hold_seconds_sum 0.001");
    }

    #[test]
    fn a_failed_cleanup_is_counted_within_a_sync_and_between_two() {
        let report = SyncReport { cleanup_failed: true, ..SyncReport::default() };
        let lines = lines_after(|listener| {
            listener.on_sync(&SyncDone { report, ..SyncDone::default() });
            listener.on_cleanup_failed();
        });
        assert_has(&lines, r#"kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 2"#);
    }

    #[test]
    fn ports_without_local_endpoints_are_counted_by_what_changes() {
        let counts = |external| PerFamily { ipv4: LocalCounts { internal: 1, external }, ipv6: LocalCounts::default() };
        let all = WithoutLocal { is_complete: true, before: PerFamily::default(), after: counts(7) };
        let change = WithoutLocal { is_complete: false, before: counts(3), after: counts(1) };
        let lines = lines_after(|listener| {
            for without_local in [all.clone(), change.clone(), change, all, WithoutLocal::default()] {
                listener.on_sync(&SyncDone { without_local, ..SyncDone::default() });
            }
        });
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        assert_has(&lines, &format!(r#"{name}{{ip_family="IPv4",traffic_policy="external"}} 7"#));
        assert_has(&lines, &format!(r#"{name}{{ip_family="IPv4",traffic_policy="internal"}} 1"#));
    }
}
