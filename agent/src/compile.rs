//! `vmap-proxy compile`: prints the rule set that manifests would make.
//!
//! It needs no privileges and asks the kernel nothing: the addresses on the
//! node's interfaces are taken to be those of its Node object.

use std::io::{self, Write};

use compiler::diff::{KernelState, Planner, Resync};
use compiler::model::{Change, ProxyConfig, Store};
use compiler::render;
use compiler::ruleset::table::Ruleset;
use thiserror::Error;

use crate::cli::{CompileOptions, OutputFormat};
use crate::source::manifests::{ManifestSource, SourceError};

/// Why it failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The manifests could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The rule set could not be printed.
    #[error("the rule set could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The rule set could not be written as JSON.
    #[error("the rule set could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Reads the manifests, compiles them, and prints the rule set.
///
/// # Errors
/// If a path can't be read, or the output can't be written. What is wrong in a
/// manifest costs only the object and is logged.
pub fn compile(options: CompileOptions) -> Result<(), Error> {
    let (objects, problems) = ManifestSource::new(options.manifests).read_once()?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    let mut store = Store::new(options.proxy.node_name.clone());
    for object in objects {
        // The source has told what in it can't be used.
        store.apply(Change::Apply(object));
    }
    for slice in store.lone_slices() {
        tracing::warn!("{slice}: no Service of the name in its label exists; the slice has no effect until one does");
    }
    let ruleset = ruleset(options.proxy, store);
    let text = match options.output {
        OutputFormat::Text => render::ruleset(&ruleset),
        OutputFormat::Json => render::json(&ruleset)?,
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// The rule set of a store, as the first sync would program it.
pub fn ruleset(config: ProxyConfig, mut store: Store) -> Ruleset {
    if store.node().interface_addresses.is_empty() {
        store.set_interface_addresses(store.node().addresses.clone());
    }
    let mut planner = Planner::new(config, store.node());
    let nothing = [KernelState::default(), KernelState::default()];
    let mut resync = Resync::begin(&mut planner, &store, nothing);
    while resync.next(&mut planner).is_some() {}
    planner.ruleset()
}
