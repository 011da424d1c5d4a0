//! Connections per Service, from the counters that the kernel keeps on the
//! elements of `services` and `nodeports`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arcstr::ArcStr;

use futures::FutureExt;
use tokio::task::spawn_blocking;
use vmap_proxy_compiler::ruleset::element::Element;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::service::port_of_comment;
use vmap_proxy_compiler::ruleset::target::Domain;

use super::{ConnectionSource, ServiceConnections};
use crate::netlink::{Counter, Kernel, NetlinkError, families};

/// A listing is not repeated before this many times its own duration: of a
/// hundred thousand elements it takes a second or more, in the kernel.
const REST: u32 = 20;

/// The counters that have been read.
struct Counters {
    kernel: Kernel,
    last: Arc<[ServiceConnections]>,
    /// The earliest time of the next listing.
    rest: Option<Instant>,
}

/// Reads the counters on request, over a separate socket and on a separate
/// thread, so that a scrape delays no sync.
pub(crate) fn source() -> Result<ConnectionSource, NetlinkError> {
    let counters = Counters { kernel: Kernel::open()?, last: Arc::default(), rest: None };
    let counters = Arc::new(Mutex::new(counters));
    Ok(Arc::new(move || {
        let counters = counters.clone();
        let read = spawn_blocking(move || counters.lock().unwrap_or_else(PoisonError::into_inner).read());
        read.map(|read| read.unwrap_or_default()).boxed()
    }))
}

impl Counters {
    fn read(&mut self) -> Arc<[ServiceConnections]> {
        let begun = Instant::now();
        if self.rest.is_none_or(|rest| rest <= begun) {
            self.last = read(&mut self.kernel);
            self.rest = Some(begun + begun.elapsed() * REST);
        }
        self.last.clone()
    }
}

/// Reads the connections of each service port that had any.
pub(crate) fn read(kernel: &mut Kernel) -> Arc<[ServiceConnections]> {
    let mut connections = Connections::default();
    for family in families() {
        for map in COUNTING {
            let mut count = |element: Element, counter: Counter| connections.add(element, counter);
            if let Err(error) = kernel.read_counters(family, map, &mut count) {
                // Without a table there are no connections, for example before
                // the first sync.
                tracing::debug!("no counters of {map}: {error}");
            }
        }
    }
    connections.finish().into()
}

/// The maps whose elements count connections.
pub(crate) const COUNTING: [Map; 2] = [Map::Frontends(Domain::Frontend), Map::Frontends(Domain::NodePort)];

/// The connections of service ports, by the comments of their elements.
#[derive(Debug, Default)]
pub(crate) struct Connections(BTreeMap<ArcStr, u64>);

impl Connections {
    /// Adds the counter of one element. Most Services of a large cluster see no
    /// connection on a node, and a series for each would not be worth its cost.
    pub(crate) fn add(&mut self, element: Element, counter: Counter) {
        if let Some(comment) = element.comment.filter(|_| counter.packets > 0) {
            *self.0.entry(comment).or_default() += counter.packets;
        }
    }

    /// Those of each service port that had any.
    pub(crate) fn finish(self) -> Vec<ServiceConnections> {
        self.0.iter().filter_map(|(comment, connections)| service_connections(comment, *connections)).collect()
    }
}

/// Parses the comment of an element, `namespace/name:port`.
fn service_connections(comment: &str, connections: u64) -> Option<ServiceConnections> {
    let [namespace, service, port] = port_of_comment(comment)?.map(str::to_owned);
    Some(ServiceConnections { namespace, service, port, connections })
}
