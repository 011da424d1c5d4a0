//! The binary `vmap-proxy`; see [`vmap_proxy_agent::program`].

use std::process::ExitCode;

/// The allocator of the static binary: with musl's own a start takes nearly twice the processor time (decision 97).
/// `.cargo/config.toml` sets its options.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    vmap_proxy_agent::program::run(std::env::args_os())
}
