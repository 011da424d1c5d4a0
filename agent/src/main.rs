//! The binary `vmap-proxy`; see [`vmap_proxy_agent::program`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vmap_proxy_agent::program::run(std::env::args_os())
}
