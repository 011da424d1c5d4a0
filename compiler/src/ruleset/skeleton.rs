//! The rules of each chain. They are a pure function of the configuration:
//! Services and endpoints never change a rule.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::chains::Chain;
use super::maps::Map;
use super::rule::{KeyPart, Op, Rule, Side, Statement, Way};
use super::spread::Spread;
use super::target::{Domain, Pool};
use super::{Family, source_ranges};
use crate::model::Protocol;
pub use crate::model::config::LocalDetector;

/// The parameters of the rules of one family.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SkeletonConfig {
    /// The family whose table this is.
    pub family: Family,
    /// How to recognize local pods, or `None` if there is no way to.
    pub detector: Option<LocalDetector>,
    /// `nftables.masqueradeAll`: masquerade everything to a cluster IP.
    pub masquerade_all: bool,
    /// Whether NodePorts are served on every local address but loopback; else
    /// only on the elements of `nodeport-ips`.
    pub nodeports_on_all_addresses: bool,
}

/// The test that a packet comes from a local pod, or its negation.
fn from_local_pod(detector: &LocalDetector, op: Op) -> Statement {
    match detector {
        LocalDetector::Source(net) => Statement::Address(Side::Source, op, *net),
        LocalDetector::Interface(name) => Statement::Interface(Way::In, op, name.clone()),
        LocalDetector::InterfacePrefix(prefix) => Statement::InterfacePrefix(Way::In, op, prefix.clone()),
    }
}

/// The tests that a packet in postrouting comes from no local pod. Exactly one
/// of them holds then, and none otherwise.
///
/// A bridge that shows its packets to the IP hooks (`bridge-nf-call-iptables`)
/// names no input interface in postrouting. But a forwarded packet leaves by
/// the bridge it came from, so the output interface is equivalent. The node's
/// own packets have no input interface either; their source distinguishes them
/// (decision 38).
///
/// ```nft
/// iifname != "cbr0" iif != 0
/// iif 0 oifname != "cbr0"
/// iif 0 oifname "cbr0" fib saddr type local
/// ```
fn not_from_local_pod(detector: &LocalDetector) -> Vec<Vec<Statement>> {
    let leaves_by: &dyn Fn(Op) -> Statement = match detector {
        LocalDetector::Source(_) => return vec![vec![from_local_pod(detector, Op::IsNot)]],
        LocalDetector::Interface(name) => &|op| Statement::Interface(Way::Out, op, name.clone()),
        LocalDetector::InterfacePrefix(prefix) => &|op| Statement::InterfacePrefix(Way::Out, op, prefix.clone()),
    };
    vec![
        vec![from_local_pod(detector, Op::IsNot), NoInputInterface(Op::IsNot)],
        vec![NoInputInterface(Op::Is), leaves_by(Op::IsNot)],
        vec![NoInputInterface(Op::Is), leaves_by(Op::Is), FibLocal(Side::Source)],
    ]
}

const FRONTEND: [KeyPart; 3] = [KeyPart::Address(Side::Destination), KeyPart::Protocol, KeyPart::Port];
const NODEPORT: [KeyPart; 2] = [KeyPart::Protocol, KeyPart::Port];
const ORIGINAL_FRONTEND: [KeyPart; 3] = [KeyPart::OriginalDestination, KeyPart::Protocol, KeyPart::OriginalPort];
const ORIGINAL_NODEPORT: [KeyPart; 2] = [KeyPart::Protocol, KeyPart::OriginalPort];

/// The key for the look-up of a packet's frontend or NodePort.
fn key_of(domain: Domain) -> &'static [KeyPart] {
    match domain {
        Domain::Frontend => &FRONTEND,
        Domain::NodePort => &NODEPORT,
    }
}

use Statement::{
    Accept, ClearPriority, CtStateNew, CtStatusDnat, Drop, FibLocal, Goto, Jump, LearnAffinity, Lookup, Masquerade,
    NoInputInterface, Reject, Return, SetPriority, Vmap,
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
            vec![rule([CtStateNew(Op::Is), Jump(Chain::FirewallCheck)])]
        }
        // jump services
        Chain::NatPrerouting | Chain::NatOutput => vec![rule([Jump(Chain::Frontends(Domain::Frontend))])],
        // ct state new meta priority vmap @affinity-timeouts
        Chain::LearnPrerouting | Chain::LearnOutput => {
            vec![rule([CtStateNew(Op::Is), Vmap(vec![KeyPart::Priority], Map::AffinityTimeouts)])]
        }
        Chain::FilterInput => {
            checks([Chain::EndpointsCheck(Domain::NodePort), Chain::EndpointsCheck(Domain::Frontend)])
        }
        Chain::FilterForward | Chain::FilterOutput => {
            checks([Chain::EndpointsCheck(Domain::Frontend), Chain::ClusterIpsCheck])
        }
        // ct status dnat jump masquerading
        Chain::NatPostrouting => vec![rule([CtStatusDnat, Jump(Chain::Masquerading)])],
        // ip daddr . meta l4proto . th dport vmap @firewall-ips
        Chain::FirewallCheck => vec![rule([Vmap(FRONTEND.to_vec(), Map::FirewallIps)])],
        Chain::SourceRanges(family) if family == config.family => source_ranges::first_rules(family, &FRONTEND),
        // Of the other family: no node address.
        Chain::SourceRanges(_) => vec![rule([Drop])],
        Chain::SourceRangesOfLength { length } => source_ranges::rules(config.family, length, &FRONTEND),
        Chain::Frontends(Domain::Frontend) => services(config),
        Chain::Frontends(Domain::NodePort) => vec![rule([Vmap(NODEPORT.to_vec(), Map::Frontends(Domain::NodePort))])],
        Chain::LocalPolicy(domain) => local_policy(config, domain),
        Chain::Masquerading => masquerading(config),
        Chain::EndpointsCheck(Domain::Frontend) => {
            vec![rule([Vmap(FRONTEND.to_vec(), Map::NoEndpoints(Domain::Frontend))])]
        }
        Chain::EndpointsCheck(Domain::NodePort) => nodeport_endpoints_check(config),
        Chain::ClusterIpsCheck => cluster_ips_check(),
        // reject
        Chain::Reject => vec![rule([Reject])],
        Chain::Draw { domain, pool, slots } => List { domain, pool }.draw(slots),
        Chain::Balance { domain, pool, sticky: false, spread } => List { domain, pool }.balance(spread),
        Chain::Balance { domain, pool, sticky: true, spread } => List { domain, pool }.sticky(spread),
        Chain::LearnFor { seconds } => learn_for(seconds),
    }
}

/// The checks for new connections. Translated ones are checked, too: an endpoint
/// may be an address of another frontend.
///
/// ```nft
/// ct state != new accept
/// jump service-endpoints-check
/// jump cluster-ips-check
/// ```
///
/// `accept` ends this base chain only. All other packets leave with one test.
fn checks(chains: [Chain; 2]) -> Vec<Rule> {
    let leave = rule([CtStateNew(Op::IsNot), Accept]);
    [leave].into_iter().chain(chains.map(|chain| rule([Jump(chain)]))).collect()
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
    to_nodeports.push(Jump(Chain::Frontends(Domain::NodePort)));
    vec![rule([Vmap(FRONTEND.to_vec(), Map::Frontends(Domain::Frontend))]), Rule(to_nodeports)]
}

/// Matches the addresses that serve NodePorts, as far as the destination shows
/// them.
fn nodeport_addresses(config: &SkeletonConfig) -> Vec<Statement> {
    if config.nodeports_on_all_addresses {
        vec![Statement::Address(Side::Destination, Op::IsNot, loopback(config.family))]
    } else {
        vec![Lookup(vec![KeyPart::Address(Side::Destination)], Op::Is, Map::NodePortIps)]
    }
}

/// Addresses that never serve NodePorts: 127.0.0.0/8, but of IPv6 only ::1.
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
fn local_policy(config: &SkeletonConfig, domain: Domain) -> Vec<Rule> {
    let (key, cluster, local) = (key_of(domain), Map::ShortCircuit(domain), Map::LocalFrontends(domain));
    let mut rules = Vec::with_capacity(3);
    if let Some(detector) = &config.detector {
        rules.push(rule([from_local_pod(detector, Op::Is), Vmap(key.to_vec(), cluster)]));
    }
    rules.push(rule([FibLocal(Side::Source), Vmap(key.to_vec(), cluster)]));
    rules.push(rule([Vmap(key.to_vec(), local)]));
    rules
}

/// The number of draws from all slots, of which more than half hold an
/// endpoint. The last draw is from the slots that all do, so at most 1/256 of
/// the connections miss before and fall on the first half of the slots.
const DRAWS: usize = 8;

/// The endpoint lists of one kind of frontend, which balancing chains read.
#[derive(Clone, Copy)]
struct List {
    domain: Domain,
    pool: Pool,
}

impl List {
    /// ```nft
    /// dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints
    /// ```
    fn dnat(self, port: KeyPart, slot: KeyPart) -> Rule {
        let mut key = match self.domain {
            Domain::Frontend => vec![KeyPart::Address(Side::Destination)],
            Domain::NodePort => Vec::new(),
        };
        key.extend([KeyPart::Protocol, port, slot]);
        rule([Statement::Dnat(key, Map::Endpoints(self.domain, self.pool))])
    }

    /// Two rules, because nft (1.0.6) adds a match for TCP to the *first* rule
    /// of a file that uses a map whose value is declared as `tcp dport`, and
    /// only to the first: without the TCP rule in front, a listing that is
    /// loaded again would lose UDP and SCTP (decision 4).
    fn dnat_each_protocol(self, slot: KeyPart) -> [Rule; 2] {
        [self.dnat(KeyPart::TcpPort, slot), self.dnat(KeyPart::Port, slot)]
    }

    /// ```nft
    /// chain draw-127 {
    ///     dnat ip to ip daddr . meta l4proto . tcp dport . numgen random mod 127 map @endpoints
    ///     dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 127 map @endpoints
    /// }
    /// ```
    ///
    /// A packet that draws an empty slot falls off the end and comes back. TCP
    /// draws twice.
    fn draw(self, slots: u32) -> Vec<Rule> {
        self.dnat_each_protocol(KeyPart::Random(slots)).into()
    }

    /// ```nft
    /// chain lb-3 {
    ///     dnat ip to ip daddr . meta l4proto . tcp dport . numgen random mod 3 map @endpoints
    ///     dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints
    ///     drop
    /// }
    /// chain lb-max-127 {
    ///     jump draw-127
    ///     ... seven times more
    ///     dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 64 map @endpoints
    ///     drop
    /// }
    /// ```
    ///
    /// The draws are in a separate chain, so that three rules bind the map
    /// instead of seventeen: see decision 14. `draw-127` is made before
    /// `lb-max-127` and so is listed before it: the last draw is never the
    /// first rule that uses the map and needs no TCP rule in front.
    ///
    /// The final `drop` catches a missed lookup: elements become visible per
    /// lookup, not per packet, and no packet may leave untranslated.
    fn balance(self, spread: Spread) -> Vec<Rule> {
        let last = KeyPart::Random(spread.always_filled());
        let mut rules = Vec::with_capacity(DRAWS + 2);
        match spread {
            Spread::Exactly(_) => rules.extend(self.dnat_each_protocol(last)),
            Spread::AtMost(slots) => {
                let draw = Jump(Chain::Draw { domain: self.domain, pool: self.pool, slots });
                rules.extend(std::iter::repeat_n(rule([draw]), DRAWS));
                rules.push(self.dnat(KeyPart::Port, last));
            }
        }
        rules.push(rule([Drop]));
        rules
    }

    /// ```nft
    /// chain sticky-3 {
    ///     meta priority set ip daddr . meta l4proto . th dport map @affinity-lists
    ///     meta l4proto tcp dnat ip to ip saddr . meta priority map @affinity
    ///     meta l4proto udp dnat ip to ip saddr . meta priority map @affinity
    ///     meta l4proto sctp dnat ip to ip saddr . meta priority map @affinity
    ///     goto lb-3
    /// }
    /// ```
    ///
    /// One rule a protocol for the known clients: nft refuses a value with a
    /// port unless the rule names the protocol. Who is not known is placed at
    /// random, and learned behind DNAT under the number that the priority still
    /// holds: see [`learn_for`].
    fn sticky(self, spread: Spread) -> Vec<Rule> {
        let frontend = key_of(self.domain).to_vec();
        let known = [KeyPart::Address(Side::Source), KeyPart::Priority];
        let mut rules = vec![rule([SetPriority(frontend, Map::AffinityLists(self.domain, self.pool))])];
        rules.extend(
            Protocol::ALL
                .map(|protocol| rule([Statement::Protocol(protocol), Statement::Dnat(known.to_vec(), Map::Affinity)])),
        );
        let (domain, pool) = (self.domain, self.pool);
        rules.push(rule([Goto(Chain::Balance { domain, pool, sticky: false, spread })]));
        rules
    }
}

/// The original destination must have been a NodePort address. Where all
/// addresses are, there is nothing to match: after DNAT nothing shows whether
/// the destination was local before.
fn original_nodeport_address(config: &SkeletonConfig) -> Vec<Statement> {
    if config.nodeports_on_all_addresses {
        Vec::new()
    } else {
        vec![Lookup(vec![KeyPart::OriginalDestination], Op::Is, Map::NodePortIps)]
    }
}

/// Behind DNAT the headers contain the endpoint. The number of the list is no
/// longer needed, and must not be taken for a priority.
///
/// ```nft
/// update @affinity { ip saddr . meta priority timeout 3h : ip daddr . th dport }
/// meta priority set none
/// ```
fn learn_for(seconds: u32) -> Vec<Rule> {
    vec![rule([LearnAffinity { seconds }]), rule([ClearPriority])]
}

/// No packet marks: whether a connection is masqueraded follows from its
/// original destination and from the packet's source.
///
/// ```nft
/// ip saddr != 10.244.0.0/16 ct original ip daddr @cluster-ips masquerade fully-random
/// ip saddr . ip daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
/// ct original ip daddr @cluster-ips return
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @masquerade-services masquerade fully-random
/// meta l4proto tcp ip saddr != 10.244.0.0/16 fib saddr type local ct original ip daddr . meta l4proto . ct original proto-dst @local-policy-services masquerade fully-random
/// meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst @local-policy-services return
/// meta l4proto tcp ct original ip daddr @nodeport-ips meta l4proto . ct original proto-dst @masquerade-nodeports masquerade fully-random
/// ct original ip daddr @nodeport-ips ... fib saddr type local meta l4proto tcp meta l4proto . ct original proto-dst @local-policy-nodeports masquerade fully-random
/// ```
fn masquerading(config: &SkeletonConfig) -> Vec<Rule> {
    let hairpin =
        vec![KeyPart::Address(Side::Source), KeyPart::Address(Side::Destination), KeyPart::Protocol, KeyPart::Port];
    let cluster_ip = || Lookup(vec![KeyPart::OriginalDestination], Op::Is, Map::ClusterIps);
    let mut rules = Vec::new();
    if config.masquerade_all {
        rules.push(rule([cluster_ip(), Masquerade]));
    } else if let Some(detector) = &config.detector {
        // The tests first: they spare pods one of two look-ups in a large set.
        for tests in not_from_local_pod(detector) {
            rules.push(rule(tests.into_iter().chain([cluster_ip(), Masquerade])));
        }
    }
    rules.push(rule([Lookup(hairpin, Op::Is, Map::HairpinConnections), Masquerade]));
    rules.push(rule([cluster_ip(), Return]));

    // From the node itself, unless the detector takes its source for a pod's. What a bridge forwards has no
    // source of the node, so that the input interface is enough here.
    let mut from_node: Vec<Statement> = Vec::new();
    if let Some(detector) = &config.detector {
        from_node.push(from_local_pod(detector, Op::IsNot));
    }
    from_node.push(FibLocal(Side::Source));

    for protocol in Protocol::ALL {
        let original = |map| [Statement::Protocol(protocol), Lookup(ORIGINAL_FRONTEND.to_vec(), Op::Is, map)];
        rules.push(rule(original(Map::Masquerade(Domain::Frontend)).into_iter().chain([Masquerade])));
        let from_node = from_node.clone().into_iter();
        rules.push(rule(from_node.chain(original(Map::LocalPolicy(Domain::Frontend))).chain([Masquerade])));
        rules.push(rule(original(Map::LocalPolicy(Domain::Frontend)).into_iter().chain([Return])));
    }
    for protocol in Protocol::ALL {
        let original = |map| {
            let mut statements = vec![Statement::Protocol(protocol)];
            statements.extend(original_nodeport_address(config));
            statements.push(Lookup(ORIGINAL_NODEPORT.to_vec(), Op::Is, map));
            statements
        };
        rules.push(rule(original(Map::Masquerade(Domain::NodePort)).into_iter().chain([Masquerade])));
        let from_node = from_node.clone().into_iter();
        rules.push(rule(from_node.chain(original(Map::LocalPolicy(Domain::NodePort))).chain([Masquerade])));
    }
    rules
}

/// ```nft
/// ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
/// ```
fn nodeport_endpoints_check(config: &SkeletonConfig) -> Vec<Rule> {
    let mut statements = nodeport_addresses(config);
    statements.push(Vmap(NODEPORT.to_vec(), Map::NoEndpoints(Domain::NodePort)));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SkeletonConfig {
        SkeletonConfig {
            family: Family::Ipv4,
            detector: None,
            masquerade_all: false,
            nodeports_on_all_addresses: false,
        }
    }

    /// Returns the share of new connections of each endpoint, computed from the
    /// rules, and the share that is dropped.
    fn shares(chain: Chain, endpoints: u32, is_tcp: bool) -> (Vec<f64>, f64) {
        let mut shares = vec![0.0; endpoints as usize];
        let mut left = 1.0;
        draw_all(chain, is_tcp, &mut shares, &mut left);
        (shares, left)
    }

    fn draw_all(chain: Chain, is_tcp: bool, shares: &mut [f64], left: &mut f64) {
        for rule in rules(&config(), chain) {
            let key = match rule.0.as_slice() {
                [Jump(chain) | Goto(chain)] => {
                    draw_all(*chain, is_tcp, shares, left);
                    continue;
                }
                // A client that is not known.
                [SetPriority(..)] | [Statement::Protocol(_), Statement::Dnat(_, Map::Affinity)] | [Drop] => continue,
                [Statement::Dnat(key, _)] if is_tcp || !key.contains(&KeyPart::TcpPort) => key,
                [Statement::Dnat(..)] => continue,
                other => panic!("{other:?}"),
            };
            let slots = match key.last() {
                Some(KeyPart::Random(slots)) => *slots,
                other => panic!("{other:?}"),
            };
            let each = *left / f64::from(slots);
            let filled = shares.iter_mut().take(slots as usize);
            *left -= each * filled.map(|share| *share += each).count() as f64;
        }
    }

    /// The figures of decision 14.
    #[test]
    fn connections_are_spread_evenly_and_none_is_dropped() {
        for (sticky, is_tcp, fewest, most) in [
            (false, false, 1.0 - 1.0 / 256.0, 1.0003),
            (false, true, 1.0 - 1.0 / 65536.0, 1.0001),
            (true, false, 1.0 - 1.0 / 256.0, 1.0003),
            (true, true, 1.0 - 1.0 / 65536.0, 1.0001),
        ] {
            for endpoints in (1..130).chain([140, 255, 256, 257, 300, 9_000, 16_383]) {
                let spread = Spread::of(endpoints);
                let chain = Chain::Balance { domain: Domain::Frontend, pool: Pool::Main, sticky, spread };
                let (shares, dropped) = shares(chain, endpoints, is_tcp);
                let of_equal = |share: f64| share * f64::from(endpoints);
                let least = shares.iter().copied().map(of_equal).fold(f64::INFINITY, f64::min);
                let greatest = shares.iter().copied().map(of_equal).fold(0.0, f64::max);
                assert!(dropped.abs() < 1e-9, "{chain} {endpoints}: {dropped} dropped");
                assert!(least >= fewest && greatest <= most, "{chain} {endpoints}: {least} to {greatest}");
            }
        }
    }

    /// The kernel walks over the whole map for each rule that binds it.
    #[test]
    fn few_rules_bind_an_endpoint_map() {
        let binds = |chain| {
            let rules = rules(&config(), chain);
            rules
                .iter()
                .filter(|rule| {
                    matches!(rule.0.as_slice(), [Statement::Dnat(_, Map::Endpoints(Domain::Frontend, Pool::Main))])
                })
                .count()
        };
        let balance = |sticky, endpoints| {
            let (domain, pool) = (Domain::Frontend, Pool::Main);
            Chain::Balance { domain, pool, sticky, spread: Spread::of(endpoints) }
        };
        for (chain, rules) in [
            (balance(false, 3), 2),
            (balance(true, 3), 2),
            (balance(false, 4), 3),
            (balance(false, 10_000), 3),
            (balance(true, 10_000), 3),
        ] {
            assert_eq!(binds(chain) + chain.needs().map(binds).sum::<usize>(), rules, "{chain}");
        }
    }
}
