//! The cluster IPs of the cluster's DNS Service, led to the agent's own server while it answers: real questions of a
//! pod and of the node, over IPv4 and IPv6, while the agent is killed, stopped, frozen and started.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use serde_json::json;
use vmap_proxy_agent::netlink::remove_name_routes;
use vmap_proxy_testbed::cluster::{Cluster, LOCAL, POD, at, ip};

use super::*;

const FLAGS: [&str; 3] = [
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--dns-upstream=192.0.2.254",
    "--dns-take-over=kube-system/kube-dns",
];
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// The response code of the Service's endpoint, which no answer of the agent has: NOTAUTH.
const OF_ENDPOINT: u8 = 9;
/// The longest time without answers after the agent's end.
const OUTAGE: Duration = Duration::from_secs(5);

/// Whoever answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answerer {
    Agent,
    Endpoint,
}

fn kube_dns() -> [Value; 3] {
    let slice = |family: &str, address: &str| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53},
            ],
            "metadata": {
                "namespace": "kube-system", "name": format!("kube-dns-{}", family.to_lowercase()),
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
        })
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "kube-system", "name": "kube-dns"},
        "spec": {
            "clusterIP": SERVICE[0], "clusterIPs": SERVICE, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53},
            ],
        },
    });
    [service, slice("IPv4", LOCAL[0][0]), slice("IPv6", LOCAL[1][0])]
}

fn question(id: u16) -> Vec<u8> {
    let name = b"\x05web-1\x04shop\x03svc\x07cluster\x05local\0\0\x01\0\x01";
    [&id.to_be_bytes()[..], b"\x01\0\0\x01\0\0\0\0\0\0", name].concat()
}

/// Stands for CoreDNS in a pod of this node, over UDP and TCP.
fn serve_endpoints(cluster: &Cluster) {
    let answer = |question: &[u8]| [&question[..2], &[0x80, OF_ENDPOINT, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    for address in [LOCAL[0][0], LOCAL[1][0]] {
        let pod = cluster.lab().owner(ip(address)).unwrap();
        let udp = pod.run(|| UdpSocket::bind(at(address, 53))).unwrap().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, client)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(&answer(&buffer[..length]), client);
            }
        });
        let tcp = pod.run(|| TcpListener::bind(at(address, 53))).unwrap().unwrap();
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ = stream.and_then(|mut stream| {
                    let mut buffer = [0; 512];
                    let length = stream.read(&mut buffer)?;
                    let answer = answer(&buffer[2..length]);
                    stream.write_all(&[&[0, 12], &answer[..]].concat())
                });
            }
        });
    }
}

fn answerer(answer: &[u8]) -> Answerer {
    match answer[3] & 15 {
        0 => Answerer::Agent,
        OF_ENDPOINT => Answerer::Endpoint,
        code => panic!("code {code}"),
    }
}

/// A client that keeps one socket, and so one flow, as long-lived resolvers do.
struct Client {
    what: String,
    socket: UdpSocket,
    service: SocketAddr,
    asked: u16,
}

impl Client {
    fn new(namespace: &NetNs, source: IpAddr, service: &str, what: &str) -> Self {
        let socket = namespace.run(|| UdpSocket::bind((source, 0))).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self { what: format!("{what} at {service}"), socket, service: at(service, 53), asked: 0 }
    }

    /// All clients: a pod and the node, over both families.
    fn all(cluster: &Cluster) -> Vec<Client> {
        let pod = cluster.lab().owner(ip(POD[0])).unwrap();
        let node = cluster.node();
        vec![
            Self::new(pod, ip(POD[0]), SERVICE[0], "a pod"),
            Self::new(pod, ip(POD[1]), SERVICE[1], "a pod"),
            Self::new(node, Ipv4Addr::UNSPECIFIED.into(), SERVICE[0], "the node"),
            Self::new(node, Ipv6Addr::UNSPECIFIED.into(), SERVICE[1], "the node"),
        ]
    }

    /// Asks once; `None`: no answer. An answer from elsewhere is an error.
    fn ask(&mut self) -> Option<Answerer> {
        self.asked += 1;
        self.socket.send_to(&question(self.asked), self.service).ok()?;
        let mut buffer = [0; 512];
        loop {
            let (_, from) = self.socket.recv_from(&mut buffer).ok()?;
            assert_eq!(from, self.service, "{}", self.what);
            if buffer[..2] == self.asked.to_be_bytes() {
                return Some(answerer(&buffer));
            }
        }
    }
}

/// Waits until all clients are answered by `wanted`, and returns the time it took.
#[track_caller]
fn await_answerer(clients: &mut [Client], wanted: Answerer) -> Duration {
    let begun = Instant::now();
    for client in clients {
        eventually(&format!("{wanted:?} answers {}", client.what), || client.ask() == Some(wanted));
    }
    begun.elapsed()
}

/// One question over TCP, on a new connection.
fn over_tcp(namespace: &NetNs, service: &str) -> Option<Answerer> {
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&at(service, 53), Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let question = question(7);
        stream.write_all(&[&[0, u8::try_from(question.len()).unwrap()], &question[..]].concat())?;
        let mut answer = vec![0; 14];
        stream.read_exact(&mut answer)?;
        Ok(answer.split_off(2))
    };
    namespace.run(ask).unwrap().ok().map(|answer| answerer(&answer))
}

fn start(cluster: &Cluster, manifests: &ManifestDirectory, log: &Scratch) -> Agent {
    let mut agent = Agent::with_log(cluster.node(), run_manifests(manifests, &FLAGS), &log.0);
    agent.wait_until_healthy();
    agent
}

/// A Service for DNS with endpoints that answer, and an agent that has taken it over.
struct TakenOver {
    cluster: Cluster,
    manifests: ManifestDirectory,
    log: Scratch,
    agent: Agent,
    clients: Vec<Client>,
}

impl TakenOver {
    /// Waits until the agent answers all clients.
    fn begin() -> Self {
        let (cluster, manifests, log) = (cluster(), manifests(), Scratch::new("log"));
        manifests.write_objects("kube-dns.json", &kube_dns());
        serve_endpoints(&cluster);
        let agent = start(&cluster, &manifests, &log);
        let mut clients = Client::all(&cluster);
        await_answerer(&mut clients, Answerer::Agent);
        Self { cluster, manifests, log, agent, clients }
    }
}

/// The addresses that a local route of an agent leads to; they are removed.
fn leftover_routes(cluster: &Cluster) -> Vec<IpAddr> {
    let removed = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(remove_name_routes(&[])).unwrap()
    };
    cluster.node().run(removed).unwrap()
}

fn has_table(cluster: &Cluster, family: &str) -> bool {
    nft_in(cluster.node(), &["list", "table", family, "vmap-proxy-dns"], "").is_ok()
}

#[test]
#[expect(clippy::print_stdout, reason = "the times that decision 66 shows")]
fn names_outlive_the_agent() {
    let TakenOver { cluster, manifests, log, agent, mut clients } = TakenOver::begin();
    let pod = cluster.lab().owner(ip(POD[0])).unwrap();
    for (namespace, service) in [(pod, SERVICE[0]), (pod, SERVICE[1]), (cluster.node(), SERVICE[0])] {
        assert_eq!(over_tcp(namespace, service), Some(Answerer::Agent), "{service}");
    }
    // It stays so while the agent renews.
    let begun = Instant::now();
    while begun.elapsed() < OUTAGE {
        for client in &mut clients {
            assert_eq!(client.ask(), Some(Answerer::Agent), "{}", client.what);
        }
    }

    // Killed: no time to tidy up.
    kill(agent.pid(), Signal::SIGKILL).unwrap();
    let outage = await_answerer(&mut clients, Answerer::Endpoint);
    println!("killed: the endpoints answer after {outage:?}");
    assert!(outage < OUTAGE, "{outage:?}");
    drop(agent);
    assert!(!has_table(&cluster, "ip") && !has_table(&cluster, "ip6"));
    for (namespace, service) in [(pod, SERVICE[0]), (pod, SERVICE[1]), (cluster.node(), SERVICE[0])] {
        assert_eq!(over_tcp(namespace, service), Some(Answerer::Endpoint), "{service}");
    }

    // Back again; the flows of the clients are known to conntrack meanwhile.
    let agent = start(&cluster, &manifests, &log);
    let back = await_answerer(&mut clients, Answerer::Agent);
    println!("started: the agent answers after {back:?}");

    // Frozen: the sockets stay, and nobody reads them.
    kill(agent.pid(), Signal::SIGSTOP).unwrap();
    let outage = await_answerer(&mut clients, Answerer::Endpoint);
    println!("frozen: the endpoints answer after {outage:?}");
    assert!(outage < OUTAGE, "{outage:?}");
    kill(agent.pid(), Signal::SIGCONT).unwrap();
    await_answerer(&mut clients, Answerer::Agent);

    // Ended by the kubelet: nothing stays.
    assert!(agent.stop().success());
    for client in &mut clients {
        assert_eq!(client.ask(), Some(Answerer::Endpoint), "{}", client.what);
    }
    assert!(leftover_routes(&cluster).is_empty());
}

#[test]
fn undefined_ports_are_rejected_and_cleanup_removes_the_routes() {
    let TakenOver { cluster, manifests: _manifests, log: _log, agent, .. } = TakenOver::begin();
    // A program of the node that listens on all addresses is not reached through the Service.
    let _all = cluster.node().run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, 4711))).unwrap().unwrap();
    for (pod, service) in POD.into_iter().zip(SERVICE) {
        cluster.assert_refused(pod, at(service, 4711), Tcp);
    }
    drop(agent);
    let cleanup = cluster.node().run(|| vmap_proxy(&["cleanup"]).output()).unwrap().unwrap();
    let text = String::from_utf8_lossy(&cleanup.stderr).into_owned();
    assert!(cleanup.status.success(), "{text}");
    for service in SERVICE {
        assert!(text.contains(&format!("the local route to {service} was removed")), "{text}");
    }
    assert!(leftover_routes(&cluster).is_empty());
}

#[test]
fn a_cluster_ip_that_changes_is_followed() {
    let TakenOver { cluster, manifests, log: _log, agent, .. } = TakenOver::begin();
    let mut objects = kube_dns();
    objects[0]["spec"]["clusterIP"] = "10.96.0.11".into();
    objects[0]["spec"]["clusterIPs"] = json!(["10.96.0.11"]);
    objects[0]["spec"]["ipFamilies"] = json!(["IPv4"]);
    manifests.write_objects("kube-dns.json", &objects);
    let pod = cluster.lab().owner(ip(POD[0])).unwrap();
    let mut moved = [Client::new(pod, ip(POD[0]), "10.96.0.11", "a pod")];
    await_answerer(&mut moved, Answerer::Agent);
    eventually("the table of IPv6 is gone", || !has_table(&cluster, "ip6"));
    assert!(agent.stop().success());
}
