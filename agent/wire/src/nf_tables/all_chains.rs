//! The chains of every table, regardless of its owner: name, hook, priority and policy; and the names of all flow tables.
//!
//! Of rules of other programs nothing but their verdicts is read ([`super::all_rules`]),
//! because what their expressions mean is between them and their nft.

use std::fmt;

use vmap_proxy_compiler::ruleset::Family;

use super::message_type;
use crate::message::{Attributes, Message, Request};
use crate::uapi::*;

/// `NFPROTO_UNSPEC` (`include/uapi/linux/netfilter.h`): every family.
const EVERY_FAMILY: u8 = 0;

/// A chain of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyChain {
    /// The family of its table.
    pub family: AnyFamily,
    /// The name of its table.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// Its place in the way of packets; `None` for a chain that others jump to.
    pub base: Option<AnyBase>,
}

/// The family of a table, `NFPROTO_*` of `include/uapi/linux/netfilter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnyFamily(pub u8);

impl AnyFamily {
    /// `NFPROTO_INET`: IPv4 and IPv6 in one table.
    const INET: u8 = 1;
    const IPV4: u8 = 2;
    const IPV6: u8 = 10;

    /// Returns whether packets of IPv4 or IPv6 go through its chains at the
    /// same hooks as through ours.
    pub fn is_ip(self) -> bool {
        matches!(self.0, Self::INET | Self::IPV4 | Self::IPV6)
    }

    /// Returns whether packets of a family go through its chains.
    pub fn has_packets_of(self, family: Family) -> bool {
        let own = if family == Family::Ipv4 { Self::IPV4 } else { Self::IPV6 };
        self.0 == Self::INET || self.0 == own
    }
}

impl fmt::Display for AnyFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Self::INET => f.write_str("inet"),
            Self::IPV4 => f.write_str("ip"),
            3 => f.write_str("arp"),
            5 => f.write_str("netdev"),
            7 => f.write_str("bridge"),
            Self::IPV6 => f.write_str("ip6"),
            other => write!(f, "family {other}"),
        }
    }
}

/// The hook of an [`AnyChain`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyBase {
    /// `filter`, `nat` or `route`.
    pub kind: String,
    /// The number of the hook, `NF_INET_*` for the families of
    /// [`AnyFamily::is_ip`].
    pub hook: u32,
    /// The priority: lower runs earlier.
    pub priority: i32,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
}

/// Lists the chains of all tables; [`any_chain`] reads the answers.
pub fn list_all_chains() -> Request {
    Request::new(message_type(NFT_MSG_GETCHAIN), EVERY_FAMILY, |_| {})
}

/// Reads one chain. `None` if the message is about something else, or has a
/// name that is no text.
pub fn any_chain(message: &Message<'_>) -> Option<AnyChain> {
    if message.kind != message_type(NFT_MSG_NEWCHAIN) {
        return None;
    }
    let (family, attributes) = message.body()?;
    Some(AnyChain {
        family: AnyFamily(family),
        table: attributes.string(NFTA_CHAIN_TABLE)?.to_owned(),
        name: attributes.string(NFTA_CHAIN_NAME)?.to_owned(),
        base: attributes.get(NFTA_CHAIN_HOOK).and_then(|hook| base(attributes, hook.nested())),
    })
}

/// A flow table of any table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnyFlowTable {
    /// The family of its table.
    pub family: AnyFamily,
    /// The name of its table.
    pub table: String,
    /// Its own name.
    pub name: String,
}

/// Lists the flow tables of all tables; [`any_flow_table`] reads the answers. The
/// kernel leaves out one whose interfaces do not fit a message (some 1,000), and
/// those after it.
pub fn list_all_flow_tables() -> Request {
    Request::new(message_type(NFT_MSG_GETFLOWTABLE), EVERY_FAMILY, |_| {})
}

/// Reads one flow table. `None` as in [`any_chain`].
pub fn any_flow_table(message: &Message<'_>) -> Option<AnyFlowTable> {
    if message.kind != message_type(NFT_MSG_NEWFLOWTABLE) {
        return None;
    }
    let (family, attributes) = message.body()?;
    Some(AnyFlowTable {
        family: AnyFamily(family),
        table: attributes.string(NFTA_FLOWTABLE_TABLE)?.to_owned(),
        name: attributes.string(NFTA_FLOWTABLE_NAME)?.to_owned(),
    })
}

fn base(chain: Attributes<'_>, hook: Attributes<'_>) -> Option<AnyBase> {
    Some(AnyBase {
        kind: chain.string(NFTA_CHAIN_TYPE).unwrap_or_default().to_owned(),
        hook: hook.be32(NFTA_HOOK_HOOKNUM)?,
        // The kernel writes a signed number with `htonl`.
        priority: hook.be32(NFTA_HOOK_PRIORITY)? as i32,
        drops: chain.be32(NFTA_CHAIN_POLICY) == Some(NF_DROP as u32),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Messages, Writer};

    fn read(content: impl FnOnce(&mut Writer)) -> Option<AnyChain> {
        let request = Request::new(message_type(NFT_MSG_NEWCHAIN), AnyFamily::INET, content);
        let mut writer = Writer::default();
        request.write(&mut writer, 0, 1);
        let bytes = writer.bytes().to_vec();
        Messages::new(&bytes).next().and_then(|message| any_chain(&message))
    }

    #[test]
    fn a_base_chain_is_read_with_its_place() {
        let chain = read(|w| {
            w.string(NFTA_CHAIN_TABLE, "filter");
            w.string(NFTA_CHAIN_NAME, "forward");
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, 2);
                w.be32(NFTA_HOOK_PRIORITY, (-10_i32) as u32);
            });
            w.be32(NFTA_CHAIN_POLICY, NF_DROP as u32);
            w.string(NFTA_CHAIN_TYPE, "filter");
        });
        let base = AnyBase { kind: "filter".to_owned(), hook: 2, priority: -10, drops: true };
        let (table, name) = ("filter".to_owned(), "forward".to_owned());
        assert_eq!(chain, Some(AnyChain { family: AnyFamily(1), table, name, base: Some(base) }));
    }

    #[test]
    fn a_flow_table_is_read_by_its_names() {
        let request = crate::nf_tables::flow_table::make_flow_table();
        let mut writer = Writer::default();
        request.write(&mut writer, 0, 1);
        let bytes = writer.bytes().to_vec();
        let read = Messages::new(&bytes).next().and_then(|message| any_flow_table(&message));
        let (table, name) = ("vmap-proxy-flows".to_owned(), "services".to_owned());
        assert_eq!(read, Some(AnyFlowTable { family: AnyFamily(1), table, name }));
        assert_eq!(Messages::new(&bytes).next().and_then(|message| any_chain(&message)), None);
    }

    #[test]
    fn other_chains_and_half_messages_are_no_base_chains() {
        let regular = read(|w| {
            w.string(NFTA_CHAIN_TABLE, "filter");
            w.string(NFTA_CHAIN_NAME, "DOCKER");
        });
        assert_eq!(regular.map(|chain| chain.base), Some(None));
        assert_eq!(read(|w| w.string(NFTA_CHAIN_TABLE, "filter")), None);
    }
}
