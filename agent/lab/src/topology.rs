//! The lab itself: one node namespace and the hosts around it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::probe::probe_all;
use crate::{EchoServer, Flow, LabError, NetNs, Probe, ProbeResult, Transport, links};

/// Kernel parameters of every namespace. Reverse path filters and the refusal of one's own source address would drop
/// packets between two addresses of one host; ICMP rate limits would turn a reject into silence (the masks select
/// the limited types, per host and in total); redirects would teach hosts a way around the node.
const COMMON_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.accept_local", "1"),
    ("net.ipv4.conf.all.accept_redirects", "0"),
    ("net.ipv4.conf.default.accept_redirects", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    ("net.ipv4.icmp_ratemask", "0"),
];

/// The same for IPv6.
const COMMON_IPV6_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv6.icmp.ratemask", "255"),
    ("net.ipv6.conf.all.disable_ipv6", "0"),
    ("net.ipv6.conf.default.disable_ipv6", "0"),
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_ra", "0"),
    ("net.ipv6.conf.default.accept_redirects", "0"),
];

/// The settings that make the node a router.
const NODE_SYSCTLS: &[(&str, &str)] = &[("net.ipv4.ip_forward", "1")];

/// The same for IPv6.
const NODE_IPV6_SYSCTLS: &[(&str, &str)] =
    &[("net.ipv6.conf.all.forwarding", "1"), ("net.ipv6.conf.default.forwarding", "1")];

/// The UDP port on which every namespace of a lab answers, on its first address of each family: the discard port, which
/// no Service has.
const CONTROL_PORT: u16 = 9;
/// Longest wait for an answer from there, and the number of attempts, because a datagram may be lost.
const CONTROL_PATIENCE: Duration = Duration::from_secs(2);
const CONTROL_ATTEMPTS: usize = 5;

/// Three seconds by default, in which a slow machine does not get from one question on a [`Flow`] to the next: its INIT
/// would be a new association. Absent where connection tracking is not loaded yet.
const SCTP_PATIENCE: &[(&str, &str)] = &[("net.netfilter.nf_conntrack_sctp_timeout_cookie_wait", "300")];

/// A host to attach to the node: a pod, a client, another node with its pods, or many of these in one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Name to ask the lab for it.
    pub name: String,
    /// Name of the interface on the node that leads to it, at most 15 bytes.
    pub interface: String,
    /// Its addresses. The node routes each of them to it.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the node on that interface, such as a bridge's or tunnel's own.
    pub node_side: Vec<IpAddr>,
    /// Whether that interface is a bridge, of which the host is one port.
    pub bridged: bool,
}

/// Describes a lab before it is built.
#[derive(Debug, Clone, Default)]
pub struct LabBuilder {
    node_addresses: Vec<IpAddr>,
    hosts: Vec<HostSpec>,
    uplink: Option<usize>,
}

impl LabBuilder {
    /// Gives the node its own addresses; the first of each family is the primary one, which masquerading
    /// takes. They sit on the uplink's interface, or on the loopback interface where there is no uplink.
    pub fn node_addresses(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.node_addresses.extend(addresses);
        self
    }

    /// Attaches a host.
    pub fn host(
        mut self,
        name: impl Into<String>,
        interface: impl Into<String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        self.hosts.push(HostSpec {
            name: name.into(),
            interface: interface.into(),
            addresses: addresses.into_iter().collect(),
            node_side: Vec::new(),
            bridged: false,
        });
        self
    }

    /// Makes the interface that leads to the host attached last a bridge, with the host behind a port of it. Several
    /// hosts may be behind one bridge. Without a host before it, this does nothing.
    pub fn bridged(mut self) -> Self {
        if let Some(host) = self.hosts.last_mut() {
            host.bridged = true;
        }
        self
    }

    /// Gives the node addresses on the interface that leads to the host attached last. Masquerading towards that
    /// host takes the first of the family, so that a masqueraded connection of the node itself shows, too.
    /// Without a host before it, this does nothing.
    pub fn node_side(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        if let Some(host) = self.hosts.last_mut() {
            host.node_side.extend(addresses);
        }
        self
    }

    /// Attaches the host to which the node sends whatever it has no better route for. The last one named
    /// is the uplink.
    pub fn uplink(
        self,
        name: impl Into<String>,
        interface: impl Into<String>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut with_host = self.host(name, interface, addresses);
        with_host.uplink = with_host.hosts.len().checked_sub(1);
        with_host
    }

    /// Makes the namespaces, links, addresses and routes. When it returns, packets flow.
    ///
    /// # Errors
    ///
    /// The process lacks the privilege (see [`enter_user_namespace`](crate::enter_user_namespace)), the kernel
    /// refuses a link or address, or two namespaces were given one address.
    pub fn build(self) -> Result<Lab, LabError> {
        raise_file_limit();
        let node = NetNs::new("node")?;
        prepare(&node)?;
        set_sysctls(&node, NODE_SYSCTLS, NODE_IPV6_SYSCTLS)?;
        // Without it, only an SCTP flow on a slow machine is in danger.
        let _ = node.set_sysctls(SCTP_PATIENCE);
        let mut lab = Lab {
            node_addresses: BTreeSet::from([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]),
            node_server: EchoServer::start(&node)?,
            node,
            hosts: Vec::with_capacity(self.hosts.len()),
            owners: RwLock::default(),
            controls: Vec::new(),
        };
        for spec in &self.hosts {
            lab.attach(spec)?;
        }
        let uplink = self.uplink.and_then(|index| self.hosts.get(index));
        let interface = uplink.map_or("lo", |host| host.interface.as_str());
        links::add_addresses(&lab.node, interface, &self.node_addresses)?;
        lab.node_addresses.extend(&self.node_addresses);
        if uplink.is_some() {
            links::set_uplink(&lab.node, interface)?;
        }
        lab.check_no_shared_address()?;
        lab.serve_controls(&self.hosts)?;
        Ok(lab)
    }
}

/// One host of a running lab.
#[derive(Debug)]
struct Host {
    interface: String,
    bridged: bool,
    namespace: NetNs,
    server: EchoServer,
}

/// A running lab. Dropping it stops its servers and takes everything away.
#[derive(Debug)]
pub struct Lab {
    node: NetNs,
    node_addresses: BTreeSet<IpAddr>,
    node_server: EchoServer,
    hosts: Vec<Host>,
    /// The host (by position) of each address.
    owners: RwLock<BTreeMap<IpAddr, usize>>,
    /// The addresses of the control servers.
    controls: Vec<IpAddr>,
}

impl Lab {
    /// Starts the description of a lab.
    pub fn builder() -> LabBuilder {
        LabBuilder::default()
    }

    /// The namespace of the node: where the proxy runs and locally generated connections start.
    pub fn node(&self) -> &NetNs {
        &self.node
    }

    /// The namespace of a host.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownHost`].
    pub fn host(&self, name: &str) -> Result<&NetNs, LabError> {
        self.find_host(name).map(|index| &self.hosts[index].namespace)
    }

    /// Returns whether the node has this address (its own, or in the loopback
    /// range).
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node_addresses.contains(&address)
    }

    /// The namespace that has this address.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownAddress`].
    pub fn owner(&self, address: IpAddr) -> Result<&NetNs, LabError> {
        self.owner_and_server(address).map(|(namespace, _)| namespace)
    }

    /// Gives a host further addresses while the lab runs.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownHost`], or the kernel refuses one.
    pub fn add_addresses(&self, host: &str, addresses: &[IpAddr]) -> Result<(), LabError> {
        self.give(self.find_host(host)?, addresses)
    }

    /// Starts an echo server at `address`, in whichever namespace has it. When it returns, connections are
    /// accepted. Asking twice for the same one is no error.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownAddress`], or the port can't be bound.
    pub fn listen(&self, address: SocketAddr, transport: Transport) -> Result<(), LabError> {
        let (namespace, server) = self.owner_and_server(address.ip())?;
        server.listen(namespace, address, transport)
    }

    /// Makes one probe from whichever namespace has its source address.
    ///
    /// # Errors
    ///
    /// See [`Lab::probe_all`].
    pub fn probe(&self, probe: &Probe) -> Result<ProbeResult, LabError> {
        let mut results = self.probe_all(std::slice::from_ref(probe))?;
        Ok(results.pop().unwrap_or(ProbeResult::Silence))
    }

    /// Makes all probes at once, each a new connection from whichever namespace has its source address, and
    /// answers in the same order. It takes about as long as the slowest one.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownAddress`] for a source address nobody has, or a socket can't be made.
    pub fn probe_all(&self, probes: &[Probe]) -> Result<Vec<ProbeResult>, LabError> {
        let mut groups: BTreeMap<&str, (&NetNs, Vec<usize>)> = BTreeMap::new();
        for (index, probe) in probes.iter().enumerate() {
            let namespace = self.owner(probe.source)?;
            let group = groups.entry(namespace.name());
            group.or_insert_with(|| (namespace, Vec::new())).1.push(index);
        }
        let mut results = vec![ProbeResult::Silence; probes.len()];
        let by_group = thread::scope(|scope| {
            let running: Vec<_> = groups
                .into_values()
                .map(|(namespace, indices)| {
                    let own: Vec<Probe> = indices.iter().map(|&index| probes[index]).collect();
                    (indices, scope.spawn(move || probe_all(namespace, &own, &|source| self.settle(source))))
                })
                .collect();
            running
                .into_iter()
                .map(|(indices, thread)| match thread.join() {
                    Ok(answers) => (indices, answers),
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect::<Vec<_>>()
        });
        for (indices, answers) in by_group {
            for (index, answer) in indices.into_iter().zip(answers?) {
                results[index] = answer;
            }
        }
        Ok(results)
    }

    /// Waits until every namespace of the lab has answered a question that `source` asks now: whatever `source` asked
    /// before would have been answered by then. A refusal is an answer, too.
    ///
    /// # Errors
    ///
    /// [`LabError::Unsettled`], or [`LabError::UnknownAddress`].
    pub fn settle(&self, source: IpAddr) -> Result<(), LabError> {
        let namespace = self.owner(source)?;
        for target in self.controls(source) {
            let target = SocketAddr::new(target, CONTROL_PORT);
            let probe = Probe { source, target, transport: Transport::Udp, timeout: CONTROL_PATIENCE };
            let ask = || Ok::<_, LabError>(Flow::open(namespace, &probe)?.opened() != ProbeResult::Silence);
            let mut answered = false;
            for _ in 0..CONTROL_ATTEMPTS {
                answered = ask()?;
                if answered {
                    break;
                }
            }
            if !answered {
                return Err(LabError::Unsettled { from: source, target: target.ip() });
            }
        }
        Ok(())
    }

    /// The addresses of the servers that [`settle`](Self::settle) asks. Nothing leaves the node from a loopback address.
    fn controls(&self, source: IpAddr) -> Vec<IpAddr> {
        if source.is_loopback() {
            return vec![source];
        }
        self.controls.iter().copied().filter(|control| control.is_ipv4() == source.is_ipv4()).collect()
    }

    /// Starts the control servers: on the first address of each family that the node has and that each host has.
    fn serve_controls(&mut self, hosts: &[HostSpec]) -> Result<(), LabError> {
        let own: Vec<IpAddr> = self.node_addresses.iter().copied().filter(|address| !address.is_loopback()).collect();
        for addresses in hosts.iter().map(|host| &host.addresses).chain([&own]) {
            for is_family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
                self.controls.extend(addresses.iter().find(|address| is_family(address)));
            }
        }
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let loopback = loopback.iter().take(if links::has_ipv6() { 2 } else { 1 });
        let all = loopback.chain(&self.controls);
        all.copied().try_for_each(|address| self.listen((address, CONTROL_PORT).into(), Transport::Udp))
    }

    /// Opens a connection that stays open, from whichever namespace has its source address. A UDP flow is one
    /// socket, and its first datagram.
    ///
    /// # Errors
    ///
    /// [`LabError::UnknownAddress`], or a socket can't be made.
    pub fn open_flow(&self, probe: &Probe) -> Result<Flow, LabError> {
        Flow::open(self.owner(probe.source)?, probe)
    }

    fn attach(&mut self, spec: &HostSpec) -> Result<(), LabError> {
        let namespace = self.node.new_beside(&spec.name)?;
        prepare(&namespace)?;
        if spec.bridged {
            let number = port_number(self.hosts.len());
            links::join_bridge(&self.node, &namespace, &spec.interface, &format!("port{number}"), number)?;
        } else {
            links::join(&self.node, &namespace, &spec.interface)?;
        }
        let server = EchoServer::start(&namespace)?;
        self.hosts.push(Host { interface: spec.interface.clone(), bridged: spec.bridged, namespace, server });
        links::add_addresses(&self.node, &spec.interface, &spec.node_side)?;
        self.node_addresses.extend(&spec.node_side);
        self.give(self.hosts.len() - 1, &spec.addresses)
    }

    fn give(&self, index: usize, addresses: &[IpAddr]) -> Result<(), LabError> {
        let host = &self.hosts[index];
        links::add_addresses(&host.namespace, links::HOST_INTERFACE, addresses)?;
        if host.bridged {
            links::add_bridge_routes(&self.node, &host.interface, port_number(index), addresses)?;
        } else {
            links::add_host_routes(&self.node, &host.interface, addresses)?;
        }
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        owners.extend(addresses.iter().map(|&address| (address, index)));
        Ok(())
    }

    fn check_no_shared_address(&self) -> Result<(), LabError> {
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        match owners.keys().find(|address| self.is_node_address(**address)) {
            Some(shared) => Err(LabError::DuplicateAddress(*shared)),
            None => Ok(()),
        }
    }

    fn find_host(&self, name: &str) -> Result<usize, LabError> {
        let found = self.hosts.iter().position(|host| host.namespace.name() == name);
        found.ok_or_else(|| LabError::UnknownHost(name.to_owned()))
    }

    fn owner_and_server(&self, address: IpAddr) -> Result<(&NetNs, &EchoServer), LabError> {
        if self.is_node_address(address) {
            return Ok((&self.node, &self.node_server));
        }
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        let index = owners.get(&address).copied();
        let host = index.and_then(|index| self.hosts.get(index));
        host.map(|host| (&host.namespace, &host.server)).ok_or(LabError::UnknownAddress(address))
    }
}

/// No lab has more than a handful of hosts.
fn port_number(position: usize) -> u8 {
    u8::try_from(position).unwrap_or(u8::MAX)
}

fn prepare(namespace: &NetNs) -> Result<(), LabError> {
    set_sysctls(namespace, COMMON_SYSCTLS, COMMON_IPV6_SYSCTLS)?;
    links::loopback_up(namespace)
}

fn set_sysctls(namespace: &NetNs, common: &[(&str, &str)], ipv6: &[(&str, &str)]) -> Result<(), LabError> {
    namespace.set_sysctls(common)?;
    if links::has_ipv6() { namespace.set_sysctls(ipv6) } else { Ok(()) }
}

/// Allows as many open files as the process may have at all: every probe in flight is one, and the usual
/// soft limit of 1,024 is soon reached. A failure is harmless here; a socket that cannot be created
/// reports an error.
fn raise_file_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
