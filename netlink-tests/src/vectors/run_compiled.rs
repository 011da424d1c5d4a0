//! A vector against the compiled rule set, evaluated without a kernel. Steps
//! are planned incrementally, as the agent would.

use std::net::IpAddr;

use compiler::diff::{KernelState, Planner, Resync};
use compiler::evaluate::{self, Evaluator, Host};
use compiler::model::{Change, ProxyConfig, Store};

use super::run_model::{self, Mismatch};
use super::run_packets::ProxyError;
use super::schema::Vector;
use super::under_test;
use crate::model::{Outcome, Packet, Protocol};

/// A compiler that follows changes.
#[derive(Debug)]
pub struct Compiled {
    store: Store,
    planner: Planner,
    host: Host,
}

impl Compiled {
    /// Compiles the first state.
    pub fn start(config: ProxyConfig, interface_addresses: Vec<IpAddr>, changes: Vec<Change>) -> Self {
        let mut store = Store::new(config.node_name.clone());
        let host = Host { local_addresses: interface_addresses.clone() };
        store.set_interface_addresses(interface_addresses);
        for change in changes {
            store.apply(change);
        }
        let mut planner = Planner::new(config, store.node());
        let mut resync = Resync::begin(&mut planner, &store, [KernelState::default(), KernelState::default()]);
        while resync.next(&mut planner, &store).is_some() {}
        store.take_dirty();
        store.take_node_changed();
        Self { store, planner, host }
    }

    /// Follows changes incrementally.
    pub fn step(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.store.apply(change);
        }
        let names = self.store.take_dirty();
        if self.store.take_node_changed() {
            self.planner.plan_node(&self.store);
        } else {
            self.planner.plan(&self.store, names);
        }
    }

    /// What the compiled rules do with each packet, in the model's terms.
    pub fn outcomes(&self, packets: &[Packet]) -> Vec<Outcome> {
        let ruleset = self.planner.ruleset();
        let evaluator = Evaluator::new(&ruleset, self.host.clone());
        packets.iter().map(|packet| outcome(&evaluator.evaluate(&self.packet(packet)), packet)).collect()
    }

    fn packet(&self, packet: &Packet) -> evaluate::Packet {
        let arrives = !self.host.is_local(packet.from);
        evaluate::Packet {
            source: packet.from,
            destination: packet.to,
            protocol: match packet.protocol {
                Protocol::Tcp => compiler::model::Protocol::Tcp,
                Protocol::Udp => compiler::model::Protocol::Udp,
                Protocol::Sctp => compiler::model::Protocol::Sctp,
            },
            port: packet.port,
            input_interface: arrives.then(|| packet.iif.clone().unwrap_or_else(|| "eth0".to_owned())),
        }
    }
}

/// The evaluator's answer in the model's terms.
fn outcome(outcome: &evaluate::Outcome, packet: &Packet) -> Outcome {
    match &outcome.verdict {
        evaluate::Verdict::Dnat { endpoints } => {
            let address = |endpoint: &compiler::model::Endpoint| (endpoint.address, endpoint.port).into();
            let masqueraded = &outcome.masqueraded;
            let masquerade = masqueraded.len() == endpoints.len()
                && !endpoints.iter().all(|endpoint| endpoint.address == packet.from);
            Outcome::Dnat {
                endpoints: endpoints.iter().map(address).collect(),
                masquerade,
                hairpin: if masquerade { [].into() } else { masqueraded.iter().map(address).collect() },
            }
        }
        evaluate::Verdict::Drop => Outcome::Drop,
        evaluate::Verdict::Reject => Outcome::Reject,
        evaluate::Verdict::Pass => Outcome::Pass,
        // Nothing that a model can expect.
        evaluate::Verdict::Inconsistent { endpoints, .. } => Outcome::Dnat {
            endpoints: endpoints.iter().map(|endpoint| (endpoint.address, 0).into()).collect(),
            masquerade: false,
            hairpin: [].into(),
        },
    }
}

/// Runs every phase of a vector; none in the answer means that it passed.
///
/// # Errors
/// If our rooms refuse the vector's configuration or manifests.
pub fn run(vector: &Vector) -> Result<Vec<Mismatch>, ProxyError> {
    let config = under_test::proxy_config(&vector.config, &vector.node.name)?;
    let objects = under_test::changes(&[], &vector.objects)?;
    let mut compiled = Compiled::start(config, under_test::interface_addresses(vector), objects);
    let mut mismatches = Vec::new();
    for (phase, (step, probes)) in vector.phases().enumerate() {
        if let Some(step) = step {
            compiled.step(under_test::changes(&step.delete, &step.apply)?);
        }
        let packets: Vec<Packet> = probes.iter().map(run_model::packet).collect();
        let outcomes = compiled.outcomes(&packets);
        for (index, ((probe, packet), actual)) in probes.iter().zip(packets).zip(outcomes).enumerate() {
            let expected = run_model::outcome(&probe.expect);
            if !expected.same_on_the_wire(&actual) {
                mismatches.push(Mismatch { vector: vector.name.clone(), phase, index, packet, expected, actual });
            }
        }
    }
    Ok(mismatches)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

    use super::*;
    use crate::vectors::{repository_dir, schema};

    #[test]
    fn the_compiled_rules_pass_every_vector() {
        let vectors = schema::load_dir(&repository_dir()).unwrap();
        let mismatches: Vec<Mismatch> = vectors.iter().flat_map(|vector| run(vector).unwrap()).collect();
        let lines: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
        assert!(mismatches.is_empty(), "{}", lines.join("\n"));
    }
}
