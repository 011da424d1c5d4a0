//! What the packets of an established UDP flow through a Service pay on a node that forwards them, with and without
//! the flow table: the rounds of both alternate.
//!
//! A packet's whole way runs inside the system call that sends it ([`super::load`]). Its parts are separated by where a
//! packet is dropped: nowhere, at the pod's interface, or at the node's.

use std::fmt::Write;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use vmap_proxy_agent::conntrack::Conntrack;
use vmap_proxy_agent::netlink::{FlowTable, interface_names};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::Lab;
use vmap_proxy_testbed::nft::load_nft;

use super::shapes::{self, UDP};
use crate::scale::Failure;
use crate::scale::report::Machine;
use crate::scale::statistics::Summary;
use crate::scale::workload::cluster_ip;

const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Packets after which a connection gets into the flow table: the agent's default.
const AFTER_PACKETS: u32 = 20;
/// Questions, with an answer each, that establish a flow.
const QUESTIONS: usize = 40;
/// The size for all datagrams of one round, with a margin.
const RECEIVE_BUFFER: usize = 256 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Where packets end.
const ENDS: [(&str, Option<(&str, &str)>); 3] = [
    ("the pod's socket", None),
    ("the pod's interface", Some(("pods", "eth0"))),
    ("the node's interface", Some(("", "client"))),
];

/// One node, with an established flow through it.
struct Path {
    client: UdpSocket,
    pod: UdpSocket,
    flow_table: Option<FlowTable>,
    // Last: its namespaces must outlive the sockets in them.
    lab: Lab,
}

impl Path {
    fn new(services: u32, with_flow_table: bool) -> Result<Self, Failure> {
        let lab = Lab::builder()
            .node_addresses([Ipv4Addr::new(192, 0, 2, 11).into()])
            .host("client", "client", [CLIENT.into()])
            .host("pods", "pods", shapes::pod_addresses().into_iter().map(Into::into))
            .build()?;
        // The rules stay when the agent goes.
        lab.node().run(|| shapes::load_maps(services).map(drop))??;
        let flow_table = if with_flow_table { Some(lab.node().run(flow_table)??) } else { None };
        let client = lab.host("client")?.run(|| UdpSocket::bind((CLIENT, 0)))??;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect(SocketAddrV4::new(cluster_ip(0), UDP.port))?;
        let pods = pods(&lab)?;
        client.send(b"a")?;
        let pod = answering(pods)?;
        let path = Self { client, pod, flow_table, lab };
        path.establish()?;
        Ok(path)
    }

    fn establish(&self) -> Result<(), Failure> {
        let mut buffer = [0; 16];
        for _ in 0..QUESTIONS {
            // The first question is under way.
            let (length, from) = self.pod.recv_from(&mut buffer)?;
            self.pod.send_to(&buffer[..length], from)?;
            self.client.recv(&mut buffer)?;
            self.client.send(b"a")?;
        }
        self.pod.recv(&mut buffer)?;
        self.pod.set_nonblocking(true)?;
        self.check()
    }

    /// The kernel says who carries the flow.
    fn check(&self) -> Result<(), Failure> {
        let to = SocketAddr::from(SocketAddrV4::new(cluster_ip(0), UDP.port));
        let find = || {
            Conntrack::open()?
                .list(Family::Ipv4, |connection| (connection.destination == to).then_some(connection.offloaded))
        };
        let found = self.lab.node().run(find)??;
        let expected = self.flow_table.is_some();
        if found == [expected] {
            Ok(())
        } else {
            Err(format!("flow to {to}: offloaded {found:?}, not {expected}").into())
        }
    }

    /// Nanoseconds per packet.
    fn send(&self, packets: usize) -> Result<f64, Failure> {
        let begun = Instant::now();
        for _ in 0..packets {
            self.client.send(b"a datagram of a few bytes")?;
        }
        Ok(begun.elapsed().as_secs_f64() * 1e9 / packets as f64)
    }

    /// Takes all waiting datagrams. How many there were.
    fn discard(&self) -> Result<usize, Failure> {
        let mut buffer = [0; 64];
        let mut count = 0;
        loop {
            match self.pod.recv(&mut buffer) {
                Ok(_) => count += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Drops every packet at an interface from now on.
    fn drop_at(&self, host: &str, interface: &str) -> Result<(), Failure> {
        let text = format!(
            "table netdev bench {{\n chain {host}end {{\n type filter hook ingress device {interface} priority -300\n drop\n }}\n}}"
        );
        let namespace = if host.is_empty() { self.lab.node() } else { self.lab.host(host)? };
        Ok(load_nft(namespace, &text)?)
    }
}

/// A socket for each pod of the first Service: each answers with its own address.
fn pods(lab: &Lab) -> Result<Vec<UdpSocket>, Failure> {
    let mut sockets = Vec::new();
    for address in shapes::pod_addresses().into_iter().take(shapes::ENDPOINTS as usize) {
        let socket = lab.host("pods")?.run(|| UdpSocket::bind((address, UDP.target)))??;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    Ok(sockets)
}

/// The socket of the pod that a datagram has reached.
fn answering(mut sockets: Vec<UdpSocket>) -> Result<UdpSocket, Failure> {
    let begun = Instant::now();
    loop {
        if let Some(position) = sockets.iter().position(|socket| socket.peek(&mut [0; 16]).is_ok()) {
            let socket = sockets.swap_remove(position);
            socket.set_nonblocking(false)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            return Ok(socket);
        }
        if begun.elapsed() > PATIENCE {
            return Err("no pod got the first datagram".into());
        }
        std::thread::yield_now();
    }
}

fn flow_table() -> Result<FlowTable, Failure> {
    let present = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(interface_names())?;
    let mut table = FlowTable::make(AFTER_PACKETS)?;
    table.follow(&present, |_| true)?;
    Ok(table)
}

/// Nanoseconds per packet for each of the ends, without and with the flow table.
#[derive(Debug)]
pub struct Established {
    machine: Machine,
    services: u32,
    packets: usize,
    rounds: usize,
    nanoseconds: Vec<[f64; 2]>,
}

/// Measures.
///
/// # Errors
/// If namespaces can't be made, the kernel has no flow table, or packets are lost.
pub fn measure(services: u32, packets: usize, rounds: usize) -> Result<Established, Failure> {
    let paths = [Path::new(services, false)?, Path::new(services, true)?];
    let mut nanoseconds = Vec::new();
    for (_, end) in ENDS {
        if let Some((host, interface)) = end {
            paths.iter().try_for_each(|path| path.drop_at(host, interface))?;
        }
        let mut taken = [Vec::new(), Vec::new()];
        // The first round warms up.
        for round in 0..=rounds {
            for (path, taken) in paths.iter().zip(&mut taken) {
                path.discard()?;
                let per_packet = path.send(packets)?;
                let arrived = path.discard()?;
                let expected = if end.is_none() { packets } else { 0 };
                if arrived != expected {
                    return Err(format!("{arrived} of {expected} datagrams arrived").into());
                }
                if round > 0 {
                    taken.push(per_packet);
                }
            }
        }
        // What else the machine does only adds to it.
        nanoseconds.push(taken.map(|taken| Summary::of(taken).min));
    }
    Ok(Established { machine: Machine::this(), services, packets, rounds, nanoseconds })
}

impl Established {
    /// A table in Markdown.
    pub fn markdown(&self) -> String {
        let Self { machine, services, packets, rounds, nanoseconds } = self;
        let mut text = format!(
            "Kernel {}, {} CPUs ({}); an established UDP flow beside {services} Services; {packets} packets a round, the best \
             of {rounds} rounds\n\n",
            machine.kernel, machine.cpus, machine.model
        );
        text.push_str(
            "| a packet from the sender to | rules alone | with the flow table | ratio |\n|---|---|---|---|\n",
        );
        let mut row = |name: &str, [without, with]: [f64; 2]| {
            // Writing to a String can't fail.
            let _ = writeln!(
                text,
                "| {name} | {without:.0} ns ({:.0} packets/s) | {with:.0} ns ({:.0} packets/s) | {:.2} |",
                1e9 / without,
                1e9 / with,
                without / with
            );
        };
        for ((name, _), figures) in ENDS.iter().zip(nanoseconds) {
            row(name, *figures);
        }
        if let [_, forwarded, to_node] = nanoseconds[..] {
            row("the node's part: from its interface to the pod's", [0, 1].map(|path| forwarded[path] - to_node[path]));
        }
        text
    }
}
