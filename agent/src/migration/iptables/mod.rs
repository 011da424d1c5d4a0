//! kube-proxy's iptables mode, as `iptables-save` and `ip6tables-save` print it:
//! nothing has to be run here, and it works for legacy iptables and for that on
//! nf_tables alike.
//!
//! Only kube-proxy's own chains are followed. The rules of other programs in the
//! built-in chains are left out, as they are in vmap-proxy's answers.

mod follow;
mod parse;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::{Family, Protocol};

use super::Frontend;
pub use parse::{ParseError, parse};

/// The chain that has a rule for each frontend by address.
const SERVICES: &str = "KUBE-SERVICES";
/// The chain of NodePorts.
const NODE_PORTS: &str = "KUBE-NODEPORTS";
/// In table `filter`, the chains of frontends without endpoints, and of source ranges.
const REFUSING: [&str; 3] = [SERVICES, "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"];

/// The chains of one family.
#[derive(Debug)]
pub struct KubeProxyChains {
    family: Family,
    nat: HashMap<String, RuleChain>,
    filter: HashMap<String, RuleChain>,
    /// The addresses of this node.
    local_addresses: Vec<IpAddr>,
}

/// The rules of a chain, found by destination: a cluster has very many.
#[derive(Debug, Default)]
struct RuleChain {
    rules: Vec<Rule>,
    /// Positions of rules for one destination address.
    by_address: HashMap<IpAddr, Vec<usize>>,
    /// Positions of others for one destination port.
    by_port: HashMap<u16, Vec<usize>>,
    /// Positions of all others.
    others: Vec<usize>,
}

/// One rule.
#[derive(Debug, Clone, Default, PartialEq)]
struct Rule {
    matches: Vec<Match>,
    action: Action,
}

/// A condition, and whether it must not hold.
#[derive(Debug, Clone, PartialEq)]
struct Match {
    negated: bool,
    condition: Condition,
}

#[derive(Debug, Clone, PartialEq)]
enum Condition {
    Source(IpNet),
    Destination(IpNet),
    Protocol(Option<Protocol>),
    DestinationPort(u16, u16),
    /// The interface on which the packet arrives: its name, or with a `+` the
    /// beginning of it.
    Interface(String),
    LocalSource,
    LocalDestination,
    Mark {
        value: u32,
        mask: u32,
    },
    /// By chance.
    Random(f64),
    /// The client was remembered: a new one was not.
    Remembered,
    /// The packet opens a connection.
    New(bool),
    /// Always true.
    Neutral,
    Unknown(String),
}

#[derive(Debug, Clone, Default, PartialEq)]
enum Action {
    /// Goes on with the next rule.
    #[default]
    Nothing,
    Jump(String),
    Goto(String),
    Return,
    Accept,
    Drop,
    Reject,
    /// The mark becomes `(mark & !mask) ^ value`.
    Mark {
        value: u32,
        mask: u32,
    },
    Translate(std::net::SocketAddr),
    Masquerade,
    Unknown(String),
}

impl RuleChain {
    fn push(&mut self, rule: Rule) {
        let position = self.rules.len();
        match (rule.destination(), rule.port()) {
            (Some(address), _) => self.by_address.entry(address).or_default().push(position),
            (None, Some(port)) => self.by_port.entry(port).or_default().push(position),
            (None, None) => self.others.push(position),
        }
        self.rules.push(rule);
    }

    /// The rules that may match a destination, in order.
    fn rules_for(&self, address: IpAddr, port: u16) -> Vec<&Rule> {
        let of_address = self.by_address.get(&address).into_iter().flatten();
        let of_port = self.by_port.get(&port).into_iter().flatten();
        let mut positions: Vec<usize> = of_address.chain(of_port).chain(&self.others).copied().collect();
        positions.sort_unstable();
        positions.into_iter().filter_map(|position| self.rules.get(position)).collect()
    }
}

impl Rule {
    fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.matches.iter().filter(|one| !one.negated).map(|one| &one.condition)
    }

    /// The one destination address that it is for.
    fn destination(&self) -> Option<IpAddr> {
        self.conditions().find_map(|condition| match condition {
            Condition::Destination(net) if net.prefix_len() == net.max_prefix_len() => Some(net.addr()),
            _ => None,
        })
    }

    /// The one destination port that it is for.
    fn port(&self) -> Option<u16> {
        self.conditions().find_map(|condition| match condition {
            Condition::DestinationPort(first, last) if first == last => Some(*first),
            _ => None,
        })
    }

    fn protocol(&self) -> Option<Protocol> {
        self.conditions().find_map(|condition| match condition {
            Condition::Protocol(protocol) => *protocol,
            _ => None,
        })
    }

    /// The frontend that it is for: by address, or a NodePort.
    fn frontend(&self) -> Option<Frontend> {
        let (protocol, port) = (self.protocol()?, self.port()?);
        let is_node_port = self.conditions().any(|condition| *condition == Condition::LocalDestination);
        match self.destination() {
            Some(address) => Some(Frontend { address: Some(address), protocol, port }),
            None if is_node_port => Some(Frontend { address: None, protocol, port }),
            None => None,
        }
    }
}

impl KubeProxyChains {
    /// The family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Sets the addresses of this node.
    pub fn set_local_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.local_addresses = addresses;
    }

    /// All frontends, with endpoints or without.
    pub fn all(&self) -> BTreeSet<Frontend> {
        let mut all: BTreeSet<Frontend> = rules(&self.nat, SERVICES).filter_map(Rule::frontend).collect();
        all.extend(
            rules(&self.nat, NODE_PORTS)
                .filter_map(|rule| Some(Frontend { address: None, protocol: rule.protocol()?, port: rule.port()? })),
        );
        for name in REFUSING {
            all.extend(rules(&self.filter, name).filter_map(Rule::frontend));
        }
        all
    }

    fn has_kube_proxy(&self) -> bool {
        self.nat.contains_key(SERVICES)
    }
}

/// The rules of a chain; none if nobody has made it.
fn rules<'a>(chains: &'a HashMap<String, RuleChain>, name: &str) -> impl Iterator<Item = &'a Rule> {
    chains.get(name).into_iter().flat_map(|chain| &chain.rules)
}

#[cfg(test)]
mod tests;
