//! A cluster end to end: an API server, a node namespace in which the real
//! agent runs as a process of its own, pods with echo servers, and clients.
//!
//! * [`Cluster`]: all of it together;
//! * [`Api`]: the API server, a double or a real one;
//! * [`AgentProcess`]: the agent and what it logs;
//! * [`objects`]: the objects that tests give the API server;
//! * [`Traffic`]: connections all the while.

mod agent;
mod api;
mod generation;
pub mod http;
pub mod objects;
mod real_api;
mod traffic;

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ::vmap_proxy_agent::lab::{Lab, LabError, NetNs, Probe, ProbeResult, Transport};

pub use self::agent::{AgentProcess, Program};
pub use self::api::{Api, ApiError, Double, REAL_API};
pub use self::generation::generation;
pub use self::http::Reply;
pub use self::real_api::RealApi;
pub use self::traffic::Traffic;

/// Nothing in these tests takes this long, not even in an emulated machine; what never comes ends a test.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// How long a probe waits for its answer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(600);

/// The node's own address, its `InternalIP` unless a test changes it.
pub const NODE_IP: &str = "192.0.2.11";
/// A second address of the node.
pub const SECOND_NODE_IP: &str = "192.0.2.13";
/// A client outside of the cluster.
pub const CLIENT: &str = "198.51.100.23";
/// A pod of this node that is nobody's endpoint.
pub const CLIENT_POD: &str = "10.244.1.100";
/// A host outside whose address a ServiceCIDR may cover.
pub const OUTSIDER: &str = "10.77.0.9";

/// The address of the n-th pod on this node, from 1 to 8.
pub fn local_pod(number: u8) -> String {
    format!("10.244.1.{number}")
}

/// The address of the n-th pod on another node, from 1 to 8.
pub fn remote_pod(number: u8) -> String {
    format!("10.244.2.{number}")
}

/// The port on which every pod answers, over TCP and UDP.
pub const POD_PORT: u16 = 8080;

/// What a test can't go on without.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The namespaces.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Files or processes.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running cluster of one node. Everything goes when it is dropped.
pub struct Cluster {
    /// The API server.
    pub api: Api,
    /// The namespaces: node, pods, the world outside.
    pub lab: Arc<Lab>,
    program: Program,
    directory: PathBuf,
}

impl Cluster {
    /// Builds it, with this node and no other object; the agent does not run
    /// yet. `program` is how it is started.
    ///
    /// # Errors
    /// Namespaces or the API server can't be had.
    pub fn start(program: Program) -> Result<Self, ClusterError> {
        let lab = Arc::new(lab()?);
        let api = Api::start(lab.node())?;
        let directory = own_directory()?;
        let cluster = Self { api, lab, program, directory };
        cluster.api.apply(&objects::node(|_| {}))?;
        Ok(cluster)
    }

    /// The configuration as kubeadm writes it, with `mode: nftables`, and
    /// these fields changed (JSON pointers). As in kind, where nodes are
    /// containers too, the size of the connection table is left alone: a
    /// namespace can't change it.
    pub fn configuration(&self, changes: &[(&str, serde_json::Value)]) -> serde_json::Value {
        let mut configuration = objects::kubeadm_configuration(&self.api.kubeconfig());
        for (pointer, value) in changes {
            match configuration.pointer_mut(pointer) {
                Some(field) => *field = value.clone(),
                None => panic!("kubeadm writes no {pointer}"),
            }
        }
        configuration
    }

    /// Where [`agent_with`](Self::agent_with) writes the configuration.
    pub fn configuration_file(&self) -> PathBuf {
        self.directory.join("config.conf")
    }

    /// Starts the agent on the node, with the configuration of kubeadm.
    ///
    /// # Errors
    /// No process, or no file.
    pub fn agent(&self) -> io::Result<AgentProcess> {
        self.agent_with(&self.configuration(&[]))
    }

    /// Starts the agent on the node, as a kubeadm cluster's DaemonSet does.
    ///
    /// # Errors
    /// No process, or no file.
    pub fn agent_with(&self, configuration: &serde_json::Value) -> io::Result<AgentProcess> {
        let file = self.configuration_file();
        fs::write(&file, serde_saphyr::to_string(configuration).map_err(io::Error::other)?)?;
        let config = format!("--config={}", file.display());
        self.agent_by(&[&config, &format!("--hostname-override={}", objects::NODE)])
    }

    /// Starts the agent on the node with these arguments.
    ///
    /// # Errors
    /// No process.
    pub fn agent_by(&self, arguments: &[&str]) -> io::Result<AgentProcess> {
        AgentProcess::start(self.lab.node(), &self.program, arguments)
    }

    /// Starts the agent on the node with these arguments, and these variables
    /// beside those of the test.
    ///
    /// # Errors
    /// No process.
    pub fn agent_in_environment(&self, arguments: &[String], variables: &[(&str, &str)]) -> io::Result<AgentProcess> {
        let mut command = Command::new(&self.program.path);
        command.args(&self.program.first).args(arguments).envs(variables.iter().copied());
        AgentProcess::spawn(self.lab.node(), command)
    }

    /// One new connection.
    pub fn probe(&self, source: &str, target: SocketAddr, transport: Transport) -> ProbeResult {
        let source: IpAddr = source.parse().unwrap_or_else(|error| panic!("{source}: {error}"));
        let probe = Probe { source, target, transport, timeout: PROBE_TIMEOUT };
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
        let source_ip: IpAddr = source.parse().unwrap_or_else(|error| panic!("{source}: {error}"));
        // Every pod is met by as many with a probability of 1 - 10^-7 or more.
        let probe = Probe { source: source_ip, target, transport: Transport::Tcp, timeout: PROBE_TIMEOUT };
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
        self.lab.node().run(|| http::get(address, path)).map_err(io::Error::other)?
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

    /// A directory that goes with the cluster.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The namespace in which the agent runs.
    pub fn node(&self) -> &NetNs {
        self.lab.node()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn lab() -> Result<Lab, LabError> {
    let parsed = |texts: Vec<String>| -> Vec<IpAddr> { texts.iter().filter_map(|text| text.parse().ok()).collect() };
    let mut local = vec![CLIENT_POD.to_owned()];
    local.extend((1..=8).map(local_pod));
    let mut outside = vec![CLIENT.to_owned(), "192.0.2.12".to_owned(), OUTSIDER.to_owned()];
    outside.extend((1..=8).map(remote_pod));
    let pods: Vec<String> = local[1..].iter().chain(&outside[3..]).cloned().collect();
    let lab = Lab::builder()
        .node_addresses(parsed(vec![NODE_IP.to_owned(), SECOND_NODE_IP.to_owned()]))
        .host("pods", "vetha", parsed(local))
        .uplink("outside", "eth0", parsed(outside))
        .build()?;
    for address in parsed(pods) {
        for transport in [Transport::Tcp, Transport::Udp] {
            lab.listen(SocketAddr::new(address, POD_PORT), transport)?;
        }
    }
    for address in parsed(vec![OUTSIDER.to_owned()]) {
        lab.listen(SocketAddr::new(address, 80), Transport::Tcp)?;
    }
    Ok(lab)
}

fn own_directory() -> io::Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("vmap-proxy-cluster-{}-{number}", std::process::id()));
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
