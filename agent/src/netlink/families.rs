//! The families of addresses that this node has.

use std::io;

use vmap_proxy_compiler::ruleset::Family;

use crate::files::read::patiently;

/// The families that the node has: IPv6 unless it is compiled out or switched
/// off, as kube-proxy decides.
pub fn families() -> Vec<Family> {
    let mut families = vec![Family::Ipv4];
    let disabled = patiently(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6"));
    // A temporary read error must not disable IPv6 for ever.
    let is_disabled =
        disabled.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |value| value.trim() == "1");
    if std::path::Path::new("/proc/net/if_inet6").exists() && !is_disabled {
        families.push(Family::Ipv6);
    }
    families
}
