//! The agent is killed at each of its calls to the kernel: the next one ends in the same state, and no connection to a
//! frontend that has endpoints before and after fails meanwhile.
//!
//! The test command kills at a part of the points, spread evenly. `CRASH_POINTS=0 cargo test -p netlink-tests --test
//! traffic crash::` kills at every one, and prints how many there are.

use std::process::Command;

use serde_json::Value;
use vmap_proxy_compiler::ruleset::LAYOUT;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::agent_process::{AgentProcess, on_manifests};
use vmap_proxy_testbed::calls::report_calls;
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, NODE, POD, REMOTE, at, node_object, proxy_config};
use vmap_proxy_testbed::continuous::{Way, none_fails_while};
use vmap_proxy_testbed::crash::CallWatch;
use vmap_proxy_testbed::holdings::Holdings;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{service, service_cidr};
use vmap_proxy_testbed::other_layout::{install, listing};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::shop::{VIP, slices, web};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// The number of points at which a scenario kills, unless `CRASH_POINTS` is another one; 0 for all.
const POINTS: u32 = 6;

/// Two states of the cluster that differ in everything but Service `shop/web`, which loses and gains endpoints and keeps
/// one in each family.
fn states() -> [Vec<Value>; 2] {
    let common = |more: [&'static str; 2]| {
        let mut objects = vec![node_object(), web().build()];
        objects.extend(slices("shop/web", |family| vec![LOCAL[family][0], more[family]]));
        objects
    };
    let mut first = common([REMOTE[0][0], REMOTE[1][0]]);
    first.push(service("shop/sticky").cluster_ip("10.96.0.20").port(Tcp, 80).affinity(600).build());
    first.extend(slices("shop/sticky", |family| REMOTE[family].to_vec()));
    let mut second = common([REMOTE[0][1], LOCAL[1][1]]);
    second.push(service_cidr("kubernetes", &["10.96.0.0/16", "fd00:10:96::/108"]));
    let guarded = service("shop/guarded").cluster_ip("10.96.0.30").port(Tcp, 80).load_balancer_ip("203.0.113.30");
    second.push(guarded.source_range("198.51.100.0/24").external_local().build());
    second.extend(slices("shop/guarded", |family| LOCAL[family].to_vec()));
    second.push(service("shop/empty").cluster_ip("10.96.0.40").port(Tcp, 80).build());
    [first, second]
}

/// The ways to the Service that both states have.
fn ways() -> [Way<'static>; 4] {
    [
        (POD[0], at(VIP[0], 80), Tcp),
        (NODE[1], at(VIP[1], 80), Tcp),
        (CLIENT[0], at(NODE[0], 30080), Udp),
        (CLIENT[1], at(NODE[1], 30080), Tcp),
    ]
}

/// A cluster whose node has one of the states, and what its kernel holds in either.
struct Scene {
    cluster: Cluster,
    manifests: ManifestDirectory,
    states: [Vec<Value>; 2],
    expected: [[Holdings; 2]; 2],
}

impl Scene {
    fn new() -> Self {
        let (cluster, states) = (Cluster::new(), states());
        let expected = [0, 1].map(|state: usize| {
            // From nothing, so that no chain of the other state is left.
            let elsewhere = Cluster::new();
            let (_proxy, report) = Proxy::start(elsewhere.node(), proxy_config(), &states[state]);
            assert!(report.refused.is_empty(), "{report:?}");
            Holdings::read(elsewhere.node())
        });
        let mut scene = Self { cluster, manifests: ManifestDirectory::new(), states, expected };
        scene.expected.iter_mut().flatten().for_each(Holdings::forget_unused_chains);
        scene.set(0);
        scene
    }

    /// Brings the node into a state, by an agent that nobody kills.
    fn set(&self, state: usize) {
        self.write(state);
        self.agent().stop();
        self.assert_holds(state, "undisturbed");
    }

    fn write(&self, state: usize) {
        self.manifests.write_objects("services.json", &self.states[state]);
    }

    fn agent(&self) -> AgentProcess {
        AgentProcess::start(PROGRAM, self.cluster.node(), &self.manifests, &[])
    }

    #[track_caller]
    fn assert_holds(&self, state: usize, context: &str) {
        let mut now = Holdings::read(self.cluster.node());
        now.iter_mut().for_each(Holdings::forget_unused_chains);
        for (now, expected) in now.iter().zip(&self.expected[state]) {
            assert_eq!(now.differences(expected), [] as [String; 0], "{context}");
        }
    }

    /// Starts an agent and kills it in front of a call. Returns the number of its calls if it got ready before.
    fn crash_at_start(&self, point: u32) -> Option<u32> {
        let (agent, watch) = self.watched(point);
        let is_ready = agent.comes_to("programmed ");
        let calls = watch.calls();
        agent.kill();
        watch.end().unwrap();
        is_ready.then_some(calls)
    }

    /// Starts an agent, and kills it in front of a call while it programs another state. Returns the number of its calls
    /// for that if it was done before.
    fn crash_at_change(&self, state: usize, point: u32) -> Option<u32> {
        let (agent, watch) = self.watched(u32::MAX);
        assert!(agent.comes_to("programmed "));
        let before = watch.calls();
        watch.kill_in(point);
        self.write(state);
        let is_done = agent.comes_to("synced in");
        let calls = watch.calls() - before;
        agent.kill();
        watch.end().unwrap();
        is_done.then_some(calls)
    }

    fn watched(&self, point: u32) -> (AgentProcess, CallWatch) {
        let mut command: Command = on_manifests(PROGRAM, &self.manifests, &[]);
        report_calls(&mut command);
        let agent = AgentProcess::spawn(self.cluster.node(), command);
        let watch = CallWatch::begin_with(agent.id(), point).unwrap();
        (agent, watch)
    }

    /// The next agent puts everything right.
    #[track_caller]
    fn recover(&self, state: usize, point: u32) {
        self.agent().stop();
        self.assert_holds(state, &format!("after the crash at call {point}"));
    }
}

/// Returns the points at which a scenario of this number of calls kills.
fn points(calls: u32) -> Vec<u32> {
    let given = std::env::var("CRASH_POINTS").ok().and_then(|points| points.parse().ok());
    match given.unwrap_or(POINTS) {
        0 => (1..=calls).collect(),
        points => (0..points).map(|number| 1 + number * calls / points).collect(),
    }
}

/// While the agent starts over what another one left.
#[test]
fn a_crash_at_a_start_costs_nothing() {
    let scene = Scene::new();
    let mut crashes = 0;
    let connections = none_fails_while(&scene.cluster, &ways(), || {
        // Not killed: counts the calls.
        scene.write(1);
        let calls = scene.crash_at_start(u32::MAX).unwrap();
        scene.recover(1, calls);
        let mut state = 1;
        for point in points(calls) {
            state = 1 - state;
            scene.write(state);
            crashes += u32::from(scene.crash_at_start(point).is_none());
            scene.recover(state, point);
        }
        eprintln!("{crashes} crashes at a start of {calls} calls");
    });
    assert!(crashes > 0 && connections > 20, "{crashes} crashes, {connections} connections");
}

/// While the agent programs a change.
#[test]
fn a_crash_at_a_change_costs_nothing() {
    let scene = Scene::new();
    let mut crashes = 0;
    let connections = none_fails_while(&scene.cluster, &ways(), || {
        let calls = scene.crash_at_change(1, u32::MAX).unwrap();
        let mut state = 1;
        for point in points(calls) {
            state = 1 - state;
            crashes += u32::from(scene.crash_at_change(state, point).is_none());
            scene.recover(state, point);
        }
        eprintln!("{crashes} crashes at a change of {calls} calls");
    });
    assert!(crashes > 0 && connections > 20, "{crashes} crashes, {connections} connections");
}

/// While the agent replaces the tables of another version.
#[test]
fn a_crash_at_an_upgrade_costs_nothing() {
    let scene = Scene::new();
    let ours = listing(scene.cluster.node());
    let others = ours.replace(LAYOUT, "layout 4711").replace("priority dstnat;", "priority dstnat + 1;");
    let downgrade = || install(scene.cluster.node(), &others);
    let mut crashes = 0;
    let connections = none_fails_while(&scene.cluster, &ways(), || {
        downgrade();
        let calls = scene.crash_at_start(u32::MAX).unwrap();
        scene.recover(0, calls);
        for point in points(calls) {
            downgrade();
            crashes += u32::from(scene.crash_at_start(point).is_none());
            scene.recover(0, point);
        }
        eprintln!("{crashes} crashes at an upgrade of {calls} calls");
    });
    assert!(crashes > 0 && connections > 20, "{crashes} crashes, {connections} connections");
}
