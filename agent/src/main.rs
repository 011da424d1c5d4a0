//! The binary `vmap-proxy`; see [`agent::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    agent::program::run(std::env::args_os())
}
