//! Random clusters and changes: the compiled rules decide as the independent
//! reference model does, in every state on the way.
//!
//! `PROPTEST_CASES` sets the number of cases (256 by default; releases are
//! checked with 10,000).
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use vmap_proxy_compiler::evaluate::Host;
use vmap_proxy_compiler::model::{Change, Endpoint};
use vmap_proxy_conformance::model::affinity::Memory;
use vmap_proxy_conformance::model::generate::{ModelChange, Scenario, scenario};
use vmap_proxy_conformance::model::{ObjectKey, Packet, ReferenceModel};
use vmap_proxy_conformance::run_compiled::Compiled;
use vmap_proxy_conformance::run_model::any;
use vmap_proxy_conformance::schema::ObjectRef;
use vmap_proxy_conformance::under_test;

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
}

fn interface_addresses(scenario: &Scenario) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = scenario.node.local_addresses.iter().copied().collect();
    addresses.extend(&scenario.node.primary_ips);
    addresses.extend(["127.0.0.1", "::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn changes(change: &ModelChange) -> Vec<Change> {
    match change {
        ModelChange::Apply(manifest) => under_test::changes(&[], std::slice::from_ref(manifest)).unwrap(),
        ModelChange::Delete(ObjectKey { kind, namespace, name }) => {
            let (kind, namespace, name) = (kind.clone(), namespace.clone(), name.clone());
            under_test::changes(&[ObjectRef { kind, namespace, name }], &[]).unwrap()
        }
    }
}

fn start(scenario: &Scenario, objects: Vec<Change>) -> Compiled {
    let config = under_test::proxy_config(scenario.config.as_object().unwrap(), &scenario.node.name).unwrap();
    let host = Host { local_addresses: interface_addresses(scenario), ..Host::default() };
    Compiled::start(config, host, objects)
}

/// Compares every packet; names the first that differs.
fn compare(model: &ReferenceModel, compiled: &Compiled, packets: &[Packet], state: &str) -> Result<(), TestCaseError> {
    let expected = model.outcomes(packets);
    let actual = compiled.outcomes(packets.iter().zip(&expected));
    for ((packet, expected), actual) in packets.iter().zip(&expected).zip(&actual) {
        let same = expected.same_on_the_wire(actual);
        prop_assert!(same, "{state}: {packet}\n  the model:    {expected}\n  the compiler: {actual}");
    }
    Ok(())
}

/// Lets the clients of some packets connect twice, and compares where they may go: at first, given what each side
/// remembers of them, and behind that.
fn compare_memories(
    (model, memory): (&ReferenceModel, &mut Memory),
    compiled: &mut Compiled,
    packets: &[Packet],
    state: &str,
) -> Result<(), TestCaseError> {
    // More would take long.
    const CLIENTS: usize = 3;
    let mut asked = 0;
    for packet in packets {
        let mut may_reach = || memory.connect(model, packet, Duration::ZERO, |all| any(packet.from, all));
        let Some(first) = may_reach() else { continue };
        let expected = [Some(first), may_reach()];
        let of = |endpoint: Endpoint| SocketAddr::from((endpoint.address, endpoint.port));
        let actual = compiled.connect_twice(packet, |all| any(packet.from, all));
        let actual = actual.map(|endpoints| Some(endpoints.into_iter().map(of).collect()));
        prop_assert!(expected == actual, "{state}: {packet}\n  the model:    {expected:?}\n  the compiler: {actual:?}");
        asked += 1;
        if asked == CLIENTS {
            break;
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_compiled_rules_decide_as_the_model_does(scenario in scenario()) {
        let mut model = scenario.start();
        let objects = under_test::changes(&[], &scenario.objects).unwrap();
        let mut compiled = start(&scenario, objects);
        compare(&model, &compiled, &scenario.probes, "at the start")?;
        let mut memory = Memory::default();
        compare_memories((&model, &mut memory), &mut compiled, &scenario.probes, "at the start")?;
        for (number, change) in scenario.changes.iter().enumerate() {
            model.change(change);
            compiled.step(changes(change));
            let state = format!("after change {number}");
            compare(&model, &compiled, &scenario.probes, &state)?;
            memory.forget(&model);
            compare_memories((&model, &mut memory), &mut compiled, &scenario.probes, &state)?;
        }
        // Compiled at once, the end state is the same.
        let objects: Vec<_> = model.objects().cloned().collect();
        let full = start(&scenario, under_test::changes(&[], &objects).unwrap());
        compare(&model, &full, &scenario.probes, "the end state, compiled at once")?;
    }
}
