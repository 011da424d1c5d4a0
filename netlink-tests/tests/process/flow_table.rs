//! `--nftables-flow-table-interfaces`: established connections through Services bypass the rules.
//!
//! Where the kernel has no flow tables, these tests are skipped, except for the first, which needs such a kernel:
//! `scripts/kernel-matrix --suites flow_table 6.12`.

use std::net::SocketAddr;
use std::process::Command;

use vmap_proxy_agent::conntrack::Conntrack;
use vmap_proxy_agent::netlink::{FlowTable, FlowTableError, families};
use vmap_proxy_lab::{Flow, ProbeResult, Transport};
use vmap_proxy_testbed::cluster::{CLIENT, LOCAL, POD_PORT, at, ip};
use vmap_proxy_testbed::manifests::slice;
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::skip::skipped;

use super::*;

const TABLE: &str = "vmap-proxy-flows";
const SERVICE: [&str; 2] = ["10.96.0.40", "fd00:10:96::40"];
const NODE_PORT: u16 = 30_040;
const AFTER_PACKETS: u64 = 20;
const FLAGS: [&str; 3] = [
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--nftables-flow-table-interfaces=eth0,veth*,many*",
    "--nftables-reset-gone-endpoints-after=1s",
];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// A cluster whose node has an agent with a flow table.
struct World {
    cluster: Cluster,
    manifests: ManifestDirectory,
    log: Scratch,
    agent: Option<Agent>,
}

/// The reason why this kernel can't have a flow table.
fn unsupported(namespace: &NetNs) -> Option<String> {
    match namespace.run(|| FlowTable::make(20).map(drop)).unwrap() {
        Ok(()) => None,
        Err(error @ FlowTableError::Unsupported { .. }) => Some(error.to_string()),
        Err(error) => panic!("{error}"),
    }
}

/// Service `shop/fast`, TCP and UDP, with this endpoint of each family.
fn write(manifests: &ManifestDirectory, pod: usize) {
    let service =
        SERVICE.into_iter().fold(service("shop/fast"), vmap_proxy_testbed::manifests::ServiceManifest::cluster_ip);
    let service = TRANSPORTS
        .into_iter()
        .fold(service, |service, transport| service.port(transport, 80).node_port(NODE_PORT.into()));
    let slices = [(0, "IPv4"), (1, "IPv6")].map(|(family, address_type)| {
        let slice = slice("shop/fast", &address_type.to_lowercase()).address_type(address_type);
        let slice = TRANSPORTS.into_iter().fold(slice, |slice, transport| slice.port(transport, POD_PORT.into()));
        slice.endpoints([LOCAL[family][pod]]).build()
    });
    let [ipv4, ipv6] = slices;
    manifests.write_objects("fast.json", &[node_object(), service.build(), ipv4, ipv6]);
}

impl World {
    /// `None` where the kernel has no flow tables.
    fn new() -> Option<Self> {
        let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
        if let Some(reason) = unsupported(cluster.node()) {
            skipped(format_args!(
                "the flow table was not tested: {reason} (scripts/kernel-matrix --suites flow_table 6.12)"
            ));
            return None;
        }
        write(&manifests, 0);
        let mut world = Self { cluster, manifests, log, agent: None };
        world.start();
        Some(world)
    }

    fn start(&mut self) {
        let mut agent = Agent::with_log(self.cluster.node(), run_manifests(&self.manifests, &FLAGS), &self.log.0);
        agent.wait_until_healthy();
        self.agent = Some(agent);
        self.wait_for_members(2);
    }

    #[track_caller]
    fn wait_for_members(&self, members: usize) {
        let line = format!("vmap_proxy_flow_table_interfaces {members}\n");
        eventually(&line, || self.metrics().contains(&line));
    }

    fn metrics(&self) -> String {
        self.agent.as_ref().unwrap().get(METRICS, "/metrics").unwrap_or_default()
    }

    fn flow(&self, family: usize, to: SocketAddr, transport: Transport) -> Established {
        let flow = self.cluster.flow(CLIENT[family], to, transport);
        Established { family, to, transport, flow }
    }

    /// Whether a flow table has it; `None` if it is not tracked.
    fn is_offloaded(&self, flow: &Established) -> Option<bool> {
        let list = || {
            let mut found = Vec::new();
            for family in families() {
                found.extend(Conntrack::open()?.list(family, |connection| {
                    let is_it = connection.destination == flow.to
                        && connection.protocol.to_string() == flow.transport.to_string()
                        && connection.translated;
                    is_it.then_some(connection.offloaded)
                })?);
            }
            Ok::<_, vmap_proxy_agent::conntrack::ConntrackError>(found)
        };
        self.cluster.node().run(list).unwrap().unwrap().last().copied()
    }

    /// Sends on it until a flow table has it; all answers are the pod's.
    #[track_caller]
    fn offload(&self, flow: &mut Established, pod: usize) {
        let what = format!("{} to {} gets into the flow table", flow.transport, flow.to);
        eventually(&what, || {
            self.ask(flow, pod);
            self.is_offloaded(flow) == Some(true)
        });
    }

    #[track_caller]
    fn ask(&self, flow: &mut Established, pod: usize) {
        assert_eq!(self.cluster.ask(&mut flow.flow, 10), ip(LOCAL[flow.family][pod]), "{} {}", flow.transport, flow.to);
    }

    fn nft(&self, arguments: &[&str]) -> String {
        nft_in(self.cluster.node(), arguments, "").unwrap()
    }

    fn has_table(&self) -> bool {
        self.nft(&["list", "tables"]).contains(TABLE)
    }

    /// The interfaces in the flow table, by nft.
    fn members(&self) -> String {
        self.nft(&["list", "flowtable", "inet", TABLE, "services"])
    }

    fn ip(&self, arguments: &[&str]) {
        let status = self.cluster.node().run(|| Command::new("ip").args(arguments).status()).unwrap().unwrap();
        assert!(status.success(), "ip {arguments:?}: {status}");
    }
}

/// A connection from outside.
struct Established {
    family: usize,
    to: SocketAddr,
    transport: Transport,
    flow: Flow,
}

#[test]
fn a_kernel_without_flow_tables_costs_one_line() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    let Some(reason) = unsupported(cluster.node()) else {
        return skipped("a kernel without flow tables was not tested: this one has them");
    };
    write(&manifests, 0);
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&manifests, &FLAGS), &log.0);
    agent.wait_until_healthy();
    eventually("the reason is logged", || log.text().contains("flow table: "));
    for family in 0..2 {
        cluster.assert_served(CLIENT[family], at(NODE[family], NODE_PORT), Transport::Udp, [LOCAL[family][0]]);
    }
    // The doctor knows the same reason.
    let configuration = Scratch::new("config.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                nftables: {flowTable: {interfaces: [\"veth*\"]}}\n";
    fs::write(&configuration.0, text).unwrap();
    let mut doctor = vmap_proxy(&["doctor", "--config", configuration.0.to_str().unwrap()]);
    let report = cluster.node().run(|| doctor.output()).unwrap().unwrap();
    let report = String::from_utf8_lossy(&report.stdout).into_owned();
    assert!(report.contains("flow table") && report.contains("this kernel lacks"), "{report}");
    assert!(agent.get(METRICS, "/metrics").unwrap().contains("vmap_proxy_flow_table_interfaces 0\n"));
    assert!(agent.stop().success());
    let text = log.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("flow table")).collect();
    assert!(lines.len() == 1 && lines[0].contains(&reason), "{lines:?}");
    assert!(lines[0].contains("nftables.flowTable.interfaces"), "{lines:?}");
    assert!(!nft_in(cluster.node(), &["list", "tables"], "").unwrap().contains(TABLE));
}

/// The counter of a foreign chain shows who meets the rules.
#[test]
fn established_connections_bypass_the_rules_after_some_packets() {
    let Some(world) = World::new() else { return };
    let foreign = "table inet foreign {
        counter forwarded {
        }
        chain forward {
            type filter hook forward priority 10
            counter name forwarded
        }
    }";
    load_nft(world.cluster.node(), foreign).unwrap();
    let forwarded = || -> u64 {
        let listed = world.nft(&["-j", "list", "counter", "inet", "foreign", "forwarded"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["nftables"][1]["counter"]["packets"].as_u64().unwrap()
    };
    for transport in TRANSPORTS {
        for family in 0..2 {
            for to in [at(NODE[family], NODE_PORT), at(SERVICE[family], 80)] {
                let before = forwarded();
                let mut flow = world.flow(family, to, transport);
                assert_eq!(world.is_offloaded(&flow), Some(false), "{transport} {to}");
                world.offload(&mut flow, 0);
                assert!(forwarded() - before > AFTER_PACKETS, "{transport} {to}");
                let before = forwarded();
                for _ in 0..30 {
                    world.ask(&mut flow, 0);
                }
                let met = forwarded() - before;
                assert!(met < 10, "{met} of 60 packets met the rules: {transport} {to}");
                assert_eq!(world.is_offloaded(&flow), Some(true), "{transport} {to}");
            }
        }
    }
    assert!(world.agent.unwrap().stop().success());
}

#[test]
fn a_udp_flow_leaves_with_its_endpoint_and_its_service() {
    let Some(world) = World::new() else { return };
    let mut flows = [0, 1].map(|family| world.flow(family, at(NODE[family], NODE_PORT), Transport::Udp));
    flows.iter_mut().for_each(|flow| world.offload(flow, 0));
    // Other datagrams of the same socket go to the other endpoint.
    write(&world.manifests, 1);
    for flow in &mut flows {
        let other = ip(LOCAL[flow.family][1]);
        eventually("the other endpoint answers", || match flow.flow.ask(10).unwrap() {
            ProbeResult::Answered { by, .. } => by.ip() == other,
            _ => false,
        });
        world.offload(flow, 1);
    }
    world.manifests.remove("fast.json");
    for flow in &mut flows {
        eventually("nobody answers", || !matches!(flow.flow.ask(10).unwrap(), ProbeResult::Answered { .. }));
    }
    assert!(world.agent.unwrap().stop().success());
}

#[test]
fn a_tcp_connection_to_an_endpoint_that_is_gone_gets_its_reset() {
    let Some(world) = World::new() else { return };
    let mut flows = [0, 1].map(|family| world.flow(family, at(NODE[family], NODE_PORT), Transport::Tcp));
    flows.iter_mut().for_each(|flow| world.offload(flow, 0));
    write(&world.manifests, 1);
    let line = "vmap_proxy_connections_reset_total 2\n";
    eventually("they are found", || world.metrics().contains(line));
    for flow in &mut flows {
        eventually("it is reset", || flow.flow.ask(10).unwrap() == ProbeResult::Reset);
    }
    // Connections that go on come back into the flow table.
    let mut other = world.flow(0, at(NODE[0], NODE_PORT), Transport::Udp);
    world.offload(&mut other, 1);
    assert!(world.agent.unwrap().stop().success());
}

#[test]
fn it_ends_with_the_agent_and_connections_go_on() {
    let Some(mut world) = World::new() else { return };
    let mut flows = TRANSPORTS.map(|transport| world.flow(0, at(NODE[0], NODE_PORT), transport));
    for is_killed in [false, true] {
        flows.iter_mut().for_each(|flow| world.offload(flow, 0));
        assert!(world.has_table());
        let agent = world.agent.take().unwrap();
        if is_killed {
            drop(agent);
        } else {
            assert!(agent.stop().success());
        }
        eventually("the table goes with its socket", || !world.has_table());
        for flow in &mut flows {
            eventually("it leaves the flow table", || {
                world.ask(flow, 0);
                world.is_offloaded(flow) == Some(false)
            });
        }
        world.start();
    }
    flows.iter_mut().for_each(|flow| world.offload(flow, 0));
    assert!(world.agent.take().unwrap().stop().success());
    let cleanup = world.cluster.node().run(|| vmap_proxy(&["cleanup"]).status()).unwrap().unwrap();
    assert!(cleanup.success());
    assert!(!world.nft(&["list", "tables"]).contains("vmap-proxy"));
}

#[test]
fn a_flush_by_others_passes_it_over() {
    let Some(world) = World::new() else { return };
    let mut flow = world.flow(0, at(NODE[0], NODE_PORT), Transport::Udp);
    world.offload(&mut flow, 0);
    world.nft(&["flush", "ruleset"]);
    assert!(world.has_table());
    nft_in(world.cluster.node(), &["delete", "table", "inet", TABLE], "").unwrap_err();
    world.ask(&mut flow, 0);
    assert_eq!(world.is_offloaded(&flow), Some(true));
    eventually("the rules are repaired", || world.nft(&["list", "tables"]).contains("table ip vmap-proxy\n"));
    world.offload(&mut flow, 0);
    let mut second = world.flow(1, at(NODE[1], NODE_PORT), Transport::Tcp);
    world.offload(&mut second, 0);
    assert!(world.agent.unwrap().stop().success());
}

/// More than the kernel takes in one message, too.
#[test]
fn interfaces_are_followed() {
    let Some(world) = World::new() else { return };
    assert!(world.members().contains("eth0") && world.members().contains("vethpods"), "{}", world.members());
    world.ip(&["link", "add", "veth1", "type", "veth", "peer", "name", "other1"]);
    world.wait_for_members(3);
    assert!(world.members().contains("veth1") && !world.members().contains("other1"), "{}", world.members());
    world.ip(&["link", "set", "veth1", "name", "veth2"]);
    eventually("the new name", || world.members().contains("veth2") && !world.members().contains("veth1"));
    world.ip(&["link", "set", "veth2", "name", "other2"]);
    world.wait_for_members(2);
    assert!(!world.members().contains("other2") && !world.members().contains("veth2"), "{}", world.members());
    world.ip(&["link", "delete", "other2"]);

    let many = (0..300).map(|number| format!("link add many{number} type dummy\n")).collect::<String>();
    let batch = Scratch::new("batch");
    fs::write(&batch.0, many).unwrap();
    world.ip(&["-batch", batch.0.to_str().unwrap()]);
    world.wait_for_members(302);
    let mut flow = world.flow(0, at(NODE[0], NODE_PORT), Transport::Udp);
    world.offload(&mut flow, 0);
    // Interfaces go while the agent adds others.
    let gone = (0..300).map(|number| format!("link delete many{number}\nlink add many-{number} type dummy\n"));
    fs::write(&batch.0, gone.take(150).collect::<String>()).unwrap();
    world.ip(&["-batch", batch.0.to_str().unwrap()]);
    fs::write(&batch.0, (150..300).map(|number| format!("link delete many{number}\n")).collect::<String>()).unwrap();
    world.ip(&["-batch", batch.0.to_str().unwrap()]);
    world.wait_for_members(152);
    let members = world.members();
    assert!(members.contains("many-149") && !members.contains("many0") && !members.contains("many299"), "{members}");
    world.ask(&mut flow, 0);
    let text = world.log.text();
    assert!(!text.contains("flow table: the kernel refuses") && !text.contains("next attempt"), "{text}");
    assert!(world.agent.unwrap().stop().success());
}
