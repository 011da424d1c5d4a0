//! `vmap-proxy compile`: prints the rule set that manifests would make.
//!
//! It needs no privileges and does not query the kernel: the addresses on the
//! node's interfaces are assumed to be those of its Node object.

use std::io;

use thiserror::Error;
use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::{Compilation, render};

use crate::cli::{CompileOptions, OutputFormat};
use crate::source::ObjectChange;
use crate::source::manifests::{ManifestSource, SourceError};
use crate::terminal::print;

/// The cause.
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
    let (changes, problems) = ManifestSource::new(options.manifests, &options.proxy.node_name).read_once()?;
    for problem in problems {
        tracing::warn!("{problem}");
    }
    warn_of_closed_node_ports(&options.proxy, &changes);
    let changes = changes.into_iter().map(|change| change.checked);
    let Compilation { ruleset, too_large, lone_slices, .. } =
        vmap_proxy_compiler::compile_checked(options.proxy, changes);
    too_large.iter().for_each(crate::sync_loop::log_too_large);
    // The source has reported the problems, with file and line.
    for slice in lone_slices {
        tracing::warn!(
            "{slice}: no Service of the name in its label exists here (one with label \
             service.kubernetes.io/service-proxy-name is another proxy's); the slice has no effect until one does"
        );
    }
    let text = match options.output {
        OutputFormat::Text => render::ruleset(&ruleset),
        OutputFormat::Json => render::json(&ruleset)?,
    };
    Ok(print(&text)?)
}

/// Without the Node's address its NodePorts stay closed, because this command
/// does not wait for it.
fn warn_of_closed_node_ports(config: &ProxyConfig, changes: &[ObjectChange]) {
    let own = changes.iter().filter(|change| change.object().name == config.node_name).find_map(ObjectChange::node);
    let node = own.cloned().unwrap_or_default();
    for family in Family::ALL {
        if config.node_ports_need_primary(family) && config.primary_address(&node, family).is_none() {
            tracing::warn!(
                "Node {}: no manifest holds its {family} address, so NodePorts of {family} stay closed",
                config.node_name
            );
        }
    }
}
