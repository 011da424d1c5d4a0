//! `vmap-proxy demo`: the proxy at work in namespaces of its own.

use thiserror::Error;

use crate::cli::DemoOptions;

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The room is not built yet.
    #[error("`vmap-proxy demo` is not built yet")]
    NotBuilt,
}

/// Carries the action out.
///
/// # Errors
/// Always, until the room is built.
pub fn demo(_options: DemoOptions) -> Result<(), Error> {
    Err(Error::NotBuilt)
}
