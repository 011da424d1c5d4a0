use tokio::io::AsyncReadExt;
use vmap_proxy_compiler::model::config::NodePortAddresses;

use super::*;
use crate::health::state::tests::HandClock;
use crate::health::test_client::{free_port, get, request, run};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Node {
    clock: HandClock,
    health: HealthState,
    servers: ServiceHealthServers,
}

impl Node {
    fn new() -> Self {
        let clock = HandClock::default();
        let health = HealthState::new(clock.clock(), Duration::from_secs(60));
        let servers = ServiceHealthServers::new(health.clone(), process::descriptor_limit());
        servers.set_addresses(&[LOCALHOST]);
        Self { clock, health, servers }
    }

    fn set(&self, services: &[(&str, u16, usize)]) {
        self.servers.set(services.iter().map(|&(name, port, count)| (named(name), health(port, count))).collect());
    }

    async fn wait_open(&self, ports: &[u16]) {
        let ports: BTreeSet<SocketAddr> = ports.iter().map(|&port| SocketAddr::new(LOCALHOST, port)).collect();
        self.servers.open().wait_for(|open| *open == ports).await.unwrap();
    }
}

fn named(name: &str) -> ServiceName {
    ServiceName::new("default", name)
}

fn health(port: u16, local_ipv4: usize) -> ServiceHealth {
    ServiceHealth { port, local_ipv4: Some(local_ipv4), local_ipv6: None }
}

#[test]
fn a_service_listens_on_the_addresses_of_its_families_alone() {
    let all: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let shown = |addresses: &[IpAddr], local_ipv4, local_ipv6| {
        let places = places(addresses, &ServiceHealth { port: 9, local_ipv4, local_ipv6 });
        places.iter().map(|place| format!("{} {:?}", place.address, place.stack)).collect::<Vec<_>>()
    };
    assert_eq!(shown(&all, Some(1), None), ["0.0.0.0:9 Single"]);
    assert_eq!(shown(&all, None, Some(1)), ["[::]:9 Single"]);
    assert_eq!(shown(&all, Some(0), Some(1)), ["[::]:9 Dual"]);
    let some: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
    assert_eq!(shown(&some, Some(1), None), ["192.0.2.1:9 Single"]);
    assert_eq!(shown(&some, Some(1), Some(1)), ["192.0.2.1:9 Single", "[2001:db8::1]:9 Single"]);
}

#[test]
fn one_socket_answers_each_client_for_its_family() {
    run(async {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6 loopback");
            eprintln!("SKIPPED: this machine has no IPv6 loopback");
            return;
        }
        let (node, port) = (Node::new(), free_port());
        node.servers.set_addresses(&[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]);
        let dual = ServiceHealth { port, local_ipv4: Some(2), local_ipv6: Some(0) };
        node.servers.set([(named("web"), dual)].into());
        let place = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        node.servers.open().wait_for(|open| *open == [place].into()).await.unwrap();
        assert_eq!(get(SocketAddr::new(LOCALHOST, port), "/").await.status, 200);
        assert_eq!(get(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), "/").await.status, 503);
    });
}

#[test]
fn names_are_escaped() {
    let name = ServiceName::new("a\"b", "c\nd");
    let body: serde_json::Value = serde_json::from_str(&body(&name, 1, true)).unwrap();
    assert_eq!((body["service"]["namespace"].as_str(), body["service"]["name"].as_str()), (Some("a\"b"), Some("c\nd")));
}

#[test]
fn more_ports_than_descriptors_leave_some_to_the_others() {
    run(async {
        let mut node = Node::new();
        node.servers.shared.sockets = Arc::new(Semaphore::new(1));
        let ports = [free_port(), free_port()];
        node.set(&[("a", ports[0], 1), ("b", ports[1], 1)]);
        let mut open = node.servers.open();
        let first = open.wait_for(|open| !open.is_empty()).await.unwrap().clone();
        assert_eq!(first.len(), 1);
        // The other one has its turn once the first is gone.
        let stays = usize::from(first.iter().next().unwrap().port() == ports[0]);
        node.set(&[(["a", "b"][stays], ports[stays], 1)]);
        node.wait_open(&[ports[stays]]).await;
    });
}

#[test]
fn a_service_with_local_endpoints_answers_as_kube_proxy_does() {
    run(async {
        let (node, port) = (Node::new(), free_port());
        let address = SocketAddr::new(LOCALHOST, port);
        node.set(&[("web", port, 2)]);
        node.wait_open(&[port]).await;
        let reply = request(address, "POST", "/any/path", "content-length: 0\r\n").await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("x-load-balancing-endpoint-weight"), Some("2"));
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
                        \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(reply.body, expected);

        node.set(&[("web", port, 0)]);
        let reply = get(address, "/").await;
        assert_eq!((reply.status, reply.header("x-load-balancing-endpoint-weight")), (503, Some("0")));
    });
}

#[test]
fn a_proxy_that_does_not_keep_up_is_503() {
    run(async {
        let (node, port) = (Node::new(), free_port());
        node.set(&[("web", port, 2)]);
        node.wait_open(&[port]).await;
        node.health.initialized(&[Family::Ipv4]);
        node.clock.forward(60_000);
        let reply = get(SocketAddr::new(LOCALHOST, port), "/").await;
        assert_eq!(reply.status, 503);
        assert!(reply.body.contains("\"serviceProxyHealthy\": false"));
    });
}

#[test]
fn an_unchanged_listener_is_kept_and_the_others_follow() {
    run(async {
        let (node, kept, old, new) = (Node::new(), free_port(), free_port(), free_port());
        node.set(&[("kept", kept, 1), ("moved", old, 1)]);
        node.wait_open(&BTreeSet::from([kept, old]).into_iter().collect::<Vec<_>>()).await;
        // A listener that was closed and opened again would not accept the connection.
        let mut idle = tokio::net::TcpStream::connect((LOCALHOST, kept)).await.unwrap();
        node.set(&[("kept", kept, 3), ("moved", new, 1)]);
        node.wait_open(&BTreeSet::from([kept, new]).into_iter().collect::<Vec<_>>()).await;
        tokio::io::AsyncWriteExt::write_all(&mut idle, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        idle.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("\"localEndpoints\": 3"), "{text}");
        assert!(tokio::net::TcpStream::connect((LOCALHOST, old)).await.is_err());
        node.set(&[]);
        node.wait_open(&[]).await;
    });
}

#[test]
fn a_change_of_one_service_leaves_the_others_alone() {
    run(async {
        let (node, kept, old, new) = (Node::new(), free_port(), free_port(), free_port());
        node.set(&[("kept", kept, 1), ("moved", old, 1)]);
        node.wait_open(&[kept, old]).await;
        node.servers.change(&[(named("moved"), Some(health(new, 2))), (named("unknown"), None)].into());
        node.wait_open(&[kept, new]).await;
        assert!(get(SocketAddr::new(LOCALHOST, kept), "/").await.body.contains("\"localEndpoints\": 1"));
        node.servers.change(&[(named("moved"), None)].into());
        node.wait_open(&[kept]).await;
    });
}

#[test]
fn a_port_can_change_hands() {
    run(async {
        let (node, port) = (Node::new(), free_port());
        node.set(&[("first", port, 1)]);
        node.wait_open(&[port]).await;
        let mut open = node.servers.open();
        open.mark_unchanged();
        node.set(&[("second", port, 1)]);
        // The first one's socket goes, then the second one's comes.
        open.changed().await.unwrap();
        node.wait_open(&[port]).await;
        assert!(get(SocketAddr::new(LOCALHOST, port), "/").await.body.contains("second"));
    });
}

#[test]
fn a_port_in_use_is_tried_again() {
    run(async {
        let other = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
        let (node, port) = (Node::new(), other.local_addr().unwrap().port());
        node.set(&[("web", port, 1)]);
        // Let the first attempt fail before the port is free.
        tokio::task::yield_now().await;
        assert!(node.servers.open().borrow().is_empty());
        drop(other);
        node.wait_open(&[port]).await;
    });
}

#[test]
fn without_addresses_nothing_listens() {
    run(async {
        let (node, port) = (Node::new(), free_port());
        node.set(&[("web", port, 1)]);
        node.wait_open(&[port]).await;
        node.servers.set_addresses(&[]);
        node.wait_open(&[]).await;
    });
}

#[test]
fn they_listen_where_node_ports_are_served() {
    let node = NodeInfo {
        addresses: vec!["192.0.2.1".parse().unwrap()],
        interface_addresses: ["127.0.0.1", "192.0.2.1", "198.51.100.1"].map(|ip| ip.parse().unwrap()).to_vec(),
        ..NodeInfo::default()
    };
    let mut config = ProxyConfig::default();
    let primary: Vec<IpAddr> = vec!["192.0.2.1".parse().unwrap()];
    assert_eq!(listen_addresses(&config, &node, &[Family::Ipv4]), primary);
    config.node_port_addresses = NodePortAddresses::Ranges(vec!["0.0.0.0/0".parse().unwrap()]);
    let all: Vec<IpAddr> = vec!["0.0.0.0".parse().unwrap(), "::".parse().unwrap()];
    assert_eq!(listen_addresses(&config, &node, &Family::ALL), all);
}
