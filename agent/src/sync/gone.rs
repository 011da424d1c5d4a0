//! Endpoints of TCP that no slice of their Service lists any more, for the reset
//! of their connections.
//!
//! An endpoint usually leaves in two steps: it is no longer chosen, because it
//! terminates, and later its slice no longer lists it. Those in between are kept
//! here; the work of a sync depends on the Services that changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, NodeInfo, Protocol, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::plan::planner::ServiceChange;
use vmap_proxy_compiler::ruleset::service::{CompiledService, all_frontends};
use vmap_proxy_compiler::ruleset::target::{FrontendKey, Target};

/// What became of endpoints in one sync.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GoneEndpoints {
    /// Endpoints that no slice of the Service lists any more, with the frontends
    /// that led to them.
    pub gone: Vec<(ServiceName, Endpoint, Arc<[FrontendKey]>)>,
    /// Endpoints that the Service has again.
    pub back: Vec<(ServiceName, Endpoint)>,
}

/// The endpoints that serve no longer and are still listed.
#[derive(Debug, Default)]
pub(super) struct Leaving(HashMap<ServiceName, BTreeMap<Endpoint, Arc<[FrontendKey]>>>);

impl Leaving {
    /// Follows a sync. `touched` are the Services of which any object changed.
    pub(super) fn after_sync(
        &mut self,
        (store, planner): (&Store, &Planner),
        touched: &[ServiceName],
        changes: &[ServiceChange],
    ) -> GoneEndpoints {
        let mut outcome = GoneEndpoints::default();
        for change in changes {
            self.note(change, (store.node(), planner), &mut outcome);
        }
        let names: BTreeSet<&ServiceName> = touched.iter().chain(changes.iter().map(|change| &change.name)).collect();
        for name in names {
            let Some(leaving) = self.0.get_mut(name) else { continue };
            let listed = listed(store, name);
            leaving.retain(|endpoint, frontends| {
                let is_listed = listed.contains(endpoint);
                if !is_listed {
                    outcome.gone.push((name.clone(), *endpoint, frontends.clone()));
                }
                is_listed
            });
            if leaving.is_empty() {
                self.0.remove(name);
            }
        }
        outcome
    }

    fn note(&mut self, change: &ServiceChange, node: (&NodeInfo, &Planner), outcome: &mut GoneEndpoints) {
        let after = change.after.as_ref().map(chosen).unwrap_or_default();
        let before = change.before.as_ref().map(chosen).unwrap_or_default();
        for endpoint in after.keys().filter(|endpoint| !before.contains_key(endpoint)) {
            if let Some(leaving) = self.0.get_mut(&change.name) {
                leaving.remove(endpoint);
            }
            outcome.back.push((change.name.clone(), *endpoint));
        }
        let Some(compiled) = &change.before else { return };
        let mut by_port: HashMap<usize, Arc<[FrontendKey]>> = HashMap::new();
        for (endpoint, port) in before.into_iter().filter(|(endpoint, _)| !after.contains_key(endpoint)) {
            let frontends = by_port.entry(port).or_insert_with(|| frontends(compiled, port, node, change).into());
            self.0.entry(change.name.clone()).or_default().insert(endpoint, frontends.clone());
        }
    }
}

/// The endpoints of TCP that connections may be sent to, with the position of
/// their port.
fn chosen(compiled: &CompiledService) -> BTreeMap<Endpoint, usize> {
    let ports = compiled.service.ports.iter().zip(&compiled.ports).enumerate();
    let of_tcp = ports.filter(|(_, (port, _))| port.protocol == Protocol::Tcp);
    of_tcp
        .flat_map(|(position, (_, port))| {
            port.cluster.iter().chain(port.local.iter()).map(move |endpoint| (endpoint, position))
        })
        .collect()
}

/// The frontends of a port; NodePorts at each address that serves them.
fn frontends(
    compiled: &CompiledService,
    position: usize,
    (node, planner): (&NodeInfo, &Planner),
    change: &ServiceChange,
) -> Vec<FrontendKey> {
    let of_port = all_frontends(&compiled.service).into_iter().filter(|frontend| frontend.position == position);
    of_port
        .flat_map(|frontend| match frontend.target {
            Target::Frontend(key) => vec![key],
            Target::NodePort(key) => planner
                .config()
                .every_node_port_ip(node, change.family)
                .into_iter()
                .map(|address| FrontendKey { address, protocol: key.protocol, port: key.port })
                .collect(),
        })
        .collect()
}

/// The endpoints of TCP that the slices of a Service list, whatever their
/// conditions.
fn listed(store: &Store, name: &ServiceName) -> BTreeSet<Endpoint> {
    let slices = store.get(name).into_iter().flat_map(|entry| entry.slices());
    let mut listed = BTreeSet::new();
    for slice in slices {
        for port in slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
            let endpoints = slice.endpoints.iter();
            listed.extend(endpoints.map(|endpoint| Endpoint { address: endpoint.address, port: port.port }));
        }
    }
    listed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};
    use vmap_proxy_compiler::model::{Change, ProxyConfig};
    use vmap_proxy_compiler::{model::PerFamily, plan::Planner};

    use super::*;

    fn slice(endpoints: &[(&str, bool)]) -> Value {
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(address, ready)| {
                json!({"addresses": [address], "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
            })
            .collect();
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": "a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    struct World {
        store: Store,
        planner: Planner,
        leaving: Leaving,
    }

    impl World {
        fn new() -> Self {
            let mut store = Store::new("n1");
            let service = json!({
                "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
                "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                         "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
            });
            for object in [service, slice(&[("10.244.1.5", true), ("10.244.1.6", true)])] {
                store.apply(Change::Apply(from_value(object).unwrap()));
            }
            let mut planner = Planner::new(ProxyConfig::default(), store.node());
            planner.resync(&mut store, PerFamily::default()).for_each(drop);
            Self { store, planner, leaving: Leaving::default() }
        }

        fn change(&mut self, endpoints: &[(&str, bool)]) -> GoneEndpoints {
            self.store.apply(Change::Apply(from_value(slice(endpoints)).unwrap()));
            let touched: Vec<ServiceName> = self.store.dirty().cloned().collect();
            let mut changes = Vec::new();
            while let Some(plan) = self.planner.update(&mut self.store) {
                changes.extend(plan.changed);
            }
            self.leaving.after_sync((&self.store, &self.planner), &touched, &changes)
        }
    }

    #[test]
    fn an_endpoint_is_gone_when_no_slice_lists_it() {
        let mut world = World::new();
        // It terminates, and still is in the slice.
        let changes = world.change(&[("10.244.1.5", false), ("10.244.1.6", true)]);
        assert_eq!(changes, GoneEndpoints::default());
        let changes = world.change(&[("10.244.1.6", true)]);
        let endpoint = Endpoint { address: "10.244.1.5".parse().unwrap(), port: 8080 };
        let [(name, gone, frontends)] = changes.gone.as_slice() else { panic!("{changes:?}") };
        assert_eq!((name.to_string().as_str(), *gone), ("shop/cart", endpoint));
        assert_eq!(frontends.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.10 port 80/TCP"]);
        let changes = world.change(&[("10.244.1.5", true), ("10.244.1.6", true)]);
        assert_eq!((changes.gone.len(), changes.back.len()), (0, 1), "{changes:?}");
        // At once, without a step in between.
        let changes = world.change(&[("10.244.1.5", true)]);
        assert_eq!(changes.gone.len(), 1, "{changes:?}");
        assert!(world.leaving.0.is_empty());
    }

    #[test]
    fn one_that_serves_again_before_it_is_gone_stays() {
        let mut world = World::new();
        world.change(&[("10.244.1.5", false), ("10.244.1.6", true)]);
        let changes = world.change(&[("10.244.1.5", true), ("10.244.1.6", true)]);
        assert_eq!((changes.gone.len(), changes.back.len()), (0, 1), "{changes:?}");
        assert!(world.leaving.0.is_empty());
    }
}
