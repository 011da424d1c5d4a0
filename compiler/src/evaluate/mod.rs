//! Sends one packet through the rule set: shows the kernel's decision about the
//! first packet of a connection, and the reasons.
//!
//! The rules are interpreted, hook by hook and statement by statement, as
//! netfilter runs them (`net/netfilter/nf_tables_core.c`, `nf_nat_core.c`).
//! Nothing here knows what a Service is: a wrong rule gives a wrong answer.
//!
//! * A packet that arrives: prerouting, then input or forward by where its
//!   destination is *after* translation; forwarded packets pass postrouting,
//!   delivered ones don't.
//! * A packet of this node's own processes: output, postrouting, and if its
//!   destination is local, once more prerouting and input by way of `lo`. It is
//!   still new to the filter chains there, but nat chains run only once.
//! * `numgen` may yield any slot, so each is followed. A client that is
//!   remembered (an element of `affinity`) goes where it went before.
//!
//! Not modelled: other tables, the routing table beyond "is it local", and the
//! masqueraded source address of a packet that comes back by way of `lo` (it
//! keeps the old one; none of our rules there matches it).

mod index;
mod interpreter;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::model::{Endpoint, Protocol};
use crate::ruleset::Family;
use crate::ruleset::chains::{Chain, Hook};
use crate::ruleset::element::{Element, ListNumber};
use crate::ruleset::rule::{Rule, Way};
use crate::ruleset::table::{Ruleset, Table};
use index::Index;
use interpreter::{End, Trace};

/// The first packet of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Packet {
    /// The source address.
    pub source: IpAddr,
    /// The destination that the sender chose.
    pub destination: IpAddr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
    /// The interface on which it arrives; `None`: a process of this node
    /// sends it.
    pub input_interface: Option<String>,
}

/// The facts about this node that rules can match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// All addresses on its interfaces. 127.0.0.0/8 and ::1 are local without
    /// being listed.
    pub local_addresses: Vec<IpAddr>,
    /// The bridges that pass forwarded packets to the IP hooks
    /// (`net.bridge.bridge-nf-call-iptables`, and `-ip6tables`).
    pub bridges: Vec<Bridge>,
}

/// A bridge of this node, as [`Host::bridges`] has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The name of its interface.
    pub name: String,
    /// The networks behind its ports: those of pods.
    pub networks: Vec<IpNet>,
}

impl Host {
    /// Returns whether the kernel has a local route to the address (`fib … type local`).
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local_addresses.contains(&address)
    }

    /// The bridge that a packet to this address leaves by.
    fn bridge_to(&self, address: IpAddr) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.networks.iter().any(|network| network.contains(&address)))
    }
}

/// The fate of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one of these endpoints.
    Dnat {
        /// Every endpoint it may go to; never empty.
        endpoints: BTreeSet<Endpoint>,
    },
    /// Discarded without an answer.
    Drop,
    /// Answered with port unreachable.
    Reject,
    /// Goes where it was sent to.
    Pass,
    /// It depends on the slot that is drawn: an endpoint map with a hole, or
    /// endpoints that other rules stop. A healthy rule set never does this.
    Inconsistent {
        /// The possible destinations.
        endpoints: BTreeSet<Endpoint>,
        /// Whether it may be dropped.
        dropped: bool,
        /// Whether it may be rejected.
        rejected: bool,
        /// Whether it may go where it was sent to, untranslated.
        passed: bool,
    },
}

/// The answer to one packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The fate.
    pub verdict: Verdict,
    /// The endpoints that see an address of this node as the source.
    pub masqueraded: BTreeSet<Endpoint>,
    /// The remembered entry of the client; `None` without session affinity.
    pub remembered: Option<Remembered>,
    /// The rules that decided it, in the order in which the packet met them;
    /// those that several slots have in common are named once.
    pub trace: Vec<TraceStep>,
}

/// The key and the time under which a client's endpoint is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// The list that the endpoint was drawn from.
    pub list: ListNumber,
    /// For how many seconds since the last connection.
    pub seconds: u32,
}

impl Remembered {
    fn of(state: &State, seconds: u32) -> Option<Self> {
        Some(Self { list: ListNumber::from_priority(state.priority)?, seconds })
    }
}

/// A rule whose tests all held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceStep {
    /// The hook in which the packet met the rule first.
    #[serde(serialize_with = "hook_keyword")]
    pub hook: Hook,
    /// The chain of the rule.
    pub chain: Chain,
    /// The rule.
    #[serde(skip)]
    pub rule: Rule,
    /// The rule in nft syntax.
    pub rule_text: String,
    /// The element that its last lookup found, in nft syntax. Of a rule that
    /// draws a slot: one of them.
    pub element: Option<String>,
    /// The comment of that element, which names its owner.
    pub comment: Option<String>,
    /// The element itself.
    #[serde(skip)]
    pub found: Option<Element>,
}

fn hook_keyword<S: serde::Serializer>(hook: &Hook, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(hook.keyword())
}

/// A rule set, ready for many packets.
#[derive(Debug)]
pub struct Evaluator<'a> {
    tables: Vec<IndexedTable<'a>>,
    host: Host,
}

#[derive(Debug)]
struct IndexedTable<'a> {
    table: &'a Table,
    index: Index<'a>,
}

impl<'a> Evaluator<'a> {
    /// Indexes the elements of the rule set, for a node with these addresses.
    pub fn new(ruleset: &'a Ruleset, host: Host) -> Self {
        let tables = ruleset.tables.iter();
        let tables = tables.map(|table| IndexedTable { table, index: Index::new(&table.elements) }).collect();
        Self { tables, host }
    }

    /// Returns the kernel's decision for a packet. A packet with addresses of
    /// two families, or of a family without a table, passes.
    pub fn evaluate(&self, packet: &Packet) -> Outcome {
        match self.table_for(packet) {
            Some(table) => Journey::new(Generations::one(table), &self.host).run(packet),
            None => Outcome::untouched(),
        }
    }

    /// Returns the kernel's decision for a packet that is on its way while a
    /// transaction is committed: its first `look_ups` look-ups see the elements
    /// of this rule set, and the others see those of `after`. `None` if the
    /// packet is through before. The trace stays empty: the rules come from two
    /// tables.
    ///
    /// A set shows the newest elements at every look-up. The rules stay those
    /// that were in force when the packet entered the base chain
    /// (`nft_do_chain` reads the generation once, `nft_set_elem_active` each
    /// time).
    pub fn evaluate_across(&self, after: &Evaluator<'_>, look_ups: usize, packet: &Packet) -> Option<Outcome> {
        let (before, after) = (self.table_for(packet)?, after.table_for(packet)?);
        let mut journey = Journey::new(Generations { before, after, commit: look_ups }, &self.host);
        journey.enter_first(packet);
        journey.has_seen_commit.then(|| Outcome::of(journey.arrivals))
    }

    /// The table whose rules meet the packet.
    fn table_for(&self, packet: &Packet) -> Option<&IndexedTable<'a>> {
        let family = Family::of(packet.destination);
        let is_of_family = Family::of(packet.source) == family;
        self.tables.iter().find(|indexed| is_of_family && indexed.table.family == family)
    }
}

/// A table before and after a commit, and the time of the commit.
#[derive(Debug, Clone, Copy)]
struct Generations<'e, 'a> {
    before: &'e IndexedTable<'a>,
    after: &'e IndexedTable<'a>,
    /// The number of look-ups that a packet makes before the commit.
    commit: usize,
}

impl<'e, 'a> Generations<'e, 'a> {
    /// A table without a commit.
    fn one(table: &'e IndexedTable<'a>) -> Self {
        Self { before: table, after: table, commit: usize::MAX }
    }

    /// The table as a packet sees it that has made this many look-ups.
    fn at(&self, look_ups: usize) -> &'e IndexedTable<'a> {
        if look_ups < self.commit { self.before } else { self.after }
    }
}

impl Outcome {
    fn untouched() -> Self {
        Self { verdict: Verdict::Pass, masqueraded: BTreeSet::new(), remembered: None, trace: Vec::new() }
    }

    /// The outcome of all ways of a packet, without a trace.
    fn of(arrivals: Vec<Arrival>) -> Self {
        let mut endpoints = BTreeSet::new();
        let mut masqueraded = BTreeSet::new();
        let mut remembered = None;
        let (mut dropped, mut rejected, mut passed) = (false, false, false);
        for arrival in arrivals {
            match arrival {
                Arrival::Dropped => dropped = true,
                Arrival::Rejected => rejected = true,
                Arrival::Delivered(State { endpoint: None, .. }) => passed = true,
                Arrival::Delivered(state) => {
                    endpoints.extend(state.endpoint);
                    masqueraded.extend(state.endpoint.filter(|_| state.masqueraded));
                    remembered = remembered.or(state.remembered);
                }
            }
        }
        let verdict = match (endpoints.is_empty(), dropped, rejected, passed) {
            (false, false, false, false) => Verdict::Dnat { endpoints },
            (true, true, false, false) => Verdict::Drop,
            (true, false, true, false) => Verdict::Reject,
            (true, false, false, true) => Verdict::Pass,
            _ => Verdict::Inconsistent { endpoints, dropped, rejected, passed },
        };
        Self { verdict, masqueraded, remembered, trace: Vec::new() }
    }
}

/// A packet on its way, together with its connection tracking entry.
#[derive(Debug, Clone)]
struct State {
    source: IpAddr,
    protocol: Protocol,
    /// The current value in the headers.
    destination: IpAddr,
    /// The current value in the headers.
    port: u16,
    original_destination: IpAddr,
    original_port: u16,
    /// The translated destination, even if it equals the original one.
    endpoint: Option<Endpoint>,
    /// Empty where the kernel has no input device.
    input_interface: String,
    /// Known from routing on, and of [`Host::bridges`] only; else empty.
    output_interface: String,
    locally_generated: bool,
    /// A nat chain has decided on the destination, or none did.
    destination_settled: bool,
    masqueraded: bool,
    /// `meta priority`; 0 when the packet enters its first hook.
    priority: u32,
    remembered: Option<Remembered>,
    /// The number of look-ups so far.
    look_ups: usize,
}

impl State {
    fn new(packet: &Packet) -> Self {
        Self {
            source: packet.source,
            protocol: packet.protocol,
            destination: packet.destination,
            port: packet.port,
            original_destination: packet.destination,
            original_port: packet.port,
            endpoint: None,
            input_interface: packet.input_interface.clone().unwrap_or_default(),
            output_interface: String::new(),
            locally_generated: packet.input_interface.is_none(),
            destination_settled: false,
            masqueraded: false,
            priority: 0,
            remembered: None,
            look_ups: 0,
        }
    }

    /// The kernel sets `IPS_DST_NAT` only where translation changed something
    /// (`nf_nat_setup_info`).
    fn is_translated(&self) -> bool {
        (self.destination, self.port) != (self.original_destination, self.original_port)
    }

    fn interface(&self, way: Way) -> &str {
        match way {
            Way::In => &self.input_interface,
            Way::Out => &self.output_interface,
        }
    }

    /// The packet behind the look-up, its last of `look_ups`, that found this endpoint.
    fn translated_to(&self, endpoint: Endpoint, look_ups: usize) -> Self {
        let (destination, port) = (endpoint.address, endpoint.port);
        Self { destination, port, endpoint: Some(endpoint), destination_settled: true, look_ups, ..self.clone() }
    }
}

/// The result of one path through the hooks.
#[derive(Debug)]
enum Arrival {
    Delivered(State),
    Dropped,
    Rejected,
}

/// All ways of one packet through the hooks of one table.
struct Journey<'e, 'a> {
    tables: Generations<'e, 'a>,
    host: &'e Host,
    trace: Trace<'e>,
    arrivals: Vec<Arrival>,
    /// A way ended later than the commit.
    has_seen_commit: bool,
}

impl<'e, 'a> Journey<'e, 'a> {
    fn new(tables: Generations<'e, 'a>, host: &'e Host) -> Self {
        Self { tables, host, trace: Trace::new(), arrivals: Vec::new(), has_seen_commit: false }
    }

    fn run(mut self, packet: &Packet) -> Outcome {
        self.enter_first(packet);
        let trace = self.trace.steps(self.tables.before.table.family);
        Outcome { trace, ..Outcome::of(self.arrivals) }
    }

    fn enter_first(&mut self, packet: &Packet) {
        let hook = if packet.input_interface.is_none() { Hook::Output } else { Hook::Prerouting };
        self.enter(hook, State::new(packet));
    }

    fn enter(&mut self, hook: Hook, state: State) {
        let on_hook = |chain: &Chain| chain.base().filter(|base| base.hook == hook).map(|base| (base.priority, *chain));
        let table = self.tables.at(state.look_ups).table;
        let mut chains: Vec<(i32, Chain)> = table.chains.keys().filter_map(on_hook).collect();
        chains.sort();
        let chains: Vec<Chain> = chains.into_iter().map(|(_, chain)| chain).collect();
        self.pass(hook, &chains, state);
    }

    /// Runs the chains of a hook. Where a translation has several possible
    /// results, each goes through the rest of the chains on its own.
    fn pass(&mut self, hook: Hook, chains: &[Chain], mut state: State) {
        let translates_destination = matches!(hook, Hook::Prerouting | Hook::Output);
        for (position, chain) in chains.iter().enumerate() {
            let is_nat = chain.base().is_some_and(|base| base.nat);
            if is_nat && translates_destination && state.destination_settled {
                continue;
            }
            self.trace.hook = hook;
            let walk = interpreter::walk(self.tables, self.host, *chain, &mut state, &mut self.trace);
            self.has_seen_commit |= state.look_ups > self.tables.commit;
            for (endpoint, look_ups) in walk.endpoints {
                self.pass(hook, &chains[position + 1..], state.translated_to(endpoint, look_ups));
            }
            match walk.otherwise {
                Some(End::Accepted) => {}
                Some(End::Masqueraded) => state.masqueraded = true,
                Some(End::Dropped) => return self.arrivals.push(Arrival::Dropped),
                Some(End::Rejected) => return self.arrivals.push(Arrival::Rejected),
                // Every possible result has gone its way.
                None => return,
            }
        }
        // A result without a decision of any nat chain is final, too.
        state.destination_settled |= translates_destination;
        self.go_on(hook, state);
    }

    /// Continues with the next hook after a hook let the packet through.
    fn go_on(&mut self, hook: Hook, mut state: State) {
        let local = self.host.is_local(state.destination);
        match hook {
            Hook::Prerouting if local => self.enter(Hook::Input, state),
            Hook::Prerouting => self.enter(Hook::Forward, state),
            Hook::Forward | Hook::Output => {
                let bridge = self.host.bridge_to(state.destination);
                state.output_interface = bridge.map(|bridge| bridge.name.clone()).unwrap_or_default();
                // From port to port: br_netfilter names the bridge in both
                // directions before, but only where to here (`br_nf_post_routing`).
                if bridge.is_some_and(|bridge| bridge.name == state.input_interface) {
                    state.input_interface.clear();
                }
                self.enter(Hook::Postrouting, state);
            }
            Hook::Postrouting if local && state.locally_generated => {
                state.input_interface = "lo".to_owned();
                self.enter(Hook::Prerouting, state);
            }
            Hook::Postrouting | Hook::Input => self.arrivals.push(Arrival::Delivered(state)),
        }
    }
}

impl TraceStep {
    fn new(family: Family, (hook, chain, rule): (Hook, Chain, &Rule), element: Option<&Element>) -> Self {
        Self {
            hook,
            chain,
            rule: rule.clone(),
            rule_text: crate::render::rule(family, rule),
            element: element.map(crate::render::element),
            comment: element.and_then(|element| element.comment.as_deref().map(str::to_owned)),
            found: element.cloned(),
        }
    }
}
