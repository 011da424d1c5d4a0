//! A packet that opens a connection, followed through kube-proxy's rules.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::{Action, Condition, KubeProxyChains, Match, Rule, RuleChain};
use crate::migration::{Outcome, Packet};

/// Chains that lead to each other, at most: kube-proxy needs five.
const DEEPEST: usize = 16;

/// A packet on its way, with the chance of it.
#[derive(Debug, Clone, Copy)]
struct State {
    chance: f64,
    mark: u32,
    destination: SocketAddr,
}

/// How a way ends.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    /// This table has nothing more to do.
    Accepted,
    Translated,
    Masqueraded,
    Dropped,
    Rejected,
}

/// The ways through some chains.
#[derive(Default)]
struct Ways {
    ended: Vec<(State, End)>,
    unknown: Option<String>,
}

impl KubeProxyChains {
    /// Follows a packet.
    pub fn outcome(&self, packet: &Packet) -> Outcome {
        let mut outcome = Outcome::default();
        let start = State { chance: 1.0, mark: 0, destination: packet.destination };
        let hook = if packet.is_own { "OUTPUT" } else { "PREROUTING" };
        let (translated, unknown) = self.through(&self.nat, hook, packet, start);
        note(&mut outcome, unknown);
        for (state, end) in translated {
            self.behind(packet, state, end == End::Translated, &mut outcome);
        }
        outcome
    }

    /// The hooks behind the translation.
    fn behind(&self, packet: &Packet, state: State, is_translated: bool, outcome: &mut Outcome) {
        let stays = self.is_local(&state.destination);
        let hooks: &[&str] = match (packet.is_own, stays) {
            (true, true) => &["OUTPUT", "INPUT"],
            (true, false) => &["OUTPUT"],
            (false, true) => &["INPUT"],
            (false, false) => &["FORWARD"],
        };
        for hook in hooks {
            let (ways, unknown) = self.through(&self.filter, hook, packet, state);
            note(outcome, unknown);
            outcome.drops |= ways.iter().any(|(_, end)| *end == End::Dropped);
            outcome.rejects |= ways.iter().any(|(_, end)| *end == End::Rejected);
            if ways.iter().any(|(_, end)| matches!(end, End::Dropped | End::Rejected)) {
                return;
            }
        }
        if !is_translated {
            return;
        }
        let (ways, unknown) = self.through(&self.nat, "POSTROUTING", packet, state);
        note(outcome, unknown);
        let is_masqueraded = ways.iter().any(|(_, end)| *end == End::Masqueraded);
        outcome.endpoints.insert(state.destination, is_masqueraded);
        *outcome.chances.entry(state.destination).or_default() += state.chance;
    }

    fn is_local(&self, destination: &SocketAddr) -> bool {
        destination.ip().is_loopback() || self.local_addresses.contains(&destination.ip())
    }

    /// All ways through a built-in chain. Whoever comes out at its end is accepted.
    fn through(
        &self,
        chains: &HashMap<String, RuleChain>,
        hook: &str,
        packet: &Packet,
        state: State,
    ) -> (Vec<(State, End)>, Option<String>) {
        let mut ways = Ways::default();
        // A table that nobody has loaded.
        if !chains.contains_key(hook) {
            return (vec![(state, End::Accepted)], None);
        }
        let left = self.follow(chains, hook, packet, vec![state], 0, &mut ways);
        ways.ended.extend(left.into_iter().map(|state| (state, End::Accepted)));
        (ways.ended, ways.unknown)
    }

    /// Follows a chain. Returns what comes out at its end.
    fn follow(
        &self,
        chains: &HashMap<String, RuleChain>,
        name: &str,
        packet: &Packet,
        states: Vec<State>,
        depth: usize,
        ways: &mut Ways,
    ) -> Vec<State> {
        let Some(chain) = chains.get(name).filter(|_| depth <= DEEPEST) else {
            ways.unknown = Some(format!("chain {name}"));
            return states;
        };
        let Some(first) = states.first() else { return states };
        // Nothing within a chain changes the destination without ending the way.
        let rules = chain.rules_for(first.destination.ip(), first.destination.port());
        let (mut states, mut returned) = (states, Vec::new());
        for rule in rules {
            let mut next = Vec::new();
            for state in states {
                let (matching, rest) = self.split(name, rule, packet, state, ways);
                next.extend(rest);
                let Some(matching) = matching else { continue };
                match &rule.action {
                    Action::Jump(to) => next.extend(self.follow(chains, to, packet, vec![matching], depth + 1, ways)),
                    Action::Goto(to) => {
                        returned.extend(self.follow(chains, to, packet, vec![matching], depth + 1, ways));
                    }
                    Action::Return => returned.push(matching),
                    Action::Nothing => next.push(matching),
                    Action::Mark { value, mask } => {
                        next.push(State { mark: (matching.mark & !mask) ^ value, ..matching });
                    }
                    Action::Translate(to) => ways.ended.push((State { destination: *to, ..matching }, End::Translated)),
                    Action::Masquerade => ways.ended.push((matching, End::Masqueraded)),
                    Action::Accept => ways.ended.push((matching, End::Accepted)),
                    Action::Drop => ways.ended.push((matching, End::Dropped)),
                    Action::Reject => ways.ended.push((matching, End::Rejected)),
                    Action::Unknown(what) => {
                        ways.unknown = Some(format!("{what} in chain {name}"));
                        next.push(matching);
                    }
                }
            }
            states = next;
        }
        states.extend(returned);
        states
    }

    /// The part of a packet's chance for which a rule matches, and the rest.
    fn split(
        &self,
        chain: &str,
        rule: &Rule,
        packet: &Packet,
        state: State,
        ways: &mut Ways,
    ) -> (Option<State>, Option<State>) {
        let mut chance = 1.0;
        for Match { negated, condition } in &rule.matches {
            let holds = match condition {
                Condition::Random(probability) => {
                    chance *= if *negated { 1.0 - probability } else { *probability };
                    continue;
                }
                Condition::Unknown(what) => {
                    ways.unknown = Some(format!("{what} in chain {chain}"));
                    return (None, Some(state));
                }
                other => self.holds(other, packet, &state),
            };
            if holds == *negated {
                return (None, Some(state));
            }
        }
        let matching = State { chance: state.chance * chance, ..state };
        let rest = State { chance: state.chance * (1.0 - chance), ..state };
        (Some(matching), (chance < 1.0).then_some(rest))
    }

    fn holds(&self, condition: &Condition, packet: &Packet, state: &State) -> bool {
        match condition {
            Condition::Source(net) => net.contains(&packet.source),
            Condition::Destination(net) => net.contains(&state.destination.ip()),
            Condition::Protocol(protocol) => *protocol == Some(packet.protocol),
            Condition::DestinationPort(first, last) => (*first..=*last).contains(&state.destination.port()),
            Condition::Interface(name) => packet.interface.as_deref().is_some_and(|of| match name.strip_suffix('+') {
                Some(prefix) => of.starts_with(prefix),
                None => of == name,
            }),
            Condition::LocalSource => packet.is_own,
            Condition::LocalDestination => self.is_local(&state.destination),
            Condition::Mark { value, mask } => state.mark & mask == *value,
            Condition::New(is_new) => *is_new,
            Condition::Remembered => false,
            Condition::Neutral => true,
            // Dealt with before.
            Condition::Random(_) | Condition::Unknown(_) => false,
        }
    }
}

fn note(outcome: &mut Outcome, unknown: Option<String>) {
    if unknown.is_some() {
        outcome.unknown = unknown;
    }
}
