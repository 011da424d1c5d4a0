//! The binary `vmap-proxy`; see [`vmap_proxy_agent::program`].

use std::process::ExitCode;

/// The allocator of the static binary. musl's own costs half as much processor time again (decision 97);
/// `scripts/build-static` sets its options.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    vmap_proxy_agent::program::run(std::env::args_os())
}
