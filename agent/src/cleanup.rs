//! `vmap-proxy cleanup`: removes our own tables, and nothing else.

use compiler::ruleset::{Family, TABLE};
use thiserror::Error;

use crate::cli::CleanupOptions;
use crate::netlink::{Kernel, NetlinkError};

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The event loop could not be started.
    #[error("the event loop could not be started: {0}")]
    Runtime(#[from] std::io::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Deletes `table ip vmap-proxy` and `table ip6 vmap-proxy`. That they are not
/// there is no error.
///
/// # Errors
/// If the kernel can't be spoken to or refuses.
pub fn cleanup(_options: CleanupOptions) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut kernel = Kernel::open()?;
        for family in Family::ALL {
            let table = format!("table {} {TABLE}", family.keyword());
            if kernel.delete_table(family).await? {
                tracing::info!("{table} was removed");
            } else {
                tracing::info!("{table} was not there");
            }
        }
        Ok(())
    })
}
