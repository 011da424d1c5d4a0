//! In the place of a kube-proxy of ipvs mode whose virtual servers really forward, and back.
//!
//! Needs the module `ip_vs`, which is not loaded by asking for it: `scripts/kernel-matrix --suites ipvs 6.1`, or after
//! `modprobe -a ip_vs ip_vs_rr`.

use std::path::Path;
use std::process::Command;

use vmap_proxy_lab::{NetNs, ProbeResult};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::at;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::skip::skipped;

use super::takeover::{BOTH, Net, World, assert_answered, run};

pub(super) const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Flags of the program that keep it from touching anything beyond the namespace.
const HARMLESS: [&str; 4] =
    ["--healthz-bind-address=", "--metrics-bind-address=", "--oom-score-adj=0", "--conntrack-max-per-core=0"];

/// The rules of kube-proxy's ipvs mode, in short, beside one of somebody else's. The conntrack match and the masquerading make
/// the kernel track connections in this namespace. Without a rule of that kind it tracks none.
const RULES: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:MY-OWN - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j MY-OWN
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -m set --match-set {set} dst,dst -j ACCEPT
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

/// The sets of cluster IPs.
const SETS: [&str; 2] = ["KUBE-CLUSTER-IP", "KUBE-6-CLUSTER-IP"];

/// What kube-proxy makes in ipvs mode for one Service of each family, to pod A.
#[track_caller]
fn load_ipvs_mode(node: &NetNs) {
    load_ipvs(node, "net.ipv4.vs.conntrack=1");
}

/// The same with a setting of IPVS. kube-proxy always has it track its connections.
#[track_caller]
fn load_ipvs(node: &NetNs, setting: &str) {
    let feed = |program: &str, arguments: &[&str], input: &str| {
        run(node, program, arguments, input).unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}"));
    };
    let must = |program: &str, arguments: &[&str]| feed(program, arguments, "");
    must("sysctl", &["-qw", setting]);
    must("ip", &["link", "add", "kube-ipvs0", "type", "dummy"]);
    for (Net { service, pod_a, .. }, set) in BOTH.into_iter().zip(SETS) {
        let (bits, family, restore) = match service.contains(':') {
            true => ("128", "inet6", "ip6tables-restore"),
            false => ("32", "inet", "iptables-restore"),
        };
        let [from, to] = [(service, 80), (pod_a, 8080)].map(|(address, port)| at(address, port).to_string());
        must("ip", &["address", "add", &format!("{service}/{bits}"), "dev", "kube-ipvs0", "nodad"]);
        must("ipvsadm", &["-A", "-t", &from, "-s", "rr"]);
        must("ipvsadm", &["-a", "-t", &from, "-r", &to, "-m"]);
        must("ipset", &["create", set, "hash:ip,port", "family", family]);
        must("ipset", &["add", set, &format!("{service},tcp:80")]);
        feed(restore, &["--noflush"], &RULES.replace("{set}", set));
    }
}

fn servers(node: &NetNs) -> String {
    run(node, "ipvsadm", &["-Sn"], "").unwrap()
}

pub(super) fn agent(node: &NetNs, manifests: &ManifestDirectory, arguments: &[&str]) -> AgentProcess {
    let mut command = Command::new(PROGRAM);
    command.args(["run", "--node-name=node-a"]).args(HARMLESS).args(arguments);
    command.args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
    command.arg("--manifests").arg(manifests.path());
    AgentProcess::spawn(node, command)
}

/// Returns whether the kernel has IPVS; if not, reports that.
fn has_ipvs() -> bool {
    let there = Path::new("/proc/net/ip_vs").exists();
    if !there {
        skipped("the take-over from real virtual servers was not tested: the module ip_vs is not loaded");
    }
    there
}

fn manifests() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
    manifests
}

#[test]
fn virtual_servers_are_taken_over() {
    if !has_ipvs() {
        return;
    }
    let world = World::new();
    let node = world.lab.node();
    run(node, "ipset", &["create", "MINE", "hash:ip"], "").unwrap();
    load_ipvs_mode(node);
    assert_eq!(servers(node).lines().count(), 4, "{}", servers(node));
    let mut old = world.flows_to(|net| net.pod_a);

    let manifests = manifests();
    // Without the flag, both serve: ours come first for what is new, and what IPVS forwards goes on.
    let beside = agent(world.lab.node(), &manifests, &[]);
    beside.wait_for_line("programmed ");
    world.flows_to(|net| net.pod_b);
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the connection through IPVS beside our table");
    }
    assert_eq!(servers(node).lines().count(), 4, "{}", servers(node));
    beside.stop();

    let running = agent(world.lab.node(), &manifests, &["--cleanup-kube-proxy"]);
    for what in
        ["virtual servers of IPVS", "device kube-ipvs0", &format!("ipset {}", SETS[0]), &format!("ipset {}", SETS[1])]
    {
        running.wait_for_line(&format!("kube-proxy's {what}: removed"));
    }
    assert_eq!(servers(node).trim(), "");
    run(node, "ip", &["link", "show", "kube-ipvs0"], "").unwrap_err();
    assert_eq!(run(node, "ipset", &["list", "-name"], "").unwrap(), "MINE\n");
    for save in ["iptables-save", "ip6tables-save"] {
        let rules = run(node, save, &[], "").unwrap();
        assert!(!rules.contains("KUBE-SERVICES") && rules.contains("-j MY-OWN"), "{rules}");
    }
    world.flows_to(|net| net.pod_b);
    // Why the flag can wait: IPVS translates each packet by its own table, which is gone.
    for (net, flow) in &mut old {
        let result = flow.ask(10).unwrap();
        assert!(!matches!(result, ProbeResult::Answered { .. }), "{}: {result}", net.service);
        eprintln!("the connection through IPVS to {}, after its servers: {result}", net.service);
    }
    running.stop();
}

/// IPVS first, then our table leaves: connections of both go on, and new ones are those of IPVS.
#[test]
fn ipvs_takes_back() {
    if !has_ipvs() {
        return;
    }
    let world = World::new();
    let node = world.lab.node();
    let manifests = manifests();
    let running = agent(world.lab.node(), &manifests, &[]);
    running.wait_for_line("programmed ");
    let mut ours = world.flows_to(|net| net.pod_b);
    load_ipvs_mode(node);
    world.flows_to(|net| net.pod_b);
    running.stop();
    let status = node.run(|| Command::new(PROGRAM).arg("cleanup").status()).unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(!world.tables().contains("vmap-proxy"), "{}", world.tables());
    for (net, flow) in &mut ours {
        assert_answered(flow.ask(10).unwrap(), net.pod_b, "our connection after our removal");
    }
    let mut theirs = world.flows_to(|net| net.pod_a);
    for (net, flow) in &mut theirs {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the connection through IPVS");
    }
}

/// To conntrack, a connection of IPVS that is not tracked is new at its next packet. That is the case where somebody set
/// `net.ipv4.vs.conntrack` to 0. Our rules then send it to a pod that does not know it, as kube-proxy's own would.
#[test]
fn a_connection_that_is_not_tracked_is_reset() {
    if !has_ipvs() {
        return;
    }
    let world = World::new();
    load_ipvs(world.lab.node(), "net.ipv4.vs.conntrack=0");
    let mut old = world.flows_to(|net| net.pod_a);
    let manifests = manifests();
    let beside = agent(world.lab.node(), &manifests, &[]);
    beside.wait_for_line("programmed ");
    for (net, flow) in &mut old {
        let result = flow.ask(10).unwrap();
        assert!(result == ProbeResult::Reset, "{}: {result}", net.service);
    }
    beside.stop();
}
