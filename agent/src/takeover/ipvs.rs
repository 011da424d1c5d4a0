//! The leftovers of kube-proxy's ipvs mode other than iptables rules: a dummy
//! device with the cluster IPs, virtual servers, and ipsets.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use vmap_proxy_wire::leftovers::{
    delete_device, destroy_ipset, find_ipvs, flush_ipvs, ipset_name, ipvs_number, list_ipsets,
};
use vmap_proxy_wire::uapi::IPSET_ERR_BUSY;

use super::Removals;
use super::names::{IPVS_DEVICE, is_proxy_ipset};
use crate::netlink::SocketError;
use crate::netlink::socket::{Protocol, Socket};

/// Longest time that a set may stay busy after the rules are gone.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Removes the virtual servers, then the device.
///
/// The virtual servers are removed only where the device shows that kube-proxy
/// ran in ipvs mode. Then all of them are removed, as by
/// `kube-proxy --cleanup`, because nothing distinguishes its own from others.
pub(super) fn remove_servers_and_device(report: &mut Removals) {
    if !device_exists() {
        return;
    }
    // A request would make the kernel load the module.
    if Path::new("/proc/thread-self/net/ip_vs").exists() {
        report.note("virtual servers of IPVS", flush_servers().map_err(Into::into), libc::ENOENT);
    }
    report.note(format!("device {IPVS_DEVICE}"), remove_device().map_err(Into::into), libc::ENODEV);
}

fn device_exists() -> bool {
    nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok()
}

fn remove_device() -> Result<(), SocketError> {
    Socket::open(Protocol::Route)?.ask(&delete_device(IPVS_DEVICE), &mut |_| {})
}

fn flush_servers() -> Result<(), SocketError> {
    let mut socket = Socket::open(Protocol::Generic)?;
    let mut number = None;
    socket.ask(&find_ipvs(), &mut |answer| number = number.or_else(|| ipvs_number(answer)))?;
    let number = number.ok_or(SocketError::Refused(libc::ENOENT))?;
    socket.ask(&flush_ipvs(number), &mut |_| {})
}

/// Destroys the sets. Rules that refer to them must be gone.
pub(super) fn remove_ipsets(socket: &mut Socket, report: &mut Removals) {
    let kube_proxys = |name: &&str| is_proxy_ipset(name);
    let listed = socket.list(&list_ipsets(), |set| ipset_name(set).filter(kube_proxys).map(str::to_owned));
    let listed = match listed {
        Ok(listed) => listed,
        // The kernel has no ipset, so there are none.
        Err(SocketError::Refused(libc::EINVAL | libc::EOPNOTSUPP)) => return,
        Err(error) => return report.failed("ipsets".to_owned(), error),
    };
    for name in listed {
        let outcome = destroy(socket, &name).map_err(|error| match error {
            SocketError::Refused(IPSET_ERR_BUSY) => io::Error::other("a rule still refers to it"),
            other => other.into(),
        });
        report.note(format!("ipset {name}"), outcome, libc::ENOENT);
    }
}

/// The kernel releases the sets of a deleted rule only a moment after the
/// transaction, so a busy set is tried again.
fn destroy(socket: &mut Socket, name: &str) -> Result<(), SocketError> {
    let begun = Instant::now();
    loop {
        match socket.ask(&destroy_ipset(name), &mut |_| {}) {
            Err(SocketError::Refused(IPSET_ERR_BUSY)) if begun.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}
