//! The families of addresses that this node has.

use std::io;

use vmap_proxy_compiler::ruleset::Family;

use crate::files::read::patiently;

/// The families that the node has: IPv6 unless it is compiled out or switched
/// off, as kube-proxy decides.
pub fn families() -> Vec<Family> {
    match without_ipv6() {
        Some(_) => vec![Family::Ipv4],
        None => Family::ALL.to_vec(),
    }
}

/// The reason why the node has no IPv6; `None` if it has.
pub fn without_ipv6() -> Option<&'static str> {
    let disabled = patiently(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6"));
    let is_absent = match &disabled {
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        // A temporary read error must not disable IPv6 for ever.
        _ => !std::path::Path::new("/proc/net/if_inet6").exists(),
    };
    if is_absent {
        return Some("the kernel was built or booted without it, as with ipv6.disable=1");
    }
    disabled.is_ok_and(|value| value.trim() == "1").then_some("net.ipv6.conf.all.disable_ipv6 is 1")
}
