//! The leftovers of kube-proxy's ipvs mode other than iptables rules: a dummy
//! device with the cluster IPs, virtual servers, and ipsets.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Report;
use super::names::{IPVS_DEVICE, is_proxy_ipset};
use super::socket::{Request, Socket};
use crate::netlink::wire::Writer;

// `include/uapi/linux/netfilter/ipset/ip_set.h`
const NFNL_SUBSYS_IPSET: u16 = 6;
const IPSET_CMD_DESTROY: u16 = 3;
const IPSET_CMD_LIST: u16 = 7;
const IPSET_ATTR_PROTOCOL: u16 = 1;
const IPSET_ATTR_SETNAME: u16 = 2;
const IPSET_ATTR_FLAGS: u16 = 6;
/// Names only, no elements.
const IPSET_FLAG_LIST_SETNAME: u32 = 1 << 1;
/// The oldest protocol, which every kernel since 2.6.39 accepts.
const IPSET_PROTOCOL: u8 = 6;
/// `IPSET_ERR_BUSY`: a rule still refers to the set.
const IPSET_ERR_BUSY: i32 = 4100;
/// Longest time that a set may stay busy after the rules are gone.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(10);

// `include/uapi/linux/rtnetlink.h`, `if_link.h`
const RTM_DELLINK: u16 = 17;
const IFLA_IFNAME: u16 = 3;
/// `sizeof(struct ifinfomsg)` behind the four bytes of the message header.
const IFINFOMSG_REST: [u8; 12] = [0; 12];

// `include/uapi/linux/genetlink.h`, `ip_vs.h`
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const IPVS_CMD_FLUSH: u8 = 17;

/// Removes the virtual servers, then the device.
///
/// The virtual servers are removed only where the device shows that kube-proxy
/// ran in ipvs mode. Then all of them are removed, as by
/// `kube-proxy --cleanup`, because nothing distinguishes its own from others.
pub(super) fn remove_servers_and_device(report: &mut Report) {
    if !device_exists() {
        return;
    }
    // A request would make the kernel load the module.
    if Path::new("/proc/thread-self/net/ip_vs").exists() {
        report.note("virtual servers of IPVS", flush_servers(), libc::ENOENT);
    }
    report.note(format!("device {IPVS_DEVICE}"), remove_device(), libc::ENODEV);
}

fn device_exists() -> bool {
    nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok()
}

fn remove_device() -> io::Result<()> {
    let body = |w: &mut Writer| {
        w.raw(&IFINFOMSG_REST);
        w.string(IFLA_IFNAME, IPVS_DEVICE);
    };
    Socket::open(libc::NETLINK_ROUTE)?.order(&Request { kind: RTM_DELLINK, family: 0, body: &body })
}

fn flush_servers() -> io::Result<()> {
    let mut socket = Socket::open(libc::NETLINK_GENERIC)?;
    // The header's first byte is generic netlink's command.
    let name = |w: &mut Writer| w.string(CTRL_ATTR_FAMILY_NAME, "IPVS");
    let question = Request { kind: GENL_ID_CTRL, family: CTRL_CMD_GETFAMILY, body: &name };
    let id = socket.ask(&question, |message| {
        let id = message.body()?.1.get(CTRL_ATTR_FAMILY_ID)?.payload;
        id.try_into().ok().map(u16::from_ne_bytes)
    })?;
    match id {
        Some(id) => socket.order(&Request { kind: id, family: IPVS_CMD_FLUSH, body: &|_| {} }),
        None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
    }
}

/// Destroys the sets. Rules that refer to them must be gone.
pub(super) fn remove_ipsets(socket: &mut Socket, report: &mut Report) {
    let listed = match list_ipsets(socket) {
        Ok(listed) => listed,
        // The kernel has no ipset, so there are none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => return,
        Err(error) => return report.failed("ipsets".to_owned(), error),
    };
    for name in listed {
        let body = |w: &mut Writer| {
            w.u8(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
            w.string(IPSET_ATTR_SETNAME, &name);
        };
        let order = Request { kind: ipset_type(IPSET_CMD_DESTROY), family: 0, body: &body };
        let outcome = destroy(socket, &order).map_err(|error| match error.raw_os_error() {
            Some(IPSET_ERR_BUSY) => io::Error::other("a rule still refers to it"),
            _ => error,
        });
        report.note(format!("ipset {name}"), outcome, libc::ENOENT);
    }
}

/// The kernel releases the sets of a deleted rule only a moment after the
/// transaction, so a busy set is tried again.
fn destroy(socket: &mut Socket, order: &Request<'_>) -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match socket.order(order) {
            Err(error) if error.raw_os_error() == Some(IPSET_ERR_BUSY) && begun.elapsed() < BUSY_PATIENCE => {
                std::thread::sleep(BUSY_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn list_ipsets(socket: &mut Socket) -> io::Result<Vec<String>> {
    let body = |w: &mut Writer| {
        w.u8(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
        w.be32(IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_SETNAME);
    };
    let question = Request { kind: ipset_type(IPSET_CMD_LIST), family: 0, body: &body };
    socket.dump(&question, |message| {
        let name = message.body()?.1.string(IPSET_ATTR_SETNAME)?;
        is_proxy_ipset(name).then(|| name.to_owned())
    })
}

fn ipset_type(command: u16) -> u16 {
    NFNL_SUBSYS_IPSET << 8 | command
}
