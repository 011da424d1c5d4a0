//! Netlink that fails at random, under the program that is shipped: in the end the kernel holds what it should, no Service
//! is blamed, and attempts become rarer and rarer while nothing works.
//!
//! The test command injects a few hundred faults. `FAULTS=10000 cargo test -p netlink-tests --test process faults::`
//! injects as many in each test; `FAULT_SEED=N` repeats a run that failed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::agent_process::{AgentProcess, on_manifests};
use vmap_proxy_testbed::calls::report_calls;
use vmap_proxy_testbed::faults::{FaultyNetlink, Kinds};
use vmap_proxy_testbed::holdings::{Holdings, await_used_holdings};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::random::Random;

use super::hostile::{expected, namespace, services};
use super::{HEALTH, PATIENCE, get_from};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// The number of faults in each test, unless `FAULTS` is another one.
const FAULTS: u32 = 120;

/// Services there may be.
const SERVICES: u32 = 120;

/// The number of states of the cluster that an agent lives to see.
const STATES: usize = 12;

/// Most faults that a state of the cluster meets, and the longest time that it lasts.
const FAULTS_OF_STATE: usize = 8;
const STATE: Duration = Duration::from_millis(300);

/// A failed sync is tried again after this time at most: a longer one makes the test longer, and no other faults.
const FLAGS: [&str; 2] = ["--iptables-sync-period=250ms", "--iptables-min-sync-period=10ms"];

/// Without comparisons in the background: whatever is wrong is noticed when it happens.
const NO_COMPARISONS: &str = "--nftables-compare-period=0";

/// A comparison in the background ends within a second.
const COMPARISONS: &str = "--nftables-compare-period=500ms";

fn wanted() -> u32 {
    std::env::var("FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(FAULTS)
}

/// What the kernel has with these objects, programmed from nothing.
fn wanted_holdings(objects: &[Value]) -> [Holdings; 2] {
    let mut wanted = expected(objects);
    wanted.iter_mut().for_each(Holdings::forget_unused_chains);
    wanted
}

/// A node whose agent has a netlink that fails.
struct Node {
    namespace: NetNs,
    manifests: ManifestDirectory,
    random: Random,
    flags: Vec<&'static str>,
}

impl Node {
    fn new(comparisons: &'static str, seed: u64) -> Self {
        let flags = FLAGS.into_iter().chain([comparisons]).collect();
        let random = Random::seeded_by("FAULT_SEED", seed);
        Self { namespace: namespace(), manifests: ManifestDirectory::new(), random, flags }
    }

    /// Some of the Services, some of them without endpoints.
    fn any_state(&mut self) -> Vec<Value> {
        let mut objects = services(SERVICES);
        let mut position = 0;
        objects.retain(|object| {
            position += 1;
            // The node and its ranges stay.
            position <= 2 || !self.random.one_in(if object["kind"] == "Service" { 4 } else { 8 })
        });
        objects
    }

    fn write(&mut self) -> Vec<Value> {
        let objects = self.any_state();
        self.manifests.write_objects("services.json", &objects);
        objects
    }

    /// An agent whose calls fail one time in so many, from its start on.
    fn agent(&mut self, kinds: Kinds, one_in: usize) -> (AgentProcess, FaultyNetlink) {
        let mut command = on_manifests(PROGRAM, &self.manifests, &self.flags);
        report_calls(&mut command);
        let agent = AgentProcess::spawn(&self.namespace, command);
        let seed = Random::new(self.random.number());
        let faults = FaultyNetlink::begin(agent.id(), kinds, seed).unwrap();
        faults.inject(one_in);
        (agent, faults)
    }

    /// States follow each other while calls fail, until there were as many faults as are wanted. Prints their number, and
    /// that of the differences that only a comparison in the background found.
    #[track_caller]
    fn run(&mut self, kinds: Kinds) {
        let (begun, mut sum) = (Instant::now(), Sum::default());
        while sum.injected < wanted() {
            self.one_agent(kinds, &mut sum);
        }
        let Sum { agents, gave_up, calls, injected, found_in_background, by_kind } = sum;
        eprintln!(
            "{injected} faults at {calls} calls of {agents} agents, of which {gave_up} gave up at their start; \
             {found_in_background} differences found in the background, nothing lost, in {:?}: {by_kind:#?}",
            begun.elapsed()
        );
        if kinds == Kinds::Honest {
            assert_eq!(found_in_background, 0);
        }
    }

    /// An agent starts and meets some states while calls fail; in the end the last one is there.
    #[track_caller]
    fn one_agent(&mut self, kinds: Kinds, sum: &mut Sum) {
        let mut objects = self.write();
        let one_in = self.random.pick(&[10, 30, 100, 300]);
        let (agent, faults) = self.agent(kinds, one_in);
        let most = self.some_faults();
        faults.await_more(most, STATE);
        faults.inject(0);
        // An agent that may not change the tables at its start gives up, and is started again.
        if agent.comes_to("programmed ") {
            for _ in 0..STATES {
                let one_in = self.random.pick(&[2, 3, 5, 10, 30, 100]);
                faults.inject(one_in);
                objects = self.write();
                let most = self.some_faults();
                faults.await_more(most, STATE);
            }
            faults.inject(0);
            let context = format!("after {} faults and {:?}", sum.injected + faults.injected(), faults.by_kind());
            await_used_holdings(&self.namespace, &wanted_holdings(&objects), &context);
            let blamed: Vec<String> = agent.log().into_iter().filter(|line| line.contains("quarantined")).collect();
            assert!(blamed.is_empty(), "{context}: {blamed:#?}");
        } else {
            let log = agent.log().join("\n");
            assert!(log.contains("Error") || log.contains("error"), "it ended without a reason: {log}");
            assert!(faults.injected() > 0, "it ended without a fault: {log}");
            sum.gave_up += 1;
        }
        sum.add(&agent, &faults);
        agent.kill();
        faults.end().unwrap();
    }

    fn some_faults(&mut self) -> u32 {
        1 + self.random.below(FAULTS_OF_STATE) as u32
    }
}

/// What happened to all agents together.
#[derive(Default)]
struct Sum {
    agents: u32,
    gave_up: u32,
    calls: u32,
    injected: u32,
    by_kind: BTreeMap<&'static str, u32>,
    found_in_background: usize,
}

impl Sum {
    fn add(&mut self, agent: &AgentProcess, faults: &FaultyNetlink) {
        self.agents += 1;
        self.calls += faults.calls();
        self.injected += faults.injected();
        for (kind, count) in faults.by_kind() {
            *self.by_kind.entry(kind).or_insert(0) += count;
        }
        self.found_in_background += agent.log().iter().filter(|line| line.contains("nobody reported a change")).count();
    }
}

/// Calls that fail, and requests and answers that are lost, refused, interrupted or repeated: noticed when they happen.
#[test]
fn calls_that_fail_lose_nothing() {
    Node::new(NO_COMPARISONS, 1).run(Kinds::Honest);
}

/// The same and answers that are not what the kernel sent. Where one of these looks like a good one, only another reading
/// can tell.
#[test]
fn answers_that_are_cut_off_or_changed_lose_nothing() {
    Node::new(COMPARISONS, 2).run(Kinds::All);
}

/// A listing that lacks elements makes the agent add what is there already, with the value that is there or with another.
/// It reads again before it blames a Service for the refusal.
#[test]
fn elements_that_a_listing_lacked_are_no_services_fault() {
    let mut node = Node::new(NO_COMPARISONS, 4);
    let objects = services(3);
    node.manifests.write_objects("services.json", &objects);
    let (mut agent, faults) = node.agent(Kinds::Honest, 0);
    agent.wait_for(&[" programmed "]);
    let another_value = "delete element ip vmap-proxy endpoints { 10.96.0.1 . tcp . 80 . 0 }; \
                         add element ip vmap-proxy endpoints { 10.96.0.1 . tcp . 80 . 0 : 192.0.2.1 . 1 }";
    for (map, change, line) in [
        ("services", "add counter ip vmap-proxy seen", "not ours in table ip vmap-proxy"),
        ("endpoints", another_value, "repaired in"),
    ] {
        let before = faults.injected();
        faults.hide_elements(map);
        load_nft(&node.namespace, change).unwrap();
        agent.wait_for(&[line]);
        assert_eq!(faults.injected(), before + 1, "no listing lacked the elements of {map}");
        await_used_holdings(&node.namespace, &wanted_holdings(&objects), &map);
    }
    let blamed: Vec<String> = agent.log().into_iter().filter(|line| line.contains("quarantined")).collect();
    assert!(blamed.is_empty(), "{blamed:#?}");
    agent.kill();
    faults.end().unwrap();
}

/// When every call fails, the agent tries again after growing pauses, reports it once, and calls itself unwell; when calls
/// work again, everything is right within the longest pause.
#[test]
fn when_nothing_works_attempts_become_rare() {
    let mut node = Node::new(NO_COMPARISONS, 3);
    node.flags = vec!["--iptables-sync-period=2s", "--metrics-bind-address=0.0.0.0:10249", NO_COMPARISONS];
    node.write();
    let (agent, faults) = node.agent(Kinds::Honest, 0);
    agent.wait_until_ready();
    let before = (faults.calls(), agent.log().len());
    faults.inject(1);
    let objects = node.write();
    let begun = Instant::now();
    agent.wait_for_line("sync failed");
    std::thread::sleep(Duration::from_secs(6).saturating_sub(begun.elapsed()));
    let (calls, lines) = (faults.calls() - before.0, agent.log().len() - before.1);
    // 50 ms, doubled up to 2 s: 8 attempts in 6 s, each of which ends at its first call, and the drains before it.
    assert!(calls < 150, "{calls} calls in 6 s");
    assert!(lines < 10, "{lines} lines: {:#?}", agent.log());
    let reply = get_from(&node.namespace, ([127, 0, 0, 1], HEALTH).into(), "/healthz").unwrap();
    assert!(reply.contains("the last sync failed"), "{reply}");
    faults.inject(0);
    let took = await_used_holdings(&node.namespace, &wanted_holdings(&objects), &"calls work again");
    assert!(took < PATIENCE, "{took:?}");
    eprintln!("{calls} calls and {lines} lines in 6 s; right again after {took:?}");
    agent.stop();
}
