use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::NodePortKey;

use super::changes::NodePort;
use super::*;
use crate::health::test_client::{free_port, run};
use crate::metrics::{Format, Metrics};

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// A relay whose changes are applied at once.
struct Bench {
    relay: Relay,
    metrics: Metrics,
}

impl Bench {
    fn new() -> Self {
        Self::with_limits(Limits::of(1024))
    }

    fn with_limits(limits: Limits) -> Self {
        let metrics = Metrics::new();
        Self { relay: Relay::new(limits, metrics.localhost().clone()), metrics }
    }

    fn serve(&mut self, name: &str, port: u16, protocol: Protocol, endpoints: &[SocketAddr]) {
        self.change(false, &[(name, port, protocol, endpoints)]);
    }

    /// Services of one port each; without endpoints they have none.
    fn change(&mut self, is_complete: bool, services: &[(&str, u16, Protocol, &[SocketAddr])]) {
        let mut changes = NodePortChanges { is_complete, ..NodePortChanges::default() };
        for (name, port, protocol, endpoints) in services {
            let family = endpoints.first().map_or(Family::Ipv4, |endpoint| Family::of(endpoint.ip()));
            let mut endpoints: Box<[Endpoint]> =
                endpoints.iter().map(|at| Endpoint { address: at.ip(), port: at.port() }).collect();
            endpoints.sort_unstable();
            let key = NodePortKey { protocol: *protocol, port: *port };
            let keeping_flows = if *protocol == Protocol::Udp { endpoints.clone() } else { Box::default() };
            let wanted = NodePort { key, endpoints, keeping_flows, affinity: None };
            let ports = if wanted.endpoints.is_empty() { Vec::new() } else { vec![wanted] };
            changes.services.insert((ServiceName::new("shop", name), family), ports);
        }
        self.relay.apply(changes);
    }

    /// Waits until a metric has this value, with its labels.
    async fn wait_for(&self, sample: &str) {
        while !self.metrics.encode(Format::Prometheus, &[]).lines().any(|line| line.ends_with(sample)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn wait_for_listeners(&self, count: usize) {
        self.wait_for(&format!("localhost_nodeport_listeners{{ip_family=\"IPv4\"}} {count}")).await;
    }
}

/// Runs a test where local tasks can be spawned.
fn local(test: impl Future<Output = ()>) {
    run(async { LocalSet::new().run_until(test).await });
}

/// A pod of TCP that reads to the end of each request, and then answers with it.
async fn pod(address: IpAddr) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut text = Vec::new();
                // A client may reset its connection.
                if stream.read_to_end(&mut text).await.is_ok() {
                    let _ = stream.write_all(format!("{at} got {}", text.len()).as_bytes()).await;
                }
            });
        }
    });
    at
}

/// A pod of UDP that answers with its address and the source that it sees.
async fn udp_pod(address: IpAddr) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = UdpSocket::bind((address, 0)).await.unwrap();
    let at = socket.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (_, source) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(format!("{at} {source}").as_bytes(), source).await.unwrap();
        }
    });
    (at, task)
}

async fn connect(address: IpAddr, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect((address, port)).await
}

/// Sends a request of this length, ends its own direction, and reads the answer to its end.
async fn ask(mut stream: TcpStream, length: usize) -> std::io::Result<String> {
    stream.write_all(&vec![b'x'; length]).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn udp_client(address: IpAddr, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).await.unwrap();
    socket.connect((address, port)).await.unwrap();
    socket
}

/// Sends a datagram and returns the pod that answered, and the source that it saw.
async fn ask_udp(client: &UdpSocket) -> [SocketAddr; 2] {
    client.send(b"?").await.unwrap();
    let mut buffer = [0; 2048];
    let length = client.recv(&mut buffer).await.unwrap();
    let text = std::str::from_utf8(&buffer[..length]).unwrap();
    let (by, source) = text.split_once(' ').unwrap();
    [by.parse().unwrap(), source.parse().unwrap()]
}

fn has_ipv6() -> bool {
    let has = std::net::TcpListener::bind((V6, 0)).is_ok();
    assert!(has || std::env::var_os("CI").is_none(), "this machine has no IPv6 loopback");
    if !has {
        eprintln!("SKIPPED: IPv6 half, this machine has no IPv6 loopback");
    }
    has
}

#[test]
fn a_connection_is_relayed_in_both_families_with_the_end_of_each_direction() {
    local(async {
        let mut bench = Bench::new();
        let families = if has_ipv6() { vec![V4, V6] } else { vec![V4] };
        for address in families {
            let (port, pod) = (free_port(), pod(address).await);
            bench.serve("web", port, Protocol::Tcp, &[pod]);
            bench.wait_for(&format!("listeners{{ip_family=\"{}\"}} 1", Family::of(address))).await;
            for length in [0, 1, 1 << 20] {
                let answer = ask(connect(address, port).await.unwrap(), length).await.unwrap();
                assert_eq!(answer, format!("{pod} got {length}"));
            }
        }
    });
}

#[test]
fn a_change_of_endpoints_leaves_connections_and_the_last_one_closes_the_port() {
    local(async {
        let mut bench = Bench::new();
        let (port, first, second) = (free_port(), pod(V4).await, pod(V4).await);
        bench.serve("web", port, Protocol::Tcp, &[first]);
        bench.wait_for_listeners(1).await;
        let open = connect(V4, port).await.unwrap();
        bench.wait_for("nodeport_connections_total{ip_family=\"IPv4\",protocol=\"TCP\"} 1").await;
        bench.serve("web", port, Protocol::Tcp, &[second]);
        let answer = ask(connect(V4, port).await.unwrap(), 3).await.unwrap();
        assert_eq!(answer, format!("{second} got 3"));
        assert_eq!(ask(open, 4).await.unwrap(), format!("{first} got 4"), "as kube-proxy, it goes on");

        let mut open = connect(V4, port).await.unwrap();
        bench.wait_for("nodeport_connections_total{ip_family=\"IPv4\",protocol=\"TCP\"} 3").await;
        bench.serve("web", port, Protocol::Tcp, &[]);
        bench.wait_for_listeners(0).await;
        assert!(connect(V4, port).await.is_err());
        let ended = open.read(&mut [0; 1]).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "as kube-proxy, it ends with the port: {ended:?}");
    });
}

#[test]
fn a_port_can_change_hands_and_keeps_its_connections() {
    local(async {
        let mut bench = Bench::new();
        let (port, first, second) = (free_port(), pod(V4).await, pod(V4).await);
        bench.serve("old", port, Protocol::Tcp, &[first]);
        bench.wait_for_listeners(1).await;
        let open = connect(V4, port).await.unwrap();
        bench.wait_for("nodeport_connections_total{ip_family=\"IPv4\",protocol=\"TCP\"} 1").await;
        bench.change(false, &[("old", port, Protocol::Tcp, &[]), ("young", port, Protocol::Tcp, &[second])]);
        assert_eq!(ask(connect(V4, port).await.unwrap(), 3).await.unwrap(), format!("{second} got 3"));
        assert_eq!(ask(open, 4).await.unwrap(), format!("{first} got 4"));
        bench.change(true, &[("other", free_port(), Protocol::Tcp, &[first])]);
        bench.wait_for_listeners(1).await;
        while connect(V4, port).await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_port_in_use_is_counted_and_tried_again_and_the_others_are_served() {
    local(async {
        let mut bench = Bench::new();
        let other = std::net::TcpListener::bind((V4, 0)).unwrap();
        let (taken, free, pod) = (other.local_addr().unwrap().port(), free_port(), pod(V4).await);
        bench.change(false, &[("taken", taken, Protocol::Tcp, &[pod]), ("free", free, Protocol::Tcp, &[pod])]);
        bench.wait_for("listener_creation_failures_total{ip_family=\"IPv4\"} 1").await;
        bench.wait_for_listeners(1).await;
        assert_eq!(ask(connect(V4, free).await.unwrap(), 3).await.unwrap(), format!("{pod} got 3"));
        drop(other);
        bench.wait_for_listeners(2).await;
        assert_eq!(ask(connect(V4, taken).await.unwrap(), 3).await.unwrap(), format!("{pod} got 3"));
    });
}

#[test]
fn an_endpoint_that_refuses_is_a_reset_for_the_client() {
    local(async {
        let mut bench = Bench::new();
        let (port, nobody) = (free_port(), SocketAddr::new(V4, free_port()));
        bench.serve("web", port, Protocol::Tcp, &[nobody]);
        bench.wait_for_listeners(1).await;
        let ended = connect(V4, port).await.unwrap().read(&mut [0; 1]).await;
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        bench.wait_for("refused_total{ip_family=\"IPv4\",protocol=\"TCP\",reason=\"endpoint\"} 1").await;
    });
}

#[test]
fn a_reset_of_the_endpoint_is_one_for_the_client() {
    local(async {
        let mut bench = Bench::new();
        let pod = TcpListener::bind((V4, 0)).await.unwrap();
        let port = free_port();
        bench.serve("web", port, Protocol::Tcp, &[pod.local_addr().unwrap()]);
        bench.wait_for_listeners(1).await;
        let mut client = connect(V4, port).await.unwrap();
        let (mut server, _) = pod.accept().await.unwrap();
        server.write_all(b"half an answ").await.unwrap();
        client.read_exact(&mut [0; 12]).await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        let ended = client.read(&mut [0; 1]).await;
        assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn connections_beyond_the_limit_of_a_port_are_reset_until_one_ends() {
    local(async {
        let mut bench = Bench::with_limits(Limits { sockets_of_a_port: 2, ..Limits::of(1024) });
        let (port, other, pod) = (free_port(), free_port(), pod(V4).await);
        bench.change(false, &[("web", port, Protocol::Tcp, &[pod]), ("other", other, Protocol::Tcp, &[pod])]);
        bench.wait_for_listeners(2).await;
        let first = connect(V4, port).await.unwrap();
        bench.wait_for("nodeport_connections_total{ip_family=\"IPv4\",protocol=\"TCP\"} 1").await;
        let refused = connect(V4, port).await.unwrap().read(&mut [0; 1]).await;
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        bench.wait_for("refused_total{ip_family=\"IPv4\",protocol=\"TCP\",reason=\"limit\"} 1").await;
        ask(connect(V4, other).await.unwrap(), 1).await.unwrap();
        ask(first, 1).await.unwrap();
        while ask(connect(V4, port).await.unwrap(), 1).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn more_ports_than_descriptors_wait_for_their_turn() {
    local(async {
        let mut bench = Bench::with_limits(Limits { listeners: 1, ..Limits::of(1024) });
        let (ports, pod) = ([free_port(), free_port()], pod(V4).await);
        bench.serve("a", ports[0], Protocol::Tcp, &[pod]);
        bench.wait_for_listeners(1).await;
        bench.serve("b", ports[1], Protocol::Tcp, &[pod]);
        assert!(connect(V4, ports[1]).await.is_err());
        bench.serve("a", ports[0], Protocol::Tcp, &[]);
        while connect(V4, ports[1]).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn datagrams_of_a_client_stay_with_an_endpoint_while_it_lasts() {
    local(async {
        let mut bench = Bench::new();
        let families = if has_ipv6() { vec![V4, V6] } else { vec![V4] };
        for address in families {
            let port = free_port();
            let (pods, _tasks): (Vec<SocketAddr>, Vec<_>) =
                [udp_pod(address).await, udp_pod(address).await].into_iter().unzip();
            bench.serve("dns", port, Protocol::Udp, &pods);
            bench.wait_for(&format!("listeners{{ip_family=\"{}\"}} 1", Family::of(address))).await;
            let clients = [udp_client(address, port).await, udp_client(address, port).await];
            let before = [ask_udp(&clients[0]).await, ask_udp(&clients[1]).await];
            assert_ne!(before[0][1], before[1][1], "each client has a flow of its own");
            for _ in 0..10 {
                assert_eq!([ask_udp(&clients[0]).await, ask_udp(&clients[1]).await], before);
            }
            // The first client's endpoint leaves; its flow goes on at the other one.
            let stays: Vec<SocketAddr> = pods.into_iter().filter(|pod| *pod != before[0][0]).collect();
            bench.serve("dns", port, Protocol::Udp, &stays);
            // The answer to a question that was on its way is lost with the flow.
            let patience = Duration::from_millis(100);
            while !tokio::time::timeout(patience, ask_udp(&clients[0])).await.is_ok_and(|[by, _]| by == stays[0]) {}
            if before[1][0] == stays[0] {
                assert_eq!(ask_udp(&clients[1]).await, before[1], "the flow of an endpoint that stays");
            }
        }
    });
}

#[test]
fn a_client_of_an_endpoint_that_refuses_gets_another_one() {
    local(async {
        let mut bench = Bench::new();
        let (port, nobody, (pod, _task)) = (free_port(), SocketAddr::new(V4, free_port()), udp_pod(V4).await);
        bench.serve("dns", port, Protocol::Udp, &[pod, nobody]);
        bench.wait_for_listeners(1).await;
        let client = udp_client(V4, port).await;
        let mut buffer = [0; 100];
        // Half of the flows begin at the endpoint that refuses.
        while tokio::time::timeout(Duration::from_millis(20), client.recv(&mut buffer)).await.is_err() {
            client.send(b"?").await.unwrap();
        }
    });
}

#[test]
fn the_longest_idle_flow_makes_way_for_a_new_one() {
    local(async {
        let mut bench = Bench::with_limits(Limits { sockets_of_a_port: 2, ..Limits::of(1024) });
        let (port, (pod, _task)) = (free_port(), udp_pod(V4).await);
        bench.serve("dns", port, Protocol::Udp, &[pod]);
        bench.wait_for_listeners(1).await;
        let clients = [udp_client(V4, port).await, udp_client(V4, port).await, udp_client(V4, port).await];
        let first = ask_udp(&clients[0]).await;
        let second = ask_udp(&clients[1]).await;
        assert_eq!(ask_udp(&clients[0]).await, first);
        ask_udp(&clients[2]).await;
        assert_eq!(ask_udp(&clients[0]).await, first);
        assert_ne!(ask_udp(&clients[1]).await, second, "it was idle for longest");
    });
}

#[test]
fn an_idle_flow_ends() {
    local(async {
        let idle = Duration::from_millis(20);
        let mut bench = Bench::with_limits(Limits { udp_idle: idle, sockets: 1, ..Limits::of(1024) });
        let (ports, (pod, _task)) = ([free_port(), free_port()], udp_pod(V4).await);
        let services = [("a", ports[0], Protocol::Udp, &[pod][..]), ("b", ports[1], Protocol::Udp, &[pod])];
        bench.change(false, &services);
        bench.wait_for_listeners(2).await;
        ask_udp(&udp_client(V4, ports[0]).await).await;
        // The only socket for flows is free again once the first port's flow has ended.
        let other = udp_client(V4, ports[1]).await;
        let mut buffer = [0; 100];
        while tokio::time::timeout(idle, other.recv(&mut buffer)).await.is_err() {
            other.send(b"?").await.unwrap();
        }
    });
}

#[test]
fn the_thread_serves_and_closes_its_sockets_when_it_is_dropped() {
    let (port, metrics) = (free_port(), Metrics::new());
    let relay = LocalhostNodePorts::start(Limits::of(1024), metrics.localhost().clone()).unwrap();
    run(async {
        let pod = pod(V4).await;
        let key = NodePortKey { protocol: Protocol::Tcp, port };
        let endpoints = Box::new([Endpoint { address: pod.ip(), port: pod.port() }]);
        let wanted = NodePort { key, endpoints, keeping_flows: Box::default(), affinity: None };
        let services = [((ServiceName::new("shop", "web"), Family::Ipv4), vec![wanted])].into();
        assert!(relay.change(NodePortChanges { is_complete: true, services }));
        let answer = loop {
            match connect(V4, port).await {
                Ok(stream) => break ask(stream, 5).await.unwrap(),
                Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        assert_eq!(answer, format!("{pod} got 5"));
        drop(relay);
        while connect(V4, port).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
}
