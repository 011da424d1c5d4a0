//! SCTP over the kernel's own sockets, and what happens to a protocol that no Service can have.
//!
//! The other tests make SCTP packets by hand, which works on every kernel. Where the kernel has SCTP sockets, it would answer
//! these packets too; so this module loads nothing, and its tests run only where the module `sctp` is there already:
//! `scripts/kernel-matrix --suites sctp 6.1`, or after `modprobe sctp`.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use vmap_proxy_lab::Transport::Sctp;
use vmap_proxy_lab::{Lab, LabError, NetNs, patient};
use vmap_proxy_testbed::cluster::{CLIENT, LOCAL, NODE, POD_PORT, REMOTE, at, ip, node_object, proxy_config};
use vmap_proxy_testbed::manifests::{ServiceManifest, service, slice};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::shop::VIP;
use vmap_proxy_testbed::skip::skipped;

/// Two pods of this node and one of another, each with a namespace of its own: an association names all addresses of a host.
const PODS: [[&str; 2]; 3] = [[LOCAL[0][0], LOCAL[1][0]], [LOCAL[0][1], LOCAL[1][1]], [REMOTE[0][0], REMOTE[1][0]]];

const WAIT: Duration = Duration::from_secs(5);

/// UDP-Lite (RFC 3828), which Services cannot have.
const UDP_LITE: i32 = 136;

/// A node, three pods that accept associations, and a client.
struct World {
    lab: Lab,
    servers: Vec<Server>,
}

/// Accepts associations at one address, and sends its own address and the client's on each.
struct Server {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), LabError>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Release);
        // A failed server shows as a client without an answer.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn sctp_socket(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::SCTP)).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

impl Server {
    fn start(namespace: &NetNs, address: SocketAddr) -> Self {
        let listener = namespace.run(|| sctp_socket(address)).unwrap();
        listener.listen(64).unwrap();
        // How long the end of a server may take.
        listener.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let ended = done.clone();
        let serve = move || {
            let mut open = Vec::new();
            while !ended.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((mut association, peer)) => {
                        let seen = peer.as_socket().map(|peer| peer.ip().to_string()).unwrap_or_default();
                        let _ = association.write_all(format!("{} {seen}\n", address.ip()).as_bytes());
                        open.push(association);
                    }
                    Err(error) => assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)),
                }
            }
        };
        Self { done, thread: Some(namespace.spawn(serve).unwrap()) }
    }
}

impl World {
    /// `None` where the kernel has no SCTP sockets.
    fn new() -> Option<Self> {
        if !Path::new("/proc/net/sctp").exists() {
            skipped("SCTP on real sockets was not tested: the module sctp is not loaded (modprobe sctp)");
            return None;
        }
        let mut builder = Lab::builder().node_addresses(NODE.map(ip));
        for (number, pod) in PODS.into_iter().enumerate() {
            builder = builder.host(format!("pod-{number}"), format!("veth{number}"), pod.map(ip));
        }
        let lab = builder.uplink("outside", "eth0", CLIENT.map(ip)).build().unwrap();
        let addresses = PODS.into_iter().flatten().map(|pod| at(pod, POD_PORT));
        let servers = addresses.map(|address| Server::start(lab.owner(address.ip()).unwrap(), address)).collect();
        Some(Self { lab, servers })
    }

    /// Opens an association: who answered, and the address that it saw.
    fn ask(&self, from: &str, port: u16, to: SocketAddr) -> Result<(IpAddr, IpAddr), String> {
        let source = SocketAddr::new(ip(from), port);
        let owner = if NODE.contains(&from) { self.lab.node() } else { self.lab.owner(source.ip()).unwrap() };
        let text = owner.run(|| {
            let mut socket = sctp_socket(source);
            socket.connect_timeout(&to.into(), patient(WAIT))?;
            socket.set_read_timeout(Some(patient(WAIT)))?;
            // The association ends before the socket does, and its port is free again.
            socket.set_linger(Some(patient(WAIT)))?;
            let mut text = vec![0; 256];
            let length = socket.read(&mut text)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&text[..length]).into_owned())
        });
        let text = text.unwrap().map_err(|error| format!("{from} to {to}: {error}"))?;
        let mut words = text.split_whitespace().map(ip);
        Ok((words.next().unwrap(), words.next().unwrap()))
    }

    #[track_caller]
    fn answers(&self, from: &str, to: SocketAddr, times: usize) -> BTreeSet<IpAddr> {
        (0..times).map(|_| self.ask(from, 0, to).unwrap().0).collect()
    }
}

fn diameter() -> ServiceManifest {
    VIP.into_iter().fold(service("shop/diameter"), ServiceManifest::cluster_ip).port(Sctp, 3868).node_port(31868)
}

fn slices(pods: &[[&'static str; 2]]) -> Vec<serde_json::Value> {
    [0, 1]
        .map(|family: usize| {
            let name = family.to_string();
            let pods = pods.iter().map(|pod| pod[family]);
            let address_type = ["IPv4", "IPv6"][family];
            let slice = slice("shop/diameter", &name).port(Sctp, POD_PORT.into()).endpoints(pods);
            slice.address_type(address_type).build()
        })
        .to_vec()
}

fn program(world: &World, service: &ServiceManifest, pods: &[[&'static str; 2]]) -> Proxy {
    let mut objects = vec![node_object(), service.build()];
    objects.extend(slices(pods));
    Proxy::start(world.lab.node(), proxy_config(), &objects).0
}

/// From a pod, the node and outside, to the cluster IP and the NodePort, in both families.
#[test]
fn associations_reach_every_pod_on_every_path() {
    let Some(world) = World::new() else { return };
    let _proxy = program(&world, &diameter(), &PODS);
    for family in 0..2 {
        let pods: BTreeSet<IpAddr> = PODS.map(|pod| ip(pod[family])).into();
        let (cluster_ip, node_port) = (at(VIP[family], 3868), at(NODE[family], 31868));
        // Misses one of three pods in one run of 400,000.
        for (from, to) in [
            (PODS[0][family], cluster_ip),
            (NODE[family], cluster_ip),
            (CLIENT[family], node_port),
            (PODS[2][family], node_port),
        ] {
            assert_eq!(world.answers(from, to, 40), pods, "{from} to {to}");
        }
    }
    assert_eq!(world.servers.len(), 6);
}

#[test]
fn a_pod_reaches_itself_as_its_node() {
    let Some(world) = World::new() else { return };
    let _proxy = program(&world, &diameter(), &PODS[..1]);
    for family in 0..2 {
        let (by, seen) = world.ask(PODS[0][family], 0, at(VIP[family], 3868)).unwrap();
        assert_eq!(by, ip(PODS[0][family]));
        assert!(world.lab.is_node_address(seen), "{seen}");
    }
}

#[test]
fn a_client_sticks_to_its_pod() {
    let Some(world) = World::new() else { return };
    let _proxy = program(&world, &diameter().affinity(600), &PODS);
    for family in 0..2 {
        for from in [PODS[1][family], CLIENT[family]] {
            let to = if from == CLIENT[family] { at(NODE[family], 31868) } else { at(VIP[family], 3868) };
            assert_eq!(world.answers(from, to, 10).len(), 1, "{from}");
        }
    }
}

/// SCTP clients like to use the same port again. A flow that is tracked to a pod that is gone would swallow that INIT.
#[test]
fn the_flow_of_a_pod_that_is_gone_ends() {
    let Some(world) = World::new() else { return };
    let proxy = program(&world, &diameter(), &PODS[..1]);
    for family in 0..2 {
        let (from, to) = (PODS[2][family], at(VIP[family], 3868));
        proxy.apply(&slices(&PODS[..1]));
        assert_eq!(world.ask(from, 40_000, to).unwrap().0, ip(PODS[0][family]));
        proxy.apply(&slices(&PODS[1..2]));
        assert_eq!(world.ask(from, 40_000, to).unwrap().0, ip(PODS[1][family]));
    }
}

/// A datagram of another protocol to the port of a Service's NodePort is the node's own.
#[test]
fn udp_lite_is_left_alone() {
    let lab = Lab::builder().node_addresses(NODE.map(ip)).uplink("outside", "eth0", CLIENT.map(ip)).build().unwrap();
    let service = VIP.into_iter().fold(service("shop/web"), ServiceManifest::cluster_ip);
    let service = service.port(vmap_proxy_lab::Transport::Udp, 80).node_port(30080).build();
    let (_proxy, _) = Proxy::start(lab.node(), proxy_config(), &[node_object(), service]);
    for (node, client) in NODE.into_iter().zip(CLIENT) {
        let open = |address: &str, port: u16| {
            let address = at(address, port);
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::from(UDP_LITE)))?;
            socket.bind(&address.into())?;
            socket.set_read_timeout(Some(patient(WAIT)))?;
            Ok::<_, std::io::Error>(socket)
        };
        let mut server = match lab.node().run(|| open(node, 30080)).unwrap() {
            Ok(socket) => socket,
            Err(error) => {
                return skipped(format_args!("UDP-Lite was not tested, the kernel has no such sockets: {error}"));
            }
        };
        let sender = lab.owner(ip(client)).unwrap().run(|| open(client, 0)).unwrap().unwrap();
        sender.send_to(b"light", &at(node, 30080).into()).unwrap();
        let mut text = [0; 16];
        let length = server.read(&mut text).unwrap();
        assert_eq!(&text[..length], b"light");
    }
}
