//! Permission to create namespaces, which every test on a real kernel needs before any thread exists.
//!
//! The namespaces themselves, the echo servers and the probes are [`vmap_proxy_lab`].

use std::io;
use std::path::Path;

use crate::skip::skipped;
use vmap_proxy_lab::{LabError, NetNs};

/// Moves the whole test binary into namespaces of its own before `main`, and so before any thread: the
/// only time at which an ordinary user can become root in a user namespace. Write it once in each test binary.
///
/// If namespaces are forbidden the process ends at once: status 1 with the environment variable `CI`, else
/// status 0 after a loud line, since nothing could be tested.
#[macro_export]
macro_rules! in_own_namespaces {
    () => {
        #[used]
        // SAFETY: the C runtime calls each pointer in this section once, before `main`; the function has its
        // signature (its arguments may be ignored) and needs nothing that `main` would set up.
        #[unsafe(link_section = ".init_array")]
        static ENTER_NAMESPACES: extern "C" fn() = $crate::namespaces::enter_namespaces_or_exit;
    };
}

/// Folders of the programs that tests call, besides `PATH`: Debian's ordinary users have no `sbin` in theirs.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// The work of [`in_own_namespaces!`](crate::in_own_namespaces): namespaces, and a `PATH` in which `nft` and `ip` are.
pub extern "C" fn enter_namespaces_or_exit() {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":");
    path.push(SYSTEM_DIRECTORIES);
    // SAFETY: called before `main`, when the process has no other thread that could read the environment.
    unsafe { std::env::set_var("PATH", path) };
    if let Err(error) = vmap_proxy_lab::enter_user_namespace() {
        let strict = std::env::var_os("CI").is_some();
        eprintln!("SKIPPED, nothing was tested: {error}");
        std::process::exit(i32::from(strict));
    }
}

/// Makes the bridges of a namespace show the packets between their ports to the hooks of IPv4 and IPv6, or not.
/// `false` if this kernel can't (no `br_netfilter`), after a loud line: packets pass all the same then, but unseen.
///
/// # Errors
///
/// The kernel parameters are there but not writable.
pub fn show_bridged_packets(namespace: &NetNs, shown: bool) -> Result<bool, LabError> {
    let has_filter = namespace.run(|| Path::new("/proc/sys/net/bridge").exists())?;
    if has_filter {
        let value = if shown { "1" } else { "0" };
        let parameters = ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];
        namespace.set_sysctls(&parameters.map(|name| (name, value)))?;
    } else if shown {
        skipped("in part: this kernel has no br_netfilter loaded, so no bridge shows its packets");
    }
    Ok(has_filter)
}

/// Returns the message for a program that did not start.
pub fn cannot_run(program: &str, error: &io::Error) -> String {
    format!("can't run {program}: {error}; scripts/setup installs what the tests call")
}

/// Runs a test in a network namespace of its own, which dies with it. The test runs on one thread, so that everything
/// it opens is in that namespace.
///
/// # Panics
///
/// If the namespace can't be made (that takes root), or the test panics.
pub fn in_fresh_namespace<T: Send>(test: impl AsyncFnOnce() -> T + Send) -> T {
    let namespace = NetNs::new("fresh").unwrap_or_else(|error| panic!("{error}"));
    let ended = namespace.run(|| match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(test()),
        Err(error) => panic!("tokio: {error}"),
    });
    ended.unwrap_or_else(|error| panic!("{error}"))
}
