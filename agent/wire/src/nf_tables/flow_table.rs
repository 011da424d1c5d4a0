//! The table with the flow table, on whose short way established connections
//! through Services go. It has the flag `owner`, so that the kernel deletes it
//! with the socket that made it, however the agent ends.
//!
//! ```nft
//! table inet vmap-proxy-flows {
//!     flags owner
//!     flowtable services {
//!         hook ingress priority filter; devices = { eth0, veth1 }; counter
//!     }
//!     chain forward {
//!         type filter hook forward priority filter + 1000; policy accept;
//!         ct status dnat ct state established ct packets > 20 flow add @services
//!     }
//! }
//! ```
//!
//! Interfaces are members of the flow table, as elements are of a set: the
//! number of objects is constant. `flow add` passes over everything but TCP and
//! UDP.

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_compiler::ruleset::rule::Statement;

use super::expressions::{Expressions, register};
use super::{POLICY_ACCEPT, message_type, write_value};
use crate::message::{Request, Writer};
use crate::uapi::*;

/// The name of the table.
pub const FLOWS_TABLE: &str = "vmap-proxy-flows";

/// Interfaces in one request, at most. The kernel takes 255, but its notification
/// of a change must fit a page, or every listener gets `ENOBUFS` instead.
pub const INTERFACES_AT_ONCE: usize = 100;

const FLOW_TABLE: &str = "services";
const CHAIN: &str = "forward";

/// After the filters of others, so that only connections that they accept get in.
const PRIORITY: i32 = 1000;

/// The priority of the flow table among the programs at `ingress`: `filter`.
const INGRESS_PRIORITY: u32 = 0;

/// nft's bit of `ct state established`: `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`.
const CT_STATE_ESTABLISHED: u32 = 2;

/// The request to make the table.
pub fn make_table() -> Request {
    request(NFT_MSG_NEWTABLE, |w| {
        w.string(NFTA_TABLE_NAME, FLOWS_TABLE);
        w.be32(NFTA_TABLE_FLAGS, NFT_TABLE_F_OWNER);
    })
}

/// The request to delete the table; its flows go on by the ordinary way.
pub fn delete_table() -> Request {
    request(NFT_MSG_DELTABLE, |w| w.string(NFTA_TABLE_NAME, FLOWS_TABLE))
}

/// The request to make the flow table, without interfaces. It goes on counting
/// for conntrack.
pub fn make_flow_table() -> Request {
    request(NFT_MSG_NEWFLOWTABLE, |w| {
        w.string(NFTA_FLOWTABLE_TABLE, FLOWS_TABLE);
        w.string(NFTA_FLOWTABLE_NAME, FLOW_TABLE);
        w.nest(NFTA_FLOWTABLE_HOOK, |w| {
            w.be32(NFTA_FLOWTABLE_HOOK_NUM, NF_NETDEV_INGRESS);
            w.be32(NFTA_FLOWTABLE_HOOK_PRIORITY, INGRESS_PRIORITY);
        });
        w.be32(NFTA_FLOWTABLE_FLAGS, NFT_FLOWTABLE_COUNTER);
    })
}

/// The requests for the chain and its rule: connections with more than this
/// number of packets, of both directions together, get into the flow table.
pub fn make_rule(after_packets: u32) -> [Request; 2] {
    let chain = request(NFT_MSG_NEWCHAIN, |w| {
        w.string(NFTA_CHAIN_TABLE, FLOWS_TABLE);
        w.string(NFTA_CHAIN_NAME, CHAIN);
        w.nest(NFTA_CHAIN_HOOK, |w| {
            w.be32(NFTA_HOOK_HOOKNUM, Hook::Forward.number());
            w.be32(NFTA_HOOK_PRIORITY, PRIORITY.cast_unsigned());
        });
        w.be32(NFTA_CHAIN_POLICY, POLICY_ACCEPT);
        w.string(NFTA_CHAIN_TYPE, "filter");
    });
    let rule = request(NFT_MSG_NEWRULE, |w| {
        w.string(NFTA_RULE_TABLE, FLOWS_TABLE);
        w.string(NFTA_RULE_CHAIN, CHAIN);
        w.nest(NFTA_RULE_EXPRESSIONS, |w| write_expressions(w, after_packets));
    });
    [chain, rule]
}

/// The request to add interfaces, at most [`INTERFACES_AT_ONCE`]. Those that are
/// in it already stay.
pub fn add_interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Request {
    request(NFT_MSG_NEWFLOWTABLE, |w| write_interfaces(w, names))
}

/// The request to remove interfaces, at most [`INTERFACES_AT_ONCE`].
pub fn remove_interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> Request {
    request(NFT_MSG_DELFLOWTABLE, |w| write_interfaces(w, names))
}

fn write_interfaces<'a>(writer: &mut Writer, names: impl IntoIterator<Item = &'a str>) {
    writer.string(NFTA_FLOWTABLE_TABLE, FLOWS_TABLE);
    writer.string(NFTA_FLOWTABLE_NAME, FLOW_TABLE);
    writer.nest(NFTA_FLOWTABLE_HOOK, |w| {
        w.nest(NFTA_FLOWTABLE_HOOK_DEVS, |w| {
            for name in names {
                w.string(NFTA_DEVICE_NAME, name);
            }
        });
    });
}

fn write_expressions(writer: &mut Writer, after_packets: u32) {
    // The expressions concern no address, so any family does.
    let mut rule = Expressions { writer, family: Family::Ipv4 };
    rule.statement(&Statement::CtStatusDnat);
    rule.conntrack_bits(NFT_CT_STATE, CT_STATE_ESTABLISHED);
    // Of both directions: without a direction the kernel adds them up. A rule with
    // this key switches accounting on (`nft_ct_get_init` of `net/netfilter/nft_ct.c`).
    rule.conntrack(NFT_CT_PKTS, None, 0);
    // A comparison by size is one of bytes, so the most significant must come first.
    rule.expression("byteorder", |w| {
        w.be32(NFTA_BYTEORDER_SREG, register(0));
        w.be32(NFTA_BYTEORDER_DREG, register(0));
        w.be32(NFTA_BYTEORDER_OP, NFT_BYTEORDER_HTON);
        w.be32(NFTA_BYTEORDER_LEN, 8);
        w.be32(NFTA_BYTEORDER_SIZE, 8);
    });
    rule.expression("cmp", |w| {
        w.be32(NFTA_CMP_SREG, register(0));
        w.be32(NFTA_CMP_OP, NFT_CMP_GT);
        write_value(w, NFTA_CMP_DATA, &u64::from(after_packets).to_be_bytes());
    });
    rule.expression("flow_offload", |w| w.string(NFTA_FLOW_TABLE_NAME, FLOW_TABLE));
}

fn request(kind: u8, content: impl FnOnce(&mut Writer)) -> Request {
    Request::new(message_type(kind), NFPROTO_INET, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Attributes;

    fn names_of(request: &Request) -> Vec<&str> {
        let attributes = Attributes::new(&request.body);
        let devices = attributes.get(NFTA_FLOWTABLE_HOOK).unwrap().nested().get(NFTA_FLOWTABLE_HOOK_DEVS).unwrap();
        devices.nested().map(|device| device.string().unwrap()).collect()
    }

    #[test]
    fn interfaces_are_members_of_the_flow_table() {
        for request in [add_interfaces(["eth0", "veth1"]), remove_interfaces(["eth0", "veth1"])] {
            assert_eq!(request.family, NFPROTO_INET);
            let attributes = Attributes::new(&request.body);
            assert_eq!(attributes.string(NFTA_FLOWTABLE_TABLE), Some("vmap-proxy-flows"));
            assert_eq!(attributes.string(NFTA_FLOWTABLE_NAME), Some("services"));
            assert_eq!(names_of(&request), ["eth0", "veth1"]);
        }
    }

    /// The kernel's notification has to fit `NLMSG_GOODSIZE`, a page less the
    /// overhead of a buffer.
    #[test]
    fn the_interfaces_of_a_request_fit_a_notification() {
        let longest = ["abcdefghijklmno"; INTERFACES_AT_ONCE];
        assert!(add_interfaces(longest).body.len() < 3000, "{}", add_interfaces(longest).body.len());
    }

    /// As `nft --debug=netlink` of nft 1.0.6 prints the rule above.
    #[test]
    fn the_rule_has_the_expressions_of_nft() {
        let [_, rule] = make_rule(20);
        let attributes = Attributes::new(&rule.body);
        let expressions = attributes.get(NFTA_RULE_EXPRESSIONS).unwrap().nested();
        let read: Vec<(String, Vec<u8>)> = expressions
            .map(|expression| {
                let expression = expression.nested();
                let data = expression.get(NFTA_EXPR_DATA).unwrap().payload.to_vec();
                (expression.string(NFTA_EXPR_NAME).unwrap().to_owned(), data)
            })
            .collect();
        let names: Vec<&str> = read.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["ct", "bitwise", "cmp", "ct", "bitwise", "cmp", "ct", "byteorder", "cmp", "flow_offload"]);
        let compared = Attributes::new(&read[8].1);
        assert_eq!(compared.get(NFTA_CMP_OP).and_then(|op| op.be32()), Some(NFT_CMP_GT));
        let value = compared.get(NFTA_CMP_DATA).unwrap().nested().get(NFTA_DATA_VALUE).unwrap();
        assert_eq!(value.be64(), Some(20));
        let key = Attributes::new(&read[6].1);
        assert_eq!(key.get(NFTA_CT_KEY).and_then(|key| key.be32()), Some(NFT_CT_PKTS));
        assert!(key.get(NFTA_CT_DIRECTION).is_none());
    }
}
