use std::collections::{BTreeMap, BTreeSet};

use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::super::{Outcome, json as fields};
use super::*;

/// Counts of observations.
#[derive(Default)]
struct Census(BTreeMap<&'static str, usize>);

impl Census {
    fn count(&mut self, what: &'static str, seen: bool) {
        *self.0.entry(what).or_default() += usize::from(seen);
    }
}

/// A generator that never meets a rule tests nothing about it.
#[test]
fn scenarios_meet_every_outcome() {
    let mut runner = TestRunner::deterministic();
    let mut census = Census::default();
    for _ in 0..200 {
        let scenario = scenario().new_tree(&mut runner).unwrap().current();
        let mut model = scenario.start();
        let mut before = model.outcomes(&scenario.probes);
        for change in &scenario.changes {
            model.change(change);
            let after = model.outcomes(&scenario.probes);
            census.count("change that shows", before != after);
            before = after;
        }
        for outcome in &before {
            census.count("drop", *outcome == Outcome::Drop);
            census.count("reject", *outcome == Outcome::Reject);
            census.count("pass", *outcome == Outcome::Pass);
            if let Outcome::Dnat { endpoints, masquerade, hairpin } = outcome {
                census.count("masquerade", *masquerade);
                census.count("no masquerade", !masquerade);
                census.count("hairpin", !hairpin.is_empty() && hairpin != endpoints);
                census.count("several endpoints", endpoints.len() > 3);
            }
        }
    }
    // With 200 scenarios the rarest is seen some fifty times.
    let rare: Vec<_> = census.0.iter().filter(|(_, count)| **count < 20).collect();
    assert!(rare.is_empty(), "hardly seen: {rare:?} of {:?}", census.0);
}

/// The state after each change, the first state included.
fn states(scenario: &Scenario) -> Vec<ReferenceModel> {
    let mut states = vec![scenario.start()];
    for change in &scenario.changes {
        let mut next = states[states.len() - 1].clone();
        next.change(change);
        states.push(next);
    }
    states
}

/// Every element of `items` once; the first repeated one otherwise.
fn unique<T: Ord + Clone>(items: &[T]) -> Result<(), T> {
    let mut seen = BTreeSet::new();
    items.iter().try_for_each(|item| if seen.insert(item) { Ok(()) } else { Err(item.clone()) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Conditions that the API server never allows.
    #[test]
    fn cluster_ips_and_node_ports_are_unique(scenario in scenario()) {
        for state in states(&scenario) {
            let mut cluster_ips = Vec::new();
            let mut node_ports = Vec::new();
            for service in state.objects_of_kind("Service") {
                let ips = fields::texts(service, "/spec/clusterIPs");
                cluster_ips.extend(ips.into_iter().filter(|ip| *ip != "None"));
                let mut ports = Vec::new();
                for port in fields::list(service, "/spec/ports") {
                    let protocol = fields::text(port, "/protocol").unwrap();
                    ports.push((protocol, fields::port(port, "/port").unwrap()));
                    node_ports.extend(fields::port(port, "/nodePort").map(|number| (protocol, number)));
                }
                prop_assert_eq!(unique(&ports), Ok(()));
            }
            prop_assert_eq!(unique(&cluster_ips), Ok(()));
            prop_assert_eq!(unique(&node_ports), Ok(()));
        }
    }

    #[test]
    fn objects_are_named_once_and_hold_the_own_node(scenario in scenario()) {
        let keys: Vec<_> = scenario.objects.iter().map(|object| ObjectKey::of(object).unwrap()).collect();
        prop_assert_eq!(unique(&keys), Ok(()));
        prop_assert!(keys.iter().any(|key| key.kind == "Node" && key.name == scenario.node.name));
        prop_assert_eq!(unique(&scenario.probes), Ok(()));
    }

    /// The printed text equals the generated objects.
    #[test]
    fn printed_scenarios_read_back(scenario in scenario()) {
        let printed: Value = serde_saphyr::from_str(&format!("{scenario:?}")).unwrap();
        prop_assert_eq!(&printed["objects"], &json!(scenario.objects));
        prop_assert_eq!(&printed["config"], &scenario.config);
        prop_assert_eq!(printed["changes"].as_array().unwrap().len(), scenario.changes.len());
    }

    /// The chosen probes are among all of them, and leave no target out.
    #[test]
    fn probes_reach_every_target(scenario in scenario()) {
        let all: BTreeSet<Packet> = scenario.every_probe().into_iter().collect();
        let targets = |probes: &BTreeSet<Packet>| -> BTreeSet<_> {
            probes.iter().map(|packet| (packet.to, packet.port, packet.protocol)).collect()
        };
        let some: BTreeSet<Packet> = scenario.probes.iter().cloned().collect();
        prop_assert!(some.is_subset(&all));
        prop_assert_eq!(targets(&some), targets(&all));
    }

    #[test]
    fn one_by_one_or_together_is_the_same(scenario in scenario()) {
        let model = scenario.start();
        let one_by_one: Vec<_> = scenario.probes.iter().take(50).map(|packet| model.outcome(packet)).collect();
        prop_assert_eq!(&model.outcomes(&scenario.probes)[..one_by_one.len()], &one_by_one[..]);
    }

    /// The model knows only the present, not the way that led to it.
    #[test]
    fn the_order_of_events_leaves_no_trace(scenario in scenario()) {
        let last = states(&scenario).pop().unwrap();
        let mut rebuilt = ReferenceModel::new(scenario.node.clone(), scenario.config.clone());
        let mut objects: Vec<Value> = last.objects().cloned().collect();
        objects.reverse();
        objects.into_iter().for_each(|object| rebuilt.apply(object));
        prop_assert_eq!(last.outcomes(&scenario.probes), rebuilt.outcomes(&scenario.probes));
    }

    #[test]
    fn without_services_every_packet_passes(scenario in scenario()) {
        let mut model = states(&scenario).pop().unwrap();
        let keys: Vec<_> = model.objects().filter_map(ObjectKey::of).collect();
        keys.iter().filter(|key| key.kind != "EndpointSlice").for_each(|key| model.delete(key));
        prop_assert!(model.outcomes(&scenario.probes).iter().all(|outcome| *outcome == Outcome::Pass));
    }

    /// No packet goes to an address that is in no slice, and a hairpin is the
    /// sender itself.
    #[test]
    fn packets_go_to_endpoints(scenario in scenario()) {
        let model = scenario.start();
        let addresses: BTreeSet<String> = model
            .objects_of_kind("EndpointSlice")
            .flat_map(|slice| fields::list(slice, "/endpoints"))
            .flat_map(|endpoint| fields::texts(endpoint, "/addresses"))
            .map(str::to_owned)
            .collect();
        for (packet, outcome) in scenario.probes.iter().zip(model.outcomes(&scenario.probes)) {
            if let Outcome::Dnat { endpoints, masquerade, hairpin } = outcome {
                prop_assert!(!endpoints.is_empty());
                prop_assert!(endpoints.iter().all(|e| addresses.contains(&e.ip().to_string())));
                prop_assert!(hairpin.is_subset(&endpoints));
                prop_assert!(hairpin.iter().all(|e| e.ip() == packet.from && !masquerade));
            }
        }
    }
}
