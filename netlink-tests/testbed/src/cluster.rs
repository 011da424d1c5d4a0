//! A cluster of fixed shape around one node, and questions to ask it.
//!
//! The client and the pods of other nodes are behind the node's uplink; every
//! packet crosses the node, between two pods, too.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmap_proxy_compiler::model::ProxyConfig;
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_lab::http::{self, Reply};
use vmap_proxy_lab::{Flow, Lab, NetNs, Probe, ProbeResult, Transport};

use crate::PATIENCE;
use crate::generation::generation;
use crate::manifests::{self, NODE_NAME};
use crate::traffic::Traffic;

/// This node's addresses.
pub const NODE: [&str; 2] = ["192.0.2.11", "2001:db8:1::11"];
/// A second address of the node, which its Node object does not have.
pub const SECOND_NODE_IP: &str = "192.0.2.13";
/// A pod of this node that serves nothing.
pub const POD: [&str; 2] = ["10.244.1.77", "fd00:10:244:1::77"];
/// A client outside of the cluster.
pub const CLIENT: [&str; 2] = ["198.51.100.23", "2001:db8:2::23"];
/// Pods of this node that serve on [`POD_PORT`].
pub const LOCAL: [[&str; 4]; 2] = [
    ["10.244.1.11", "10.244.1.12", "10.244.1.13", "10.244.1.14"],
    ["fd00:10:244:1::11", "fd00:10:244:1::12", "fd00:10:244:1::13", "fd00:10:244:1::14"],
];
/// Pods of another node that serve on [`POD_PORT`].
pub const REMOTE: [[&str; 4]; 2] = [
    ["10.244.2.11", "10.244.2.12", "10.244.2.13", "10.244.2.14"],
    ["fd00:10:244:2::11", "fd00:10:244:2::12", "fd00:10:244:2::13", "fd00:10:244:2::14"],
];
/// Further pods, by the last number of their IPv4 address, on this node and on another one.
const MORE_PODS: [u8; 4] = [15, 16, 17, 18];
/// A host outside whose address a ServiceCIDR may cover; it serves on port 80.
pub const OUTSIDER: &str = "10.77.0.9";
/// Another node.
const OTHER_NODE: &str = "192.0.2.12";
/// The port of the serving pods.
pub const POD_PORT: u16 = 8080;
/// Protocols.
pub const ALL_TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

/// The wait of a probe that must be answered: below a second, so that no SYN is
/// sent twice, and a lost one is noticed.
const PATIENT: Duration = Duration::from_millis(950);
/// The wait of one of a series of probes, of which one has to end as expected.
const PROBE_TIMEOUT: Duration = Duration::from_millis(600);
/// The wait of a probe that must not be answered.
const BRIEF: Duration = Duration::from_millis(200);

/// Returns whether an address belongs to this node or one of its pods.
pub fn is_on_this_node(address: &str) -> bool {
    NODE.contains(&address) || address.starts_with("10.244.1.") || address.starts_with("fd00:10:244:1:")
}

/// The configuration the fixtures' proxies run with.
pub fn proxy_config() -> ProxyConfig {
    let pods = ["10.244.0.0/16", "fd00:10:244::/56"];
    ProxyConfig {
        node_name: NODE_NAME.to_owned(),
        detect_local: DetectLocal::ClusterCidr(pods.iter().filter_map(|range| range.parse().ok()).collect()),
        ..ProxyConfig::default()
    }
}

/// This node's Node object.
pub fn node_object() -> serde_json::Value {
    manifests::node(NODE)
}

/// The running cluster.
#[derive(Debug)]
pub struct Cluster {
    lab: Arc<Lab>,
}

/// An address of a test; a mistake in one is a mistake of the test.
pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Address and port of a test.
pub fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(address), port)
}

fn ips<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    texts.into_iter().map(ip).collect()
}

impl Default for Cluster {
    fn default() -> Self {
        Self::new()
    }
}

impl Cluster {
    /// Builds it, with all pods serving over every protocol.
    ///
    /// # Panics
    ///
    /// If the kernel refuses: tests can't go on.
    pub fn new() -> Self {
        let [more_local, more_remote] = [1, 2].map(|node| MORE_PODS.map(|pod| IpAddr::from([10, 244, node, pod])));
        let local_pods = [ips(LOCAL.into_iter().flatten()), more_local.to_vec()].concat();
        let remote_pods = [ips(REMOTE.into_iter().flatten()), more_remote.to_vec()].concat();
        let outside = ips(CLIENT.into_iter().chain([OTHER_NODE, OUTSIDER]));
        let lab = Lab::builder()
            .node_addresses(ips(NODE.into_iter().chain([SECOND_NODE_IP])))
            .host("pods", "vethpods", [local_pods.clone(), ips(POD)].concat())
            .uplink("outside", "eth0", [remote_pods.clone(), outside].concat())
            .build();
        let cluster = Self { lab: Arc::new(lab.unwrap_or_else(|error| panic!("{error}"))) };
        for pod in [local_pods, remote_pods].concat() {
            for transport in ALL_TRANSPORTS {
                cluster.serve(SocketAddr::new(pod, POD_PORT), transport);
            }
        }
        cluster.serve(at(OUTSIDER, 80), Transport::Tcp);
        cluster
    }

    /// The node's namespace.
    pub fn node(&self) -> &NetNs {
        self.lab.node()
    }

    /// The namespaces themselves.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Starts a server.
    ///
    /// # Panics
    ///
    /// If it can't listen there.
    pub fn serve(&self, address: SocketAddr, transport: Transport) {
        self.lab.listen(address, transport).unwrap_or_else(|error| panic!("{address}: {error}"));
    }

    /// Starts connections from `source` to `target`, one after the other, until stopped.
    pub fn traffic(&self, source: &str, target: SocketAddr) -> Traffic {
        Traffic::start(&self.lab, source, target)
    }

    /// Makes new connections, all at once.
    ///
    /// # Panics
    ///
    /// If no socket can be made.
    #[track_caller]
    pub fn connect(&self, from: &str, to: SocketAddr, transport: Transport, connections: usize) -> Vec<ProbeResult> {
        let probe = Probe { source: ip(from), target: to, transport, timeout: PATIENT };
        self.lab.probe_all(&vec![probe; connections]).unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
    }

    /// Makes new connections, which must all be answered. By whom?
    ///
    /// # Panics
    ///
    /// If one of them is not answered.
    #[track_caller]
    pub fn answers(&self, from: &str, to: SocketAddr, transport: Transport, connections: usize) -> BTreeSet<IpAddr> {
        let results = self.connect(from, to, transport, connections);
        results.into_iter().map(|result| answerer(result, &format!("{from} to {to} over {transport}"))).collect()
    }

    /// Asserts that exactly these pods answer.
    ///
    /// # Panics
    ///
    /// If others do, or one of them never does.
    #[track_caller]
    pub fn assert_served<'a>(
        &self,
        from: &str,
        to: SocketAddr,
        transport: Transport,
        pods: impl IntoIterator<Item = &'a str>,
    ) {
        let pods: BTreeSet<IpAddr> = pods.into_iter().map(ip).collect();
        // Misses one of `n` pods in one run of 10^8: n * ((n-1)/n)^k < 10^-8.
        let connections = if pods.len() == 1 { 2 } else { 24 * pods.len() };
        let answered = self.answers(from, to, transport, connections);
        assert_eq!(answered, pods, "{from} to {to} over {transport}");
    }

    /// Asserts that a connection is refused at once, by a rule.
    ///
    /// # Panics
    ///
    /// If anything else happens.
    #[track_caller]
    pub fn assert_refused(&self, from: &str, to: SocketAddr, transport: Transport) {
        let result = self.connect(from, to, transport, 1);
        assert!(result.iter().all(ProbeResult::is_port_unreachable), "{from} to {to} over {transport}: {result:?}");
    }

    /// Asserts that nothing at all comes back.
    ///
    /// # Panics
    ///
    /// If anything does.
    #[track_caller]
    pub fn assert_silence(&self, from: &str, to: SocketAddr, transport: Transport) {
        let probe = Probe { source: ip(from), target: to, transport, timeout: BRIEF };
        let result = self.lab.probe(&probe).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        assert_eq!(result, ProbeResult::Silence, "{from} to {to} over {transport}");
    }

    /// Opens a connection that stays open.
    ///
    /// # Panics
    ///
    /// If no socket can be made.
    #[track_caller]
    pub fn flow(&self, from: &str, to: SocketAddr, transport: Transport) -> Flow {
        let probe = Probe { source: ip(from), target: to, transport, timeout: PATIENT };
        self.lab.open_flow(&probe).unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
    }

    /// Sends `bytes` on an open connection. Who answers?
    ///
    /// # Panics
    ///
    /// If nobody does.
    #[track_caller]
    pub fn ask(&self, flow: &mut Flow, bytes: usize) -> IpAddr {
        let result = flow.ask(bytes).unwrap_or_else(|error| panic!("{flow:?}: {error}"));
        answerer(result, &format!("{bytes} bytes on {flow:?}"))
    }

    /// One new connection.
    pub fn probe(&self, source: &str, target: SocketAddr, transport: Transport) -> ProbeResult {
        let probe = Probe { source: ip(source), target, transport, timeout: PROBE_TIMEOUT };
        self.lab.probe(&probe).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Opens connections from `source` to `target` again and again until the
    /// outcome is as it should be.
    ///
    /// # Panics
    /// If it is not within [`PATIENCE`].
    pub fn eventually(
        &self,
        source: &str,
        target: SocketAddr,
        transport: Transport,
        expected: impl Fn(&ProbeResult) -> bool,
    ) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let result = self.probe(source, target, transport);
            if expected(&result) {
                return;
            }
            assert!(Instant::now() < deadline, "{source} to {target} ({transport}): still {result}");
        }
    }

    /// Waits until new connections from `source` to `target` reach exactly
    /// these pods.
    ///
    /// # Panics
    /// If it is not so within [`PATIENCE`].
    pub fn eventually_reaches(&self, source: &str, target: SocketAddr, pods: &[String]) {
        let deadline = Instant::now() + PATIENCE;
        // Every pod is met by as many with a probability of 1 - 10^-7 or more.
        let probe = Probe { source: ip(source), target, transport: Transport::Tcp, timeout: PROBE_TIMEOUT };
        let probes = vec![probe; 16 * pods.len().max(1) * pods.len().max(1).ilog2().max(1) as usize];
        let mut wanted = pods.to_vec();
        wanted.sort_unstable();
        loop {
            let results = self.lab.probe_all(&probes).unwrap_or_else(|error| panic!("{error}"));
            let answered = results.iter().filter_map(|result| match result {
                ProbeResult::Answered { by, .. } => Some(by.ip().to_string()),
                _ => None,
            });
            let mut met: Vec<String> = answered.collect();
            let all_answered = met.len() == results.len();
            met.sort_unstable();
            met.dedup();
            if all_answered && met == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{source} to {target}: wanted {wanted:?}, met {met:?}");
        }
    }

    /// Asks a server on the node, from the node, by HTTP.
    ///
    /// # Errors
    /// It can't be reached, or does not speak HTTP.
    pub fn get(&self, address: SocketAddr, path: &str) -> io::Result<Reply> {
        self.lab.node().run(|| http::get_blocking(address, path)).map_err(io::Error::other)?
    }

    /// Asks again and again until the reply is as it should be.
    ///
    /// # Panics
    /// If it is not within [`PATIENCE`].
    pub fn eventually_replies(&self, address: SocketAddr, path: &str, expected: impl Fn(&Reply) -> bool) -> Reply {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reply = self.get(address, path);
            match &reply {
                Ok(reply) if expected(reply) => return reply.clone(),
                _ => assert!(Instant::now() < deadline, "{address}{path}: still {reply:?}"),
            }
            // There is no event to wait for on this side.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The generation of the node's rules: every commit, whoever makes it,
    /// adds one.
    pub fn generation(&self) -> u32 {
        let read = self.lab.node().run(generation).unwrap_or_else(|error| panic!("{error}"));
        read.unwrap_or_else(|error| panic!("the generation of the rules: {error}"))
    }
}

/// Returns the pod that sent an answer.
///
/// # Panics
///
/// If it is no answer; `what` is then in the message.
#[track_caller]
pub fn answerer(result: ProbeResult, what: &str) -> IpAddr {
    match result {
        ProbeResult::Answered { by, .. } => by.ip(),
        other => panic!("{what}: {other}"),
    }
}
