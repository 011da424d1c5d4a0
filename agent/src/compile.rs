//! `vmap-proxy compile`: prints the rule set that manifests would make.

use thiserror::Error;

use crate::cli::CompileOptions;

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The room is not built yet.
    #[error("`vmap-proxy compile` is not built yet")]
    NotBuilt,
}

/// Carries the action out.
///
/// # Errors
/// Always, until the room is built.
pub fn compile(_options: CompileOptions) -> Result<(), Error> {
    Err(Error::NotBuilt)
}
