//! Fresh network namespaces, and other programs' views of what the kernel
//! holds in them.

pub mod fixtures;
pub mod json;
pub mod libnftnl;
pub mod view;

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use crate::harness::cannot_run;

/// Runs a test in a network namespace of its own, which dies with it. The test
/// runs on one thread, so that everything it opens is in that namespace.
///
/// # Panics
///
/// If the namespace can't be made (that takes root), or the test panics.
pub fn in_fresh_namespace<T: Send + 'static>(test: impl AsyncFnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            panic!("no network namespace ({error}): run as root");
        }
        match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(test()),
            Err(error) => panic!("tokio: {error}"),
        }
    });
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Runs `nft` in the calling thread's namespace; its output, or what it
/// complains about.
///
/// # Errors
///
/// That there is no such program, or what it prints on standard error if it fails.
pub fn nft(arguments: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write;
    use std::process::Stdio;
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| cannot_run("nft", &error))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(|error| format!("nft: {error}"))?;
    }
    let output = child.wait_with_output().map_err(|error| format!("nft: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
    }
}
