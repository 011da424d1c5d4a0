//! A client, a node with rules, and pods.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use vmap_proxy_lab::Lab;

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

/// One set of rules, ready for traffic.
pub struct Stage {
    /// The rules on the node.
    pub shape: Shape,
    /// The number of Services.
    pub services: u32,
    /// The time of loading the rules, in milliseconds.
    pub load_ms: f64,
    client: Client,
    servers: Servers,
    tcp: Vec<SocketAddrV4>,
    udp: Vec<SocketAddrV4>,
    // Last: its namespaces must outlive the sockets in them.
    _lab: Lab,
}

impl Stage {
    /// Builds it and loads the rules.
    ///
    /// # Errors
    /// If namespaces can't be made, or the kernel refuses the rules.
    pub fn new(shape: Shape, services: u32) -> Result<Self, Failure> {
        let sources: Vec<Ipv4Addr> = (1..=CLIENTS).map(|host| Ipv4Addr::new(198, 51, 100, host)).collect();
        let lab = Lab::builder()
            .node_addresses([Ipv4Addr::new(192, 0, 2, 11).into()])
            .host("client", "client", sources.iter().copied().map(Into::into))
            .host("pods", "pods", shapes::pod_addresses().into_iter().map(Into::into))
            .build()?;
        let begun = Instant::now();
        match shape {
            Shape::NoRules => {}
            // The rules stay when the agent goes.
            Shape::Maps => lab.node().run(|| shapes::load_maps(services).map(drop))??,
            Shape::ChainPerService => load_nft(lab.node(), &shapes::chain_per_service(services))?,
        }
        let load_ms = milliseconds(begun.elapsed());
        let servers = lab.host("pods")?.run(|| Servers::start(TCP.target, UDP.target))??;
        let (tcp, udp) = targets(shape, services);
        let client = Client::new(sources);
        Ok(Self { shape, services, load_ms, client, servers, tcp, udp, _lab: lab })
    }

    /// New UDP flows, one packet each: what sending took, in microseconds.
    ///
    /// # Errors
    /// If a packet did not arrive.
    pub fn first_packets(&mut self, flows: usize) -> Result<Vec<f64>, Failure> {
        self.servers.discard_datagrams()?;
        let latencies = self._lab.host("client")?.run(|| self.client.send_datagrams(&self.udp, flows))??;
        let arrived = self.servers.discard_datagrams()?;
        if arrived != flows {
            return Err(format!(
                "{arrived} of {flows} datagrams arrived ({} services, {:?})",
                self.services, self.shape
            )
            .into());
        }
        Ok(latencies)
    }

    /// TCP connections, one after the other: what opening took, in
    /// microseconds.
    ///
    /// # Errors
    /// If one is refused.
    pub fn connections(&mut self, count: usize) -> Result<Vec<f64>, Failure> {
        self._lab.host("client")?.run(|| self.client.connect(&self.tcp, count))?
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
    let all = |wanted: Port| {
        let serving: Vec<u32> = (0..services).filter(|service| shapes::ports(*service).contains(&wanted)).collect();
        let stride = serving.len().div_ceil(CALLED);
        serving.into_iter().step_by(stride).map(|service| SocketAddrV4::new(cluster_ip(service), wanted.port)).collect()
    };
    (all(TCP), all(UDP))
}
