//! The node agent itself: follows a source and keeps the kernel's rules current.

use thiserror::Error;

use crate::cli::RunOptions;

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The room is not built yet.
    #[error("`vmap-proxy run` is not built yet")]
    NotBuilt,
}

/// Carries the action out.
///
/// # Errors
/// Always, until the room is built.
pub fn run(_options: RunOptions) -> Result<(), Error> {
    Err(Error::NotBuilt)
}
