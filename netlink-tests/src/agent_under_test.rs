//! The program `vmap-proxy`, for tests that need it as a process.

use std::process::ExitCode;

fn main() -> ExitCode {
    vmap_proxy_agent::program::run(std::env::args_os())
}
