//! No thread to be had.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use vmap_proxy_testbed::cluster::node_object;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;

use crate::{Agent, METRICS, PROGRAM, Scratch, cluster, manifests, run_manifests, web};
use vmap_proxy_testbed::skip::skipped_outside_ci;

/// A user without other processes: root has no limit.
const USER: &str = "59999";

fn as_user(program: &Path, manifests: &ManifestDirectory) -> Command {
    let capabilities = "+net_admin,+net_bind_service";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--clear-groups", "--inh-caps", capabilities, "--ambient-caps", capabilities]);
    let agent = run_manifests(manifests, &[]);
    command.arg(program).args(agent.get_args());
    command
}

#[test]
fn it_goes_on_without_threads() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("threads"));
    // A copy: the build may lie where only its owner may look.
    let directory = ManifestDirectory::new();
    let program = directory.path().join("vmap-proxy");
    fs::copy(PROGRAM, &program).unwrap();
    let mut try_out = Command::new("setpriv");
    try_out.args(["--reuid", USER, "--clear-groups"]).arg(&program).arg("--version");
    let tried = try_out.output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        skipped_outside_ci(format_args!("no process can be started as user {USER}, run as root: {tried:?}"));
        return;
    }
    let mut agent = Agent::with_log(cluster.node(), as_user(&program, &manifests), &log.0);
    agent.wait_until_healthy();
    // An event loop lets threads go that were idle for 10 s, and must not need new ones; nothing tells when it has.
    std::thread::sleep(Duration::from_secs(12));
    let process = agent.child.id().to_string();
    // By the same user: not every root may change the limits of others (`CAP_SYS_RESOURCE`).
    let mut limit = Command::new("setpriv");
    limit.args(["--reuid", USER, "--clear-groups", "prlimit", "--pid", &process, "--nproc=1:1"]);
    assert!(limit.status().unwrap().success());
    for number in 2..6 {
        assert!(agent.get(METRICS, "/metrics").is_some_and(|reply| reply.contains(" 200 ")));
        manifests.write_objects("web.json", &[node_object(), web(1), web(number)]);
        agent.wait_until_served(&format!("10.96.0.{number}"));
    }
    assert!(agent.is_healthy());
    assert!(agent.stop().success());
}
