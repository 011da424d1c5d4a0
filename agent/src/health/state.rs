//! The health of the proxy: one small state that the sync loop writes and the
//! servers read.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use vmap_proxy_compiler::ruleset::Family;

/// The time, both monotonic and as calendar time.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For durations.
    pub instant: Instant,
    /// For messages.
    pub wall: SystemTime,
}

/// The source of time; tests use one that they move by hand.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Now + Send + Sync>);

impl Clock {
    /// The machine's.
    pub fn system() -> Self {
        Self::new(|| Now { instant: Instant::now(), wall: SystemTime::now() })
    }

    /// A custom clock.
    pub fn new(now: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time now.
    pub fn now(&self) -> Now {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// Whether load balancers should send traffic to this node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NodeEligibility {
    /// The Node object has not been seen.
    #[default]
    Unknown,
    /// They should. This is also the state without a cluster.
    Eligible,
    /// The Node object has a deletion timestamp.
    BeingDeleted,
    /// The cluster autoscaler will remove the node.
    TaintedForRemoval,
}

/// The taint by which the cluster autoscaler announces that a node will go.
pub const REMOVAL_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

impl NodeEligibility {
    /// From a Node object that exists: whether it has a deletion timestamp, and
    /// the keys of its taints.
    pub fn of_node<'a>(being_deleted: bool, taint_keys: impl IntoIterator<Item = &'a str>) -> Self {
        if being_deleted {
            Self::BeingDeleted
        } else if taint_keys.into_iter().any(|key| key == REMOVAL_TAINT) {
            Self::TaintedForRemoval
        } else {
            Self::Eligible
        }
    }

    /// Returns the reason why not, for `reason` in the body of `/healthz`.
    pub(super) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Eligible => None,
            Self::Unknown => Some("the Node object is not known"),
            Self::BeingDeleted => Some("the Node is being deleted"),
            Self::TaintedForRemoval => Some("the Node has the taint ToBeDeletedByClusterAutoscaler"),
        }
    }
}

/// One family at a time of asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyReport {
    /// The family.
    pub family: Family,
    /// The time of its last sync; `None` before the first.
    pub last_updated: Option<SystemTime>,
    /// No change has waited too long.
    pub healthy: bool,
}

/// Longest time that rules may be missing before traffic should go elsewhere. A
/// foreign change that is repaired at once does not matter.
const MISSING_RULES: Duration = Duration::from_secs(1);

/// The reason why the kernel may not have the desired state, at a given time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TroubleReport {
    /// In one sentence.
    pub reason: String,
    /// Whether rules have been missing for so long that no traffic should come.
    pub rules_missing: bool,
}

/// Everything at a time of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    /// The time of asking.
    pub now: SystemTime,
    /// The families that are served; empty before [`HealthState::initialized`].
    pub families: Vec<FamilyReport>,
    /// No change has waited too long in any family.
    pub healthy: bool,
    /// Every family has been in sync once: rules are in place.
    pub synced: bool,
    /// Whether the node wants traffic.
    pub node: NodeEligibility,
    /// The defect of the rules, if any.
    pub trouble: Option<TroubleReport>,
}

impl HealthReport {
    /// The time of a family's last sync.
    pub fn last_updated(&self) -> Option<SystemTime> {
        self.families.iter().filter_map(|family| family.last_updated).max()
    }
}

#[derive(Debug, Clone, Copy)]
struct FamilyState {
    family: Family,
    last_updated: Option<SystemTime>,
    oldest_pending: Option<Instant>,
}

#[derive(Debug)]
struct State {
    families: Vec<FamilyState>,
    node: NodeEligibility,
    trouble: Option<TroubleState>,
}

#[derive(Debug)]
struct TroubleState {
    reason: String,
    /// Since when rules may be missing.
    missing_since: Option<Instant>,
}

/// The proxy's health. Cheap to clone and to write; all clones are one.
///
/// A family is healthy while no change has waited longer than the timeout.
/// Unlike in kube-proxy, the clock starts only at [`HealthState::initialized`]
/// (a slow API server is not the proxy's fault). From then on the first sync
/// counts as waiting, and until it is done `/healthz` answers 503: a load
/// balancer should not send traffic to a node without rules. `/livez` is 200
/// meanwhile, so that the starting process is not restarted. The same applies
/// while other programs have changed or own our tables and the rules could not
/// be repaired for a second: 503 from `/healthz`, with the reason, and `/livez`
/// according to the timeout.
#[derive(Debug, Clone)]
pub struct HealthState {
    clock: Clock,
    timeout: Duration,
    state: Arc<Mutex<State>>,
}

impl HealthState {
    /// Healthy, not in sync, on an unknown node.
    ///
    /// `timeout` is how long a change may wait; kube-proxy has twice the sync
    /// period.
    pub fn new(clock: Clock, timeout: Duration) -> Self {
        let state = State { families: Vec::new(), node: NodeEligibility::Unknown, trouble: None };
        Self { clock, timeout, state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every write leaves a whole state, so one by a thread that panicked counts too.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sources are complete and these families will be programmed: their
    /// first sync is waited for from now on. A second call changes nothing.
    pub fn initialized(&self, families: &[Family]) {
        let now = self.clock.now().instant;
        let mut state = self.lock();
        if state.families.is_empty() {
            state.families = families
                .iter()
                .map(|&family| FamilyState { family, last_updated: None, oldest_pending: Some(now) })
                .collect();
        }
    }

    /// A change waits for its sync. Only the oldest one counts, so a retry
    /// after a failure changes nothing.
    pub fn queued(&self, family: Family) {
        let now = self.clock.now().instant;
        if let Some(family) = self.lock().families.iter_mut().find(|state| state.family == family) {
            family.oldest_pending.get_or_insert(now);
        }
    }

    /// This family is not served after all: nothing of it waits.
    pub fn left_out(&self, family: Family) {
        self.lock().families.retain(|state| state.family != family);
    }

    /// A sync of this family succeeded: nothing waits.
    pub fn updated(&self, family: Family) {
        let now = self.clock.now().wall;
        if let Some(family) = self.lock().families.iter_mut().find(|state| state.family == family) {
            family.last_updated = Some(now);
            family.oldest_pending = None;
        }
    }

    /// Records that the kernel may not have the desired state, for this reason.
    /// `rules_missing` means that Services may have lost rules.
    pub fn troubled(&self, reason: String, rules_missing: bool) {
        let now = self.clock.now().instant;
        let mut state = self.lock();
        let since = state.trouble.as_ref().and_then(|trouble| trouble.missing_since);
        let missing_since = since.or(rules_missing.then_some(now));
        state.trouble = Some(TroubleState { reason, missing_since });
    }

    /// Records that the kernel has the desired state.
    pub fn recovered(&self) {
        self.lock().trouble = None;
    }

    /// Records the state of the Node object.
    pub fn set_node(&self, node: NodeEligibility) {
        self.lock().node = node;
    }

    /// Returns whether no change has waited too long.
    pub fn is_healthy(&self) -> bool {
        self.report().healthy
    }

    /// Everything, at this moment.
    pub fn report(&self) -> HealthReport {
        let now = self.clock.now();
        let state = self.lock();
        let families: Vec<FamilyReport> = state
            .families
            .iter()
            .map(|family| FamilyReport {
                family: family.family,
                last_updated: family.last_updated,
                healthy: family
                    .oldest_pending
                    .is_none_or(|since| now.instant.saturating_duration_since(since) < self.timeout),
            })
            .collect();
        HealthReport {
            now: now.wall,
            healthy: families.iter().all(|family| family.healthy),
            synced: !families.is_empty() && families.iter().all(|family| family.last_updated.is_some()),
            node: state.node,
            trouble: state.trouble.as_ref().map(|trouble| TroubleReport {
                reason: trouble.reason.clone(),
                rules_missing: trouble
                    .missing_since
                    .is_some_and(|since| now.instant.saturating_duration_since(since) >= MISSING_RULES),
            }),
            families,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::UNIX_EPOCH;

    use super::*;

    /// A clock that stands until it is moved; it starts at 1970-01-01T00:00:00Z.
    #[derive(Clone, Default)]
    pub(in crate::health) struct HandClock(Arc<AtomicU64>);

    impl HandClock {
        pub(in crate::health) fn clock(&self) -> Clock {
            let (start, milliseconds) = (Instant::now(), self.0.clone());
            Clock::new(move || {
                let passed = Duration::from_millis(milliseconds.load(Ordering::SeqCst));
                Now { instant: start + passed, wall: UNIX_EPOCH + passed }
            })
        }

        pub(in crate::health) fn forward(&self, milliseconds: u64) {
            self.0.fetch_add(milliseconds, Ordering::SeqCst);
        }
    }

    fn state() -> (HandClock, HealthState) {
        let clock = HandClock::default();
        (clock.clone(), HealthState::new(clock.clock(), Duration::from_secs(60)))
    }

    #[test]
    fn before_the_sources_are_complete_nothing_is_overdue() {
        let (clock, health) = state();
        health.queued(Family::Ipv4);
        clock.forward(600_000);
        let report = health.report();
        assert!(report.healthy && !report.synced && report.families.is_empty());
    }

    #[test]
    fn the_first_sync_is_waited_for() {
        let (clock, health) = state();
        health.initialized(&Family::ALL);
        assert!(health.is_healthy() && !health.report().synced);
        health.updated(Family::Ipv4);
        assert!(!health.report().synced, "one family is missing");
        clock.forward(60_000);
        assert!(!health.is_healthy());
        health.updated(Family::Ipv6);
        let report = health.report();
        assert!(report.healthy && report.synced);
        assert_eq!(report.last_updated(), Some(UNIX_EPOCH + Duration::from_secs(60)));
    }

    #[test]
    fn a_change_is_overdue_at_exactly_the_timeout_since_the_oldest() {
        let (clock, health) = state();
        health.initialized(&[Family::Ipv4]);
        health.updated(Family::Ipv4);
        health.queued(Family::Ipv4);
        clock.forward(30_000);
        health.queued(Family::Ipv4);
        clock.forward(29_999);
        assert!(health.is_healthy());
        clock.forward(1);
        assert!(!health.is_healthy());
        health.updated(Family::Ipv4);
        assert!(health.is_healthy());
    }

    #[test]
    fn rules_that_are_missing_for_a_second_count() {
        let (clock, health) = state();
        health.initialized(&[Family::Ipv4]);
        health.updated(Family::Ipv4);
        let missing = || health.report().trouble.map(|trouble| trouble.rules_missing);
        assert_eq!(missing(), None);
        health.troubled("somebody flushed them".to_owned(), true);
        clock.forward(999);
        assert_eq!(missing(), Some(false));
        // Another reason does not restart the clock.
        health.troubled("the last sync failed".to_owned(), false);
        clock.forward(1);
        assert_eq!(missing(), Some(true));
        assert!(health.is_healthy(), "nobody should restart it for that");
        health.recovered();
        assert_eq!(missing(), None);
        health.troubled("a change is refused".to_owned(), false);
        clock.forward(10_000);
        assert_eq!(missing(), Some(false));
    }

    #[test]
    fn a_family_that_is_not_served_does_not_count() {
        let (clock, health) = state();
        health.initialized(&[Family::Ipv4]);
        health.updated(Family::Ipv4);
        health.queued(Family::Ipv6);
        clock.forward(120_000);
        assert!(health.is_healthy() && health.report().synced);
    }

    #[test]
    fn nodes_that_will_go_are_not_eligible() {
        assert_eq!(NodeEligibility::of_node(false, ["other"]), NodeEligibility::Eligible);
        assert_eq!(NodeEligibility::of_node(true, []), NodeEligibility::BeingDeleted);
        assert_eq!(NodeEligibility::of_node(false, [REMOVAL_TAINT]), NodeEligibility::TaintedForRemoval);
    }
}
