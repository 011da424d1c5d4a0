//! In the place of a kube-proxy that was just stopped, whichever mode it ran in, and back: real connections through
//! rules of its shape, which the agent's replace.
//!
//! The old rules lead to pod A and ours to pod B, so that an answer tells whose rules a connection met.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmap_proxy_agent::cli::CleanupOptions;
use vmap_proxy_agent::commands::cleanup::cleanup;
use vmap_proxy_agent::netlink::Kernel;
use vmap_proxy_agent::sync::Syncer;
use vmap_proxy_agent::takeover::{Removals, remove_kube_proxy};
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::{Flow, Lab, NetNs, Probe, ProbeResult, Transport};
use vmap_proxy_testbed::PATIENCE;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::namespaces::cannot_run;
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::skip::skipped;

const PATIENT: Duration = Duration::from_millis(900);

/// The addresses of one family.
pub(super) struct Net {
    pub(super) family: Family,
    pub(super) service: &'static str,
    pub(super) pod_a: &'static str,
    pub(super) pod_b: &'static str,
    client: &'static str,
    node: &'static str,
}

const V4: Net = Net {
    family: Family::Ipv4,
    service: "10.96.0.10",
    pod_a: "10.244.1.5",
    pod_b: "10.244.1.6",
    client: "10.244.1.7",
    node: "192.0.2.11",
};

const V6: Net = Net {
    family: Family::Ipv6,
    service: "fd00:10:96::10",
    pod_a: "fd00:10:244:1::5",
    pod_b: "fd00:10:244:1::6",
    client: "fd00:10:244:1::7",
    node: "2001:db8:1::11",
};

pub(super) const BOTH: [Net; 2] = [V4, V6];

impl Net {
    /// Puts addresses for the names in braces.
    fn fill(&self, text: &str) -> String {
        let brackets = |address: &str, port: u16| SocketAddr::new(address.parse().unwrap(), port).to_string();
        let v4 = self.family == Family::Ipv4;
        text.replace("{family}", self.family.keyword())
            .replace("{type}", if v4 { "ipv4_addr" } else { "ipv6_addr" })
            .replace("{service}", self.service)
            .replace("{pod-a}", self.pod_a)
            .replace("{pod-a:8080}", &brackets(self.pod_a, 8080))
            .replace("{pods}", if v4 { "10.244.0.0/16" } else { "fd00:10:244::/48" })
            .replace("{all}", if v4 { "32" } else { "128" })
            .replace("{loopback}", if v4 { "127.0.0.0/8" } else { "::1/128" })
            .replace("{multicast}", if v4 { "224.0.0.0/4" } else { "ff00::/8" })
    }

    pub(super) fn objects(&self) -> [Value; 2] {
        let name = format!("web-{}", self.family.keyword());
        let address_type = if self.family == Family::Ipv4 { "IPv4" } else { "IPv6" };
        [
            json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name, "namespace": "default"},
                "spec": {"clusterIP": self.service, "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}}),
            json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": address_type,
                "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [self.pod_b], "conditions": {"ready": true}}],
                "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]}),
        ]
    }

    pub(super) fn probe(&self) -> Probe {
        Probe {
            source: self.client.parse().unwrap(),
            target: SocketAddr::new(self.service.parse().unwrap(), 80),
            transport: Transport::Tcp,
            timeout: PATIENT,
        }
    }
}

/// A node, two pods that listen and one that asks.
pub(super) struct World {
    pub(super) lab: Lab,
    runtime: tokio::runtime::Runtime,
}

impl World {
    pub(super) fn new() -> Self {
        let ips = |of: fn(&Net) -> &'static str| BOTH.map(|net| of(&net).parse::<IpAddr>().unwrap());
        let lab = Lab::builder()
            .node_addresses(ips(|net| net.node))
            .host("pod-a", "vetha", ips(|net| net.pod_a))
            .host("pod-b", "vethb", ips(|net| net.pod_b))
            .host("client", "vethc", ips(|net| net.client))
            .build()
            .unwrap();
        for net in BOTH {
            for pod in [net.pod_a, net.pod_b] {
                lab.listen(SocketAddr::new(pod.parse().unwrap(), 8080), Transport::Tcp).unwrap();
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { lab, runtime }
    }

    /// Programs our rules, as the agent does at its first sync.
    fn program_ours(&self) {
        let mut syncer = self
            .lab
            .node()
            .run(|| {
                let _guard = self.runtime.enter();
                let config = ProxyConfig { node_name: "node-a".to_owned(), ..ProxyConfig::default() };
                Syncer::new(config, Kernel::open().unwrap(), &Family::ALL)
            })
            .unwrap();
        let objects = BOTH.iter().flat_map(Net::objects);
        let changes = objects.map(|object| Change::Apply(serde_json::from_value(object).unwrap()));
        let problems = syncer.take_changes(changes);
        assert!(problems.is_empty(), "{problems:?}");
        self.runtime.block_on(async { syncer.sync() }).unwrap();
    }

    pub(super) fn connect(&self, net: &Net) -> Flow {
        self.lab.open_flow(&net.probe()).unwrap()
    }

    pub(super) fn flows_to(&self, pod: fn(&Net) -> &'static str) -> Vec<(Net, Flow)> {
        let flows: Vec<(Net, Flow)> = BOTH
            .into_iter()
            .map(|net| {
                let flow = self.connect(&net);
                (net, flow)
            })
            .collect();
        for (net, flow) in &flows {
            assert_answered(flow.opened(), pod(net), "a new connection");
        }
        flows
    }

    fn take_over(&self) -> Removals {
        self.lab.node().run(remove_kube_proxy).unwrap()
    }

    pub(super) fn tables(&self) -> String {
        run(self.lab.node(), "nft", &["list", "tables"], "").unwrap()
    }
}

#[track_caller]
pub(super) fn assert_answered(result: ProbeResult, pod: &str, what: &str) {
    let expected = SocketAddr::new(pod.parse().unwrap(), 8080);
    assert!(matches!(result, ProbeResult::Answered { by, .. } if by == expected), "{what} to {pod}: {result}");
}

#[track_caller]
fn assert_clean(report: &Removals) {
    assert!(report.failed.is_empty(), "{:?}", report.failed);
}

/// Runs a program in a namespace; its output, or what it complains about.
pub(super) fn run(namespace: &NetNs, program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    let outcome = namespace.run(|| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().unwrap().write_all(input.as_bytes())?;
        child.wait_with_output()
    });
    let output = outcome.unwrap().unwrap_or_else(|error| panic!("{}", cannot_run(program, &error)));
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The rules that kube-proxy 1.36 writes in nftables mode for one Service with one endpoint.
const NFTABLES_MODE: &str = r#"
table {family} kube-proxy {
  comment "rules for kube-proxy"
  set cluster-ips { type {type}; comment "Active ClusterIPs"; elements = { {service} }; }
  map service-ips {
    type {type} . inet_proto . inet_service : verdict; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic"
    elements = { {service} . tcp . 80 : goto service-JQ6KXZ5W-default/web/tcp/http }
  }
  map service-nodeports { type inet_proto . inet_service : verdict; comment "NodePort traffic"; }
  map no-endpoint-services { type {type} . inet_proto . inet_service : verdict; }
  map firewall-ips { type {type} . inet_proto . inet_service : verdict; }
  chain filter-prerouting-pre-dnat { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-input { type filter hook input priority 0; ct state new jump service-endpoints-check; }
  chain filter-forward {
    type filter hook forward priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
  chain services {
    {family} daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local {family} daddr != {loopback} meta l4proto . th dport vmap @service-nodeports
  }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set mark xor 0x4000
    masquerade fully-random
  }
  chain mark-for-masquerade { meta mark set mark or 0x4000; }
  chain reject-chain { reject; }
  chain cluster-ips-check { {family} daddr @cluster-ips reject; }
  chain firewall-check { {family} daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain service-endpoints-check { {family} daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain service-JQ6KXZ5W-default/web/tcp/http {
    {family} daddr {service} tcp dport 80 {family} saddr != {pods} jump mark-for-masquerade
    numgen random mod 1 vmap { 0 : goto endpoint-XTL3Q2DS-default/web/tcp/http__{pod-a}/8080 }
  }
  chain endpoint-XTL3Q2DS-default/web/tcp/http__{pod-a}/8080 {
    {family} saddr {pod-a} jump mark-for-masquerade
    meta l4proto tcp dnat to {pod-a:8080}
  }
}
"#;

fn load_nftables_mode(node: &NetNs) {
    for net in BOTH {
        // In names kube-proxy writes dots for the colons of IPv6.
        let dotted = format!("http__{}/8080", net.pod_a.replace(':', "."));
        load_nft(node, &net.fill(&NFTABLES_MODE.replace("http__{pod-a}/8080", &dotted))).unwrap();
    }
}

/// Somebody else's table, which must stay as it is.
const FOREIGN_TABLE: &str = "table inet kube-proxy-exporter { chain KUBE-SERVICES { counter; }; }
    table inet kube-proxy { chain KUBE-SERVICES { counter; }; }";

#[test]
fn nftables_mode_is_taken_over() {
    let world = World::new();
    load_nftables_mode(world.lab.node());
    load_nft(world.lab.node(), FOREIGN_TABLE).unwrap();
    let mut old = world.flows_to(|net| net.pod_a);
    world.program_ours();
    for family in ["ip", "ip6"] {
        for table in ["kube-proxy", "vmap-proxy"] {
            let name = format!("table {family} {table}\n");
            assert!(world.tables().contains(&name), "{name}");
        }
    }
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the old connection beside our table");
    }
    let report = world.take_over();
    assert_clean(&report);
    assert_eq!(report.removed, ["nftables table ip kube-proxy", "nftables table ip6 kube-proxy"]);
    let tables = world.tables();
    let left: Vec<&str> = tables.lines().collect();
    let expected = ["ip vmap-proxy", "ip6 vmap-proxy", "inet kube-proxy", "inet kube-proxy-exporter"];
    assert_eq!(left.len(), expected.len(), "{tables}");
    for name in expected {
        assert!(left.contains(&format!("table {name}").as_str()), "{tables}");
    }
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the old connection after the removal");
    }
    world.flows_to(|net| net.pod_b);
    let again = world.take_over();
    assert!(again.removed.is_empty() && again.failed.is_empty(), "{again:?}");
}

#[test]
fn the_agent_takes_over_after_its_first_sync() {
    let world = World::new();
    load_nftables_mode(world.lab.node());
    let mut old = world.flows_to(|net| net.pod_a);
    let manifests = ManifestDirectory::new();
    manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
    // Nothing beyond the namespace: neither the limits of the machine nor the score of the test.
    let arguments = [
        "run",
        "--node-name=node-a",
        "--cleanup-kube-proxy",
        "--healthz-bind-address=",
        "--metrics-bind-address=",
        "--oom-score-adj=0",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_agent-under-test"));
    command.args(arguments).arg("--manifests").arg(manifests.path());
    let agent = AgentProcess::spawn(world.lab.node(), command);
    agent.wait_for_line("programmed ");
    let begun = Instant::now();
    while world.tables().contains("kube-proxy") {
        assert!(begun.elapsed() < PATIENCE, "kube-proxy's table is still there: {:#?}", agent.log());
    }
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the old connection");
    }
    world.flows_to(|net| net.pod_b);
    agent.stop();
}

#[test]
fn kube_proxy_takes_back() {
    let world = World::new();
    world.program_ours();
    let mut ours = world.flows_to(|net| net.pod_b);
    load_nftables_mode(world.lab.node());
    world.lab.node().run(|| cleanup(CleanupOptions { kube_proxy: false })).unwrap().unwrap();
    assert_eq!(world.tables(), "table ip kube-proxy\ntable ip6 kube-proxy\n");
    for (net, flow) in &mut ours {
        assert_answered(flow.ask(10).unwrap(), net.pod_b, "our connection after our removal");
    }
    world.flows_to(|net| net.pod_a);
    // Everything at once.
    world.program_ours();
    world.lab.node().run(|| cleanup(CleanupOptions { kube_proxy: true })).unwrap().unwrap();
    assert_eq!(world.tables(), "");
}

/// Foreign rules in the same tables: of a CNI, a user, the kubelet. `-A PREROUTING` lines around kube-proxy's.
const FOREIGN_RULES: &str = r#"
*mangle
:MINE-MANGLE - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-IPTABLES-HINT - [0:0]
-A PREROUTING -i eth9 -j MINE-MANGLE
-A MINE-MANGLE -p tcp -m tcp --dport 22 -j DSCP --set-dscp 0x08
COMMIT
*nat
:CNI-1f3a - [0:0]
:MINE - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A PREROUTING -m comment --comment "user: first" -j MINE
-A POSTROUTING -s {pods} -m comment --comment "name: \"cbr0\" id: \"1f3a\"" -j CNI-1f3a
-A CNI-1f3a -d {multicast} -j RETURN
-A CNI-1f3a -d {pods} -m comment --comment "KUBE-SERVICES is not a target here" -j ACCEPT
-A MINE -d {service}/{all} -p tcp -m tcp --dport 80 -m comment --comment "counts"
-A MINE -i eth9 -g CNI-1f3a
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
*filter
:FIREWALL - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -i eth9 -m limit --limit 5/min --limit-burst 7 -j FIREWALL
-A OUTPUT -j KUBE-FIREWALL
-A FIREWALL -p tcp -m multiport --dports 137,139,445 -j DROP
-A FIREWALL -m conntrack --ctstate INVALID -j LOG --log-prefix "invalid "
-A KUBE-FIREWALL ! -s {loopback} -d {loopback} -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
COMMIT
"#;

/// The rules that kube-proxy adds in iptables mode for one Service with one endpoint. `-I PREROUTING 2`: behind the
/// user's rule.
const IPTABLES_MODE: &str = r#"
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:KUBE-SEP-XMJPVT4H5X3HKQFB - [0:0]
:KUBE-EXT-NPX46M4PTMTKRN6Y - [0:0]
-I PREROUTING 2 -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {service}/{all} -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment "default/web:http" -m tcp --dport 30080 -j KUBE-EXT-NPX46M4PTMTKRN6Y
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SVC-NPX46M4PTMTKRN6Y ! -s {pods} -d {service}/{all} -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m statistic --mode random --probability 0.5 -j KUBE-SEP-XMJPVT4H5X3HKQFB
-A KUBE-SVC-NPX46M4PTMTKRN6Y -j KUBE-SEP-XMJPVT4H5X3HKQFB
-A KUBE-SEP-XMJPVT4H5X3HKQFB -s {pod-a}/{all} -j KUBE-MARK-MASQ
-A KUBE-SEP-XMJPVT4H5X3HKQFB -p tcp -m tcp -j DNAT --to-destination {pod-a:8080}
-A KUBE-EXT-NPX46M4PTMTKRN6Y -j KUBE-MARK-MASQ
-A KUBE-EXT-NPX46M4PTMTKRN6Y -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
*filter
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-I INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-I INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

fn iptables(net: &Net, variant: &str, program: &str) -> String {
    let six = if net.family == Family::Ipv6 { "6" } else { "" };
    format!("ip{six}tables-{variant}{program}")
}

fn restore(node: &NetNs, variant: &str, text: &str) -> Result<(), String> {
    for net in BOTH {
        run(node, &iptables(&net, variant, "-restore"), &["--noflush"], &net.fill(text))?;
    }
    Ok(())
}

/// The rules as iptables prints them, without its remarks and the counters of chains, in which packets between two
/// looks show.
fn saved(node: &NetNs, net: &Net, variant: &str) -> String {
    let text = run(node, &iptables(net, variant, "-save"), &[], "").unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned() + "\n").collect()
}

/// Returns the number of packets that the user's rule `counts` has seen.
fn counted(node: &NetNs, net: &Net, variant: &str) -> u64 {
    let text = run(node, &iptables(net, variant, "-save"), &["-c", "-t", "nat"], "").unwrap();
    let line = text.lines().find(|line| line.contains("--comment counts")).unwrap();
    line.trim_start_matches('[').split(':').next().unwrap().parse().unwrap()
}

fn iptables_mode_is_taken_over(variant: &str) {
    let world = World::new();
    let node = world.lab.node();
    restore(node, variant, FOREIGN_RULES).unwrap();
    let foreign = BOTH.map(|net| saved(node, &net, variant));
    restore(node, variant, IPTABLES_MODE).unwrap();
    let mut old = world.flows_to(|net| net.pod_a);
    world.program_ours();
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the old connection beside our table");
    }
    let before = BOTH.map(|net| counted(node, &net, variant));
    assert!(before.iter().all(|count| *count > 0), "{before:?}");
    let report = world.take_over();
    assert_clean(&report);
    assert_eq!(report.removed.len(), 6, "three tables of each family: {:?}", report.removed);
    for (net, foreign) in BOTH.iter().zip(&foreign) {
        assert_eq!(saved(node, net, variant), *foreign);
    }
    assert_eq!(BOTH.map(|net| counted(node, &net, variant)), before);
    for (net, flow) in &mut old {
        assert_answered(flow.ask(10).unwrap(), net.pod_a, "the old connection after the removal");
    }
    world.flows_to(|net| net.pod_b);
    assert!(world.take_over().removed.is_empty());
    // iptables still makes sense of its tables.
    restore(node, variant, IPTABLES_MODE).unwrap();
    assert_clean(&world.take_over());
}

#[test]
fn iptables_mode_over_nf_tables_is_taken_over() {
    iptables_mode_is_taken_over("nft");
}

#[test]
fn iptables_mode_over_legacy_iptables_is_taken_over() {
    let namespace = NetNs::new("legacy").unwrap();
    if let Err(reason) = run(&namespace, "iptables-legacy", &["-t", "nat", "-S"], "") {
        skipped(format_args!("legacy iptables was not tested, the kernel lacks it: {reason}"));
        return;
    }
    iptables_mode_is_taken_over("legacy");
}

#[test]
fn no_legacy_table_is_made_by_looking() {
    let world = World::new();
    world.take_over();
    for file in ["ip_tables_names", "ip6_tables_names"] {
        let names = world.lab.node().run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))).unwrap();
        assert_eq!(names.unwrap_or_default(), "");
    }
}

/// Rules of the ipvs mode beside the device and the sets.
const IPVS_MODE: &str = "
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A POSTROUTING -j KUBE-POSTROUTING
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
-A INPUT -j KUBE-IPVS-FILTER
COMMIT
";

#[test]
fn ipvs_mode_is_taken_over() {
    let world = World::new();
    let node = world.lab.node();
    let sets = "create KUBE-CLUSTER-IP hash:ip,port\nadd KUBE-CLUSTER-IP 10.96.0.10,tcp:80\n\
        create KUBE-6-CLUSTER-IP hash:ip,port family inet6\ncreate KUBE-NODE-PORT-TCP bitmap:port range 0-65535\n\
        create KUBE-MINE hash:ip\n";
    if let Err(reason) = run(node, "ipset", &["restore"], sets) {
        skipped(format_args!("the ipvs mode was not tested, the kernel lacks ipset: {reason}"));
        return;
    }
    if run(node, "ip", &["link", "add", "kube-ipvs0", "type", "dummy"], "").is_err() {
        // A kernel without dummy devices; any device goes by its name.
        run(node, "ip", &["link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "peer"], "").unwrap();
    }
    run(node, "ip", &["address", "add", "10.96.0.10/32", "dev", "kube-ipvs0"], "").unwrap();
    run(node, "iptables-nft-restore", &["--noflush"], IPVS_MODE).unwrap();
    world.program_ours();
    let report = world.take_over();
    assert_clean(&report);
    assert_eq!(run(node, "ipset", &["list", "-name"], "").unwrap(), "KUBE-MINE\n");
    run(node, "ip", &["link", "show", "kube-ipvs0"], "").unwrap_err();
    let rules = run(node, "iptables-nft-save", &[], "").unwrap();
    assert!(!rules.contains("KUBE-SERVICES") && !rules.contains("KUBE-IPVS"), "{rules}");
    assert!(rules.contains(":KUBE-MARK-MASQ"), "{rules}");
    world.flows_to(|net| net.pod_b);
}

#[test]
fn what_cannot_be_removed_is_named_and_the_rest_goes() {
    let world = World::new();
    let node = world.lab.node();
    load_nftables_mode(node);
    restore(node, "nft", FOREIGN_RULES).unwrap();
    restore(node, "nft", IPTABLES_MODE).unwrap();
    // A verdict map of somebody's holds on to one chain.
    let map = "table ip nat { map held { type inet_service : verdict; elements = { 80 : jump KUBE-NODEPORTS }; }; }";
    load_nft(node, map).unwrap();
    let report = world.take_over();
    let failed: Vec<String> = report.failed.iter().map(ToString::to_string).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].starts_with("chain ip nat KUBE-NODEPORTS: "), "{failed:?}");
    // The words of `EBUSY` are those of the C library.
    assert!(failed[0].contains("(os error 16)"), "{failed:?}");
    assert_eq!(report.removed.len(), 8, "{:?}", report.removed);
    let rules = run(node, "nft", &["list", "table", "ip", "nat"], "").unwrap();
    assert!(rules.contains("KUBE-NODEPORTS") && !rules.contains("KUBE-SVC-"), "{rules}");
}
