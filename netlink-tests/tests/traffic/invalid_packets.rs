//! Packets that connection tracking calls invalid (kubernetes/kubernetes#74839): a segment far outside of the window
//! is not translated back. The client gets it from an address it never spoke to, answers with a reset, and the reset
//! ends the pod's good connection.
//!
//! kube-proxy in nftables mode has no rule against that, and neither have we: `conntrack.tcpBeLiberal` sets
//! `nf_conntrack_tcp_be_liberal`, with which such a segment counts as part of its connection.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use vmap_proxy_lab::{ProbeResult, Transport};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{Cluster, LOCAL, POD_PORT, REMOTE, answerer, at, ip, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{service, slice};

const VIP: &str = "10.96.0.10";
const ACK: u8 = 0x10;
const PATIENCE: Duration = Duration::from_secs(90);

/// The relevant fields of a TCP segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    source: SocketAddr,
    target_port: u16,
    sequence: u32,
    acknowledged: u32,
    payload: usize,
}

/// Sees every TCP segment that arrives at the namespace of an address, and sends such from there.
struct Tap(Socket);

impl Tap {
    fn new(cluster: &Cluster, address: IpAddr) -> Self {
        let open = || {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            socket
        };
        Self(cluster.lab().owner(address).unwrap().run(open).unwrap())
    }

    /// The next segment that is looked for.
    fn find(&self, wanted: impl Fn(&Segment) -> bool) -> Segment {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [MaybeUninit::new(0_u8); 65_536];
        while Instant::now() < deadline {
            let Ok((length, from)) = self.0.recv_from(&mut buffer) else { continue };
            // SAFETY: every byte of `buffer` was initialised to zero above.
            let bytes: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
            let segment = decode(&bytes, from.as_socket().unwrap().ip());
            if wanted(&segment) {
                return segment;
            }
        }
        panic!("no such segment within {PATIENCE:?}");
    }

    fn send(&self, source: SocketAddr, target: SocketAddr, sequence: u32, acknowledged: u32) {
        self.0.bind(&SockAddr::from(SocketAddr::new(source.ip(), 0))).unwrap();
        let segment = encode(source, target, sequence, acknowledged);
        self.0.send_to(&segment, &SocketAddr::new(target.ip(), 0).into()).unwrap();
    }
}

/// raw(7): the IPv4 header comes first.
fn decode(packet: &[u8], source: IpAddr) -> Segment {
    let segment = &packet[usize::from(packet[0] & 0x0f) * 4..];
    let short = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let long = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
    Segment {
        source: SocketAddr::new(source, short(0)),
        target_port: short(2),
        sequence: long(4),
        acknowledged: long(8),
        payload: segment.len() - usize::from(segment[12] >> 4) * 4,
    }
}

/// An acknowledgement without data or options.
fn encode(source: SocketAddr, target: SocketAddr, sequence: u32, acknowledged: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(source.port().to_be_bytes());
    segment.extend(target.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([5 << 4, ACK, 0x20, 0, 0, 0, 0, 0]);
    let mut sum: u32 = u32::from(libc::IPPROTO_TCP as u16) + segment.len() as u32;
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.octets(),
    };
    let words = [octets(source.ip()), octets(target.ip())].concat();
    sum +=
        words.chunks(2).chain(segment.chunks(2)).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !(sum as u16);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Lets the agent set the node's sysctls, as its init container does (kube-proxy's `--init-only`).
fn set_sysctls(cluster: &Cluster, manifests: &ManifestDirectory, flags: &[&str]) {
    // The size of the table belongs to the machine, not to a namespace.
    let mut all = vec!["--init-only", "--conntrack-max-per-core=0", "--conntrack-min=0"];
    all.extend(flags);
    let (status, log) = AgentProcess::launch(PROGRAM, cluster.node(), manifests, &all).end();
    assert!(status.success(), "{log:?}");
}

fn sysctl(cluster: &Cluster, name: &str) -> String {
    let path = format!("/proc/sys/net/netfilter/{name}");
    cluster.node().run(|| std::fs::read_to_string(&path)).unwrap().unwrap().trim().to_owned()
}

/// The pod sends a segment out of the window into an open connection. From which address does the client see it, and
/// what becomes of the connection?
fn out_of_the_window(flags: &[&str]) -> (SocketAddr, ProbeResult) {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    let web = service("shop/web").cluster_ip(VIP).port(Transport::Tcp, 80);
    let endpoints = slice("shop/web", "1").port(Transport::Tcp, POD_PORT.into()).endpoint(LOCAL[0][0]);
    manifests.write_objects("shop.json", &[node_object(), web.build(), endpoints.build()]);
    set_sysctls(&cluster, &manifests, flags);
    let agent = AgentProcess::start(PROGRAM, cluster.node(), &manifests, &[]);

    let (client, pod) = (ip(REMOTE[0][3]), at(LOCAL[0][0], POD_PORT));
    let mut flow = cluster.flow(REMOTE[0][3], at(VIP, 80), Transport::Tcp);
    assert_eq!(answerer(flow.opened(), "the flow"), pod.ip());
    let at_pod = Tap::new(&cluster, pod.ip());
    let at_client = Tap::new(&cluster, client);
    assert_eq!(cluster.ask(&mut flow, 10), pod.ip());
    let request = at_pod.find(|segment| segment.target_port == POD_PORT && segment.payload > 0);
    assert_eq!(request.source.ip(), client);

    let far_away = request.acknowledged.wrapping_add(500_000_000);
    let received = request.sequence.wrapping_add(request.payload as u32);
    at_pod.send(pod, request.source, far_away, received);
    let seen = at_client.find(|segment| segment.sequence == far_away);
    if seen.source == pod {
        // The client's reset is on its way through the node: wait for it.
        at_pod.find(|segment| segment.source == request.source && segment.sequence == received && segment.payload == 0);
    }
    let result = flow.ask(10).unwrap();
    agent.stop();
    (seen.source, result)
}

#[test]
fn liberal_tracking_keeps_the_connection() {
    let (source, result) = out_of_the_window(&["--conntrack-tcp-be-liberal"]);
    assert_eq!(source, at(VIP, 80), "translated back like the rest of its connection");
    assert_eq!(answerer(result, "the connection"), ip(LOCAL[0][0]));
}

/// Strict tracking, the default of kernel and kube-proxy: what the setting is there for.
#[test]
fn strict_tracking_lets_the_client_reset_it() {
    let (source, result) = out_of_the_window(&[]);
    assert_eq!(source, at(LOCAL[0][0], POD_PORT), "not translated");
    assert_eq!(result, ProbeResult::Reset);
}

#[test]
fn the_node_gets_the_timeouts_that_kube_proxy_sets() {
    let cluster = Cluster::new();
    set_sysctls(&cluster, &ManifestDirectory::new(), &[]);
    assert_eq!(sysctl(&cluster, "nf_conntrack_tcp_timeout_close_wait"), "3600");
    assert_eq!(sysctl(&cluster, "nf_conntrack_tcp_timeout_established"), "86400");
    assert_eq!(sysctl(&cluster, "nf_conntrack_tcp_be_liberal"), "0");
}
