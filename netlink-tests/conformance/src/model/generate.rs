//! Random cluster states, changes and packets, as raw Kubernetes manifests.
//!
//! Everything is drawn from small pools, so that Services share external
//! addresses and slices share endpoints. What the API server keeps unique stays
//! unique: an object is generated for a fixed *place*, and name, age, cluster
//! IPs and node ports follow from the place. Shrinking removes objects, changes
//! and endpoints, and turns rare options into common ones.
//!
//! | file | generates |
//! |---|---|
//! | `services` | Services |
//! | `slices` | EndpointSlices |
//! | `surroundings` | the node, its configuration, Node objects, ServiceCIDRs |
//! | `probes` | packets that are of interest in a scenario |
//!
//! Left out on purpose, since kube-proxy or the model leave it open: endpoints
//! whose address is a frontend, one endpoint address on two nodes, and changes
//! of the node's addresses or pod ranges while the proxy runs.

mod probes;
mod services;
mod slices;
mod surroundings;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Node, ObjectKey, Packet, ReferenceModel};

/// Places for Services; each has room for slices of its own.
const SERVICE_PLACES: usize = 5;

/// One event of the cluster.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelChange {
    /// An object is created, or replaced whole.
    Apply(Value),
    /// An object is deleted; it may be absent.
    Delete(ObjectKey),
}

/// A cluster, changes to it, and packets to send in each state.
#[derive(Clone, PartialEq)]
pub struct Scenario {
    /// The node that the proxy runs on.
    pub node: Node,
    /// KubeProxyConfiguration fields that differ from the default.
    pub config: Value,
    /// Manifests that exist before the proxy starts; one per object, and this
    /// node's Node object among them.
    pub objects: Vec<Value>,
    /// The later steps, in order.
    pub changes: Vec<ModelChange>,
    /// Packets for every state: to each frontend that occurs in any manifest,
    /// and to near misses, from changing sources. [`Scenario::every_probe`] has
    /// all sources.
    pub probes: Vec<Packet>,
}

impl Scenario {
    /// The model in the state before the first change.
    pub fn start(&self) -> ReferenceModel {
        let mut model = ReferenceModel::new(self.node.clone(), self.config.clone());
        self.objects.iter().for_each(|manifest| model.apply(manifest.clone()));
        model
    }

    /// Every frontend that occurs in any manifest, and near misses, from every
    /// source. Several times as many as `probes`.
    pub fn every_probe(&self) -> Vec<Packet> {
        probes::all(self)
    }

    /// Every manifest, also those of changes.
    fn manifests(&self) -> impl Iterator<Item = &Value> {
        let changed = self.changes.iter().filter_map(|change| match change {
            ModelChange::Apply(manifest) => Some(manifest),
            ModelChange::Delete(_) => None,
        });
        self.objects.iter().chain(changed)
    }
}

impl ReferenceModel {
    /// Applies one change.
    pub fn change(&mut self, change: &ModelChange) {
        match change {
            ModelChange::Apply(manifest) => self.apply(manifest.clone()),
            ModelChange::Delete(key) => self.delete(key),
        }
    }
}

/// As YAML; packets are only counted, since a failing test names its own.
impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let changes: Vec<Value> = self
            .changes
            .iter()
            .map(|change| match change {
                ModelChange::Apply(manifest) => json!({"apply": manifest}),
                ModelChange::Delete(key) => json!({"delete": {
                    "kind": key.kind, "namespace": key.namespace, "name": key.name,
                }}),
            })
            .collect();
        let document = json!({
            "node": {
                "name": self.node.name,
                "zone": self.node.zone,
                "primaryIPs": self.node.primary_ips,
                "localAddresses": self.node.local_addresses,
                "podCIDRs": self.node.pod_cidrs,
            },
            "config": self.config,
            "objects": self.objects,
            "changes": changes,
        });
        let text = serde_saphyr::to_string(&document).map_err(|_| fmt::Error)?;
        write!(f, "\n{text}# {} packets\n", self.probes.len())
    }
}

/// Random scenarios.
pub fn scenario() -> impl Strategy<Value = Scenario> {
    let start = (surroundings::node(), surroundings::config(), surroundings::service_cidrs(), vec(bundle(), 0..=4));
    (start, vec(change(), 0..=10), 0..1000_usize).prop_map(|(start, changes, turn)| {
        let (node, config, service_cidrs, bundles) = start;
        let mut objects = vec![surroundings::node_object(&node, node.zone.as_deref())];
        objects.extend(service_cidrs);
        objects.extend(bundles.into_iter().flatten());
        let objects = last_of_each(objects);
        let mut scenario = Scenario { node, config, objects, changes, probes: Vec::new() };
        scenario.probes = probes::some(&scenario, turn);
        scenario
    })
}

/// A Service and some of its slices.
fn bundle() -> impl Strategy<Value = Vec<Value>> {
    (0..SERVICE_PLACES).prop_flat_map(|place| {
        let places = place..place + 1;
        (services::service(places.clone()), vec(slices::slice(places), 0..=6)).prop_map(|(service, mut slices)| {
            slices.push(service);
            slices
        })
    })
}

/// Random changes of what [`scenario`] generates.
pub fn change() -> impl Strategy<Value = ModelChange> {
    let apply = |strategy: BoxedStrategy<Value>| strategy.prop_map(ModelChange::Apply);
    prop_oneof![
        6 => apply(slices::slice(0..SERVICE_PLACES).boxed()),
        4 => apply(services::service(0..SERVICE_PLACES).boxed()),
        2 => apply(surroundings::changed_node_object().boxed()),
        1 => apply(surroundings::service_cidr().boxed()),
        2 => slices::key().prop_map(ModelChange::Delete),
        1 => services::key().prop_map(ModelChange::Delete),
        1 => Just(surroundings::node_key()).prop_map(ModelChange::Delete),
        1 => surroundings::service_cidr_key().prop_map(ModelChange::Delete),
    ]
}

/// Only one object can have a name: the last generated one.
fn last_of_each(manifests: Vec<Value>) -> Vec<Value> {
    let named = manifests.into_iter().filter_map(|manifest| Some((ObjectKey::of(&manifest)?, manifest)));
    named.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Namespace and name of a Service place. Two share a name.
fn service_name(place: usize) -> (&'static str, &'static str) {
    const NAMES: [(&str, &str); SERVICE_PLACES] =
        [("shop", "web"), ("shop", "api"), ("blog", "web"), ("blog", "dns"), ("blog", "mail")];
    NAMES[place % SERVICE_PLACES]
}

/// `yes` with this many chances in a hundred, and never after shrinking.
fn rarely(percent: u32) -> impl Strategy<Value = bool> {
    prop_oneof![100 - percent => Just(false), percent => Just(true)]
}
