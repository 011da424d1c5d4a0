//! A vector against the reference model.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use crate::model::affinity::Memory;
use crate::model::{Node, ObjectKey, Outcome, Packet, Protocol, ReferenceModel};
use crate::schema::{Expect, ObjectRef, Probe, Step, TransportProtocol, Vector, VectorNode, Verdict};

/// A packet whose outcome is not the expected one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Name of the vector.
    pub vector: String,
    /// 0 is the start, 1 the first step.
    pub phase: usize,
    /// The packet's place in its phase, from 0.
    pub index: usize,
    /// The packet.
    pub packet: Packet,
    /// The expected fate.
    pub expected: Outcome,
    /// The actual fate.
    pub actual: Outcome,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vector, phase, index, packet, expected, actual } = self;
        write!(f, "{vector}, phase {phase}, packet {index}: {packet}\n  expected: {expected}\n  actual:   {actual}")
    }
}

/// Runs every phase of a vector; none in the answer means that it passed.
pub fn run(vector: &Vector) -> Vec<Mismatch> {
    run_with(vector, |model, packet| model.outcome(packet))
}

/// As [`run`], but with another judge of the packet: given the model at that
/// point, it says what happens. For implementations that are rebuilt from the
/// model's objects at every phase.
pub fn run_with(vector: &Vector, mut judge: impl FnMut(&ReferenceModel, &Packet) -> Outcome) -> Vec<Mismatch> {
    let mut mismatches = Vec::new();
    let mut model = start(vector);
    let mut memory = Memory::default();
    for (phase, (step, probes)) in vector.phases().enumerate() {
        if let Some(step) = step {
            self::step(&mut model, step);
            memory.forget(&model);
        }
        for (index, probe) in probes.iter().enumerate() {
            let packet = packet(probe);
            let expected = outcome(&probe.expect);
            let actual = judge(&model, &packet);
            let sticks = !probe.sticky || sticks(&model, &mut memory, &packet, &expected);
            if !expected.same_on_the_wire(&actual) || !sticks {
                let vector = vector.name.clone();
                mismatches.push(Mismatch { vector, phase, index, packet, expected, actual });
            }
        }
    }
    mismatches
}

/// Returns whether a client goes to an endpoint that is expected, wherever it
/// was in an earlier phase or at another address, and to the same one again.
fn sticks(model: &ReferenceModel, memory: &mut Memory, packet: &Packet, expected: &Outcome) -> bool {
    let Outcome::Dnat { endpoints: expected, .. } = expected else { return true };
    let mut may_reach = || memory.connect(model, packet, Duration::ZERO, |all| any(packet.from, all));
    let (Some(first), Some(second)) = (may_reach(), may_reach()) else { return false };
    !first.is_empty() && first.is_subset(expected) && second.len() == 1 && first.is_superset(&second)
}

/// One of the endpoints that a client may go to, but not the same one for every
/// client.
pub fn any<T: Copy>(client: IpAddr, endpoints: &BTreeSet<T>) -> Option<T> {
    let number = match client {
        IpAddr::V4(address) => u32::from(address) as usize,
        IpAddr::V6(address) => u128::from(address) as usize,
    };
    endpoints.iter().copied().nth(number % endpoints.len().max(1))
}

/// The model with the objects that exist before the proxy starts.
pub fn start(vector: &Vector) -> ReferenceModel {
    let config = Value::Object(vector.config.clone());
    let mut model = ReferenceModel::new(node(&vector.node), config);
    vector.objects.iter().for_each(|manifest| model.apply(manifest.clone()));
    model
}

/// One change of the cluster.
pub fn step(model: &mut ReferenceModel, step: &Step) {
    step.delete.iter().for_each(|object| model.delete(&object_key(object)));
    step.apply.iter().for_each(|manifest| model.apply(manifest.clone()));
}

/// The node as the model wants it.
pub fn node(node: &VectorNode) -> Node {
    Node {
        name: node.name.clone(),
        zone: Some(node.zone.clone()).filter(|zone| !zone.is_empty()),
        primary_ips: node.primary_ips().collect(),
        local_addresses: node.addresses(),
        pod_cidrs: node.pod_cidrs.clone(),
    }
}

/// The packet of a probe.
pub fn packet(probe: &Probe) -> Packet {
    Packet {
        from: probe.from.ip,
        iif: probe.from.iif.clone(),
        to: probe.to.ip,
        port: probe.to.port,
        protocol: match probe.to.proto {
            TransportProtocol::Tcp => Protocol::Tcp,
            TransportProtocol::Udp => Protocol::Udp,
            TransportProtocol::Sctp => Protocol::Sctp,
        },
    }
}

/// The expectation as an outcome.
pub fn outcome(expect: &Expect) -> Outcome {
    match expect.verdict {
        Verdict::Dnat => Outcome::Dnat {
            endpoints: expect.endpoints.clone(),
            masquerade: expect.masquerade.unwrap_or(false),
            hairpin: expect.hairpin.clone(),
        },
        Verdict::Drop => Outcome::Drop,
        Verdict::Reject => Outcome::Reject,
        Verdict::Pass => Outcome::Pass,
    }
}

fn object_key(object: &ObjectRef) -> ObjectKey {
    ObjectKey { kind: object.kind.clone(), namespace: object.namespace.clone(), name: object.name.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{repository_dir, schema};

    fn report(mismatches: &[Mismatch]) -> String {
        let lines: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    fn unmasquerade_or_masquerade(outcome: Outcome) -> Outcome {
        let masquerade = outcome.masqueraded().is_empty();
        match outcome {
            Outcome::Dnat { endpoints, .. } => Outcome::Dnat { endpoints, masquerade, hairpin: [].into() },
            other => other,
        }
    }

    /// A comparison that accepts anything would pass every vector too.
    #[test]
    fn a_wrong_answer_is_noticed_in_every_vector() {
        for vector in schema::load_dir(&repository_dir()).unwrap() {
            let packets: usize = vector.phases().map(|(_, probes)| probes.len()).sum();
            let wrong = run_with(&vector, |model, packet| match model.outcome(packet) {
                right @ Outcome::Dnat { .. } => unmasquerade_or_masquerade(right),
                Outcome::Drop => Outcome::Reject,
                Outcome::Reject => Outcome::Pass,
                Outcome::Pass => Outcome::Drop,
            });
            assert_eq!(wrong.len(), packets, "{}: {}", vector.name, report(&wrong));
        }
    }
}
