//! Few descriptors cost as little as they can.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use serde_json::json;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::cluster::{LOCAL, POD_PORT, node_object};
use vmap_proxy_testbed::manifests::{service, slice};

use crate::{Agent, METRICS, Scratch, cluster, eventually, manifests, run_manifests, web};

/// `EMFILE` in a message. The words before it are those of the C library.
const NO_DESCRIPTORS: &str = "(os error 24)";

/// Before it starts.
fn limited(mut command: Command, soft: u64, hard: u64) -> Command {
    // SAFETY: between fork and exec only setrlimit(2) is called.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?)) };
    command
}

/// While it runs.
fn limit(agent: &Agent, soft: u64) {
    let limits = format!("--nofile={soft}:");
    let status = Command::new("prlimit").args(["--pid", &agent.child.id().to_string(), &limits]).status();
    assert!(status.unwrap().success());
}

fn soft_limit(agent: &Agent) -> u64 {
    let limits = agent.proc("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn it_takes_all_that_it_may_have() {
    let (cluster, manifests) = (cluster(), manifests());
    let mut agent = Agent::start(cluster.node(), limited(run_manifests(&manifests, &[]), 64, 4096));
    agent.wait_until_healthy();
    assert_eq!(soft_limit(&agent), 4096);
}

/// With a limit that can't be raised: what is left over for health, metrics and changes.
#[test]
fn a_health_check_port_for_each_of_700_services_leaves_some() {
    const SERVICES: u16 = 700;
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("ports"));
    let mut objects = vec![node_object()];
    for number in 0..SERVICES {
        let name = format!("shop/lb-{number}");
        let address = format!("10.96.{}.{}", 4 + number / 200, 1 + number % 200);
        let load_balancer = service(&name).cluster_ip(&address).port(Tcp, 80).load_balancer_ip(&format!(
            "203.0.{}.{}",
            100 + number / 200,
            1 + number % 200
        ));
        objects.push(load_balancer.external_local().spec("healthCheckNodePort", json!(20_000 + number)).build());
        objects.push(slice(&name, "1").port(Tcp, POD_PORT.into()).endpoint(LOCAL[0][0]).build());
    }
    manifests.write_objects("lb.json", &objects);
    // Room for some of them only.
    let mut agent = Agent::with_log(cluster.node(), limited(run_manifests(&manifests, &[]), 512, 512), &log.0);
    agent.wait_until_healthy();
    eventually("those that have to wait are named", || log.text().contains("too many others do for 512 open files"));
    eventually("a health check port answers", || {
        (0..SERVICES).any(|number| agent.get(20_000 + number, "/").is_some_and(|reply| reply.contains(" 200 ")))
    });
    for _ in 0..3 {
        assert!(agent.is_healthy());
        assert!(agent.get(METRICS, "/metrics").is_some_and(|reply| reply.contains("kubeproxy_sync_proxy_rules")));
    }
    manifests.write_objects("web.json", &[web(1), web(2)]);
    agent.wait_until_served("10.96.0.2");
    assert!(!log.text().contains(NO_DESCRIPTORS), "the reserve was not enough");
    assert!(agent.stop().success());
}

#[test]
fn a_change_while_there_is_none_is_not_lost() {
    let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("none"));
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &[]), &log.0);
    agent.wait_until_healthy();
    limit(&agent, 3);
    manifests.write_objects("web.json", &[node_object(), web(1), web(2)]);
    eventually("the failure is logged", || log.text().contains(NO_DESCRIPTORS));
    assert!(!agent.serves("10.96.0.2"));
    assert!(agent.serves("10.96.0.1"), "what was programmed stays");
    limit(&agent, 1024);
    // Nothing happens to the file any more.
    agent.wait_until_served("10.96.0.2");
    assert!(agent.stop().success());
}

/// The same for the configuration file: its change ends the agent.
#[test]
fn nor_is_one_of_the_configuration_file() {
    let (cluster, manifests, log, file) =
        (cluster(), manifests(), Scratch::new("none-config"), Scratch::new("none-config-file"));
    let configuration = |mode: &str| {
        format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n")
    };
    fs::write(&file.0, configuration("nftables")).unwrap();
    let mut command = run_manifests(&manifests, &[&format!("--config={}", file.0.display())]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut agent = Agent::with_log(cluster.node(), command, &log.0);
    // The file gives the addresses of the servers, so that only the table tells.
    agent.wait_until_served("10.96.0.1");
    eventually("the configuration is followed", || {
        fs::read_dir(format!("/proc/{}/fd", agent.child.id())).unwrap().flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target.ends_with("anon_inode:inotify"))
        })
    });
    limit(&agent, 3);
    fs::write(&file.0, configuration("nftables") + "# changed\n").unwrap();
    let is_failure = |line: &str| line.contains("cannot be read: ") && line.contains(NO_DESCRIPTORS);
    eventually("the failure is logged", || log.text().lines().any(is_failure));
    limit(&agent, 1024);
    eventually("it ends", || agent.child.try_wait().unwrap().is_some());
    assert!(log.text().contains("changed; ending"));
}
