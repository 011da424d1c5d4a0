//! The program `vmap-proxy`, for tests that need it as a process: the one that [`VARIABLE`] names, or this build.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Names another build to test, by its absolute path: `scripts/test-static` sets it.
const VARIABLE: &str = "VMAP_PROXY_UNDER_TEST";

fn main() -> ExitCode {
    match std::env::var_os(VARIABLE) {
        Some(program) => become_another(program),
        None => vmap_proxy_agent::program::run(std::env::args_os()),
    }
}

/// Runs the program in this process, under the name that this one was called by. Returns if there is no such program.
fn become_another(program: OsString) -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| program.clone());
    let error = Command::new(&program).arg0(name).args(arguments).env_remove(VARIABLE).exec();
    eprintln!("{VARIABLE} names {}: {error}", program.display());
    ExitCode::FAILURE
}
