//! A client, a node with rules, and pods.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vmap_proxy_compiler::ruleset::chains::Chain;
use vmap_proxy_lab::{Lab, NetNs};

use super::load::{Client, Servers};
use super::shapes::{self, PODS, Shape, TCP, UDP};
use crate::scale::Failure;
use crate::scale::statistics::milliseconds;
use crate::scale::workload::{Port, cluster_ip};
use vmap_proxy_testbed::nft::load_nft;

/// Number of Services that are called in turn, spread over all of them.
const CALLED: usize = 64;
/// Number of addresses of the client, with 30,000 flows each.
const CLIENTS: u8 = 16;

/// The client's address where nothing comes from it.
const UNUSED: [Ipv4Addr; 1] = [Ipv4Addr::new(198, 51, 100, 1)];

/// Where new connections come from, and so which hooks they pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A client outside the cluster, whose connections are forwarded and
    /// masqueraded.
    #[default]
    Outside,
    /// A pod of this node: forwarded, and not masqueraded.
    Pod,
    /// A process on the node with an address of the pods' range: output, and
    /// not masqueraded.
    Node,
}

impl Origin {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Origin::Outside => "a client outside the cluster",
            Origin::Pod => "a pod of this node",
            Origin::Node => "the node itself, not masqueraded",
        }
    }

    fn sources(self) -> Vec<Ipv4Addr> {
        let host = |host| match self {
            Origin::Outside => Ipv4Addr::new(198, 51, 100, host),
            Origin::Pod | Origin::Node => Ipv4Addr::new(10, 129, 0, host),
        };
        (1..=CLIENTS).map(host).collect()
    }
}

/// What a stage consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The rules on the node.
    pub shape: Shape,
    /// The number of Services.
    pub services: u32,
    /// Where connections come from.
    pub from: Origin,
    /// A base chain of our table that is taken out again after loading, so that
    /// the difference shows what it costs.
    #[serde(skip)]
    pub without: Option<Chain>,
}

/// One set of rules, ready for traffic.
pub struct Stage {
    /// What it consists of.
    pub plan: Plan,
    /// The time of loading the rules, in milliseconds.
    pub load_ms: f64,
    client: Client,
    servers: Servers,
    tcp: Vec<SocketAddrV4>,
    udp: Vec<SocketAddrV4>,
    // Last: its namespaces must outlive the sockets in them.
    lab: Lab,
}

impl Stage {
    /// Builds it and loads the rules.
    ///
    /// # Errors
    /// If namespaces can't be made, or the kernel refuses the rules.
    pub fn new(plan: Plan) -> Result<Self, Failure> {
        let Plan { shape, services, from, without } = plan;
        let sources = from.sources();
        let (on_node, elsewhere) = match from {
            Origin::Node => (sources.as_slice(), UNUSED.as_slice()),
            Origin::Outside | Origin::Pod => ([].as_slice(), sources.as_slice()),
        };
        let node = std::iter::once(Ipv4Addr::new(192, 0, 2, 11)).chain(on_node.iter().copied());
        let lab = Lab::builder()
            .node_addresses(node.map(Into::into))
            .uplink("client", "client", elsewhere.iter().copied().map(Into::into))
            .host("pods", "pods", shapes::pod_addresses().into_iter().map(Into::into))
            .build()?;
        let begun = Instant::now();
        match shape {
            Shape::NoRules => {}
            Shape::OneRule => load_nft(lab.node(), &shapes::one_rule())?,
            // The rules stay when the agent goes.
            Shape::Maps => lab.node().run(|| shapes::load_maps(services).map(drop))??,
            Shape::ChainPerService => load_nft(lab.node(), &shapes::chain_per_service(services))?,
        }
        let load_ms = milliseconds(begun.elapsed());
        if let Some(chain) = without {
            load_nft(lab.node(), &shapes::without(chain))?;
        }
        let servers = lab.host("pods")?.run(|| Servers::start(TCP.target, UDP.target))??;
        let (tcp, udp) = targets(shape, services);
        let client = Client::new(sources);
        Ok(Self { plan, load_ms, client, servers, tcp, udp, lab })
    }

    /// New UDP flows, one packet each: what sending took, in microseconds.
    ///
    /// # Errors
    /// If a packet did not arrive.
    pub fn first_packets(&mut self, flows: usize) -> Result<Vec<f64>, Failure> {
        self.servers.discard_datagrams()?;
        let namespace = Self::namespace(&self.lab, self.plan.from)?;
        let latencies = namespace.run(|| self.client.send_datagrams(&self.udp, flows))??;
        let arrived = self.servers.discard_datagrams()?;
        if arrived != flows {
            return Err(format!("{arrived} of {flows} datagrams arrived ({:?})", self.plan).into());
        }
        Ok(latencies)
    }

    /// TCP connections, one after the other: what opening took, in
    /// microseconds.
    ///
    /// # Errors
    /// If one is refused.
    pub fn connections(&mut self, count: usize) -> Result<Vec<f64>, Failure> {
        Self::namespace(&self.lab, self.plan.from)?.run(|| self.client.connect(&self.tcp, count))?
    }

    /// The namespace that connections come from.
    fn namespace(lab: &Lab, from: Origin) -> Result<&NetNs, Failure> {
        Ok(match from {
            Origin::Outside | Origin::Pod => lab.host("client")?,
            Origin::Node => lab.node(),
        })
    }
}

/// The destinations of the client: Services spread evenly over all of them, or
/// the pods themselves.
fn targets(shape: Shape, services: u32) -> (Vec<SocketAddrV4>, Vec<SocketAddrV4>) {
    if shape == Shape::NoRules {
        let pods = shapes::pod_addresses();
        let all = |port: u16| pods.iter().map(|ip| SocketAddrV4::new(*ip, port)).collect();
        debug_assert_eq!(pods.len(), PODS as usize);
        return (all(TCP.target), all(UDP.target));
    }
    let services = if shape == Shape::OneRule { 1 } else { services };
    let all = |wanted: Port| {
        let serving: Vec<u32> = (0..services).filter(|service| shapes::ports(*service).contains(&wanted)).collect();
        let stride = serving.len().div_ceil(CALLED);
        serving.into_iter().step_by(stride).map(|service| SocketAddrV4::new(cluster_ip(service), wanted.port)).collect()
    };
    (all(TCP), all(UDP))
}
