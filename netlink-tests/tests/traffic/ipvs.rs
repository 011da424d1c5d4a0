//! In the place of a kube-proxy of ipvs mode whose virtual servers really forward, and back.
//!
//! Needs the module `ip_vs`, which is not loaded by asking for it: `scripts/kernel-matrix --suites ipvs 6.1`, or after
//! `modprobe -a ip_vs ip_vs_rr`.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::PATIENCE;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::skip::skipped;

use super::takeover::{BOTH, Net, World, assert_answered, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Flags of the program that keep it from touching anything beyond the namespace.
const HARMLESS: [&str; 4] =
    ["--healthz-bind-address=", "--metrics-bind-address=", "--oom-score-adj=0", "--conntrack-max-per-core=0"];

/// The rules of kube-proxy's ipvs mode that decide whether a packet of a cluster IP is masqueraded, in short.
const RULES: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:MY-OWN - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j MY-OWN
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
";

/// What kube-proxy makes in ipvs mode for one Service of each family, to pod A.
#[track_caller]
fn load_ipvs_mode(node: &NetNs) {
    let must = |program: &str, arguments: &[&str]| {
        run(node, program, arguments, "").unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"))
    };
    // As kube-proxy does: the flows of IPVS are tracked.
    must("sysctl", &["-qw", "net.ipv4.vs.conntrack=1"]);
    must("ip", &["link", "add", "kube-ipvs0", "type", "dummy"]);
    run(node, "ipset", &["create", "KUBE-CLUSTER-IP", "hash:ip,port"], "").unwrap();
    for Net { service, pod_a, .. } in BOTH {
        let (bits, service_text, pod_text) = match service.contains(':') {
            true => ("128", format!("[{service}]:80"), format!("[{pod_a}]:8080")),
            false => ("32", format!("{service}:80"), format!("{pod_a}:8080")),
        };
        must("ip", &["address", "add", &format!("{service}/{bits}"), "dev", "kube-ipvs0", "nodad"]);
        must("ipvsadm", &["-A", "-t", &service_text, "-s", "rr"]);
        must("ipvsadm", &["-a", "-t", &service_text, "-r", &pod_text, "-m"]);
    }
    run(node, "ipset", &["add", "KUBE-CLUSTER-IP", "10.96.0.10,tcp:80"], "").unwrap();
    run(node, "iptables-restore", &["--noflush"], RULES).unwrap();
}

fn servers(node: &NetNs) -> String {
    run(node, "ipvsadm", &["-Sn"], "").unwrap()
}

fn agent(world: &World, manifests: &ManifestDirectory, arguments: &[&str]) -> AgentProcess {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--node-name=node-a"]).args(HARMLESS).args(arguments);
    command.args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
    command.arg("--manifests").arg(manifests.path());
    AgentProcess::spawn(world.lab.node(), command)
}

#[test]
fn virtual_servers_are_taken_over_and_come_back() {
    if !Path::new("/proc/net/ip_vs").exists() {
        return skipped("the take-over from real virtual servers was not tested: the module ip_vs is not loaded");
    }
    let world = World::new();
    let node = world.lab.node();
    run(node, "ipset", &["create", "MINE", "hash:ip"], "").unwrap();
    load_ipvs_mode(node);
    assert_eq!(servers(node).lines().count(), 4, "{}", servers(node));
    let mut old = world.flows_to(|net| net.pod_a);

    let manifests = ManifestDirectory::new();
    manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
    let running = agent(&world, &manifests, &["--cleanup-kube-proxy"]);
    running.wait_for_line("programmed ");
    let begun = Instant::now();
    while !servers(node).trim().is_empty() {
        assert!(begun.elapsed() < PATIENCE, "virtual servers are left: {}\n{:#?}", servers(node), running.log());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // The device goes after the servers, the sets after the rules.
    let gone = |what: &str, is_gone: &dyn Fn() -> bool| {
        while !is_gone() {
            assert!(begun.elapsed() < PATIENCE, "{what} is left: {:#?}", running.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    };
    gone("kube-ipvs0", &|| run(node, "ip", &["link", "show", "kube-ipvs0"], "").is_err());
    gone("a set", &|| run(node, "ipset", &["list", "-name"], "").unwrap() == "MINE\n");
    let rules = run(node, "iptables-save", &[], "").unwrap();
    assert!(!rules.contains("KUBE-SERVICES") && rules.contains("MY-OWN"), "{rules}");
    world.flows_to(|net| net.pod_b);
    // Connections of IPVS end with the servers: it translates each packet by its own table.
    let mut survivors = 0;
    for (_, flow) in &mut old {
        survivors += usize::from(flow.ask(10).is_ok_and(|result| result == flow.opened()));
    }
    eprintln!("{survivors} of {} connections through IPVS outlived it", old.len());

    running.stop();
    let status = node.run(|| Command::new(PROGRAM).arg("cleanup").status()).unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(!world.tables().contains("vmap-proxy"), "{}", world.tables());
    load_ipvs_mode(node);
    world.flows_to(|net| net.pod_a);
    for (net, flow) in world.flows_to(|net| net.pod_a) {
        assert_answered(flow.opened(), net.pod_a, "after the way back");
    }
}
