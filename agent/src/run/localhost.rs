//! NodePorts on localhost: whether they are served, and the relay that does it.

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::ruleset::Family;

use crate::cli::RunOptions;
use crate::config::localhost_node_ports::localhost;
use crate::localhost_node_ports::LocalhostNodePorts;
use crate::localhost_node_ports::limits::Limits;
use crate::metrics::Metrics;

/// The families of this node that the configuration wants to be served.
pub(super) fn served(options: &RunOptions, families: &[Family]) -> PerFamily<bool> {
    let wanted = options.configuration.localhost_node_ports();
    PerFamily::from_fn(|family| wanted[family] && families.contains(&family))
}

/// Starts the relay if any family is served. A failure is logged, and costs
/// localhost only.
pub(super) fn start(served: PerFamily<bool>, descriptors: u64, metrics: &Metrics) -> Option<LocalhostNodePorts> {
    let families = Family::ALL.into_iter().filter(|family| served[*family]);
    let addresses: Vec<String> = families.map(|family| localhost(family).to_string()).collect();
    if addresses.is_empty() {
        return None;
    }
    let limits = Limits::of(descriptors);
    let (listeners, sockets) = (limits.listeners, limits.sockets);
    match LocalhostNodePorts::start(limits, metrics.localhost().clone()) {
        Ok(relay) => {
            tracing::info!(
                "NodePorts of TCP and UDP are served on {}, by a relay in this process: {listeners} sockets that listen \
                 at most, {sockets} for connections",
                addresses.join(" and ")
            );
            Some(relay)
        }
        Err(error) => {
            tracing::error!("{error}");
            None
        }
    }
}
