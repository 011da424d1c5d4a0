//! Compiles one Service: the endpoints of each of its ports with their slots.
//! Also handles Services that ask for too much.

use std::cell::OnceCell;
use std::collections::HashMap;

use thin_vec::ThinVec;

use super::planner::Planner;
use super::slots;
use crate::limits::{MAX_ELEMENTS, elements_at_most};
use crate::model::store::ServiceEntry;
use crate::model::types::{ServiceName, ServicePort};
use crate::model::{Endpoint, EndpointList, Protocol, Store};
use crate::ruleset::Family;
use crate::ruleset::element::ListNumber;
use crate::ruleset::service::{CompiledPort, CompiledService};
use crate::select::{Joins, Viewpoint, endpoints_keeping_flows, ready_local_addresses, select};

/// A Service that asks for more elements than one Service may have
/// ([`MAX_ELEMENTS`]). Nothing of it is programmed in that family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLarge {
    /// The Service.
    pub name: ServiceName,
    /// The family.
    pub family: Family,
    /// The number of elements it may need, by [`elements_at_most`].
    pub elements: u64,
}

impl Planner {
    /// The Services that have become too large since the last call. A Service
    /// that stays too large is named once.
    pub fn take_too_large(&mut self) -> Vec<TooLarge> {
        std::mem::take(&mut self.newly_too_large)
    }

    /// Returns the number of Services that are too large, counted per family.
    pub fn too_large(&self) -> usize {
        self.families.values().map(|state| state.too_large.len()).sum()
    }

    /// Compiles one Service in one family, as if there were no other claims.
    /// Endpoints keep the slots they have in `before`. The error is the number
    /// of elements of a Service that is too large.
    pub(super) fn compile(
        &self,
        store: &Store,
        name: &ServiceName,
        entry: &ServiceEntry,
        family: Family,
        before: Option<&CompiledService>,
    ) -> Result<Option<CompiledService>, u64> {
        let Some(service) = entry.service[family].as_ref() else { return Ok(None) };
        let state = &self.families[family];
        if self.is_quarantined(name) {
            return Ok(before.cloned());
        }
        let joins = Joins::new(family, entry.slices());
        let elements = elements_at_most(service, &joins);
        if elements > MAX_ELEMENTS {
            return Err(elements);
        }
        let known_ports = before.map(KnownPorts::new);
        let viewpoint = Viewpoint { node_name: &self.config.node_name, zone: store.node().zone.as_deref() };
        let ports = service.ports.iter().enumerate().map(|(position, port)| {
            let selected = select(service, port, &joins, viewpoint);
            let known = known_ports.as_ref().and_then(|known| known.find(position, port));
            let none = EndpointList::default();
            let (cluster, local) = known.map_or((&none, &none), |port| (&port.cluster, &port.local));
            let keeps = |endpoints: &[Endpoint]| service.affinity.is_some() && !endpoints.is_empty();
            let numbers = known.map(|port| (port.cluster_number, port.local_number)).unwrap_or_default();
            CompiledPort {
                cluster_number: if keeps(&selected.cluster) { numbers.0 } else { ListNumber::NONE },
                local_number: if keeps(&selected.local) { numbers.1 } else { ListNumber::NONE },
                cluster: slots::assign(cluster.iter(), &selected.cluster),
                local: slots::assign(local.iter(), &selected.local),
                on_this_node: selected.on_this_node.into(),
                any: selected.any,
                keeping_flows: endpoints_keeping_flows(port, &joins).into(),
            }
        });
        let ready_local = if service.health_check_node_port.is_some() {
            u32::try_from(ready_local_addresses(service, &joins)).unwrap_or(u32::MAX)
        } else {
            0
        };
        Ok(Some(CompiledService {
            ports: ports.collect(),
            denied: ThinVec::new(),
            ready_local,
            admits_node: state.admits_node(service),
            service: service.clone(),
        }))
    }

    /// Keeps a list of the Services that are too large.
    pub(super) fn admit(
        &mut self,
        name: &ServiceName,
        family: Family,
        compiled: Result<Option<CompiledService>, u64>,
    ) -> Option<CompiledService> {
        let too_large = &mut self.families[family].too_large;
        match compiled {
            Ok(compiled) => {
                if !too_large.is_empty() {
                    too_large.remove(name);
                }
                compiled
            }
            Err(elements) => {
                if too_large.insert(name.clone(), elements).is_none() {
                    self.newly_too_large.push(TooLarge { name: name.clone(), family, elements });
                }
                None
            }
        }
    }
}

/// The ports of a Service that is programmed, by name and protocol.
struct KnownPorts<'a> {
    compiled: &'a CompiledService,
    /// Made when a port is not where it was.
    positions: OnceCell<HashMap<(&'a str, Protocol), usize>>,
}

impl<'a> KnownPorts<'a> {
    fn new(compiled: &'a CompiledService) -> Self {
        Self { compiled, positions: OnceCell::new() }
    }

    /// The port that joins the same endpoints, likely at this position.
    fn find(&self, position: usize, wanted: &ServicePort) -> Option<&'a CompiledPort> {
        let ports = &self.compiled.service.ports;
        let is_same = |port: &&ServicePort| port.name == wanted.name && port.protocol == wanted.protocol;
        if ports.get(position).filter(is_same).is_some() {
            return self.compiled.ports.get(position);
        }
        let positions = self.positions.get_or_init(|| {
            ports.iter().enumerate().map(|(position, port)| ((&*port.name, port.protocol), position)).collect()
        });
        self.compiled.ports.get(*positions.get(&(&*wanted.name, wanted.protocol))?)
    }
}
