//! What a packet sees that is on its way while a transaction is committed: the
//! first of its look-ups see the elements before, and the others those after.
//! Wherever the commit falls, the packet meets a fate that it could have met
//! before all the changes or after them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use support::FakeKernel;
use support::changes::{busy_service, busy_slice, cases, change, config, start, start_with};
use vmap_proxy_compiler::evaluate::{Evaluator, Host, Outcome, Packet, Verdict};
use vmap_proxy_compiler::model::config::{DetectLocal, NodePortAddresses};
use vmap_proxy_compiler::model::{Change, Endpoint, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{Action, Operation, Planner, Transaction};
use vmap_proxy_compiler::ruleset::element::Key;
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::table::Ruleset;
use vmap_proxy_compiler::ruleset::target::{FrontendKey, NodePortKey, Target};

const NODE: &str = "192.0.2.11";

fn host() -> Host {
    Host { local_addresses: vec![NODE.parse().unwrap()], ..Host::default() }
}

/// One possible end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Served { endpoint: Endpoint, masqueraded: bool },
    Dropped,
    Rejected,
    Untranslated,
}

fn fates(outcome: &Outcome) -> BTreeSet<Fate> {
    let (endpoints, others) = match &outcome.verdict {
        Verdict::Dnat { endpoints } => (endpoints.clone(), [false; 3]),
        Verdict::Drop => (BTreeSet::new(), [true, false, false]),
        Verdict::Reject => (BTreeSet::new(), [false, true, false]),
        Verdict::Pass => (BTreeSet::new(), [false, false, true]),
        Verdict::Inconsistent { endpoints, dropped, rejected, passed } => {
            (endpoints.clone(), [*dropped, *rejected, *passed])
        }
    };
    let served = endpoints
        .into_iter()
        .map(|endpoint| Fate::Served { endpoint, masqueraded: outcome.masqueraded.contains(&endpoint) });
    let others = others.into_iter().zip([Fate::Dropped, Fate::Rejected, Fate::Untranslated]);
    served.chain(others.filter(|(met, _)| *met).map(|(_, fate)| fate)).collect()
}

/// The fates that a packet may meet between two states, in which it meets `own`
/// and packets of all clients `others`.
fn allowed(packet: &Packet, mut own: BTreeSet<Fate>, others: &BTreeSet<Fate>) -> BTreeSet<Fate> {
    let is_served = !own.is_empty() && own.iter().all(|fate| matches!(fate, Fate::Served { .. }));
    let is_pod = packet.source.to_string().starts_with("10.244.");
    if own.iter().any(|fate| matches!(fate, Fate::Served { .. })) {
        // A frontend with a local policy has two lists, which may exchange an endpoint.
        for fate in others {
            let Fate::Served { endpoint, .. } = *fate else { continue };
            // A connection whose source is the node works from everywhere.
            own.insert(Fate::Served { endpoint, masqueraded: true });
            // One from a pod does without, but not from the endpoint itself.
            if is_pod && endpoint.address != packet.source {
                own.insert(Fate::Served { endpoint, masqueraded: false });
            }
        }
    }
    // A frontend that comes or goes may turn a client away meanwhile. One that stays may not.
    if !is_served {
        own.extend([Fate::Dropped, Fate::Rejected]);
    }
    own
}

/// The frontend that an operation is about, if it is about one.
fn target(operation: &Operation) -> Option<Target> {
    match &operation.action {
        Action::AddElement(element) | Action::DeleteElement(element) => match element.key {
            Key::Target(target) | Key::Slot(target, _) => Some(target),
            Key::SourceRange(frontend, _) => Some(Target::Frontend(frontend)),
            _ => None,
        },
        _ => None,
    }
}

/// The operations about one frontend, for a person.
fn about(transactions: &[Transaction], about: Target) -> String {
    let mut text = String::new();
    for (position, transaction) in transactions.iter().enumerate() {
        let is_about = |operation: &&Operation| target(operation) == Some(about);
        for operation in transaction.operations.iter().filter(is_about) {
            text += &format!("  {position}: {operation}\n");
        }
    }
    text
}

/// Packets to a frontend: from clients within its source ranges and outside of
/// them, from pods that may be its endpoints, and from the node.
fn packets(target: Target) -> Vec<Packet> {
    let (address, protocol, port) = match target {
        Target::Frontend(FrontendKey { address, protocol, port }) => (address, protocol, port),
        Target::NodePort(NodePortKey { protocol, port }) => (NODE.parse().unwrap(), protocol, port),
    };
    let packet = |(source, is_own): (&str, bool)| Packet {
        source: source.parse().unwrap(),
        destination: address,
        protocol,
        port,
        input_interface: (!is_own).then(|| "eth0".to_owned()),
    };
    let sources = ["198.51.100.7", "192.0.2.77", "203.0.113.200", "10.244.0.1", "10.244.0.4", "10.244.9.9"];
    sources.map(|source| (source, false)).into_iter().chain([(NODE, true)]).map(packet).collect()
}

/// Programs everything into an empty kernel.
fn program(store: &mut Store, planner: &mut Planner) -> FakeKernel {
    let mut kernel = FakeKernel::default();
    for transaction in planner.resync(store, kernel.state()) {
        kernel.commit(&transaction);
    }
    kernel
}

/// Programs what changed, with packets between all commits. Returns the number
/// of commits.
fn update(store: &mut Store, planner: &mut Planner, kernel: &mut FakeKernel) -> usize {
    let plans = std::iter::from_fn(|| planner.update(store));
    let transactions: Vec<Transaction> = plans.flat_map(|plan| plan.transactions).collect();
    assert_fates(&states(kernel, &transactions), &transactions);
    transactions.len()
}

/// The states of a kernel: before the first transaction, and after each.
fn states(kernel: &mut FakeKernel, transactions: &[Transaction]) -> Vec<Ruleset> {
    let mut states = vec![kernel.ruleset()];
    for transaction in transactions {
        kernel.commit(transaction);
        states.push(kernel.ruleset());
    }
    states
}

/// Sends packets to everything that the transactions change, through each of
/// the commits, at each of their look-ups.
fn assert_fates(states: &[Ruleset], transactions: &[Transaction]) {
    let [Some(first), Some(last)] = [states.first(), states.last()] else { return };
    let evaluators: Vec<Evaluator<'_>> = states.iter().map(|state| Evaluator::new(state, host())).collect();
    let open = [first, last].map(without_firewall);
    let [open_first, open_last] = &open;
    let ends = [first, last, open_first, open_last].map(|state| Evaluator::new(state, host()));
    let targets: BTreeSet<Target> =
        transactions.iter().flat_map(|transaction| &transaction.operations).filter_map(target).collect();
    for target in targets {
        // New source ranges come before old ones leave: meanwhile both let clients in.
        let is_guarded = [first, last].into_iter().all(|state| is_guarded(state, target));
        let ends = if is_guarded { &ends[..] } else { &ends[..2] };
        let met = |packet: &Packet| -> BTreeSet<Fate> {
            ends.iter().flat_map(|state| fates(&state.evaluate(packet))).collect()
        };
        let with_own = |packet: Packet| (packet.clone(), met(&packet));
        let packets: Vec<(Packet, BTreeSet<Fate>)> = packets(target).into_iter().map(with_own).collect();
        let all: BTreeSet<Fate> = packets.iter().flat_map(|(_, own)| own).copied().collect();
        for (packet, own) in packets {
            let allowed = allowed(&packet, own, &all);
            for (position, pair) in evaluators.windows(2).enumerate() {
                for look_ups in 0.. {
                    let Some(outcome) = pair[0].evaluate_across(&pair[1], look_ups, &packet) else { break };
                    let fates = fates(&outcome);
                    let wrong: Vec<&Fate> = fates.difference(&allowed).collect();
                    assert!(
                        wrong.is_empty(),
                        "{packet:?}, transaction {position} after {look_ups} look-ups: {wrong:?}, but allowed are \
                         {allowed:?}\noperations by transaction:\n{}",
                        about(transactions, target),
                    );
                }
            }
        }
    }
}

/// The same state, in which every client may use every frontend.
fn without_firewall(state: &Ruleset) -> Ruleset {
    let mut open = state.clone();
    open.tables.iter_mut().for_each(|table| table.elements.retain(|element| element.map != Map::FirewallIps));
    open
}

/// Whether source ranges decide who may use a frontend.
fn is_guarded(state: &Ruleset, target: Target) -> bool {
    let mut elements = state.tables.iter().flat_map(|table| &table.elements);
    elements.any(|element| (element.map, element.key) == (Map::FirewallIps, Key::Target(target)))
}

/// Every kind of rules.
fn configuration() -> impl Strategy<Value = ProxyConfig> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(masquerade_all, knows_pods, on_all_addresses)| {
        let usual = config();
        ProxyConfig {
            masquerade_all,
            detect_local: if knows_pods { usual.detect_local.clone() } else { DetectLocal::ClusterCidr(Vec::new()) },
            node_port_addresses: match on_all_addresses {
                true => NodePortAddresses::Ranges(vec!["0.0.0.0/0".parse().unwrap()]),
                false => usual.node_port_addresses.clone(),
            },
            ..usual
        }
    })
}

/// As many operations as a transaction may have, or so few that each phase is cut.
fn transaction_size() -> impl Strategy<Value = usize> {
    prop_oneof![Just(usize::MAX), Just(3)]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        // A case sends some ten thousand packets.
        cases: cases(16),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_packet_meets_an_old_or_a_new_fate_while_services_change(
        config in configuration(), operations in transaction_size(),
        batches in proptest::collection::vec(proptest::collection::vec(change(), 1..4), 1..12)
    ) {
        let (mut store, mut planner) = start_with(config);
        planner.limit_transactions_to(operations);
        let mut kernel = program(&mut store, &mut planner);
        for batch in batches {
            for change in batch {
                store.apply(change);
            }
            update(&mut store, &mut planner, &mut kernel);
        }
    }

    /// The agent was away for some changes.
    #[test]
    fn a_packet_meets_an_old_or_a_new_fate_after_a_restart(
        config in configuration(), operations in transaction_size(),
        before in proptest::collection::vec(change(), 4..16), meanwhile in proptest::collection::vec(change(), 1..8)
    ) {
        let (mut store, mut planner) = start_with(config.clone());
        for change in before {
            store.apply(change);
        }
        let mut kernel = program(&mut store, &mut planner);
        for change in meanwhile {
            store.apply(change);
        }
        let (_, mut restarted) = start_with(config);
        restarted.limit_transactions_to(operations);
        let transactions: Vec<Transaction> = restarted.resync(&mut store, kernel.state()).collect();
        assert_fates(&states(&mut kernel, &transactions), &transactions);
    }
}

/// Numbers of endpoints that share a chain leave slots with endpoints of other
/// nodes behind when a policy becomes `Local`. Who draws one has to be
/// masqueraded.
#[test]
fn a_policy_becomes_local_while_slots_of_other_nodes_are_left() {
    for sticky in [false, true] {
        let (mut store, mut planner) = start();
        for value in [busy_service(sticky, false), busy_slice(0..70)] {
            store.apply(Change::Apply(serde_json::from_value(value).unwrap()));
        }
        let mut kernel = program(&mut store, &mut planner);
        for etp_local in [true, false] {
            store.apply(Change::Apply(serde_json::from_value(busy_service(sticky, etp_local)).unwrap()));
            assert!(update(&mut store, &mut planner, &mut kernel) > 1);
        }
    }
}
