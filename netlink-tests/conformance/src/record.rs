//! A generated scenario as a vector: to keep what a property test has found.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value};

use crate::model::generate::{ModelChange, Scenario};
use crate::model::{Node, Outcome, Packet, Protocol, ReferenceModel};
use crate::schema::{
    Expect, NodeIps, ObjectRef, Origin, OriginKind, Probe, Step, Target, TransportProtocol, Vector, VectorNode, Verdict,
};

/// The ranges of all pods in vectors and generated scenarios.
const ALL_PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/56"];

/// Writes a scenario down as the vector `name`: `packets` are sent in every
/// state, and what the model says is expected. Each change becomes a step.
pub fn record(name: &str, why: &str, scenario: &Scenario, packets: &[Packet]) -> Vector {
    let node = vector_node(&scenario.node);
    let mut model = scenario.start();
    let start = probes(&node, &model, packets);
    let mut steps = Vec::new();
    for change in &scenario.changes {
        model.change(change);
        let (delete, apply) = match change {
            ModelChange::Apply(manifest) => (vec![], vec![manifest.clone()]),
            ModelChange::Delete(key) => {
                let (kind, name) = (key.kind.clone(), key.name.clone());
                (vec![ObjectRef { kind, namespace: key.namespace.clone(), name }], vec![])
            }
        };
        steps.push(Step { delete, apply, packets: probes(&node, &model, packets) });
    }
    Vector {
        name: name.to_owned(),
        why: why.to_owned(),
        node,
        config: match &scenario.config {
            Value::Object(fields) => fields.clone(),
            _ => Map::new(),
        },
        objects: scenario.objects.clone(),
        packets: start,
        steps,
    }
}

fn vector_node(node: &Node) -> VectorNode {
    let primary = |wanted: fn(&IpAddr) -> bool| node.primary_ips.iter().copied().find(wanted);
    let mut ips = NodeIps { v4: None, v6: None };
    if let Some(IpAddr::V4(ip)) = primary(IpAddr::is_ipv4) {
        ips.v4 = Some(ip);
    }
    if let Some(IpAddr::V6(ip)) = primary(IpAddr::is_ipv6) {
        ips.v6 = Some(ip);
    }
    let is_extra = |ip: &&IpAddr| !node.primary_ips.contains(ip);
    VectorNode {
        name: node.name.clone(),
        zone: node.zone.clone().unwrap_or_default(),
        ips,
        extra_ips: node.local_addresses.iter().filter(is_extra).copied().collect(),
        pod_cidrs: node.pod_cidrs.clone(),
        bridge: None,
    }
}

fn probes(node: &VectorNode, model: &ReferenceModel, packets: &[Packet]) -> Vec<Probe> {
    let outcomes = model.outcomes(packets);
    packets.iter().zip(outcomes).map(|(packet, outcome)| probe(node, packet, outcome)).collect()
}

fn probe(node: &VectorNode, packet: &Packet, outcome: Outcome) -> Probe {
    let proto = match packet.protocol {
        Protocol::Tcp => TransportProtocol::Tcp,
        Protocol::Udp => TransportProtocol::Udp,
        Protocol::Sctp => TransportProtocol::Sctp,
    };
    Probe {
        from: Origin { kind: kind_of(node, packet.from), ip: packet.from, iif: packet.iif.clone() },
        to: Target { ip: packet.to, port: packet.port, proto },
        expect: expect(outcome),
        sticky: false,
        sticky_group: None,
    }
}

fn kind_of(node: &VectorNode, ip: IpAddr) -> OriginKind {
    let within = |range: &IpNet| range.contains(&ip);
    if node.has_address(ip) {
        OriginKind::Node
    } else if node.pod_cidrs.iter().any(within) {
        OriginKind::LocalPod
    } else if ALL_PODS.iter().filter_map(|text| text.parse().ok()).any(|range| within(&range)) {
        OriginKind::RemotePod
    } else {
        OriginKind::External
    }
}

fn expect(outcome: Outcome) -> Expect {
    let verdict = match &outcome {
        Outcome::Dnat { .. } => Verdict::Dnat,
        Outcome::Drop => Verdict::Drop,
        Outcome::Reject => Verdict::Reject,
        Outcome::Pass => Verdict::Pass,
    };
    match outcome {
        Outcome::Dnat { endpoints, masquerade, hairpin } => {
            Expect { verdict, endpoints, masquerade: Some(masquerade), hairpin }
        }
        Outcome::Drop | Outcome::Reject | Outcome::Pass => {
            Expect { verdict, endpoints: [].into(), masquerade: None, hairpin: [].into() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::model::generate::scenario;
    use crate::{run_model, schema};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// A recorded scenario can be written, read back, and passes.
        #[test]
        fn recorded_scenarios_are_vectors(scenario in scenario()) {
            let packets = &scenario.probes[..scenario.probes.len().min(20)];
            let vector = record("found", "a property test", &scenario, packets);
            let text = serde_saphyr::to_string(&vector).unwrap();
            let read = schema::parse(Path::new("found.yaml"), &text).unwrap();
            prop_assert_eq!(&read, &vector);
            prop_assert_eq!(run_model::run(&read), vec![]);
        }
    }
}
