//! Stale flows are deleted, and only those: real flows through real rules in network namespaces.
//!
//! Every scenario sends a datagram from one and the same client socket before and after, so that it is one flow to the
//! kernel, and shows first that the flow goes astray without the clean-up.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nlink::netlink::netfilter::{
    ConntrackBuilder, ConntrackEntry, ConntrackFilter, ConntrackStatus, ConntrackTuple, IpProtocol,
};
use nlink::netlink::{Connection, Netfilter};
use serde_json::{Value, json};
use vmap_proxy_agent::conntrack::{CleanReport, Conntrack, StaleFlows};
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::{Identity, Lab, Probe, ProbeResult, Transport};
use vmap_proxy_testbed::nft::load_nft;

const PATIENT: Duration = Duration::from_millis(900);
const BRIEF: Duration = Duration::from_millis(150);

const SCTP: IpProtocol = IpProtocol::Other(132);

const SERVICE_PORT: u16 = 53;
const NODE_PORT: u16 = 30053;
const TARGET_PORT: u16 = 5353;

/// The addresses of one family.
struct Net {
    family: Family,
    cluster_ip: &'static str,
    pod_a: &'static str,
    pod_b: &'static str,
    client: &'static str,
    outside: &'static str,
    remote: &'static str,
    node: &'static str,
    other_node_address: &'static str,
}

const V4: Net = Net {
    family: Family::Ipv4,
    cluster_ip: "10.96.0.10",
    pod_a: "10.244.1.5",
    pod_b: "10.244.1.6",
    client: "10.244.1.7",
    outside: "198.51.100.23",
    remote: "203.0.113.9",
    node: "192.0.2.11",
    other_node_address: "192.0.2.211",
};

const V6: Net = Net {
    family: Family::Ipv6,
    cluster_ip: "fd00:10:96::10",
    pod_a: "fd00:10:244:1::5",
    pod_b: "fd00:10:244:1::6",
    client: "fd00:10:244:1::7",
    outside: "2001:db8:2::23",
    remote: "2001:db8:9::9",
    node: "2001:db8:1::11",
    other_node_address: "2001:db8:1::211",
};

const BOTH: [Net; 2] = [V4, V6];

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

impl Net {
    fn cluster(&self) -> SocketAddr {
        at(self.cluster_ip, SERVICE_PORT)
    }

    fn node_port(&self) -> SocketAddr {
        at(self.node, NODE_PORT)
    }

    fn a(&self) -> SocketAddr {
        at(self.pod_a, TARGET_PORT)
    }

    fn b(&self) -> SocketAddr {
        at(self.pod_b, TARGET_PORT)
    }

    /// The name of the Service and its slice.
    fn name(&self) -> String {
        format!("dns-{}", self.family.keyword())
    }

    /// A Service with a NodePort; UDP and TCP have the same numbers.
    fn service(&self, port: u16, node_port: u16) -> Value {
        let ports = ["UDP", "TCP", "SCTP"].map(|protocol| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": port, "nodePort": node_port})
        });
        json!({"kind": "Service", "metadata": {"name": self.name(), "namespace": "kube-system"},
            "spec": {"type": "NodePort", "clusterIP": self.cluster_ip, "ports": ports}})
    }

    /// Its endpoints: each an address, and whether it terminates.
    fn slice(&self, endpoints: &[(&str, bool)]) -> Value {
        let family = if self.family == Family::Ipv4 { "IPv4" } else { "IPv6" };
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|(address, terminating)| {
                json!({"addresses": [address],
                    "conditions": {"ready": !terminating, "serving": true, "terminating": terminating}})
            })
            .collect();
        let ports = ["UDP", "TCP", "SCTP"]
            .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET_PORT}));
        json!({"kind": "EndpointSlice", "addressType": family, "endpoints": endpoints, "ports": ports,
            "metadata": {"name": self.name(), "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": self.name()}}})
    }

    fn objects(&self, endpoints: &[&str]) -> [Value; 2] {
        let endpoints: Vec<(&str, bool)> = endpoints.iter().map(|address| (*address, false)).collect();
        [self.service(SERVICE_PORT, NODE_PORT), self.slice(&endpoints)]
    }
}

/// A node with its proxy, pods that answer, and clients.
struct World {
    lab: Lab,
    store: Store,
    planner: Planner,
    runtime: tokio::runtime::Runtime,
    conntrack: Conntrack,
    witness: Connection<Netfilter>,
}

impl World {
    fn new() -> Self {
        let ips = |of: fn(&Net) -> &'static str| BOTH.map(|net| of(&net).parse::<IpAddr>().unwrap());
        let lab = Lab::builder()
            .node_addresses([ips(|net| net.node), ips(|net| net.other_node_address)].concat())
            .host("pod-a", "vetha", ips(|net| net.pod_a))
            .host("pod-b", "vethb", ips(|net| net.pod_b))
            .host("client", "vethc", ips(|net| net.client))
            .uplink("outside", "eth0", [ips(|net| net.outside), ips(|net| net.remote)].concat())
            .build()
            .unwrap();
        for net in BOTH {
            for transport in [Transport::Udp, Transport::Sctp] {
                lab.listen(net.a(), transport).unwrap();
                lab.listen(net.b(), transport).unwrap();
            }
            lab.listen(at(net.remote, NODE_PORT), Transport::Udp).unwrap();
            lab.listen(at(net.pod_a, 8080), Transport::Udp).unwrap();
        }
        // The node tracks flows only where a rule asks for it; these two do, as any cluster's rules do.
        load_nft(
            lab.node(),
            "table inet track { chain pre { type filter hook prerouting priority 0; ct state invalid counter; }
               chain out { type filter hook output priority 0; ct state invalid counter; }; }",
        )
        .unwrap();
        let mut store = Store::new("node-a");
        let addresses = BOTH.map(|net| json!({"type": "InternalIP", "address": net.node}));
        let node = json!({"kind": "Node", "metadata": {"name": "node-a"}, "status": {"addresses": addresses}});
        store.apply(Change::Apply(serde_json::from_value(node).unwrap()));
        store.set_interface_addresses([ips(|net| net.node), ips(|net| net.other_node_address)].concat());
        let config = ProxyConfig { node_name: "node-a".to_owned(), ..ProxyConfig::default() };
        let mut planner = Planner::new(config, store.node());
        while planner.update(&mut store).is_some() {}
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (conntrack, witness) = lab
            .node()
            .run(|| {
                let _guard = runtime.enter();
                (Conntrack::open().unwrap(), Connection::<Netfilter>::new().unwrap())
            })
            .unwrap();
        Self { lab, store, planner, runtime, conntrack, witness }
    }

    /// Programs what the objects say; returns what that makes stale.
    fn apply(&mut self, objects: &[Value]) -> StaleFlows {
        for object in objects {
            let problems = self.store.apply(Change::Apply(serde_json::from_value(object.clone()).unwrap()));
            assert!(problems.is_empty(), "{problems:?}");
        }
        self.commit()
    }

    fn delete(&mut self, object: &Value) -> StaleFlows {
        let object: Object = serde_json::from_value(object.clone()).unwrap();
        self.store.apply(Change::Delete(object.reference()));
        self.commit()
    }

    fn commit(&mut self) -> StaleFlows {
        let plans = std::iter::from_fn(|| self.planner.update(&mut self.store));
        let changed: Vec<_> = plans.flat_map(|plan| plan.changed).collect();
        for table in &self.planner.ruleset().tables {
            let name = format!("{} vmap-proxy", table.config.family.keyword());
            let text = format!("add table {name}\ndelete table {name}\n{}", render::table(table));
            load_nft(self.lab.node(), &text).unwrap();
        }
        StaleFlows::of_changes(&self.planner, self.store.node(), &changed)
    }

    fn clean(&mut self, stale: &StaleFlows) -> CleanReport {
        self.conntrack.clean(stale).unwrap()
    }

    /// Returns the flows that a start of the proxy would clean.
    fn clean_at_start(&mut self) -> CleanReport {
        let stale = StaleFlows::of_start(&self.planner, self.store.node());
        self.clean(&stale)
    }

    /// The flows of the node, read by nlink.
    fn flows(&self) -> Vec<ConntrackEntry> {
        let both = async {
            let mut entries = self.witness.get_conntrack().await.unwrap();
            entries.extend(self.witness.get_conntrack_v6().await.unwrap());
            entries
        };
        self.runtime.block_on(both)
    }

    /// The identifiers of the flows to this original destination.
    fn ids(&self, protocol: IpProtocol, to: SocketAddr) -> Vec<u32> {
        let flows = self.flows();
        let ours = flows.iter().filter(|flow| {
            flow.proto == protocol && flow.orig.dst_ip == Some(to.ip()) && flow.orig.dst_port == Some(to.port())
        });
        let mut ids: Vec<u32> = ours.map(|flow| flow.id.unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    /// A flow of UDP from this address, and what the first datagram's fate was.
    fn flow(&self, from: &str, to: SocketAddr) -> Flow {
        let source: IpAddr = from.parse().unwrap();
        let socket = self.lab.owner(source).unwrap().run(|| UdpSocket::bind((source, 0)).unwrap()).unwrap();
        socket.connect(to).unwrap();
        Flow { socket, to }
    }

    /// Flows to both kinds of frontend from a pod, from outside, and from the node itself, all of which reach pod A.
    fn flows_to_a(&self, net: &Net) -> Vec<Flow> {
        let mut flows = Vec::new();
        for to in [net.cluster(), net.node_port()] {
            for from in [net.client, net.outside, net.node] {
                flows.push(self.flow(from, to));
            }
        }
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()));
        }
        flows
    }
}

/// One client socket, so one flow.
struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
}

/// The fate of a datagram.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    From(SocketAddr),
    Refused,
    Nothing,
}

impl Flow {
    fn ask(&self) -> Answer {
        self.ask_within(PATIENT)
    }

    /// Sends the next datagram of the flow.
    fn ask_within(&self, patience: Duration) -> Answer {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 256];
        // An ICMP error may have come after the datagram it is about had failed already.
        let _ = self.socket.take_error();
        let received = self.socket.send(b"who?").and_then(|_| self.socket.recv(&mut buffer));
        match received {
            Ok(length) => {
                let identity: Identity = std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap();
                Answer::From(identity.server)
            }
            // A datagram of the node's own that the rules refuse fails at once.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => {
                Answer::Refused
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Answer::Nothing,
            Err(error) => panic!("to {}: {error}", self.to),
        }
    }
}

#[test]
fn flows_follow_a_replaced_endpoint() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&net.objects(&[net.pod_b]));
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()), "rules alone change no flow");
        }
        let report = world.clean(&stale);
        assert_eq!(report.deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()), "to {}", flow.to);
        }
        assert_eq!(world.clean(&stale).deleted, 0, "flows to the new endpoint stay");
    }
}

#[test]
fn nothing_else_is_touched() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a, net.pod_b]));
        let connection = Connected::through(&world, &net);
        let unrelated = [
            world.flow(net.client, at(net.pod_a, 8080)),
            world.flow(net.client, net.a()),
            // The NodePort's number on a host that is not this node.
            world.flow(net.client, at(net.remote, NODE_PORT)),
            // On an address of the node that serves no NodePorts.
            world.flow(net.outside, at(net.other_node_address, NODE_PORT)),
        ];
        let before: Vec<_> = unrelated
            .iter()
            .map(|flow| {
                flow.ask_within(BRIEF);
                let ids = world.ids(IpProtocol::Udp, flow.to);
                assert_eq!(ids.len(), 1, "{}", flow.to);
                ids
            })
            .collect();
        let kept: Vec<Flow> = flows_that_reach(&world, &net, net.b());
        let kept_ids = world.ids(IpProtocol::Udp, net.cluster());
        let tcp = world.ids(IpProtocol::Tcp, net.cluster());

        let stale = world.apply(&net.objects(&[net.pod_b]));
        world.clean(&stale);
        world.clean_at_start();

        let after: Vec<_> = unrelated.iter().map(|flow| world.ids(IpProtocol::Udp, flow.to)).collect();
        assert_eq!(after, before);
        let left = world.ids(IpProtocol::Udp, net.cluster());
        assert_eq!(left.len(), kept.len());
        assert!(left.iter().all(|id| kept_ids.contains(id)), "flows to the endpoint that stays are the same ones");
        assert_eq!(world.ids(IpProtocol::Tcp, net.cluster()), tcp);
        connection.assert_alive();
    }
}

/// Flows from a pod to the cluster IP that chance sent to `endpoint`, out of as many as it takes for four.
fn flows_that_reach(world: &World, net: &Net, endpoint: SocketAddr) -> Vec<Flow> {
    let mut all = Vec::new();
    while all.len() < 4 {
        let flow = world.flow(net.client, net.cluster());
        if flow.ask() == Answer::From(endpoint) {
            all.push(flow);
        }
    }
    all
}

/// A TCP connection through the Service to pod A.
struct Connected {
    client: TcpStream,
    server: TcpStream,
}

impl Connected {
    fn through(world: &World, net: &Net) -> Self {
        let listen = |address: SocketAddr| {
            let listener = world.lab.owner(address.ip()).unwrap().run(|| TcpListener::bind(address)).unwrap().unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        };
        let (listener, _other) = (listen(net.a()), listen(net.b()));
        let client = world.lab.owner(net.client.parse().unwrap()).unwrap();
        // Chance decides between the two pods.
        loop {
            let connection = client.run(|| TcpStream::connect_timeout(&net.cluster(), PATIENT)).unwrap().unwrap();
            if let Ok((server, _)) = listener.accept() {
                server.set_nonblocking(false).unwrap();
                return Self { client: connection, server };
            }
        }
    }

    fn assert_alive(mut self) {
        let mut buffer = [0; 5];
        for stream in [&self.client, &self.server] {
            stream.set_read_timeout(Some(PATIENT)).unwrap();
        }
        self.client.write_all(b"there").unwrap();
        self.server.read_exact(&mut buffer).unwrap();
        self.server.write_all(b"again").unwrap();
        self.client.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"again");
    }
}

#[test]
fn flows_made_before_the_rules_find_the_service() {
    let mut world = World::new();
    for net in BOTH {
        let to_cluster_ip = world.flow(net.client, net.cluster());
        assert_ne!(to_cluster_ip.ask_within(BRIEF), Answer::From(net.a()));
        let to_node_port = world.flow(net.outside, net.node_port());
        assert_ne!(to_node_port.ask_within(BRIEF), Answer::From(net.a()));
        let stale = world.apply(&net.objects(&[net.pod_a]));
        for flow in [&to_cluster_ip, &to_node_port] {
            assert_ne!(flow.ask_within(BRIEF), Answer::From(net.a()), "a flow that exists is not translated");
        }
        assert_eq!(world.clean(&stale).deleted, 2);
        for flow in [&to_cluster_ip, &to_node_port] {
            assert_eq!(flow.ask(), Answer::From(net.a()), "to {}", flow.to);
        }
    }
}

#[test]
fn flows_are_refused_with_the_last_endpoint() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&net.objects(&[]));
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()));
        }
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::Refused, "to {}", flow.to);
        }
        let stale = world.apply(&net.objects(&[net.pod_b]));
        world.clean(&stale);
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()), "to {}", flow.to);
        }
    }
}

#[test]
fn flows_end_with_their_port_and_with_their_service() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&[net.service(SERVICE_PORT + 1, NODE_PORT + 1)]);
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            assert_ne!(flow.ask_within(BRIEF), Answer::From(net.a()), "to {}", flow.to);
        }
        let moved = world.flow(net.client, at(net.cluster_ip, SERVICE_PORT + 1));
        assert_eq!(moved.ask(), Answer::From(net.a()));
        let stale = world.delete(&net.service(0, 0));
        assert_eq!(moved.ask(), Answer::From(net.a()));
        assert_eq!(world.clean(&stale).deleted, 1);
        assert_ne!(moved.ask_within(BRIEF), Answer::From(net.a()));
    }
}

#[test]
fn flows_stay_while_their_endpoint_terminates() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        let stale = world.apply(&[net.slice(&[(net.pod_a, true), (net.pod_b, false)])]);
        assert_eq!(world.clean(&stale).deleted, 0);
        assert_eq!(world.flow(net.client, net.cluster()).ask(), Answer::From(net.b()), "new flows go elsewhere");
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.a()));
        }
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()));
        }
    }
}

#[test]
fn a_start_cleans_what_happened_while_nobody_looked() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let flows = world.flows_to_a(&net);
        assert_eq!(world.clean_at_start().deleted, 0, "a restart cuts nothing that is right");
        // The stale flows of the change are forgotten, as in a crash.
        let _ = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean_at_start().deleted, flows.len());
        for flow in &flows {
            assert_eq!(flow.ask(), Answer::From(net.b()));
        }
    }
}

#[test]
fn sctp_associations_go_with_their_pod() {
    let mut world = World::new();
    for net in BOTH {
        world.apply(&net.objects(&[net.pod_a]));
        let source = net.client.parse().unwrap();
        let probe = Probe { source, target: net.cluster(), transport: Transport::Sctp, timeout: PATIENT };
        let result = world.lab.probe(&probe).unwrap();
        assert!(matches!(result, ProbeResult::Answered { by, .. } if by == net.a()), "{result}");
        assert_eq!(world.ids(SCTP, net.cluster()).len(), 1);
        assert_eq!(world.clean_at_start().deleted, 0);
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, 1);
        assert!(world.ids(SCTP, net.cluster()).is_empty());
    }
}

#[test]
fn flows_in_a_zone_are_deleted_in_that_zone() {
    let mut world = World::new();
    load_nft(
        world.lab.node(),
        "table inet zone { chain pre { type filter hook prerouting priority raw; udp dport 53 ct zone set 7; }; }",
    )
    .unwrap();
    for net in BOTH {
        let untranslated = world.flow(net.client, net.cluster());
        untranslated.ask_within(BRIEF);
        world.apply(&net.objects(&[net.pod_a]));
        let flow = world.flow(net.client, net.cluster());
        flow.ask_within(BRIEF);
        let zones: Vec<_> = world
            .flows()
            .into_iter()
            .filter(|flow| flow.orig.dst_ip == Some(net.cluster().ip()))
            .map(|flow| (flow.zone, flow.reply.src_ip))
            .collect();
        assert_eq!(zones.len(), 2);
        assert!(zones.contains(&(Some(7), Some(net.a().ip()))), "{zones:?}");
        let stale = world.apply(&net.objects(&[net.pod_b]));
        assert_eq!(world.clean(&stale).deleted, 1, "the one that was translated");
        assert_eq!(world.ids(IpProtocol::Udp, net.cluster()).len(), 1);
    }
}

/// Enters flows into the table from outside, `count` of them to the cluster IP, as if translated to pod A.
async fn enter_flows(witness: &Connection<Netfilter>, net: &Net, count: u16) {
    let (IpAddr::V4(client), IpAddr::V4(cluster_ip), IpAddr::V4(pod)) =
        (net.client.parse().unwrap(), net.cluster_ip.parse().unwrap(), net.pod_a.parse().unwrap())
    else {
        panic!("IPv4 only")
    };
    for number in 0..count {
        let port = 10_000 + number;
        let entry = ConntrackBuilder::new_v4(IpProtocol::Udp)
            .orig(ConntrackTuple::v4(client, cluster_ip).ports(port, SERVICE_PORT))
            .reply(ConntrackTuple::v4(pod, client).ports(TARGET_PORT, port))
            .status(ConntrackStatus::CONFIRMED)
            .timeout(Duration::from_secs(600));
        witness.add_conntrack(entry).await.unwrap();
    }
}

#[test]
fn flows_in_their_tens_of_thousands_all_go() {
    const MANY: u16 = 40_000;
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    world.runtime.block_on(enter_flows(&world.witness, &V4, MANY));
    assert_eq!(world.clean_at_start().deleted, 0);
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    let report = world.clean(&stale);
    assert_eq!((report.deleted, report.examined), (usize::from(MANY), usize::from(MANY)), "one dump is enough");
    assert!(world.ids(IpProtocol::Udp, V4.cluster()).is_empty());
}

/// The figures of decision 44, with `nlink` as the other way to clean:
/// `cargo test -p netlink-tests --test traffic how_fast -- --ignored --nocapture`
#[test]
#[ignore = "a measurement, not a test: it prints figures"]
fn how_fast_flows_are_found_and_deleted() {
    const FLOWS: u16 = 50_000;
    let peak = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    let fresh_peak = || {
        // proc(5): lets the peak begin anew.
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        peak()
    };
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    for _ in 0..3 {
        world.runtime.block_on(enter_flows(&world.witness, &V4, FLOWS));
        let before = fresh_peak();
        let report = world.clean(&stale);
        assert_eq!(report.deleted, usize::from(FLOWS));
        eprintln!("ours: found and deleted in {:?}, {:.1} MiB", report.duration, peak() - before);

        world.runtime.block_on(enter_flows(&world.witness, &V4, FLOWS));
        let before = fresh_peak();
        let filter = ConntrackFilter::new().proto(IpProtocol::Udp).orig_dst_port(SERVICE_PORT);
        let begun = Instant::now();
        let (found, deleted) = world.runtime.block_on(async {
            let entries = world.witness.get_conntrack_matching(&filter).await.unwrap();
            let found = begun.elapsed();
            for entry in &entries {
                world.witness.del_conntrack_entry(entry).await.unwrap();
            }
            (found, entries.len())
        });
        assert_eq!(deleted, usize::from(FLOWS));
        let memory = peak() - before;
        eprintln!("nlink: found in {found:?}, found and deleted in {:?}, {memory:.1} MiB", begun.elapsed());
    }
}

#[test]
fn the_kernel_hands_out_only_what_is_asked_for() {
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    world.runtime.block_on(enter_flows(&world.witness, &V4, 1000));
    let mut other = V4.objects(&[V4.pod_a]);
    for object in &mut other {
        object["metadata"]["name"] = "other".into();
    }
    other[0]["spec"]["clusterIP"] = "10.96.0.20".into();
    other[0]["spec"]["type"] = "ClusterIP".into();
    other[0]["spec"]["ports"] = json!([{"name": "udp", "protocol": "UDP", "port": 99}]);
    other[1]["metadata"]["labels"]["kubernetes.io/service-name"] = "other".into();
    let stale = world.apply(&other);
    assert_eq!(stale.to_look_for(), 1);
    let flow = world.flow(V4.client, at("10.96.0.20", 99));
    assert_eq!(flow.ask(), Answer::From(V4.a()));
    let report = world.clean(&stale);
    assert_eq!((report.examined, report.deleted), (1, 0));
}

#[test]
fn other_requests_on_a_busy_table_do_not_disturb() {
    // Flows come and go while the table is dumped: a dump may hold one twice, and a deletion may come too late.
    let mut world = World::new();
    world.apply(&V4.objects(&[V4.pod_a]));
    let stale = world.apply(&V4.objects(&[V4.pod_b]));
    for _ in 0..10 {
        world.runtime.block_on(enter_flows(&world.witness, &V4, 500));
        let flush = async {
            world.witness.flush_conntrack_all().await.unwrap();
        };
        let report = std::thread::scope(|scope| {
            let cleaner = scope.spawn(|| world.conntrack.clean(&stale));
            world.runtime.block_on(flush);
            cleaner.join().unwrap()
        });
        assert!(report.unwrap().deleted <= 500);
        assert!(world.ids(IpProtocol::Udp, V4.cluster()).is_empty());
    }
}
