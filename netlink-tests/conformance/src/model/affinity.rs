//! Session affinity: which clients stick to which endpoint, and for how long.
//!
//! A client that connects is remembered at an endpoint of the *list* that
//! served it: the cluster-wide or the local one of a service port. All
//! addresses of the service port that send clients to that list share what is
//! remembered; what is remembered for one list never serves another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::Family;
use super::datapath::State;
use super::services::ServicePort;
use super::{Packet, Protocol, ReferenceModel};

/// One list of endpoints of one service port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct List {
    namespace: String,
    service: String,
    port_name: String,
    protocol: Protocol,
    is_ipv4: bool,
    is_local: bool,
}

impl List {
    pub(super) fn of(port: &ServicePort, is_local: bool) -> Self {
        Self {
            namespace: port.namespace.clone(),
            service: port.service.clone(),
            port_name: port.port_name.clone(),
            protocol: port.protocol,
            is_ipv4: port.cluster_ip.is_ipv4(),
            is_local,
        }
    }
}

/// The list that serves a packet, if its clients stick.
pub(super) struct Sticky {
    pub(super) list: List,
    pub(super) timeout: Duration,
    pub(super) endpoints: BTreeSet<SocketAddr>,
}

#[derive(Debug, Clone)]
struct Entry {
    endpoint: SocketAddr,
    until: Duration,
}

/// The remembered clients, on a separate clock that starts at zero.
#[derive(Debug, Clone, Default)]
pub struct Memory(BTreeMap<(List, IpAddr), Entry>);

impl Memory {
    /// A client connects at a time. `None`: nobody sticks there, or it is sent
    /// nowhere. Else the endpoints that it may reach: the one where it is
    /// remembered, or all of the list. It reaches one that `choose` picks of
    /// them and is remembered there from now on.
    pub fn connect(
        &mut self,
        model: &ReferenceModel,
        packet: &Packet,
        now: Duration,
        choose: impl FnOnce(&BTreeSet<SocketAddr>) -> Option<SocketAddr>,
    ) -> Option<BTreeSet<SocketAddr>> {
        let Sticky { list, timeout, endpoints } = State::of(model, Family::of(packet.to)).sticky(packet)?;
        let place = (list, packet.from);
        let known = self.0.get(&place).filter(|entry| now < entry.until).map(|entry| entry.endpoint);
        let may_reach = match known {
            Some(endpoint) => [endpoint].into(),
            None => endpoints,
        };
        if let Some(endpoint) = choose(&may_reach) {
            self.0.insert(place, Entry { endpoint, until: now + timeout });
        }
        Some(may_reach)
    }

    /// After a change of the cluster: forgets whoever is remembered at an
    /// endpoint that the list does not hold any more.
    pub fn forget(&mut self, model: &ReferenceModel) {
        let mut lists: BTreeMap<List, BTreeSet<SocketAddr>> = BTreeMap::new();
        for port in [Family::V4, Family::V6].into_iter().flat_map(|family| model.service_ports(family)) {
            if port.affinity.is_some() {
                lists.insert(List::of(&port, false), port.endpoints.cluster.clone());
                lists.insert(List::of(&port, true), port.endpoints.local.clone());
            }
        }
        self.0.retain(|(list, _), entry| lists.get(list).is_some_and(|list| list.contains(&entry.endpoint)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Memory;
    use crate::{run_model, schema};

    #[test]
    fn clients_are_remembered_for_the_timeout_since_they_came_last() {
        let vectors = schema::load_dir(&crate::own_dir()).unwrap();
        let vector = vectors.iter().find(|vector| vector.name == "affinity-internal-becomes-local").unwrap();
        let model = run_model::start(vector);
        let packet = run_model::packet(&vector.packets[0]);
        let mut memory = Memory::default();
        let mut connect = |seconds, last: bool| {
            let at = Duration::from_secs(seconds);
            let choose =
                |all: &std::collections::BTreeSet<_>| if last { all.last().copied() } else { all.first().copied() };
            memory.connect(&model, &packet, at, choose).unwrap()
        };
        assert_eq!(connect(0, true).len(), 4);
        // The timeout is 600 s.
        let known = connect(599, false);
        assert_eq!((known.len(), connect(1198, false)), (1, known.clone()));
        assert_eq!(connect(1798, false).len(), 4);
        let other = connect(1799, true);
        assert!(other.len() == 1 && other != known);
    }
}
