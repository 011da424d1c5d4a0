//! `vmap-proxy cleanup`: removes our own tables, and the leftovers of
//! kube-proxy if requested.

use thiserror::Error;
use vmap_proxy_compiler::ruleset::Family;

use crate::cli::CleanupOptions;
use crate::instance::{self, InstanceError};
use crate::netlink::{Kernel, NetlinkError, OwnTable, remove_name_routes};
use crate::{process, takeover};

/// The cause.
#[derive(Debug, Error)]
pub enum Error {
    /// An agent runs, and would make the tables again.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No event loop.
    #[error("the event loop could not be started: {0}")]
    Runtime(#[from] std::io::Error),
    /// Some leftovers of kube-proxy could not be removed.
    #[error("not everything of kube-proxy's could be removed: {0} errors, see above")]
    KubeProxy(usize),
}

/// Deletes `table ip vmap-proxy`, `table ip6 vmap-proxy` and the routes of
/// `--dns-take-over`, and with [`CleanupOptions::kube_proxy`] the leftovers of kube-proxy in any of its
/// modes. A missing table is no error.
///
/// # Errors
/// If an agent runs in this network namespace; or if the kernel can't be spoken
/// to or refuses, and then whatever else can be removed is.
pub fn cleanup(options: CleanupOptions) -> Result<(), Error> {
    // Held, so that none starts meanwhile.
    let _instance = instance::claim()?;
    let leftovers = if options.kube_proxy { kube_proxy() } else { Ok(()) };
    own_tables()?;
    name_routes()?;
    leftovers
}

/// Routes of `--dns-take-over`. Its tables end with the agent.
fn name_routes() -> Result<(), Error> {
    let runtime = process::event_loop()?;
    for address in runtime.block_on(remove_name_routes(&[]))? {
        tracing::info!("the local route to {address} was removed");
    }
    Ok(())
}

fn kube_proxy() -> Result<(), Error> {
    let report = takeover::remove_kube_proxy();
    report.log();
    if report.failed.is_empty() { Ok(()) } else { Err(Error::KubeProxy(report.failed.len())) }
}

fn own_tables() -> Result<(), Error> {
    let mut kernel = Kernel::open()?;
    for family in Family::ALL {
        for own in OwnTable::ALL {
            let table = format!("table {} {}", family.keyword(), own.name());
            match (kernel.delete_table(own, family)?, own) {
                (true, _) => tracing::info!("{table} was removed"),
                (false, OwnTable::Main) => tracing::info!("{table} was not there"),
                // It exists only after an upgrade that was interrupted.
                (false, OwnTable::StandIn) => {}
            }
        }
    }
    Ok(())
}
