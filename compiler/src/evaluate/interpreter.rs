//! Walks one packet through one base chain and all chains it leads to.

use std::collections::BTreeMap;

use super::index::Field;
use super::{Generations, Host, IndexedTable, Remembered, State, TraceStep};
use crate::model::{Endpoint, Protocol};
use crate::ruleset::Family;
use crate::ruleset::chains::{Chain, Hook};
use crate::ruleset::element::{Data, Element, Verdict};
use crate::ruleset::maps::Map;
use crate::ruleset::rule::{KeyPart, Op, Rule, Side, Statement};

/// The result of a chain for a packet that was not translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The end of the base chain: its policy is `accept`.
    Accepted,
    Masqueraded,
    Dropped,
    Rejected,
}

/// The effect of one base chain.
#[derive(Debug)]
pub(super) struct Walk {
    /// The possible new destinations, each with the number of look-ups after
    /// which a packet found it first.
    pub(super) endpoints: BTreeMap<Endpoint, usize>,
    /// The result without a translation; `None` if there always is one.
    pub(super) otherwise: Option<End>,
}

/// Whether the packet goes on behind a rule or a chain.
enum Flow {
    /// With the next rule.
    Next,
    /// With the rule behind the last `jump`.
    Return,
    /// This is final.
    Stop(Option<End>),
}

/// The kernel's limit (`NFT_JUMP_STACK_SIZE`); it refuses rule sets that go
/// deeper, loops included.
const MAX_DEPTH: usize = 16;

/// Walks through a base chain.
pub(super) fn walk<'e>(
    tables: Generations<'e, '_>,
    host: &'e Host,
    chain: Chain,
    state: &mut State,
    trace: &mut Trace<'e>,
) -> Walk {
    let rules = tables.at(state.look_ups);
    let mut walker = Walker { tables, rules, host, state, trace, endpoints: BTreeMap::new(), drawn: Vec::new() };
    let otherwise = match walker.chain(chain, 0) {
        Flow::Next | Flow::Return => Some(End::Accepted),
        Flow::Stop(end) => end,
    };
    Walk { endpoints: walker.endpoints, otherwise }
}

struct Walker<'w, 'e, 'a> {
    tables: Generations<'e, 'a>,
    /// The generation of the rules: the one in which the packet entered the base
    /// chain.
    rules: &'e IndexedTable<'a>,
    host: &'e Host,
    state: &'w mut State,
    trace: &'w mut Trace<'e>,
    endpoints: BTreeMap<Endpoint, usize>,
    /// The slots of each map that were followed already. Another draw from the
    /// same slots finds nothing new.
    drawn: Vec<Draw<'e>>,
}

/// A draw from the slots of a map.
struct Draw<'e> {
    key: &'e [KeyPart],
    map: Map,
    /// Whether it came after the commit.
    is_after_commit: bool,
    /// Whether a slot had no element.
    missed: bool,
}

impl<'e> Walker<'_, 'e, '_> {
    fn chain(&mut self, chain: Chain, depth: usize) -> Flow {
        let table: &'e _ = self.rules.table;
        let rules = table.chains.get(&chain).filter(|_| depth <= MAX_DEPTH);
        for rule in rules.into_iter().flatten() {
            match self.rule((chain, rule), depth) {
                Flow::Next => {}
                // Also how `goto` ends: the rest of this chain is skipped.
                Flow::Return => return Flow::Next,
                stop => return stop,
            }
        }
        Flow::Next
    }

    /// Runs the statements of a rule until a test fails or one decides.
    fn rule(&mut self, place: (Chain, &'e Rule), depth: usize) -> Flow {
        let mut found = None;
        for statement in &place.1.0 {
            let flow = match statement {
                Statement::Vmap(key, map) => match self.find(key, *map) {
                    Some(element) => {
                        self.trace.push(place, Some(element));
                        return self.verdict(&element.data, depth);
                    }
                    None => return Flow::Next,
                },
                Statement::Dnat(key, map) => return self.dnat(place, key, *map),
                Statement::Jump(chain) => {
                    self.trace.push(place, found);
                    return self.chain(*chain, depth + 1);
                }
                Statement::Goto(chain) => {
                    self.trace.push(place, found);
                    return self.goto(*chain, depth);
                }
                Statement::Return => Flow::Return,
                Statement::Accept => Flow::Stop(Some(End::Accepted)),
                Statement::Drop => Flow::Stop(Some(End::Dropped)),
                Statement::Reject => Flow::Stop(Some(End::Rejected)),
                Statement::Masquerade => Flow::Stop(Some(End::Masqueraded)),
                Statement::SetPriority(key, map) => match self.find(key, *map) {
                    Some(element @ Element { data: Data::List(number), .. }) => {
                        self.state.priority = number.priority();
                        found = Some(element);
                        self.trace.push(place, found);
                        continue;
                    }
                    _ => return Flow::Next,
                },
                Statement::ClearPriority => {
                    self.state.priority = 0;
                    continue;
                }
                Statement::LearnAffinity { seconds } => {
                    self.state.remembered = Remembered::of(self.state, *seconds);
                    self.trace.push(place, found);
                    continue;
                }
                test => match self.test(test, &mut found) {
                    true => continue,
                    false => return Flow::Next,
                },
            };
            self.trace.push(place, found);
            return flow;
        }
        Flow::Next
    }

    /// An element of a verdict map.
    fn verdict(&mut self, data: &Data, depth: usize) -> Flow {
        match data {
            Data::Verdict(Verdict::Goto(chain)) => self.goto(*chain, depth),
            Data::Verdict(Verdict::Drop) => Flow::Stop(Some(End::Dropped)),
            Data::Nothing | Data::Endpoint(_) | Data::List(_) => Flow::Next,
        }
    }

    /// Never returns to the chain that contains it.
    fn goto(&mut self, chain: Chain, depth: usize) -> Flow {
        match self.chain(chain, depth + 1) {
            Flow::Next | Flow::Return => Flow::Return,
            stop => stop,
        }
    }

    /// Follows every slot. A slot without an element ends the rule for the
    /// packets that draw it: they go on with the next.
    fn dnat(&mut self, place: (Chain, &'e Rule), key: &'e [KeyPart], map: Map) -> Flow {
        let Some(at) = self.look_up(key) else { return Flow::Next };
        let is_after_commit = at >= self.tables.commit;
        let is_known = |draw: &&Draw<'_>| (draw.key, draw.map, draw.is_after_commit) == (key, map, is_after_commit);
        let missed = match self.drawn.iter().find(is_known) {
            Some(known) => known.missed,
            None => {
                let missed = self.follow(place, (key, map), at);
                self.drawn.push(Draw { key, map, is_after_commit, missed });
                missed
            }
        };
        if missed { Flow::Next } else { Flow::Stop(None) }
    }

    /// Returns whether a slot has no element. All slots are alternatives for one
    /// look-up, that with the number `at`.
    fn follow(&mut self, place: (Chain, &'e Rule), (key, map): (&[KeyPart], Map), at: usize) -> bool {
        let slots = key.iter().find_map(|part| match part {
            KeyPart::Random(slots) => Some(*slots),
            _ => None,
        });
        let mut missed = false;
        for slot in 0..slots.unwrap_or(1) {
            match self.find_at(at, key, map, slot) {
                Some(element @ Element { data: Data::Endpoint(endpoint), .. }) => {
                    if self.endpoints.is_empty() {
                        self.trace.push(place, Some(element));
                    }
                    self.endpoints.entry(*endpoint).or_insert(at + 1);
                }
                _ => missed = true,
            }
        }
        missed
    }

    fn test(&mut self, statement: &Statement, found: &mut Option<&'e Element>) -> bool {
        let holds = |op: Op, is: bool| is == (op == Op::Is);
        match statement {
            // Only first packets are evaluated.
            Statement::CtStateNew(op) => holds(*op, true),
            Statement::CtStatusDnat => self.state.is_translated(),
            Statement::Protocol(protocol) => self.state.protocol == *protocol,
            Statement::Address(side, op, net) => holds(*op, net.contains(&self.address(*side))),
            Statement::Interface(way, op, name) => holds(*op, self.state.interface(*way) == name),
            Statement::InterfacePrefix(way, op, prefix) => holds(*op, self.state.interface(*way).starts_with(prefix)),
            Statement::NoInputInterface(op) => holds(*op, self.state.input_interface.is_empty()),
            Statement::FibLocal(side) => self.host.is_local(self.address(*side)),
            Statement::Lookup(key, op, map) => {
                // A key that can't be made (no TCP header) fails the rule, whatever the operator.
                let Some(at) = self.look_up(key) else { return false };
                let element = self.find_at(at, key, *map, 0);
                *found = element.or(*found);
                holds(*op, element.is_some())
            }
            _ => false,
        }
    }

    /// Makes a look-up, in a map whose key has no slot.
    fn find(&mut self, key: &[KeyPart], map: Map) -> Option<&'e Element> {
        let at = self.look_up(key)?;
        self.find_at(at, key, map, 0)
    }

    /// Counts a look-up with this key, and returns its number. `None` if the
    /// packet has no such key, so that the rule ends before it.
    fn look_up(&mut self, key: &[KeyPart]) -> Option<usize> {
        self.key(key, 0)?;
        self.state.look_ups += 1;
        Some(self.state.look_ups - 1)
    }

    /// The element that the look-up with the number `at` finds.
    fn find_at(&self, at: usize, key: &[KeyPart], map: Map, slot: u32) -> Option<&'e Element> {
        self.tables.at(at).index.find(map, self.key(key, slot)?)
    }

    /// The fields of a key, from the packet and its connection.
    fn key(&self, parts: &[KeyPart], slot: u32) -> Option<Vec<Field>> {
        let state = &*self.state;
        let field = |part: &KeyPart| {
            Some(match part {
                KeyPart::Address(side) => Field::Address(self.address(*side)),
                KeyPart::Protocol => Field::Protocol(state.protocol),
                KeyPart::Port => Field::Port(state.port),
                KeyPart::TcpPort if state.protocol == Protocol::Tcp => Field::Port(state.port),
                KeyPart::TcpPort => return None,
                KeyPart::SourceNetwork(length) => Field::Address(self.source_prefix(*length)?.network()),
                KeyPart::SourceBroadcast(length) => Field::Address(self.source_prefix(*length)?.broadcast()),
                KeyPart::OriginalDestination => Field::Address(state.original_destination),
                KeyPart::OriginalPort => Field::Port(state.original_port),
                KeyPart::Random(_) => Field::Slot(slot),
                KeyPart::Priority => Field::Priority(state.priority),
            })
        };
        parts.iter().map(field).collect()
    }

    /// `None` for a length that the family does not have.
    fn source_prefix(&self, length: u8) -> Option<ipnet::IpNet> {
        ipnet::IpNet::new(self.state.source, length).ok()
    }

    fn address(&self, side: Side) -> std::net::IpAddr {
        match side {
            Side::Source => self.state.source,
            Side::Destination => self.state.destination,
        }
    }
}

/// The rules that matched, each with the element it found, once. A chain may
/// repeat a rule to draw again; that is no new step.
#[derive(Debug)]
pub(super) struct Trace<'e> {
    /// Where the packet is.
    pub(super) hook: Hook,
    steps: Vec<(Hook, Chain, &'e Rule, Option<&'e Element>)>,
}

impl<'e> Trace<'e> {
    pub(super) fn new() -> Self {
        Self { hook: Hook::Prerouting, steps: Vec::new() }
    }

    fn push(&mut self, (chain, rule): (Chain, &'e Rule), element: Option<&'e Element>) {
        let same = |step: &(Hook, Chain, &Rule, Option<&Element>)| {
            (step.1, step.2) == (chain, rule) && step.3.map(std::ptr::from_ref) == element.map(std::ptr::from_ref)
        };
        if !self.steps.iter().any(same) {
            self.steps.push((self.hook, chain, rule, element));
        }
    }

    pub(super) fn steps(&self, family: Family) -> Vec<TraceStep> {
        let step = |(hook, chain, rule, element): &(Hook, Chain, &Rule, Option<&Element>)| {
            TraceStep::new(family, (*hook, *chain, rule), *element)
        };
        self.steps.iter().map(step).collect()
    }
}
