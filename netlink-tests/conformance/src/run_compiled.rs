//! A vector against the compiled rule set, evaluated without a kernel. Steps
//! are planned incrementally, as the agent would.

use std::collections::{BTreeMap, BTreeSet};

use vmap_proxy_compiler::evaluate::{self, Bridge, Evaluator, Host};
use vmap_proxy_compiler::explain::{Explanation, Known};
use vmap_proxy_compiler::model::{Change, Endpoint, PerFamily, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::table::Ruleset;

use crate::model::{Outcome, Packet, Protocol};
use crate::run_model::{self, Mismatch};
use crate::run_packets::ProxyError;
use crate::schema::Vector;
use crate::under_test;

/// A compiler that follows changes.
#[derive(Debug)]
pub struct Compiled {
    store: Store,
    planner: Planner,
    host: Host,
    /// The learned entries of clients, as packets would write them into
    /// `affinity`.
    learned: BTreeMap<Key, Data>,
}

impl Compiled {
    /// Compiles the first state.
    pub fn start(config: ProxyConfig, host: Host, changes: Vec<Change>) -> Self {
        let mut store = Store::new(config.node_name.clone());
        store.set_interface_addresses(host.local_addresses.clone());
        for change in changes {
            store.apply(change);
        }
        let mut planner = Planner::new(config, store.node());
        planner.resync(&mut store, PerFamily::default()).for_each(drop);
        Self { store, planner, host, learned: BTreeMap::new() }
    }

    /// Follows changes incrementally.
    pub fn step(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.store.apply(change);
        }
        while self.planner.update(&mut self.store).is_some() {}
        // As the agent does behind every plan.
        let planner = &self.planner;
        self.learned.retain(|key, endpoint| match (key, endpoint) {
            (Key::Affinity(client, number), Data::Endpoint(endpoint)) => {
                planner.list(Family::of(*client), *number).is_some_and(|list| list.contains(*endpoint))
            }
            _ => false,
        });
        self.planner.forgotten();
    }

    /// Opens one connection after another for a client that should stick to an
    /// endpoint. Returns where it may go at first, given what it learned, and
    /// where it may go behind that, when it has been at the one that `choose`
    /// picks.
    pub fn connect_twice(
        &mut self,
        packet: &Packet,
        choose: impl FnOnce(&BTreeSet<Endpoint>) -> Option<Endpoint>,
    ) -> [BTreeSet<Endpoint>; 2] {
        let mut ruleset = self.planner.ruleset();
        let (packet, client) = (self.packet(packet), packet.from);
        let mut ours = ruleset.tables.iter_mut().filter(|table| table.family == Family::of(client));
        if let Some(table) = ours.next() {
            let of_client = self.learned.iter().filter(|(key, _)| matches!(key, Key::Affinity(of, _) if *of == client));
            table.elements.extend(of_client.map(|(key, data)| learned(*key, *data)));
        }
        let may_reach = |ruleset: &Ruleset| {
            let outcome = Evaluator::new(ruleset, self.host.clone()).evaluate(&packet);
            let endpoints = match outcome.verdict {
                evaluate::Verdict::Dnat { endpoints } => endpoints,
                _ => BTreeSet::new(),
            };
            (endpoints, outcome.remembered)
        };
        let (first, remembered) = may_reach(&ruleset);
        let is_known = first.len() == 1;
        if let (Some(chosen), Some(remembered)) = (choose(&first), remembered) {
            let (key, data) = (Key::Affinity(client, remembered.list), Data::Endpoint(chosen));
            let table = ruleset.tables.iter_mut().find(|table| table.family == Family::of(client));
            if let Some(table) = table.filter(|_| !is_known) {
                table.elements.push(learned(key, data));
            }
            self.learned.insert(key, data);
        }
        let second = if is_known { first.clone() } else { may_reach(&ruleset).0 };
        [first, second]
    }

    /// Returns the fate of each packet under the compiled rules, in the model's
    /// terms. The expectation decides where the rules do not show the
    /// difference.
    pub fn outcomes<'a>(&self, packets: impl IntoIterator<Item = (&'a Packet, &'a Outcome)>) -> Vec<Outcome> {
        let ruleset = self.planner.ruleset();
        let evaluator = Evaluator::new(&ruleset, self.host.clone());
        let answer = |(packet, expected)| self.outcome(&evaluator.evaluate(&self.packet(packet)), packet, expected);
        packets.into_iter().map(answer).collect()
    }

    /// The evaluator's answer in the model's terms.
    fn outcome(&self, outcome: &evaluate::Outcome, packet: &Packet, expected: &Outcome) -> Outcome {
        let address = |endpoint: &Endpoint| (endpoint.address, endpoint.port).into();
        match &outcome.verdict {
            evaluate::Verdict::Dnat { endpoints } => {
                // Packets to the node itself never leave it, and only leaving
                // packets are masqueraded, so the difference is invisible
                // there.
                let leaves =
                    |endpoint: &&Endpoint| self.host.is_local(packet.from) || !self.host.is_local(endpoint.address);
                let leaving: Vec<&Endpoint> = endpoints.iter().filter(leaves).collect();
                let (masquerade, hairpin) = match expected {
                    Outcome::Dnat { masquerade, hairpin, .. } if leaving.is_empty() => (*masquerade, hairpin.clone()),
                    _ => {
                        let others = leaving.iter().any(|endpoint| endpoint.address != packet.from);
                        let masquerade =
                            others && leaving.iter().all(|endpoint| outcome.masqueraded.contains(*endpoint));
                        let itself = outcome.masqueraded.iter().map(address).collect();
                        (masquerade, if masquerade { [].into() } else { itself })
                    }
                };
                Outcome::Dnat { endpoints: endpoints.iter().map(address).collect(), masquerade, hairpin }
            }
            evaluate::Verdict::Drop => Outcome::Drop,
            evaluate::Verdict::Reject => Outcome::Reject,
            evaluate::Verdict::Pass => Outcome::Pass,
            // Nothing that a model can expect.
            evaluate::Verdict::Inconsistent { .. } => {
                Outcome::Dnat { endpoints: [].into(), masquerade: false, hairpin: [].into() }
            }
        }
    }

    /// Explains a packet.
    pub fn explain(&self, packet: &Packet) -> Explanation {
        let known = Known { store: &self.store, planner: &self.planner, host: &self.host };
        known.packet_of_any(&self.packet(packet))
    }

    fn packet(&self, packet: &Packet) -> evaluate::Packet {
        let arrives = !self.host.is_local(packet.from);
        evaluate::Packet {
            source: packet.from,
            destination: packet.to,
            protocol: match packet.protocol {
                Protocol::Tcp => vmap_proxy_compiler::model::Protocol::Tcp,
                Protocol::Udp => vmap_proxy_compiler::model::Protocol::Udp,
                Protocol::Sctp => vmap_proxy_compiler::model::Protocol::Sctp,
            },
            port: packet.port,
            input_interface: arrives.then(|| packet.iif.clone().unwrap_or_else(|| "eth0".to_owned())),
        }
    }
}

fn learned(key: Key, data: Data) -> Element {
    Element { map: Map::Affinity, key, data, comment: None }
}

/// Returns whether a client goes to an endpoint that is expected, whatever it
/// learned in an earlier phase or at another address, and to the same one
/// again.
fn sticks(compiled: &mut Compiled, packet: &Packet, expected: &Outcome) -> bool {
    let Outcome::Dnat { endpoints: expected, .. } = expected else { return true };
    let [first, second] = compiled.connect_twice(packet, |all| run_model::any(packet.from, all));
    let is_expected = |endpoint: &Endpoint| expected.contains(&(endpoint.address, endpoint.port).into());
    !first.is_empty() && first.iter().all(is_expected) && second.len() == 1 && first.is_superset(&second)
}

/// The vector's node, as the evaluator wants it.
pub(crate) fn host(vector: &Vector) -> Host {
    let networks = || vector.node.pod_cidrs.clone();
    let bridges = vector.node.bridge.iter().map(|name| Bridge { name: name.clone(), networks: networks() });
    Host { local_addresses: under_test::interface_addresses(vector), bridges: bridges.collect() }
}

/// Runs every phase of a vector; none in the answer means that it passed.
///
/// # Errors
/// If the agent refuses the vector's configuration or manifests.
pub fn run(vector: &Vector) -> Result<Vec<Mismatch>, ProxyError> {
    let config = under_test::proxy_config(&vector.config, &vector.node.name)?;
    let objects = under_test::changes(&[], &vector.objects)?;
    let mut compiled = Compiled::start(config, host(vector), objects);
    let mut mismatches = Vec::new();
    for (phase, (step, probes)) in vector.phases().enumerate() {
        if let Some(step) = step {
            compiled.step(under_test::changes(&step.delete, &step.apply)?);
        }
        let packets: Vec<Packet> = probes.iter().map(run_model::packet).collect();
        let expected: Vec<Outcome> = probes.iter().map(|probe| run_model::outcome(&probe.expect)).collect();
        let outcomes = compiled.outcomes(packets.iter().zip(&expected));
        let all = packets.into_iter().zip(expected).zip(outcomes).enumerate();
        for (index, ((packet, expected), actual)) in all {
            let sticks = !probes[index].sticky || sticks(&mut compiled, &packet, &expected);
            if !expected.same_on_the_wire(&actual) || !sticks {
                mismatches.push(Mismatch { vector: vector.name.clone(), phase, index, packet, expected, actual });
            }
        }
    }
    Ok(mismatches)
}
