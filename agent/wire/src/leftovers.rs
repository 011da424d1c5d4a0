//! The messages that remove the leftovers of kube-proxy's ipvs mode other than
//! iptables rules: virtual servers, a device, and ipsets.

use crate::message::{Message, Request, Writer};
use crate::uapi::*;

/// The oldest protocol of ipset, which every kernel since 2.6.39 accepts.
const IPSET_PROTOCOL: u8 = 6;
/// `sizeof(struct ifinfomsg)` behind its first four bytes.
const IFINFOMSG_REST: [u8; 12] = [0; 12];

/// Asks generic netlink for the number of IPVS; [`ipvs_number`] reads the
/// answer.
pub fn find_ipvs() -> Request {
    Request::new(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, |w| w.string(CTRL_ATTR_FAMILY_NAME, "IPVS"))
}

/// The number by which messages to IPVS go.
pub fn ipvs_number(answer: &Message<'_>) -> Option<u16> {
    let number = answer.body()?.1.get(CTRL_ATTR_FAMILY_ID)?.payload;
    number.try_into().ok().map(u16::from_ne_bytes)
}

/// Removes all virtual servers of IPVS.
pub fn flush_ipvs(number: u16) -> Request {
    Request::new(number, IPVS_CMD_FLUSH, |_| {})
}

/// Removes a network device.
pub fn delete_device(name: &str) -> Request {
    Request::new(RTM_DELLINK, 0, |w| {
        w.raw(&IFINFOMSG_REST);
        w.string(IFLA_IFNAME, name);
    })
}

/// Lists the names of all ipsets; [`ipset_name`] reads them.
pub fn list_ipsets() -> Request {
    ipset(IPSET_CMD_LIST, |w| w.be32(IPSET_ATTR_FLAGS, IPSET_FLAG_LIST_SETNAME))
}

/// The name of a listed ipset.
pub fn ipset_name<'a>(listed: &Message<'a>) -> Option<&'a str> {
    listed.body()?.1.string(IPSET_ATTR_SETNAME)
}

/// Destroys an ipset. [`IPSET_ERR_BUSY`]: a rule still refers to it.
pub fn destroy_ipset(name: &str) -> Request {
    ipset(IPSET_CMD_DESTROY, |w| w.string(IPSET_ATTR_SETNAME, name))
}

fn ipset(command: u16, content: impl FnOnce(&mut Writer)) -> Request {
    Request::new(NFNL_SUBSYS_IPSET << 8 | command, 0, |w| {
        w.u8(IPSET_ATTR_PROTOCOL, IPSET_PROTOCOL);
        content(w);
    })
}
