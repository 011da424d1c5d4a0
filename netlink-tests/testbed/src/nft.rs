//! The `nft` program: an independent writer and reader of rules.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use vmap_proxy_lab::{LabError, NetNs};

use crate::namespaces::cannot_run;

/// The reason why nft failed.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Namespace(#[from] LabError),
    /// The program did not run.
    #[error("{}", cannot_run("nft", .0))]
    Run(#[source] io::Error),
    /// The program or the kernel refused.
    #[error("nft: {0}")]
    Refused(String),
}

/// Runs `nft` in the calling thread's namespace, `input` as its standard input; returns its output.
///
/// # Errors
///
/// There is no such program, or what it prints on standard error if it fails.
pub fn nft(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(NftError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that reads nothing, or no more, may have ended: its status says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(NftError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(NftError::Refused(format!("{}: {complaint}", output.status)))
}

/// Runs `nft` in a namespace.
///
/// # Errors
///
/// As [`nft`], or the namespace can't be entered.
pub fn nft_in(namespace: &NetNs, arguments: &[&str], input: &str) -> Result<String, NftError> {
    namespace.run(|| nft(arguments, input))?
}

/// Loads rules as nft text into a namespace.
///
/// # Errors
///
/// As [`nft_in`].
pub fn load_nft(namespace: &NetNs, text: &str) -> Result<(), NftError> {
    nft_in(namespace, &["-f", "-"], text).map(drop)
}
