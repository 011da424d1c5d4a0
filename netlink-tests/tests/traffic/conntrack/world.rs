//! A node with a Service in both families, its pods and clients, and the flows between them.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nlink::netlink::netfilter::{ConntrackBuilder, ConntrackEntry, ConntrackStatus, ConntrackTuple, IpProtocol};
use nlink::netlink::{Connection, Netfilter};
use serde_json::{Value, json};
use vmap_proxy_agent::conntrack::{CleanReport, Conntrack, StaleFlows};
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::Planner;
use vmap_proxy_compiler::render;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::{Identity, Lab, Transport};
use vmap_proxy_testbed::nft::load_nft;

/// How long an answer that must come may take.
pub(super) const PATIENT: Duration = Duration::from_secs(20);

pub(super) const SERVICE_PORT: u16 = 53;
pub(super) const NODE_PORT: u16 = 30053;
pub(super) const TARGET_PORT: u16 = 5353;

/// The addresses of one family.
pub(super) struct Net {
    pub(super) family: Family,
    pub(super) cluster_ip: &'static str,
    pub(super) pod_a: &'static str,
    pub(super) pod_b: &'static str,
    pub(super) client: &'static str,
    pub(super) outside: &'static str,
    pub(super) remote: &'static str,
    pub(super) node: &'static str,
    pub(super) other_node_address: &'static str,
}

pub(super) const V4: Net = Net {
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

pub(super) const V6: Net = Net {
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

pub(super) const BOTH: [Net; 2] = [V4, V6];

pub(super) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

impl Net {
    pub(super) fn cluster(&self) -> SocketAddr {
        at(self.cluster_ip, SERVICE_PORT)
    }

    pub(super) fn node_port(&self) -> SocketAddr {
        at(self.node, NODE_PORT)
    }

    pub(super) fn a(&self) -> SocketAddr {
        at(self.pod_a, TARGET_PORT)
    }

    pub(super) fn b(&self) -> SocketAddr {
        at(self.pod_b, TARGET_PORT)
    }

    /// The name of the Service and its slice.
    pub(super) fn name(&self) -> String {
        format!("dns-{}", self.family.keyword())
    }

    /// A Service with a NodePort; UDP and TCP have the same numbers.
    pub(super) fn service(&self, port: u16, node_port: u16) -> Value {
        let ports = ["UDP", "TCP", "SCTP"].map(|protocol| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": port, "nodePort": node_port})
        });
        json!({"kind": "Service", "metadata": {"name": self.name(), "namespace": "kube-system"},
            "spec": {"type": "NodePort", "clusterIP": self.cluster_ip, "ports": ports}})
    }

    /// Its endpoints: each an address, and whether it terminates.
    pub(super) fn slice(&self, endpoints: &[(&str, bool)]) -> Value {
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

    pub(super) fn objects(&self, endpoints: &[&str]) -> [Value; 2] {
        let endpoints: Vec<(&str, bool)> = endpoints.iter().map(|address| (*address, false)).collect();
        [self.service(SERVICE_PORT, NODE_PORT), self.slice(&endpoints)]
    }
}

/// A node with its proxy, pods that answer, and clients.
pub(super) struct World {
    pub(super) lab: Lab,
    pub(super) store: Store,
    pub(super) planner: Planner,
    pub(super) runtime: tokio::runtime::Runtime,
    pub(super) conntrack: Conntrack,
    pub(super) nlink: Connection<Netfilter>,
}

impl World {
    pub(super) fn new() -> Self {
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
        let (conntrack, nlink) = lab
            .node()
            .run(|| {
                let _guard = runtime.enter();
                (Conntrack::open().unwrap(), Connection::<Netfilter>::new().unwrap())
            })
            .unwrap();
        Self { lab, store, planner, runtime, conntrack, nlink }
    }

    /// Programs what the objects say; returns what that makes stale.
    pub(super) fn apply(&mut self, objects: &[Value]) -> StaleFlows {
        for object in objects {
            let problems = self.store.apply(Change::Apply(serde_json::from_value(object.clone()).unwrap()));
            assert!(problems.is_empty(), "{problems:?}");
        }
        self.commit()
    }

    pub(super) fn delete(&mut self, object: &Value) -> StaleFlows {
        let object: Object = serde_json::from_value(object.clone()).unwrap();
        self.store.apply(Change::Delete(object.reference()));
        self.commit()
    }

    pub(super) fn commit(&mut self) -> StaleFlows {
        let plans = std::iter::from_fn(|| self.planner.update(&mut self.store));
        let changed: Vec<_> = plans.flat_map(|plan| plan.changed).collect();
        for table in &self.planner.ruleset().tables {
            let name = format!("{} vmap-proxy", table.config.family.keyword());
            let text = format!("add table {name}\ndelete table {name}\n{}", render::table(table));
            load_nft(self.lab.node(), &text).unwrap();
        }
        StaleFlows::of_changes(&self.planner, self.store.node(), &changed)
    }

    pub(super) fn clean(&mut self, stale: &StaleFlows) -> CleanReport {
        self.conntrack.clean(stale).unwrap()
    }

    /// Returns the flows that a start of the proxy would clean.
    pub(super) fn clean_at_start(&mut self) -> CleanReport {
        let stale = StaleFlows::of_start(&self.planner, self.store.node());
        self.clean(&stale)
    }

    /// The flows of the node, read by nlink.
    pub(super) fn flows(&self) -> Vec<ConntrackEntry> {
        let both = async {
            let mut entries = self.nlink.get_conntrack().await.unwrap();
            entries.extend(self.nlink.get_conntrack_v6().await.unwrap());
            entries
        };
        self.runtime.block_on(both)
    }

    /// The identifiers of the flows to this original destination.
    pub(super) fn ids(&self, protocol: IpProtocol, to: SocketAddr) -> Vec<u32> {
        let flows = self.flows();
        let ours = flows.iter().filter(|flow| {
            flow.proto == protocol && flow.orig.dst_ip == Some(to.ip()) && flow.orig.dst_port == Some(to.port())
        });
        let mut ids: Vec<u32> = ours.map(|flow| flow.id.unwrap()).collect();
        ids.sort_unstable();
        ids
    }

    /// A flow of UDP from this address, and what the first datagram's fate was.
    pub(super) fn flow(&self, from: &str, to: SocketAddr) -> Flow {
        let source: IpAddr = from.parse().unwrap();
        let socket = self.lab.owner(source).unwrap().run(|| UdpSocket::bind((source, 0)).unwrap()).unwrap();
        socket.connect(to).unwrap();
        Flow { socket, to }
    }

    /// Sends the next datagram of a flow; panics if pod A answers it.
    ///
    /// Nothing need come back, so a second datagram follows on the same way, to pod A itself. Pod A answers in the order
    /// of arrival: when the second is answered, an answer to the first is here, or there is none.
    pub(super) fn assert_not_answered_by_a(&self, flow: &Flow, net: &Net) {
        flow.send();
        let source = flow.socket.local_addr().unwrap().ip().to_string();
        assert_eq!(self.flow(&source, net.a()).ask(), Answer::From(net.a()));
        flow.socket.set_nonblocking(true).unwrap();
        assert_ne!(flow.receive(), Some(Answer::From(net.a())), "to {}", flow.to);
        flow.socket.set_nonblocking(false).unwrap();
    }

    /// Sends the first datagram of a flow to which nothing need come back, and waits for the flow in the table.
    pub(super) fn begin(&self, flow: &Flow) {
        let before = self.ids(IpProtocol::Udp, flow.to).len();
        flow.send();
        let deadline = Instant::now() + PATIENT;
        while self.ids(IpProtocol::Udp, flow.to).len() == before {
            assert!(Instant::now() < deadline, "no flow to {} appeared", flow.to);
            std::thread::yield_now();
        }
    }

    /// Flows to both kinds of frontend from a pod, from outside, and from the node itself, all of which reach pod A.
    pub(super) fn flows_to_a(&self, net: &Net) -> Vec<Flow> {
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
pub(super) struct Flow {
    pub(super) socket: UdpSocket,
    pub(super) to: SocketAddr,
}

/// The answer to a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    From(SocketAddr),
    Refused,
}

impl Flow {
    /// Sends the next datagram of the flow and waits for what comes back.
    pub(super) fn ask(&self) -> Answer {
        self.socket.set_read_timeout(Some(PATIENT)).unwrap();
        if !self.send() {
            return Answer::Refused;
        }
        self.receive().unwrap_or_else(|| panic!("nothing came back from {} within {PATIENT:?}", self.to))
    }

    /// Sends the next datagram of the flow; returns false if the rules refused it at once, as they do with the node's
    /// own.
    pub(super) fn send(&self) -> bool {
        // An ICMP error may have come after the datagram it is about had failed already.
        let _ = self.socket.take_error();
        match self.socket.send(b"who?") {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => false,
            Err(error) => panic!("to {}: {error}", self.to),
        }
    }

    fn receive(&self) -> Option<Answer> {
        let mut buffer = [0; 256];
        match self.socket.recv(&mut buffer) {
            Ok(length) => {
                let identity: Identity = std::str::from_utf8(&buffer[..length]).unwrap().parse().unwrap();
                Some(Answer::From(identity.server))
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(Answer::Refused),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("to {}: {error}", self.to),
        }
    }
}

/// Flows from a pod to the cluster IP that chance sent to `endpoint`, out of as many as it takes for four.
pub(super) fn flows_that_reach(world: &World, net: &Net, endpoint: SocketAddr) -> Vec<Flow> {
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
pub(super) struct Connected {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Connected {
    pub(super) fn through(world: &World, net: &Net) -> Self {
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

    pub(super) fn assert_alive(mut self) {
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

/// Enters flows into the table from outside, `count` of them to the cluster IP, as if translated to pod A.
pub(super) async fn enter_flows(nlink: &Connection<Netfilter>, net: &Net, count: u16) {
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
        nlink.add_conntrack(entry).await.unwrap();
    }
}
