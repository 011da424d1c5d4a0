//! The chains: where they hook, and the few families of them that are made
//! for each *distinct* endpoint count (large ones by powers of two) or affinity
//! timeout in use.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

use super::spread::Spread;
use super::target::{Domain, Pool};
use super::{Family, source_ranges};

/// Every chain there can be. The first group hooks into the kernel, the second
/// is the fixed skeleton, and the last is made for distinct numbers of endpoints
/// and timeouts, and for session affinity and source ranges as such: once it is
/// needed, unless [`Chain::AHEAD`] has it.
///
/// The order is that of listings. A chain that others jump to for a draw comes
/// before them, because nft treats the first rule that uses a map differently
/// (decision 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// Source ranges, before DNAT so that they see the load balancer address.
    FilterPreroutingPreDnat,
    /// The same for packets of this node's own processes.
    FilterOutputPreDnat,
    /// DNAT of packets that arrive.
    NatPrerouting,
    /// DNAT of packets of this node's own processes.
    NatOutput,
    /// Rejects or drops packets to this node for frontends without endpoints.
    FilterInput,
    /// The same for forwarded packets, and undefined ports on cluster IPs.
    FilterForward,
    /// The same for packets of this node's own processes.
    FilterOutput,
    /// Masquerade.
    NatPostrouting,

    /// `loadBalancerSourceRanges`.
    FirewallCheck,
    /// Finds the frontend, or the NodePort, of a packet.
    Frontends(Domain),
    /// Decides, for a frontend with `externalTrafficPolicy: Local`, between the
    /// cluster-wide and the local endpoints.
    LocalPolicy(Domain),
    /// Decides which translated connections are masqueraded.
    Masquerading,
    /// Frontends without a usable endpoint.
    EndpointsCheck(Domain),
    /// Undefined ports on cluster IPs, unallocated cluster IPs.
    ClusterIpsCheck,
    /// Holds the `reject`: the kernel does not take it as a map's verdict.
    Reject,

    /// One draw from the slots of a frontend, not all of which hold an
    /// endpoint (`draw-127`): comes back if it hit none. [`Chain::Balance`]
    /// jumps here, several times.
    Draw {
        /// Frontends by address, or NodePorts.
        domain: Domain,
        /// The endpoint list.
        pool: Pool,
        /// The number of slots; that of a [`Spread::AtMost`].
        slots: u32,
    },
    /// Spreads connections over endpoints.
    Balance {
        /// Frontends by address, or NodePorts.
        domain: Domain,
        /// The endpoint list.
        pool: Pool,
        /// With session affinity (`sticky-3`, `sticky-max-127`) or without
        /// (`lb-3`, `lb-max-127`).
        sticky: bool,
        /// Over how many slots.
        spread: Spread,
    },
    /// Looks for a client's prefix of one length among the source ranges.
    SourceRangesOfLength {
        /// The length in bits.
        length: u8,
    },
    /// The start of that search.
    SourceRanges(Family),
    /// Learns session affinity right behind DNAT, for packets that arrive.
    LearnPrerouting,
    /// Learns session affinity right behind DNAT, for this node's processes.
    LearnOutput,
    /// Remembers a client's endpoint for this many seconds.
    LearnFor {
        /// The timeout of `sessionAffinityConfig.clientIP`.
        seconds: u32,
    },
}

/// A netfilter hook of the `ip` and `ip6` families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Every packet that arrives, before routing.
    Prerouting,
    /// Packets for this node.
    Input,
    /// Packets that pass through.
    Forward,
    /// Packets of this node's processes.
    Output,
    /// Every packet that leaves, after routing.
    Postrouting,
}

impl Hook {
    /// `enum nf_inet_hooks` of the kernel (`include/uapi/linux/netfilter.h`).
    pub fn number(self) -> u32 {
        self as u32
    }

    /// From the number; `None` if no hook of IP has it.
    pub fn from_number(number: u32) -> Option<Self> {
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            .into_iter()
            .find(|hook| hook.number() == number)
    }

    /// nft's word for the hook.
    pub fn keyword(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// The hook of a base chain. The priorities are kube-proxy's, and a contract
/// with CNIs and firewalls (kube-proxy's `pkg/proxy/nftables/README.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// `true` for a chain of type `nat`, `false` for type `filter`.
    pub nat: bool,
    /// The hook.
    pub hook: Hook,
    /// The priority: lower runs earlier.
    pub priority: i32,
}

/// nft's `dstnat` priority.
const DSTNAT: i32 = -100;
/// nft's `srcnat` priority.
const SRCNAT: i32 = 100;

impl Chain {
    /// The chains that always exist, in the order in which they are listed.
    pub const FIXED: [Chain; 16] = [
        Chain::NatPrerouting,
        Chain::NatOutput,
        Chain::FilterInput,
        Chain::FilterForward,
        Chain::FilterOutput,
        Chain::NatPostrouting,
        Chain::FirewallCheck,
        Chain::Frontends(Domain::Frontend),
        Chain::Frontends(Domain::NodePort),
        Chain::LocalPolicy(Domain::Frontend),
        Chain::LocalPolicy(Domain::NodePort),
        Chain::Masquerading,
        Chain::EndpointsCheck(Domain::Frontend),
        Chain::EndpointsCheck(Domain::NodePort),
        Chain::ClusterIpsCheck,
        Chain::Reject,
    ];

    /// The chains that are made together with a new table, though nothing leads to them yet: they spread connections to
    /// addresses over 1 to 1,023 endpoints.
    ///
    /// When such a chain is made, the kernel walks over all endpoints, so these are made while there are none (decision
    /// 90). They also use all that a chain for any Service uses, so a kernel that lacks a module is noticed at the start.
    /// In a table without them, as one of an earlier version, each is made once it is needed.
    pub const AHEAD: [Chain; 19] = [
        Chain::draw(7),
        Chain::draw(15),
        Chain::draw(31),
        Chain::draw(63),
        Chain::draw(127),
        Chain::draw(255),
        Chain::draw(511),
        Chain::draw(1023),
        Chain::balance(Spread::Exactly(1)),
        Chain::balance(Spread::Exactly(2)),
        Chain::balance(Spread::Exactly(3)),
        Chain::balance(Spread::AtMost(7)),
        Chain::balance(Spread::AtMost(15)),
        Chain::balance(Spread::AtMost(31)),
        Chain::balance(Spread::AtMost(63)),
        Chain::balance(Spread::AtMost(127)),
        Chain::balance(Spread::AtMost(255)),
        Chain::balance(Spread::AtMost(511)),
        Chain::balance(Spread::AtMost(1023)),
    ];

    const fn draw(slots: u32) -> Chain {
        Chain::Draw { domain: Domain::Frontend, pool: Pool::Main, slots }
    }

    const fn balance(spread: Spread) -> Chain {
        Chain::Balance { domain: Domain::Frontend, pool: Pool::Main, sticky: false, spread }
    }

    /// The chains that exist once a Service has session affinity: a cluster
    /// without pays nothing for it.
    pub const LEARNING: [Chain; 2] = [Chain::LearnPrerouting, Chain::LearnOutput];

    /// The chains that exist once a Service has source ranges, for the same
    /// reason.
    pub const FIREWALL: [Chain; 2] = [Chain::FilterPreroutingPreDnat, Chain::FilterOutputPreDnat];

    /// The hook of the chain; `None` for a chain that is only reached by jumps.
    pub fn base(self) -> Option<BaseChain> {
        let (nat, hook, priority) = match self {
            Chain::FilterPreroutingPreDnat => (false, Hook::Prerouting, DSTNAT - 10),
            Chain::FilterOutputPreDnat => (false, Hook::Output, DSTNAT - 10),
            Chain::NatPrerouting => (true, Hook::Prerouting, DSTNAT),
            Chain::NatOutput => (true, Hook::Output, DSTNAT),
            Chain::LearnPrerouting => (false, Hook::Prerouting, DSTNAT + 10),
            Chain::LearnOutput => (false, Hook::Output, DSTNAT + 10),
            Chain::FilterInput => (false, Hook::Input, 0),
            Chain::FilterForward => (false, Hook::Forward, 0),
            Chain::FilterOutput => (false, Hook::Output, 0),
            Chain::NatPostrouting => (true, Hook::Postrouting, SRCNAT),
            _ => return None,
        };
        Some(BaseChain { nat, hook, priority })
    }

    /// Returns the chains that must exist first and that are not all in
    /// [`Chain::FIXED`], in order: the targets of this chain's rules, and the
    /// chains that lead to it.
    pub fn needs(self) -> impl Iterator<Item = Chain> {
        let draw = match self {
            Chain::Balance { domain, pool, spread: Spread::AtMost(slots), .. } => {
                Some(Chain::Draw { domain, pool, slots })
            }
            _ => None,
        };
        let place = match self {
            Chain::Balance { domain, pool, sticky: true, spread } => {
                Some(Chain::Balance { domain, pool, sticky: false, spread })
            }
            _ => None,
        };
        let ranges = match self {
            Chain::SourceRanges(family) => source_ranges::later_chains(family),
            _ => Vec::new(),
        };
        let leading: &[Chain] = match self {
            Chain::LearnFor { .. } => &Chain::LEARNING,
            Chain::SourceRanges(_) => &Chain::FIREWALL,
            _ => &[],
        };
        draw.into_iter().chain(place).chain(leading.iter().copied()).chain(ranges)
    }

    /// Returns the chains that a table with these chains lacks: those that always
    /// exist, and those that the others [need](Self::needs). None if all are there.
    pub fn missing(chains: &BTreeSet<Chain>) -> BTreeSet<Chain> {
        let needed = chains.iter().flat_map(|chain| chain.needs());
        Chain::FIXED.into_iter().chain(needed).filter(|chain| !chains.contains(chain)).collect()
    }

    /// Reads a chain's name back. `None` for a name that is not ours.
    pub fn parse(name: &str) -> Option<Chain> {
        let searching = Family::ALL.map(Chain::SourceRanges);
        let named = Chain::FIXED.into_iter().chain(Chain::LEARNING).chain(Chain::FIREWALL).chain(searching);
        if let Some(fixed) = named.into_iter().find(|chain| chain.fixed_name() == Some(name)) {
            return Some(fixed);
        }
        let (stem, digits) = name.rsplit_once('-')?;
        let number: u32 = digits.parse().ok().filter(|n: &u32| *n > 0 && n.to_string() == digits)?;
        if stem == "learn" {
            return Some(Chain::LearnFor { seconds: number });
        }
        if stem == "source-ranges" {
            let length = u8::try_from(number).ok().filter(|length| *length <= 128)?;
            return Some(Chain::SourceRangesOfLength { length });
        }
        let (stem, domain) = match stem.strip_prefix("nodeport-") {
            Some(rest) => (rest, Domain::NodePort),
            None => (stem, Domain::Frontend),
        };
        let (stem, pool) = match stem.strip_prefix("short-circuit-") {
            Some(rest) => (rest, Pool::ShortCircuit),
            None => (stem, Pool::Main),
        };
        let (exactly, at_most) = (Spread::Exactly(number), Spread::AtMost(number));
        let balance = |sticky, spread| Chain::Balance { domain, pool, sticky, spread };
        let (chain, spread) = match stem {
            "draw" => (Chain::Draw { domain, pool, slots: number }, at_most),
            "lb" => (balance(false, exactly), exactly),
            "lb-max" => (balance(false, at_most), at_most),
            "sticky" => (balance(true, exactly), exactly),
            "sticky-max" => (balance(true, at_most), at_most),
            _ => return None,
        };
        // Every number is the largest of those that share its chain.
        (Spread::of(number) == spread).then_some(chain)
    }

    fn fixed_name(self) -> Option<&'static str> {
        Some(match self {
            Chain::FilterPreroutingPreDnat => "filter-prerouting-pre-dnat",
            Chain::FilterOutputPreDnat => "filter-output-pre-dnat",
            Chain::NatPrerouting => "nat-prerouting",
            Chain::NatOutput => "nat-output",
            Chain::LearnPrerouting => "learn-prerouting",
            Chain::LearnOutput => "learn-output",
            Chain::FilterInput => "filter-input",
            Chain::FilterForward => "filter-forward",
            Chain::FilterOutput => "filter-output",
            Chain::NatPostrouting => "nat-postrouting",
            Chain::FirewallCheck => "firewall-check",
            Chain::Frontends(Domain::Frontend) => "services",
            Chain::Frontends(Domain::NodePort) => "nodeports",
            Chain::LocalPolicy(Domain::Frontend) => "local-policy",
            Chain::LocalPolicy(Domain::NodePort) => "nodeport-local-policy",
            Chain::Masquerading => "masquerading",
            Chain::EndpointsCheck(Domain::Frontend) => "service-endpoints-check",
            Chain::EndpointsCheck(Domain::NodePort) => "nodeport-endpoints-check",
            Chain::ClusterIpsCheck => "cluster-ips-check",
            Chain::Reject => "reject-chain",
            Chain::SourceRanges(Family::Ipv4) => "source-ranges-ipv4",
            Chain::SourceRanges(Family::Ipv6) => "source-ranges-ipv6",
            Chain::SourceRangesOfLength { .. }
            | Chain::Draw { .. }
            | Chain::Balance { .. }
            | Chain::LearnFor { .. } => return None,
        })
    }
}

impl fmt::Display for Chain {
    /// The chain's name in the kernel.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = self.fixed_name() {
            return f.write_str(name);
        }
        match self {
            Chain::Draw { domain, pool, slots } => write!(f, "{}draw-{slots}", prefix(*domain, *pool)),
            Chain::Balance { domain, pool, sticky, spread } => {
                write!(f, "{}{}-{spread}", prefix(*domain, *pool), if *sticky { "sticky" } else { "lb" })
            }
            Chain::LearnFor { seconds } => write!(f, "learn-{seconds}"),
            Chain::SourceRangesOfLength { length } => write!(f, "source-ranges-{length}"),
            _ => Ok(()),
        }
    }
}

/// The prefix of the names of chains that read one kind of endpoint list.
fn prefix(domain: Domain, pool: Pool) -> &'static str {
    match (domain, pool) {
        (Domain::Frontend, Pool::Main) => "",
        (Domain::Frontend, Pool::ShortCircuit) => "short-circuit-",
        (Domain::NodePort, Pool::Main) => "nodeport-",
        (Domain::NodePort, Pool::ShortCircuit) => "nodeport-short-circuit-",
    }
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every kind of balancing chain, for several numbers of endpoints, with the chains that these need.
    fn balancing_chains() -> Vec<Chain> {
        let mut chains = Vec::new();
        for domain in [Domain::Frontend, Domain::NodePort] {
            for pool in [Pool::Main, Pool::ShortCircuit] {
                for sticky in [false, true] {
                    for endpoints in [1, 2, 3, 4, 7, 8, 17, 64, 127, 128, 10_000, 65_536] {
                        chains.push(Chain::Balance { domain, pool, sticky, spread: Spread::of(endpoints) });
                    }
                }
            }
        }
        let needed: Vec<Chain> = chains.iter().flat_map(|chain| chain.needs()).collect();
        chains.extend(needed);
        chains
    }

    #[test]
    fn every_name_reads_back_as_its_chain() {
        let mut chains = Chain::FIXED.to_vec();
        chains.extend(Chain::AHEAD);
        chains.extend(Chain::LEARNING);
        chains.extend(Chain::FIREWALL);
        chains.extend(balancing_chains());
        chains.push(Chain::LearnFor { seconds: 10800 });
        for family in Family::ALL {
            chains.extend(Chain::SourceRanges(family).needs());
            chains.push(Chain::SourceRanges(family));
        }
        for chain in chains {
            assert_eq!(Chain::parse(&chain.to_string()), Some(chain), "{chain}");
        }
    }

    #[test]
    fn foreign_names_are_not_ours() {
        for name in [
            "lb-0",
            "lb-01",
            "lb-",
            "lb-x",
            "lb-4",
            "lb-127",
            "lb-max-3",
            "lb-max-64",
            "lb-max-0",
            "lb-max",
            "sticky-4",
            "sticky-max-1",
            "sticky-max-300",
            "draw-3",
            "draw-64",
            "draw-max-127",
            "draw-0",
            "max-127",
            "learn-max-127",
            "source-ranges-0",
            "source-ranges-129",
            "source-ranges",
            "short-circuit-nodeport-lb-3",
            "input",
            "service-P4ZYZVCF",
            "",
        ] {
            assert_eq!(Chain::parse(name), None, "{name}");
        }
    }

    #[test]
    fn names_say_what_is_shared() {
        let (domain, pool) = (Domain::NodePort, Pool::ShortCircuit);
        let balance = |sticky| Chain::Balance { domain, pool, sticky, spread: Spread::of(100) };
        assert_eq!(balance(false).to_string(), "nodeport-short-circuit-lb-max-127");
        assert_eq!(balance(true).to_string(), "nodeport-short-circuit-sticky-max-127");
        assert!(balance(false).needs().eq([Chain::Draw { domain, pool, slots: 127 }]));
        assert!(balance(true).needs().eq([Chain::Draw { domain, pool, slots: 127 }, balance(false)]));
        assert!(Chain::LearnFor { seconds: 60 }.needs().eq(Chain::LEARNING));
        assert_eq!(balance(false), Chain::Balance { domain, pool, sticky: false, spread: Spread::of(127) });
    }

    #[test]
    fn what_a_chain_needs_is_listed_before_it() {
        let others = [Chain::LearnFor { seconds: 60 }].into_iter().chain(Family::ALL.map(Chain::SourceRanges));
        for chain in balancing_chains().into_iter().chain(others) {
            let needed: Vec<Chain> = chain.needs().collect();
            assert!(needed.iter().all(|needed| *needed < chain), "{chain}");
            // The chains that they need in turn come before them.
            for (position, one) in needed.iter().enumerate() {
                assert!(one.needs().all(|first| needed[..position].contains(&first)), "{chain}");
            }
        }
    }
}
