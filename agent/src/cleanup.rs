//! `vmap-proxy cleanup`: removes our own tables.

use thiserror::Error;

use crate::cli::CleanupOptions;

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The room is not built yet.
    #[error("`vmap-proxy cleanup` is not built yet")]
    NotBuilt,
}

/// Carries the action out.
///
/// # Errors
/// Always, until the room is built.
pub fn cleanup(_options: CleanupOptions) -> Result<(), Error> {
    Err(Error::NotBuilt)
}
