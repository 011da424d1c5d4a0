//! At rest it does nothing, however it was started.

use std::fs;
use std::time::Duration;

use vmap_proxy_testbed::end_to_end::EndToEnd;

use crate::{Agent, Scratch, cluster, manifests, run_manifests};

/// The length of the observation, in seconds.
const WINDOW: u64 = 10;

/// Maximum number of windows before it has come to rest.
const WINDOWS: usize = 6;

/// CPU time in nanoseconds, and how often any of its threads went to sleep.
fn used(process: u32) -> (u64, u64) {
    let mut used = (0, 0);
    for task in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let task = task.unwrap().path();
        let schedule = fs::read_to_string(task.join("schedstat")).unwrap();
        used.0 += schedule.split_whitespace().next().unwrap().parse::<u64>().unwrap();
        let status = fs::read_to_string(task.join("status")).unwrap();
        let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        used.1 += switches.trim().parse::<u64>().unwrap();
    }
    used
}

/// Waits for a time in which it uses less than 10 ms of CPU and wakes up less than five times a second.
#[track_caller]
fn assert_comes_to_rest(process: u32) {
    let mut seen = Vec::new();
    for _ in 0..WINDOWS {
        let before = used(process);
        std::thread::sleep(Duration::from_secs(WINDOW));
        let after = used(process);
        let (cpu, wakes) = (after.0 - before.0, after.1 - before.1);
        seen.push(format!("{:.1} ms, {wakes} times", cpu as f64 / 1e6));
        if cpu < 10_000_000 && wakes < 5 * WINDOW {
            eprintln!("at rest in {WINDOW} s: {}", seen.join("; "));
            return;
        }
    }
    panic!("it does not come to rest, in {WINDOW} s each: {seen:?}");
}

/// The file stands in a directory that is watched: looking at it must be no reason to look again.
fn configuration() -> Scratch {
    let file = Scratch::new("config");
    fs::write(&file.0, "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n")
        .unwrap();
    file
}

#[test]
fn with_manifests() {
    let (cluster, manifests) = (cluster(), manifests());
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    assert_comes_to_rest(agent.child.id());
}

#[test]
fn with_manifests_and_a_configuration_file() {
    let (cluster, manifests, file) = (cluster(), manifests(), configuration());
    let config = format!("--config={}", file.0.display());
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[&config]));
    agent.wait_until_healthy();
    assert_comes_to_rest(agent.child.id());
}

#[test]
fn with_an_api_server_and_a_configuration_file() {
    let cluster = EndToEnd::start(crate::PROGRAM).unwrap();
    let agent = cluster.agent();
    agent.wait_until_ready();
    assert_comes_to_rest(agent.id());
}
