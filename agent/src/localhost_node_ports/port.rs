//! One NodePort on localhost: its address, and the endpoints behind it.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::NodePortKey;

use super::changes::NodePort;
use super::endpoints::Endpoints;
use super::limits::Limits;
use crate::config::localhost_node_ports::localhost;
use crate::metrics::{LocalhostMetrics, Refusal};

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) family: Family,
    pub(super) key: NodePortKey,
}

impl Place {
    pub(super) fn address(&self) -> SocketAddr {
        SocketAddr::new(localhost(self.family), self.key.port)
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.key.protocol
    }
}

/// State shared by all ports.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) limits: Limits,
    /// The number of further sockets that may listen.
    pub(super) listeners: Arc<Semaphore>,
    /// The number of further sockets for connections and flows.
    sockets: Arc<Semaphore>,
    pub(super) metrics: LocalhostMetrics,
}

impl Shared {
    pub(super) fn new(limits: Limits, metrics: LocalhostMetrics) -> Self {
        let [listeners, sockets] = [limits.listeners, limits.sockets].map(|count| Arc::new(Semaphore::new(count)));
        Self { limits, listeners, sockets, metrics }
    }
}

/// One port, shared by the relay and the task that serves it.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) place: Place,
    pub(super) shared: std::rc::Rc<Shared>,
    service: RefCell<ServiceName>,
    endpoints: RefCell<Endpoints>,
    keeping_flows: RefCell<Box<[Endpoint]>>,
    /// Whether the last client was refused because of a limit.
    is_full: Cell<bool>,
    /// Wakes the task when an endpoint may be gone.
    pub(super) changed: Notify,
}

impl fmt::Display for Port {
    /// For messages: `node port 30080/TCP of Service shop/web`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NodePortKey { protocol, port } = self.place.key;
        write!(f, "node port {port}/{protocol} of Service {}", self.service.borrow())
    }
}

impl Port {
    pub(super) fn new(place: Place, shared: std::rc::Rc<Shared>, service: &ServiceName, wanted: NodePort) -> Self {
        let port = Self {
            place,
            shared,
            service: RefCell::new(service.clone()),
            endpoints: RefCell::default(),
            keeping_flows: RefCell::default(),
            is_full: Cell::new(false),
            changed: Notify::new(),
        };
        port.update(service, wanted);
        port
    }

    /// Follows a change: of the endpoints, or of the Service that has the port.
    pub(super) fn update(&self, service: &ServiceName, wanted: NodePort) {
        if *self.service.borrow() != *service {
            self.service.replace(service.clone());
        }
        self.endpoints.borrow_mut().replace(wanted.endpoints, wanted.affinity);
        if *self.keeping_flows.borrow() != wanted.keeping_flows {
            self.keeping_flows.replace(wanted.keeping_flows);
            self.changed.notify_one();
        }
    }

    /// Returns whether the port belongs to this Service.
    pub(super) fn is_of(&self, service: &ServiceName) -> bool {
        *self.service.borrow() == *service
    }

    /// Chooses an endpoint for a new connection or flow.
    pub(super) fn choose(&self) -> Option<SocketAddr> {
        let chosen = self.endpoints.borrow_mut().choose(Instant::now())?;
        Some(SocketAddr::new(chosen.address, chosen.port))
    }

    /// Returns whether flows to this endpoint may go on.
    pub(super) fn keeps_flows(&self, endpoint: SocketAddr) -> bool {
        let endpoint = Endpoint { address: endpoint.ip(), port: endpoint.port() };
        self.keeping_flows.borrow().binary_search(&endpoint).is_ok()
    }

    /// Takes sockets for a connection or flow out of the number of all. `None`
    /// if there are none left.
    pub(super) fn take_sockets(&self, count: u32) -> Option<OwnedSemaphorePermit> {
        self.shared.sockets.clone().try_acquire_many_owned(count).ok()
    }

    /// Counts a connection or flow that begins.
    pub(super) fn count_connected(&self) {
        self.shared.metrics.connected(self.place.family, self.place.protocol());
        self.is_full.set(false);
    }

    /// Counts a client that is refused.
    pub(super) fn count_refused(&self, refusal: Refusal) {
        self.shared.metrics.refused(self.place.family, self.place.protocol(), refusal);
    }

    /// Counts a client that is refused because of a limit, and logs the first of
    /// a series.
    pub(super) fn refuse_by_limit(&self) {
        self.count_refused(Refusal::Limit);
        if !self.is_full.replace(true) {
            let Limits { sockets, sockets_of_a_port, .. } = self.shared.limits;
            tracing::warn!(
                "{self} on localhost: a client is refused, because there are too many connections: of one port {} of \
                 TCP or {sockets_of_a_port} flows of UDP at most, together {sockets} sockets; use an address of the \
                 node or the Service's cluster IP, which have no such limit",
                sockets_of_a_port / 2
            );
        }
    }
}
