//! Which rules stand in which chain. A pure function of the configuration:
//! Services and endpoints never change a rule.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Family;
use super::chains::{Chain, Domain, Pool};
use super::maps::Map;
use super::rule::{KeyPart, Op, Rule, Side, Statement};
use crate::model::Protocol;

/// How to tell that a packet comes from a pod of this node (or of the cluster:
/// kube-proxy's `detectLocalMode` decides what "local" means).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalDetector {
    /// `ClusterCIDR`, `NodeCIDR`: by source address.
    Source(IpNet),
    /// `BridgeInterface`: by the name of the interface it came in on.
    Interface(String),
    /// `InterfaceNamePrefix`: by how that name begins.
    InterfacePrefix(String),
}

impl LocalDetector {
    /// The test, or its negation.
    fn test(&self, op: Op) -> Statement {
        match self {
            LocalDetector::Source(net) => Statement::Address(Side::Source, op, *net),
            LocalDetector::Interface(name) => Statement::Interface(op, name.clone()),
            LocalDetector::InterfacePrefix(prefix) => Statement::InterfacePrefix(op, prefix.clone()),
        }
    }
}

/// What the rules of one family depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SkeletonConfig {
    /// The family whose table this is.
    pub family: Family,
    /// How local pods are told; `None`: they can't be.
    pub detector: Option<LocalDetector>,
    /// `nftables.masqueradeAll`: masquerade everything to a cluster IP.
    pub masquerade_all: bool,
    /// Whether NodePorts are served on every local address but loopback; else
    /// only on the elements of `nodeport-ips`.
    pub nodeports_on_all_addresses: bool,
}

const FRONTEND: [KeyPart; 3] = [KeyPart::Address(Side::Destination), KeyPart::Protocol, KeyPart::Port];
const NODEPORT: [KeyPart; 2] = [KeyPart::Protocol, KeyPart::Port];
const ORIGINAL_FRONTEND: [KeyPart; 3] = [KeyPart::OriginalDestination, KeyPart::Protocol, KeyPart::OriginalPort];
const ORIGINAL_NODEPORT: [KeyPart; 2] = [KeyPart::Protocol, KeyPart::OriginalPort];

use Statement::{
    CtStateNew, CtStatusDnat, Drop, FibLocal, Goto, Jump, LearnAffinity, Lookup, Masquerade, Reject, Return, Vmap,
};

fn rule(statements: impl IntoIterator<Item = Statement>) -> Rule {
    Rule(statements.into_iter().collect())
}

/// The rules of one chain, in order.
///
/// Each rule stands below in nft syntax, for IPv4 and a detector by address.
pub fn rules(config: &SkeletonConfig, chain: Chain) -> Vec<Rule> {
    match chain {
        // ct state new jump firewall-check
        Chain::FilterPreroutingPreDnat | Chain::FilterOutputPreDnat => {
            vec![rule([CtStateNew, Jump(Chain::FirewallCheck)])]
        }
        // jump services
        Chain::NatPrerouting | Chain::NatOutput => vec![rule([Jump(Chain::Services)])],
        // ct state new ct status dnat jump learn
        Chain::LearnPrerouting | Chain::LearnOutput => {
            vec![rule([CtStateNew, CtStatusDnat, Jump(Chain::Learn)])]
        }
        // ct state new jump nodeport-endpoints-check
        // ct state new jump service-endpoints-check
        Chain::FilterInput => vec![
            rule([CtStateNew, Jump(Chain::NodePortEndpointsCheck)]),
            rule([CtStateNew, Jump(Chain::ServiceEndpointsCheck)]),
        ],
        // ct state new jump service-endpoints-check
        // ct state new jump cluster-ips-check
        Chain::FilterForward | Chain::FilterOutput => vec![
            rule([CtStateNew, Jump(Chain::ServiceEndpointsCheck)]),
            rule([CtStateNew, Jump(Chain::ClusterIpsCheck)]),
        ],
        // ct status dnat jump masquerading
        Chain::NatPostrouting => vec![rule([CtStatusDnat, Jump(Chain::Masquerading)])],
        Chain::FirewallCheck => firewall_check(),
        Chain::Services => services(config),
        Chain::NodePorts => vec![rule([Vmap(NODEPORT.to_vec(), Map::NodePorts)])],
        Chain::LocalPolicy => local_policy(config, &FRONTEND, Map::ShortCircuit, Map::LocalServices),
        Chain::NodePortLocalPolicy => local_policy(config, &NODEPORT, Map::NodePortShortCircuit, Map::LocalNodePorts),
        Chain::Learn => learn(config),
        Chain::Masquerading => masquerading(config),
        Chain::ServiceEndpointsCheck => vec![rule([Vmap(FRONTEND.to_vec(), Map::NoEndpointServices)])],
        Chain::NodePortEndpointsCheck => nodeport_endpoints_check(config),
        Chain::ClusterIpsCheck => cluster_ips_check(),
        // reject
        Chain::Reject => vec![rule([Reject])],
        Chain::Balance { domain, pool, sticky, endpoints } => balance(domain, pool, sticky, endpoints),
        Chain::LearnFor { seconds } => learn_for(seconds),
    }
}

/// ```nft
/// ip daddr . meta l4proto . th dport @firewall-ips ip daddr . meta l4proto . th dport . ip saddr != @source-ranges drop
/// ```
fn firewall_check() -> Vec<Rule> {
    let allowed = [FRONTEND.as_slice(), &[KeyPart::Address(Side::Source)]].concat();
    vec![rule([
        Lookup(FRONTEND.to_vec(), Op::Is, Map::FirewallIps),
        Lookup(allowed, Op::IsNot, Map::SourceRanges),
        Drop,
    ])]
}

/// Frontends come before NodePorts: a load balancer address on this node with
/// the number of a NodePort goes to the load balancer's Service.
///
/// ```nft
/// ip daddr . meta l4proto . th dport vmap @services
/// ip daddr @nodeport-ips jump nodeports
/// ```
///
/// and where NodePorts are served on all addresses, instead of the second:
///
/// ```nft
/// ip daddr != 127.0.0.0/8 fib daddr type local jump nodeports
/// ```
fn services(config: &SkeletonConfig) -> Vec<Rule> {
    let mut to_nodeports = nodeport_addresses(config);
    if config.nodeports_on_all_addresses {
        to_nodeports.push(FibLocal(Side::Destination));
    }
    to_nodeports.push(Jump(Chain::NodePorts));
    vec![rule([Vmap(FRONTEND.to_vec(), Map::Services)]), Rule(to_nodeports)]
}

/// The addresses that serve NodePorts, as far as the destination tells.
fn nodeport_addresses(config: &SkeletonConfig) -> Vec<Statement> {
    if config.nodeports_on_all_addresses {
        vec![Statement::Address(Side::Destination, Op::IsNot, loopback(config.family))]
    } else {
        vec![Lookup(vec![KeyPart::Address(Side::Destination)], Op::Is, Map::NodePortIps)]
    }
}

/// What is never a NodePort address: 127.0.0.0/8, but of IPv6 only ::1.
fn loopback(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8)),
        Family::Ipv6 => IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128)),
    }
}

/// Pods of this node and the node itself may use every endpoint of the
/// cluster; everybody else only the local ones. A frontend without local
/// endpoints falls off the end here and is dropped in the filter hooks.
///
/// ```nft
/// ip saddr 10.244.0.0/16 ip daddr . meta l4proto . th dport vmap @short-circuit
/// fib saddr type local ip daddr . meta l4proto . th dport vmap @short-circuit
/// ip daddr . meta l4proto . th dport vmap @local-services
/// ```
fn local_policy(config: &SkeletonConfig, key: &[KeyPart], cluster: Map, local: Map) -> Vec<Rule> {
    let mut rules = Vec::with_capacity(3);
    if let Some(detector) = &config.detector {
        rules.push(rule([detector.test(Op::Is), Vmap(key.to_vec(), cluster)]));
    }
    rules.push(rule([FibLocal(Side::Source), Vmap(key.to_vec(), cluster)]));
    rules.push(rule([Vmap(key.to_vec(), local)]));
    rules
}

/// ```nft
/// chain lb-3 {
///     dnat ip to ip daddr . meta l4proto . tcp dport . numgen random mod 3 map @endpoints
///     dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints
///     drop
/// }
/// chain sticky-3 {
///     dnat ip to ip saddr . ip daddr . meta l4proto . th dport map @affinity
///     dnat ip to ip daddr . meta l4proto . tcp dport . jhash ip saddr mod 3 seed 0x5eed map @endpoints
///     dnat ip to ip daddr . meta l4proto . th dport . jhash ip saddr mod 3 seed 0x5eed map @endpoints
///     drop
/// }
/// ```
///
/// Two rules, because nft (1.0.6) gives the *first* rule of a file that uses a
/// map whose value is declared as `tcp dport` a match for TCP of its own, and
/// only the first: without the TCP rule in front, a listing that is loaded
/// again would lose UDP and SCTP. See `docs/decisions/`.
///
/// The final `drop` catches a missed lookup: elements become visible per
/// lookup, not per packet, and no packet may leave untranslated.
fn balance(domain: Domain, pool: Pool, sticky: bool, endpoints: u32) -> Vec<Rule> {
    let slot = if sticky { KeyPart::ClientHash(endpoints) } else { KeyPart::Random(endpoints) };
    let map = match (domain, pool) {
        (Domain::Service, Pool::Main) => Map::Endpoints,
        (Domain::Service, Pool::ShortCircuit) => Map::ShortCircuitEndpoints,
        (Domain::NodePort, Pool::Main) => Map::NodePortEndpoints,
        (Domain::NodePort, Pool::ShortCircuit) => Map::NodePortShortCircuitEndpoints,
    };
    let key = |port: KeyPart| {
        let mut key = match domain {
            Domain::Service => vec![KeyPart::Address(Side::Destination)],
            Domain::NodePort => Vec::new(),
        };
        key.extend([KeyPart::Protocol, port, slot]);
        key
    };
    let mut rules = Vec::with_capacity(4);
    if sticky {
        let known = [&[KeyPart::Address(Side::Source)], FRONTEND.as_slice()].concat();
        rules.push(rule([Statement::Dnat(known, Map::Affinity)]));
    }
    rules.push(rule([Statement::Dnat(key(KeyPart::TcpPort), map)]));
    rules.push(rule([Statement::Dnat(key(KeyPart::Port), map)]));
    rules.push(rule([Drop]));
    rules
}

/// One rule a protocol: `ct original proto-dst` needs to know which.
///
/// ```nft
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst vmap @sticky
/// ct original ip daddr @nodeport-ips meta l4proto tcp meta l4proto . ct original proto-dst vmap @nodeport-sticky
/// ```
fn learn(config: &SkeletonConfig) -> Vec<Rule> {
    let services = Protocol::ALL
        .map(|protocol| rule([Statement::Protocol(protocol), Vmap(ORIGINAL_FRONTEND.to_vec(), Map::Sticky)]));
    let nodeports = Protocol::ALL.map(|protocol| {
        let mut statements = original_nodeport_address(config);
        statements.extend([Statement::Protocol(protocol), Vmap(ORIGINAL_NODEPORT.to_vec(), Map::NodePortSticky)]);
        Rule(statements)
    });
    services.into_iter().chain(nodeports).collect()
}

/// The original destination must have been a NodePort address. Where all are,
/// nothing can be asked any more: what was local before DNAT can't be told
/// after it.
fn original_nodeport_address(config: &SkeletonConfig) -> Vec<Statement> {
    if config.nodeports_on_all_addresses {
        Vec::new()
    } else {
        vec![Lookup(vec![KeyPart::OriginalDestination], Op::Is, Map::NodePortIps)]
    }
}

/// ```nft
/// meta l4proto tcp update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst
///     timeout 3h : ct reply ip saddr . ct reply proto-src }
/// ```
fn learn_for(seconds: u32) -> Vec<Rule> {
    Protocol::ALL.map(|protocol| rule([Statement::Protocol(protocol), LearnAffinity { seconds }])).into()
}

/// No packet marks: whether a connection is masqueraded follows from its
/// original destination and from the packet's source.
///
/// ```nft
/// ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
/// ct original ip daddr @cluster-ips ip saddr != 10.244.0.0/16 masquerade fully-random
/// ct original ip daddr @cluster-ips return
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @masquerade-services masquerade fully-random
/// meta l4proto tcp ip saddr != 10.244.0.0/16 fib saddr type local ct original ip daddr . meta l4proto . ct original proto-dst @local-policy-services masquerade fully-random
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @local-policy-services return
/// ct original ip daddr @nodeport-ips meta l4proto tcp meta l4proto . ct original proto-dst @masquerade-nodeports masquerade fully-random
/// ct original ip daddr @nodeport-ips ... fib saddr type local meta l4proto tcp meta l4proto . ct original proto-dst @local-policy-nodeports masquerade fully-random
/// ```
fn masquerading(config: &SkeletonConfig) -> Vec<Rule> {
    let hairpin =
        vec![KeyPart::Address(Side::Source), KeyPart::Address(Side::Destination), KeyPart::Protocol, KeyPart::Port];
    let cluster_ip = || Lookup(vec![KeyPart::OriginalDestination], Op::Is, Map::ClusterIps);
    let mut rules = vec![rule([Lookup(hairpin, Op::Is, Map::HairpinConnections), Masquerade])];
    if config.masquerade_all {
        rules.push(rule([cluster_ip(), Masquerade]));
    } else if let Some(detector) = &config.detector {
        rules.push(rule([cluster_ip(), detector.test(Op::IsNot), Masquerade]));
    }
    rules.push(rule([cluster_ip(), Return]));

    // From the node itself, unless the detector takes its source for a pod's.
    let mut from_node: Vec<Statement> = Vec::new();
    if let Some(detector) = &config.detector {
        from_node.push(detector.test(Op::IsNot));
    }
    from_node.push(FibLocal(Side::Source));

    for protocol in Protocol::ALL {
        let original = |map| [Statement::Protocol(protocol), Lookup(ORIGINAL_FRONTEND.to_vec(), Op::Is, map)];
        rules.push(rule(original(Map::MasqueradeServices).into_iter().chain([Masquerade])));
        let from_node = from_node.clone().into_iter();
        rules.push(rule(from_node.chain(original(Map::LocalPolicyServices)).chain([Masquerade])));
        rules.push(rule(original(Map::LocalPolicyServices).into_iter().chain([Return])));
    }
    for protocol in Protocol::ALL {
        let original = |map| {
            let mut statements = original_nodeport_address(config);
            statements.extend([Statement::Protocol(protocol), Lookup(ORIGINAL_NODEPORT.to_vec(), Op::Is, map)]);
            statements
        };
        rules.push(rule(original(Map::MasqueradeNodePorts).into_iter().chain([Masquerade])));
        let from_node = from_node.clone().into_iter();
        rules.push(rule(from_node.chain(original(Map::LocalPolicyNodePorts)).chain([Masquerade])));
    }
    rules
}

/// ```nft
/// ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
/// ```
fn nodeport_endpoints_check(config: &SkeletonConfig) -> Vec<Rule> {
    let mut statements = nodeport_addresses(config);
    statements.push(Vmap(NODEPORT.to_vec(), Map::NoEndpointNodePorts));
    vec![Rule(statements)]
}

/// ```nft
/// ip daddr @cluster-ips goto reject-chain
/// ip daddr @service-cidrs drop
/// ```
fn cluster_ips_check() -> Vec<Rule> {
    let destination = || vec![KeyPart::Address(Side::Destination)];
    vec![
        rule([Lookup(destination(), Op::Is, Map::ClusterIps), Goto(Chain::Reject)]),
        rule([Lookup(destination(), Op::Is, Map::ServiceCidrs), Drop]),
    ]
}
