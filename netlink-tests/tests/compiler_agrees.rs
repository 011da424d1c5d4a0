//! The compiler against the reference model, in random clusters: its rules,
//! interpreted, have to give each packet the fate that the model gives it, in
//! every state of a scenario.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail by panic")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use compiler::diff::Planner;
use compiler::evaluate::{Evaluator, Host, Packet as RulePacket, Verdict};
use compiler::model::config::{DetectLocal, NodePortAddresses};
use compiler::model::objects::{Kind, ObjectRef};
use compiler::model::{Change, Endpoint, Protocol as RuleProtocol, ProxyConfig, Store};
use netlink_tests::model::generate::{ModelChange, Scenario, scenario};
use netlink_tests::model::{Node, ObjectKey, Outcome, Packet, Protocol, ReferenceModel, SharedFrontends};
use netlink_tests::vectors::{repository_dir, run_model, schema};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde_json::Value;

fn config(node: &Node, config: &Value) -> ProxyConfig {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let ranges: Vec<&str> = config["nodePortAddresses"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    ProxyConfig {
        node_name: node.name.clone(),
        masquerade_all: config.pointer("/nftables/masqueradeAll") == Some(&Value::Bool(true)),
        detect_local: match text("/detectLocalMode") {
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => DetectLocal::BridgeInterface(text("/detectLocal/bridgeInterface").into()),
            "InterfaceNamePrefix" => DetectLocal::InterfaceNamePrefix(text("/detectLocal/interfaceNamePrefix").into()),
            _ => DetectLocal::ClusterCidr(
                text("/clusterCIDR")
                    .split(',')
                    .filter(|cidr| !cidr.is_empty())
                    .map(|cidr| cidr.parse().unwrap())
                    .collect(),
            ),
        },
        node_port_addresses: match ranges.as_slice() {
            [] | ["primary"] => NodePortAddresses::Primary,
            ranges => NodePortAddresses::Ranges(ranges.iter().map(|range| range.parse().unwrap()).collect()),
        },
        bind_address: None,
    }
}

/// The compiler's side of a scenario.
struct Compiled {
    store: Store,
    planner: Planner,
    host: Host,
}

impl Compiled {
    fn new(node: &Node, fields: &Value) -> Self {
        let addresses: BTreeSet<IpAddr> = node.primary_ips.iter().chain(&node.local_addresses).copied().collect();
        let local_addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let mut store = Store::new(node.name.clone());
        let loopback: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        store.set_interface_addresses(local_addresses.iter().copied().chain(loopback).collect());
        let planner = Planner::new(config(node, fields), store.node());
        Self { store, planner, host: Host { local_addresses } }
    }

    fn apply(&mut self, manifest: &Value) {
        if let Ok(object) = serde_json::from_value(manifest.clone()) {
            self.store.apply(Change::Apply(object));
        }
    }

    fn delete(&mut self, key: &ObjectKey) {
        let kind = match key.kind.as_str() {
            "Service" => Kind::Service,
            "EndpointSlice" => Kind::EndpointSlice,
            "Node" => Kind::Node,
            "ServiceCIDR" => Kind::ServiceCidr,
            _ => return,
        };
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        self.store.apply(Change::Delete(ObjectRef { kind, namespace, name }));
    }

    fn change(&mut self, change: &ModelChange) {
        match change {
            ModelChange::Apply(manifest) => self.apply(manifest),
            ModelChange::Delete(key) => self.delete(key),
        }
    }

    fn settle(&mut self) {
        if self.store.take_node_changed() {
            self.planner.plan_node(&self.store);
        }
        let dirty = self.store.take_dirty();
        self.planner.plan(&self.store, dirty);
    }

    /// The model says who should see a rewritten source. A packet that arrives
    /// and is delivered on this node itself never passes postrouting, so there
    /// it keeps its source, in kube-proxy too.
    fn rewritten(&self, packet: &Packet, mut masqueraded: BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
        if !self.host.is_local(packet.from) {
            masqueraded.retain(|endpoint| !self.host.is_local(endpoint.ip()));
        }
        masqueraded
    }

    /// The first packet whose fate is not that of the model.
    fn disagreement(&self, model: &ReferenceModel, packets: &[Packet]) -> Option<String> {
        let ruleset = self.planner.ruleset();
        let evaluator = Evaluator::new(&ruleset, self.host.clone());
        packets.iter().zip(model.outcomes(packets)).find_map(|(packet, expected)| {
            let evaluated = evaluator.evaluate(&rule_packet(packet, &self.host));
            let same = match (&expected, &evaluated.verdict) {
                (Outcome::Dnat { endpoints, .. }, Verdict::Dnat { endpoints: actual }) => {
                    *endpoints == sockets(actual)
                        && self.rewritten(packet, expected.masqueraded()) == sockets(&evaluated.masqueraded)
                }
                (Outcome::Drop, Verdict::Drop)
                | (Outcome::Reject, Verdict::Reject)
                | (Outcome::Pass, Verdict::Pass) => true,
                _ => false,
            };
            (!same).then(|| format!("{packet}\n  model: {expected}\n  rules: {evaluated:#?}"))
        })
    }
}

fn sockets(endpoints: &BTreeSet<Endpoint>) -> BTreeSet<SocketAddr> {
    endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port)).collect()
}

fn rule_packet(packet: &Packet, host: &Host) -> RulePacket {
    RulePacket {
        source: packet.from,
        destination: packet.to,
        protocol: match packet.protocol {
            Protocol::Tcp => RuleProtocol::Tcp,
            Protocol::Udp => RuleProtocol::Udp,
            Protocol::Sctp => RuleProtocol::Sctp,
        },
        port: packet.port,
        input_interface: (!host.is_local(packet.from)).then(|| packet.iif.clone().unwrap_or_else(|| "eth0".into())),
    }
}

/// Compares the answers in every state of a scenario.
fn check(scenario: &Scenario) -> Result<(), TestCaseError> {
    let mut model = scenario.start();
    // The compiler gives a shared frontend to its oldest claimant, even if that
    // one has no endpoints and another has; kube-proxy would serve the other.
    model.set_shared_frontends(SharedFrontends::OneOwner);
    let mut compiled = Compiled::new(&scenario.node, &scenario.config);
    scenario.objects.iter().for_each(|manifest| compiled.apply(manifest));
    compiled.settle();
    let mut state = 0;
    loop {
        if let Some(difference) = compiled.disagreement(&model, &scenario.probes) {
            return Err(TestCaseError::fail(format!("after {state} changes: {difference}")));
        }
        let Some(change) = scenario.changes.get(state) else { return Ok(()) };
        model.change(change);
        compiled.change(change);
        compiled.settle();
        state += 1;
    }
}

/// As many as `PROPTEST_CASES` says, else enough for every run of the tests.
/// What failed once is kept beside this file and tried first.
fn cases() -> ProptestConfig {
    let default = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::default()
    };
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => default,
        None => ProptestConfig { cases: 64, ..default },
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn compiled_rules_do_what_the_model_does(scenario in scenario()) {
        check(&scenario)?;
    }
}

/// The conformance vectors as well, step by step.
#[test]
fn compiled_rules_pass_every_vector() {
    let mut failures = Vec::new();
    for vector in schema::load_dir(&repository_dir()).unwrap() {
        let mut model = run_model::start(&vector);
        let mut compiled = Compiled::new(&run_model::node(&vector.node), &Value::Object(vector.config.clone()));
        vector.objects.iter().for_each(|manifest| compiled.apply(manifest));
        for (phase, (step, probes)) in vector.phases().enumerate() {
            if let Some(step) = step {
                for object in &step.delete {
                    let (kind, namespace, name) = (object.kind.clone(), object.namespace.clone(), object.name.clone());
                    let key = ObjectKey { kind, namespace, name };
                    model.delete(&key);
                    compiled.delete(&key);
                }
                for manifest in &step.apply {
                    model.apply(manifest.clone());
                    compiled.apply(manifest);
                }
            }
            compiled.settle();
            let packets: Vec<Packet> = probes.iter().map(run_model::packet).collect();
            if let Some(difference) = compiled.disagreement(&model, &packets) {
                failures.push(format!("{}, phase {phase}: {difference}", vector.name));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
