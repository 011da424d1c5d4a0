//! A first sync that begins while the lists arrive leaves what a full compile
//! leaves, and no rule leads into the tables before its last step.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use proptest::prelude::*;
use serde_json::json;
use support::FakeKernel;
use support::changes::{busy_service, busy_slice, cases, change, config, start, start_with};
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Change, PerFamily, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{PIECE, Planner, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::chains::Chain;

fn commit(kernel: &mut FakeKernel, transactions: impl IntoIterator<Item = Transaction>) -> usize {
    let mut sent = 0;
    for transaction in transactions {
        kernel.commit(&transaction);
        kernel.assert_consistent();
        sent += transaction.operations.len();
    }
    sent
}

/// Chains that packets enter.
fn entered(kernel: &FakeKernel) -> Vec<Chain> {
    let chains = kernel.0.values().flat_map(|table| &table.chains);
    chains.filter(|(chain, rules)| chain.base().is_some() && !rules.is_empty()).map(|(chain, _)| *chain).collect()
}

fn changed(store: &Store) -> Vec<ServiceName> {
    let mut changed: Vec<ServiceName> = store.dirty().cloned().collect();
    changed.sort_unstable();
    changed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(256)))]

    #[test]
    fn a_fill_leaves_what_a_full_compile_leaves(
        batches in proptest::collection::vec((proptest::collection::vec(change(), 1..4), any::<u8>()), 0..10),
        before_begin in 0..4_usize,
        piece in prop_oneof![Just(1), Just(PIECE)],
        operations in prop_oneof![Just(2), Just(usize::MAX)],
    ) {
        let (mut store, mut planner) = start();
        planner.limit_plans_to(piece);
        planner.limit_transactions_to(operations);
        let mut kernel = FakeKernel::default();
        let mut batches = batches.into_iter();
        for change in batches.by_ref().take(before_begin).flat_map(|(changes, _)| changes) {
            store.apply(change);
        }
        let first = planner.begin_fill(&mut store);
        commit(&mut kernel, first);
        for (changes, chosen) in batches {
            for change in changes {
                store.apply(change);
            }
            // Some are left for a later step, as if more of their slices were to come.
            let names = changed(&store).into_iter().enumerate();
            let names = names.filter(|(position, _)| chosen >> (position % 8) & 1 == 1).map(|(_, name)| name);
            let plan = planner.fill(&mut store, &names.collect::<Vec<_>>());
            commit(&mut kernel, plan);
            prop_assert_eq!(entered(&kernel), []);
        }
        while let Some(plan) = planner.update(&mut store) {
            commit(&mut kernel, plan.transactions);
            prop_assert_eq!(entered(&kernel), []);
        }
        let rules = planner.connect();
        commit(&mut kernel, rules);
        prop_assert!(!entered(&kernel).is_empty());
        prop_assert!(planner.connect().is_empty());

        assert_like_a_full_compile(&config(), &mut store, &mut kernel);
    }
}

/// The kernel holds what a full compile makes, and a restart adopts it.
fn assert_like_a_full_compile(config: &ProxyConfig, store: &mut Store, kernel: &mut FakeKernel) {
    let mut fresh = FakeKernel::default();
    let mut other = Planner::new(config.clone(), store.node());
    commit(&mut fresh, other.resync(store, PerFamily::default()));
    for family in Family::ALL {
        assert_eq!(kernel.normalised(family), fresh.normalised(family));
        for (chain, rules) in &fresh.0[family].chains {
            assert_eq!(kernel.0[family].chains.get(chain), Some(rules), "{chain}");
        }
    }
    let mut restarted = Planner::new(config.clone(), store.node());
    let found = kernel.state();
    assert_eq!(commit(kernel, restarted.resync(store, found)), 0);
}

/// The node may be known better at the end than at the beginning: what is its own, and the rules.
#[test]
fn a_node_that_changes_meanwhile_has_its_own_rules_in_the_end() {
    let config = ProxyConfig { detect_local: DetectLocal::NodeCidr, ..config() };
    let (mut store, mut planner) = start_with(config.clone());
    let apply = |store: &mut Store, value| store.apply(Change::Apply(serde_json::from_value(value).unwrap()));
    apply(&mut store, busy_service(true, true));
    apply(&mut store, busy_slice(1..6));
    let mut kernel = FakeKernel::default();
    commit(&mut kernel, planner.begin_fill(&mut store));
    let names = changed(&store);
    let filled = planner.fill(&mut store, &names);
    assert!(commit(&mut kernel, filled) > 5);
    let node = json!({"kind": "Node", "metadata": {"name": "kestrel"}, "spec": {"podCIDRs": ["10.244.7.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.12"}]}});
    apply(&mut store, node);
    store.set_interface_addresses(vec!["192.0.2.12".parse().unwrap()]);
    while let Some(plan) = planner.update(&mut store) {
        commit(&mut kernel, plan.transactions);
        assert_eq!(entered(&kernel), []);
    }
    commit(&mut kernel, planner.connect());
    assert_like_a_full_compile(&config, &mut store, &mut kernel);
}
