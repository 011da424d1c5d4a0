//! The packets that are traced: a side table that marks them and nothing else.

use std::collections::BTreeSet;
use std::net::IpAddr;

use vmap_proxy_compiler::model::{Family, Protocol};
use vmap_proxy_compiler::ruleset::chains::Hook;
use vmap_proxy_wire::message::Request;
use vmap_proxy_wire::nf_tables::side_table::{SideRule, SideTable, SideVerdict};

/// Where packets begin: from elsewhere, and from this node.
const HOOKS: [Hook; 2] = [Hook::Prerouting, Hook::Output];

/// Before the chains of all other programs. Conntrack has not seen the packet here, so
/// that only TCP shows whether it begins a connection.
const FIRST: i32 = i32::MIN;

/// Behind conntrack, before the first of our chains.
const BEFORE_TRANSLATION: i32 = -150;

/// Behind our translation, and what learns from it.
const AFTER_TRANSLATION: i32 = -80;

/// The chain that marks.
pub(super) const MARK: &str = "mark";

/// Destinations of one trace, at most.
pub(super) const MOST: usize = 256;

/// One kind of packet to trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// To this destination, as the client chose it.
    Frontend(IpAddr, Protocol, u16),
    /// To this endpoint, translated or not; to any port of it without one.
    Endpoint(IpAddr, Option<u16>),
    /// From or to this address, as the client chose it.
    Address(IpAddr),
}

impl Wanted {
    fn address(self) -> IpAddr {
        match self {
            Self::Frontend(address, ..) | Self::Endpoint(address, _) | Self::Address(address) => address,
        }
    }

    /// The places at which packets are marked, each packet at one of them.
    fn places(self) -> &'static [Place] {
        match self {
            Self::Endpoint(..) => &[Place { priority: AFTER_TRANSLATION, begin: Begin::New }],
            Self::Frontend(_, Protocol::Tcp, _) => &[
                Place { priority: FIRST, begin: Begin::Syn },
                Place { priority: BEFORE_TRANSLATION, begin: Begin::NoSyn },
            ],
            Self::Frontend(..) => &[Place { priority: BEFORE_TRANSLATION, begin: Begin::New }],
            Self::Address(_) => &[
                Place { priority: FIRST, begin: Begin::Syn },
                Place { priority: BEFORE_TRANSLATION, begin: Begin::NoSyn },
                Place { priority: BEFORE_TRANSLATION, begin: Begin::NoTcp },
            ],
        }
    }
}

/// A place in the way of packets, and those that are marked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    priority: i32,
    begin: Begin,
}

/// How the first packet of a connection is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// TCP that asks for a connection, by its flags.
    Syn,
    /// Other packets of TCP that conntrack takes for a new connection, such as one that it has lost.
    NoSyn,
    /// Packets of other protocols that conntrack takes for a new connection.
    NoTcp,
    /// All that conntrack takes for a new connection.
    New,
}

impl Begin {
    fn add(self, rule: &mut SideRule<'_>) {
        match self {
            Self::Syn => return rule.begins_tcp(true),
            Self::NoSyn => rule.begins_tcp(false),
            Self::NoTcp => rule.other_protocol(Protocol::Tcp),
            Self::New => {}
        }
        // Packets of established connections meet no rule that decides, and those
        // of conntrack's own state alone count as new.
        rule.is_new();
    }
}

/// The requests for the tables of all families: packets of new connections that
/// are wanted, and come from `source` if there is one, are marked, at most so
/// many in a second for each family.
pub(super) fn requests(name: &str, wanted: &BTreeSet<Wanted>, source: Option<IpAddr>, per_second: u64) -> Vec<Request> {
    let mut requests = Vec::new();
    for family in Family::ALL {
        let of_family: Vec<Wanted> =
            wanted.iter().copied().filter(|wanted| Family::of(wanted.address()) == family).collect();
        if !of_family.is_empty() && source.is_none_or(|source| Family::of(source) == family) {
            let table = SideTable { name, family };
            of_table(&table, &of_family, source, per_second, &mut requests);
        }
    }
    requests
}

fn of_table(
    table: &SideTable<'_>,
    wanted: &[Wanted],
    source: Option<IpAddr>,
    per_second: u64,
    requests: &mut Vec<Request>,
) {
    requests.push(table.make());
    requests.push(table.chain(MARK, None));
    requests.push(table.rule(MARK, |_: &mut SideRule<'_>| {}, SideVerdict::Trace { per_second }));
    let places = || wanted.iter().flat_map(|wanted| wanted.places().iter().map(move |place| (*wanted, *place)));
    let priorities: BTreeSet<i32> = places().map(|(_, place)| place.priority).collect();
    for priority in priorities {
        for hook in HOOKS {
            let chain = format!("{}{priority}", hook.keyword());
            requests.push(table.chain(&chain, Some((hook, priority))));
            for (wanted, place) in places().filter(|(_, place)| place.priority == priority) {
                for matches in matches(wanted, source) {
                    let matches = |rule: &mut SideRule<'_>| {
                        matches(rule);
                        place.begin.add(rule);
                    };
                    requests.push(table.rule(&chain, matches, SideVerdict::Jump(MARK)));
                }
            }
        }
    }
}

/// The matches of one rule.
type Matches = Box<dyn FnOnce(&mut SideRule<'_>)>;

/// The matches of the rules for one kind of packet.
fn matches(wanted: Wanted, source: Option<IpAddr>) -> Vec<Matches> {
    let begin = move |rule: &mut SideRule<'_>| {
        if let Some(source) = source {
            rule.address(true, source);
        }
    };
    match wanted {
        Wanted::Frontend(address, protocol, port) => vec![Box::new(move |rule| {
            begin(rule);
            rule.address(false, address);
            rule.port(protocol, port);
        })],
        Wanted::Endpoint(address, None) => vec![Box::new(move |rule| {
            begin(rule);
            rule.address(false, address);
        })],
        Wanted::Endpoint(address, Some(port)) => Protocol::ALL
            .into_iter()
            .map(|protocol| -> Matches {
                Box::new(move |rule| {
                    begin(rule);
                    rule.address(false, address);
                    rule.port(protocol, port);
                })
            })
            .collect(),
        Wanted::Address(address) => [true, false]
            .into_iter()
            .map(|is_source| -> Matches {
                Box::new(move |rule| {
                    begin(rule);
                    rule.address(is_source, address);
                })
            })
            .collect(),
    }
}
