//! Delays the first sync until this node's Node object is complete enough, and
//! logs its missing parts.
//!
//! kube-proxy waits at its start for the Node to have an address, for 30 s, and
//! in NodeCIDR mode for its `podCIDRs`, for 5 minutes, after which it ends
//! (`newProxyServer` and `platformSetup` in `cmd/kube-proxy/app`). So do we,
//! between the source and the sync loop: objects pass through, but the event
//! that everything is listed is held back. Until then nothing is programmed, and
//! what an earlier process programmed stays.

use std::convert::Infallible;
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::model::{NodeInfo, ObjectRef, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;

use crate::netlink::{AddressWatcher, NetlinkError, default_addresses, families};
use crate::source::{Event, NodeMarks, ObjectChange, Origin};

/// Longest time that the first sync waits for the Node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For an address.
    pub(super) address: Duration,
    /// For pod ranges, where they are needed.
    pub(super) pod_cidrs: Duration,
}

/// As in kube-proxy.
pub(super) const PATIENCE: Patience =
    Patience { address: Duration::from_secs(30), pod_cidrs: Duration::from_secs(5 * 60) };

/// The reason to stop waiting.
#[derive(Debug, Error)]
pub enum NodeError {
    /// detectLocalMode NodeCIDR, and no Node of this name.
    #[error(
        "Node {name} did not appear within {patience:?}, and detectLocalMode NodeCIDR needs its spec.podCIDRs: check \
         that --hostname-override is the name under which the kubelet registered"
    )]
    Missing {
        /// The name of this node.
        name: String,
        /// The time waited.
        patience: Duration,
    },
    /// detectLocalMode NodeCIDR, and a Node without pod ranges.
    #[error(
        "Node {name} got no spec.podCIDRs within {patience:?}, and detectLocalMode NodeCIDR needs them: have the \
         controller manager allocate them (--allocate-node-cidrs), or use another detectLocalMode"
    )]
    NoPodCidrs {
        /// The name of this node.
        name: String,
        /// The time waited.
        patience: Duration,
    },
    /// There is no Node object, and the machine's addresses can't be read.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// The source of the Node object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeSource {
    /// A cluster: the object may be late, and is waited for.
    Cluster,
    /// Manifests: missing objects do not arrive by themselves. Without a Node
    /// object, the machine's default addresses are used.
    Manifests,
}

/// Passes events on, and holds [`Event::Synced`] back while the Node is
/// incomplete. Ends only with an error.
///
/// # Errors
/// [`NodeError`]: the mode needs pod ranges and the Node got none in time.
pub(super) async fn watch(
    config: &ProxyConfig,
    source: NodeSource,
    patience: Patience,
    received: mpsc::Receiver<Event>,
    events: mpsc::Sender<Event>,
) -> Result<Infallible, NodeError> {
    pass(config, source, patience, received, &events).await?;
    // The source or the sync loop ended; the other one notices by itself.
    drop(events);
    std::future::pending().await
}

async fn pass(
    config: &ProxyConfig,
    source: NodeSource,
    patience: Patience,
    mut received: mpsc::Receiver<Event>,
    events: &mpsc::Sender<Event>,
) -> Result<(), NodeError> {
    let mut own = OwnNode::new(config, patience);
    let mut machine: Option<AddressWatcher> = None;
    loop {
        let deadline = own.deadline();
        tokio::select! {
            event = received.recv() => match event {
                None => return Ok(()),
                Some(Event::Synced) if source == NodeSource::Manifests => {
                    if own.reported.is_none() {
                        machine = Some(AddressWatcher::open()?);
                        let node = own.stand_in(default_addresses().await?);
                        if events.send(node).await.is_err() {
                            return Ok(());
                        }
                    }
                    own.log_lack_of_manifests();
                    own.start();
                }
                Some(Event::Synced) => own.begin_to_wait(),
                Some(event) => {
                    own.observe(&event);
                    if events.send(event).await.is_err() {
                        return Ok(());
                    }
                }
            },
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => own.give_up()?,
            changed = addresses_changed(&mut machine) => {
                changed?;
                if own.reported.is_none() && events.send(own.stand_in(default_addresses().await?)).await.is_err() {
                    return Ok(());
                }
            }
        }
        own.wait_on();
        if own.take_start() && events.send(Event::Synced).await.is_err() {
            return Ok(());
        }
    }
}

async fn addresses_changed(machine: &mut Option<AddressWatcher>) -> Result<(), NetlinkError> {
    match machine {
        Some(machine) => machine.changed().await,
        None => std::future::pending().await,
    }
}

/// The missing parts of the Node object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// There is no object of this name.
    Object,
    /// It has no usable address.
    Addresses,
    /// It has no pod ranges, and they are needed.
    PodCidrs,
}

/// Whether the first sync may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The source has not listed everything.
    Listing,
    /// Everything is listed; the Node is incomplete.
    Waiting { since: Instant },
    /// The first sync may run now.
    Start,
    /// It may have run.
    Started,
}

/// The known state of this node's object, and the log lines about it.
#[derive(Debug)]
struct OwnNode<'a> {
    config: &'a ProxyConfig,
    patience: Patience,
    reported: Option<NodeInfo>,
    phase: Phase,
    logged: Option<Lack>,
}

impl<'a> OwnNode<'a> {
    fn new(config: &'a ProxyConfig, patience: Patience) -> Self {
        Self { config, patience, reported: None, phase: Phase::Listing, logged: None }
    }

    fn name(&self) -> &str {
        &self.config.node_name
    }

    fn needs_pod_cidrs(&self) -> bool {
        self.config.detect_local == DetectLocal::NodeCidr
    }

    fn lacks_pod_cidrs(&self) -> bool {
        self.needs_pod_cidrs() && self.reported.as_ref().is_none_or(|node| node.pod_cidrs.is_empty())
    }

    fn lack(&self) -> Option<Lack> {
        match &self.reported {
            None => Some(Lack::Object),
            Some(node) if node.addresses.is_empty() => Some(Lack::Addresses),
            Some(_) if self.lacks_pod_cidrs() => Some(Lack::PodCidrs),
            Some(_) => None,
        }
    }

    /// Applies an event about this Node.
    fn observe(&mut self, event: &Event) {
        let Event::Changes(changes) = event else { return };
        let own = (Kind::Node, self.config.node_name.as_str());
        for change in changes.iter().filter(|change| (change.object().kind, change.object().name.as_str()) == own) {
            if let Some(node) = change.node() {
                let before = self.lack();
                self.reported = Some(node.clone());
                if self.phase == Phase::Started {
                    self.log_change(before);
                }
            } else if change.is_gone() && self.phase != Phase::Started {
                // Later, the last known state stays in use, as in kube-proxy.
                self.reported = None;
            }
        }
    }

    fn begin_to_wait(&mut self) {
        self.phase = Phase::Waiting { since: Instant::now() };
    }

    fn start(&mut self) {
        self.phase = Phase::Start;
    }

    /// Returns whether the first sync may run; true once.
    fn take_start(&mut self) -> bool {
        let start = self.phase == Phase::Start;
        if start {
            self.phase = Phase::Started;
        }
        start
    }

    /// The time to give up, while waiting.
    fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Waiting { since } => Some(since + self.patience()),
            _ => None,
        }
    }

    fn patience(&self) -> Duration {
        if self.lacks_pod_cidrs() { self.patience.pod_cidrs } else { self.patience.address }
    }

    /// Ends the wait if the object is complete, else logs the missing parts.
    fn wait_on(&mut self) {
        if !matches!(self.phase, Phase::Waiting { .. }) {
            return;
        }
        let lack = self.lack();
        if lack.is_none() {
            self.log_closed_families();
            self.start();
        } else if lack != self.logged {
            self.log_lack(lack);
        }
        self.logged = lack;
    }

    /// The wait was too long.
    fn give_up(&mut self) -> Result<(), NodeError> {
        let (name, patience) = (self.name().to_owned(), self.patience());
        if self.lacks_pod_cidrs() {
            return Err(match self.reported {
                None => NodeError::Missing { name, patience },
                Some(_) => NodeError::NoPodCidrs { name, patience },
            });
        }
        let what = if self.reported.is_none() { "did not appear" } else { "got no address" };
        tracing::error!(
            "Node {name} {what} within {patience:?}; going on without: {} until it has one",
            self.consequence()
        );
        self.start();
        Ok(())
    }

    /// The consequence of an unknown address.
    fn consequence(&self) -> &'static str {
        if Family::ALL.into_iter().any(|family| self.config.node_ports_need_primary(family)) {
            "NodePorts stay closed"
        } else {
            "source ranges that admit this node are not known to do so"
        }
    }

    fn log_lack(&self, lack: Option<Lack>) {
        let (name, patience) = (self.name(), self.patience());
        match lack {
            Some(Lack::Object) => tracing::warn!(
                "waiting up to {patience:?} for Node {name} to appear, nothing is programmed before; if it does not, \
                 check that --hostname-override is the name under which the kubelet registered"
            ),
            Some(Lack::Addresses) => tracing::warn!(
                "waiting up to {patience:?} for an InternalIP or ExternalIP in status.addresses of Node {name}, nothing \
                 is programmed before; the kubelet or the cloud controller manager sets it"
            ),
            Some(Lack::PodCidrs) => tracing::warn!(
                "waiting up to {patience:?} for spec.podCIDRs of Node {name}, which detectLocalMode NodeCIDR needs; \
                 nothing is programmed before"
            ),
            None => {}
        }
    }

    /// After the start: lost and new parts.
    fn log_change(&self, before: Option<Lack>) {
        let (name, lack) = (self.name(), self.lack());
        if lack == before {
            return;
        }
        match (lack, &self.reported) {
            (Some(Lack::Object | Lack::Addresses), _) if before == Some(Lack::Object) => {
                tracing::warn!("Node {name} appeared without an InternalIP or ExternalIP in status.addresses");
            }
            (Some(Lack::Object | Lack::Addresses), _) => tracing::warn!(
                "Node {name} has no InternalIP or ExternalIP in status.addresses any more; the last known addresses stay \
                 in use"
            ),
            (Some(Lack::PodCidrs), _) => tracing::warn!(
                "Node {name} has no spec.podCIDRs any more; the last known ranges stay in use to tell local pods"
            ),
            (None, Some(node)) => {
                tracing::info!("Node {name} is complete; its addresses are {}", listed(&node.addresses));
            }
            (None, None) => {}
        }
    }

    /// A family without an address of the Node serves no NodePorts.
    fn log_closed_families(&self) {
        let Some(node) = &self.reported else { return };
        for family in families() {
            if self.config.node_ports_need_primary(family) && self.config.primary_address(node, family).is_none() {
                tracing::info!(
                    "Node {} has no {family} address: NodePorts of {family} stay closed; nodePortAddresses can name \
                     ranges for them",
                    self.name()
                );
            }
        }
    }

    /// A Node object of this machine's default addresses.
    fn stand_in(&self, addresses: Vec<IpAddr>) -> Event {
        let name = self.name();
        if addresses.is_empty() {
            tracing::warn!(
                "no manifest holds Node {name}, and no interface has an address that could stand in for its own: \
                 NodePorts stay closed"
            );
        } else {
            tracing::warn!(
                "no manifest holds Node {name}, so this machine's default addresses stand in for its own: {}; add a Node \
                 object to choose others",
                listed(&addresses)
            );
        }
        let object = ObjectRef { kind: Kind::Node, namespace: String::new(), name: name.to_owned() };
        let node = NodeInfo { addresses, ..NodeInfo::default() };
        Event::Changes(vec![ObjectChange {
            checked: CheckedChange::of(object, Content::Node(node)),
            origin: Origin::Agent,
            triggered: None,
            node_marks: Some(NodeMarks::default()),
            names: None,
            resource_version: None,
        }])
    }

    /// Manifests are not waited for: a line is all there is.
    fn log_lack_of_manifests(&self) {
        if self.lacks_pod_cidrs() {
            tracing::warn!(
                "detectLocalMode NodeCIDR, and no manifest holds spec.podCIDRs of Node {}: local pods cannot be distinguished from \
                 other clients",
                self.name()
            );
        }
        if self.reported.is_some() {
            self.log_closed_families();
        }
    }
}

fn listed(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmap_proxy_compiler::model::{Change, Object};

    use super::*;

    /// Longer than any test waits for something that must come.
    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(20);

    struct Gate {
        events: mpsc::Sender<Event>,
        passed: mpsc::Receiver<Event>,
    }

    impl Gate {
        async fn tell(&self, addresses: &[&str], pod_cidrs: &[&str]) {
            let addresses: Vec<_> =
                addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
            let node = json!({
                "metadata": {"name": "kestrel"}, "spec": {"podCIDRs": pod_cidrs}, "status": {"addresses": addresses},
            });
            let node = Change::Apply(Object::Node(serde_json::from_value(node).unwrap()));
            let (change, _) = ObjectChange::read(&node, "kestrel", Origin::ApiServer);
            self.events.send(Event::Changes(vec![change])).await.unwrap();
        }

        async fn is_passed(&mut self, wanted: fn(&Event) -> bool) {
            let event = self.passed.recv().await.unwrap();
            assert!(wanted(&event), "{event:?}");
        }
    }

    fn is_node(event: &Event) -> bool {
        matches!(event, Event::Changes(_))
    }

    fn is_synced(event: &Event) -> bool {
        matches!(event, Event::Synced)
    }

    /// Runs a test beside the gate; the gate's error ends it.
    fn with_gate<F: Future<Output = ()>>(
        detect_local: DetectLocal,
        patience: Patience,
        test: impl FnOnce(Gate) -> F,
    ) -> Result<(), NodeError> {
        let config = ProxyConfig { node_name: "kestrel".to_owned(), detect_local, ..ProxyConfig::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (events, received) = mpsc::channel(4);
            let (sender, passed) = mpsc::channel(4);
            tokio::select! {
                failed = watch(&config, NodeSource::Cluster, patience, received, sender) => failed.map(|never| match never {}),
                () = test(Gate { events, passed }) => Ok(()),
            }
        })
    }

    fn cluster_cidr() -> DetectLocal {
        DetectLocal::ClusterCidr(Vec::new())
    }

    #[test]
    fn the_first_sync_waits_for_the_node_and_for_its_address() {
        let patience = Patience { address: LONG, pod_cidrs: LONG };
        let waited = with_gate(cluster_cidr(), patience, |mut gate| async move {
            gate.events.send(Event::Synced).await.unwrap();
            // Other events pass meanwhile, `Synced` does not.
            gate.tell(&[], &[]).await;
            gate.is_passed(is_node).await;
            gate.tell(&["192.0.2.11"], &[]).await;
            gate.is_passed(is_node).await;
            gate.is_passed(is_synced).await;
        });
        waited.unwrap();
    }

    #[test]
    fn a_complete_node_is_not_waited_for() {
        let patience = Patience { address: LONG, pod_cidrs: LONG };
        let passed = with_gate(DetectLocal::NodeCidr, patience, |mut gate| async move {
            gate.tell(&["192.0.2.11"], &["10.244.1.0/24"]).await;
            gate.is_passed(is_node).await;
            gate.events.send(Event::Synced).await.unwrap();
            gate.is_passed(is_synced).await;
        });
        passed.unwrap();
    }

    #[test]
    fn without_an_address_it_goes_on_after_a_while() {
        let patience = Patience { address: SHORT, pod_cidrs: LONG };
        let passed = with_gate(cluster_cidr(), patience, |mut gate| async move {
            gate.events.send(Event::Synced).await.unwrap();
            gate.is_passed(is_synced).await;
        });
        passed.unwrap();
    }

    #[test]
    fn in_node_cidr_mode_pod_ranges_are_waited_for() {
        let patience = Patience { address: SHORT, pod_cidrs: LONG };
        let passed = with_gate(DetectLocal::NodeCidr, patience, |mut gate| async move {
            gate.tell(&["192.0.2.11"], &[]).await;
            gate.is_passed(is_node).await;
            gate.events.send(Event::Synced).await.unwrap();
            tokio::time::sleep(SHORT * 3).await;
            gate.tell(&["192.0.2.11"], &["10.244.1.0/24"]).await;
            gate.is_passed(is_node).await;
            gate.is_passed(is_synced).await;
        });
        passed.unwrap();
    }

    #[test]
    fn in_node_cidr_mode_a_node_without_pod_ranges_is_the_end() {
        let patience = Patience { address: SHORT, pod_cidrs: SHORT };
        let silent = |gate: Gate| async move {
            // All of it: without a receiver the gate would end.
            let gate = gate;
            gate.events.send(Event::Synced).await.unwrap();
            std::future::pending().await
        };
        let missing = with_gate(DetectLocal::NodeCidr, patience, silent);
        assert!(matches!(missing, Err(NodeError::Missing { .. })), "{missing:?}");
        let bare = with_gate(DetectLocal::NodeCidr, patience, |gate| async move {
            gate.tell(&["192.0.2.11"], &[]).await;
            silent(gate).await;
        });
        assert!(matches!(bare, Err(NodeError::NoPodCidrs { .. })), "{bare:?}");
    }
}
