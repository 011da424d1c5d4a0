//! NodePorts on localhost: the relay with real sockets, beside the real rules.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Socket, Type};
use vmap_proxy_lab::ProbeResult;
use vmap_proxy_lab::Transport::{self, Sctp, Tcp, Udp};
use vmap_proxy_testbed::cluster::{Cluster, LOCAL, NODE, REMOTE, at, ip, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{ServiceManifest, service, slice};
use vmap_proxy_testbed::nft::nft_in;
use vmap_proxy_testbed::shop::{self, on_pod_port};

use crate::{Agent, METRICS, Scratch, cluster, eventually, run_manifests};

const LOCALHOST: [&str; 2] = ["127.0.0.1", "::1"];
const GATE: &str = "--feature-gates=KubeProxyNFTablesLocalhostNodePorts=true";
const ADDRESSES: &str = "--nodeport-addresses=primary,localhost";
/// Of Service `shop/web` in [`shop::web`].
const NODE_PORT: u16 = 30080;

/// `shop/web` with these pods, chosen in both families.
fn write(manifests: &ManifestDirectory, web: &ServiceManifest, pods: impl Fn(usize) -> Vec<&'static str>) {
    let objects = [vec![node_object(), web.build()], shop::slices("shop/web", pods)].concat();
    manifests.write_objects("web.json", &objects);
}

fn start(cluster: &Cluster, manifests: &ManifestDirectory, flags: &[&str], log: &Scratch) -> Agent {
    let mut agent = Agent::with_log(cluster.node(), run_manifests(manifests, flags), &log.0);
    agent.wait_until_healthy();
    agent
}

/// Waits until exactly these pods answer on localhost, in both families.
fn eventually_serves(cluster: &Cluster, pods: impl Fn(usize) -> Vec<&'static str>) {
    for family in [0, 1] {
        let pods: Vec<String> = pods(family).into_iter().map(str::to_owned).collect();
        cluster.eventually_reaches(LOCALHOST[family], at(LOCALHOST[family], NODE_PORT), &pods);
    }
}

fn is_refused(result: &ProbeResult) -> bool {
    result.is_port_unreachable() || *result == ProbeResult::Reset
}

/// Waits until nothing listens.
fn eventually_refuses(cluster: &Cluster, transport: Transport) {
    for localhost in LOCALHOST {
        cluster.eventually(localhost, at(localhost, NODE_PORT), transport, is_refused);
    }
}

fn ruleset(cluster: &Cluster) -> String {
    // Counters differ.
    nft_in(cluster.node(), &["--stateless", "list", "ruleset"], "").unwrap()
}

/// The value of a metric, by the beginning of its line.
fn metric(agent: &Agent, sample: &str) -> Option<f64> {
    let reply = agent.get(METRICS, "/metrics")?;
    reply.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
}

#[test]
fn the_relay_serves_both_families_and_protocols_and_follows_every_change() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    let web = shop::web().port(Sctp, 80).node_port(NODE_PORT.into());
    let first = |family: usize| vec![LOCAL[family][0], REMOTE[family][0]];
    write(&manifests, &web, first);
    // Without the gate the rules are the same, and nothing listens.
    let agent = start(&cluster, &manifests, &[ADDRESSES], &log);
    let rules = ruleset(&cluster);
    assert!(log.text().contains("nodePortAddresses: localhost: no NodePort is served"), "{}", log.text());
    for transport in [Tcp, Udp] {
        eventually_refuses(&cluster, transport);
    }
    assert!(!agent.get(METRICS, "/metrics").unwrap().contains("localhost_nodeport"));
    assert!(agent.stop().success());

    let agent = start(&cluster, &manifests, &[ADDRESSES, GATE], &log);
    eventually_serves(&cluster, first);
    for family in [0, 1] {
        let (localhost, pods) = (LOCALHOST[family], first(family));
        cluster.eventually(localhost, at(localhost, NODE_PORT), Udp, |result| {
            matches!(result, ProbeResult::Answered { .. })
        });
        cluster.assert_served(localhost, at(localhost, NODE_PORT), Udp, pods.clone());
        // The rules go on beside it.
        cluster.assert_served(NODE[family], at(NODE[family], NODE_PORT), Tcp, pods);
        // Left to the kernel, which answers if it has SCTP.
        let sctp = cluster.probe(localhost, at(localhost, NODE_PORT), Sctp);
        assert!(!matches!(sctp, ProbeResult::Answered { .. }), "SCTP: {sctp}");
    }
    assert_eq!(ruleset(&cluster), rules, "the relay needs no rule");
    let listeners = "kubeproxy_nftables_localhost_nodeport_listeners";
    for family in ["IPv4", "IPv6"] {
        assert_eq!(metric(&agent, &format!("{listeners}{{ip_family=\"{family}\"}}")), Some(2.0));
    }

    // Another endpoint, a policy, and its absence.
    write(&manifests, &web, |family| vec![LOCAL[family][1]]);
    eventually_serves(&cluster, |family| vec![LOCAL[family][1]]);
    write(&manifests, &web.clone().external_local(), first);
    eventually_serves(&cluster, |family| vec![LOCAL[family][0]]);
    write(&manifests, &web.clone().external_local(), |family| vec![REMOTE[family][0]]);
    for transport in [Tcp, Udp] {
        eventually_refuses(&cluster, transport);
    }
    write(&manifests, &web, first);
    eventually_serves(&cluster, first);
    // One endpoint for all clients of a port.
    write(&manifests, &web.clone().affinity(10_800), first);
    eventually("clients stay with an endpoint", || {
        LOCALHOST.into_iter().all(|at_| cluster.answers(at_, at(at_, NODE_PORT), Tcp, 24).len() == 1)
    });
    // The Service goes, and comes back.
    manifests.write_objects("web.json", &[node_object()]);
    for transport in [Tcp, Udp] {
        eventually_refuses(&cluster, transport);
    }
    write(&manifests, &web, first);
    eventually_serves(&cluster, first);
    assert!(agent.stop().success());
    for transport in [Tcp, Udp] {
        eventually_refuses(&cluster, transport);
    }
}

#[test]
fn each_direction_ends_by_itself_and_a_client_from_elsewhere_is_refused() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    let raw = [
        node_object(),
        service("shop/raw").cluster_ip("10.96.0.30").port(Tcp, 80).node_port(NODE_PORT.into()).build(),
        slice("shop/raw", "4").port(Tcp, 9090).endpoint(LOCAL[0][0]).build(),
    ];
    manifests.write_objects("raw.json", &raw);
    let pod = cluster.lab().owner(ip(LOCAL[0][0])).unwrap();
    let listener = pod.run(|| TcpListener::bind(at(LOCAL[0][0], 9090))).unwrap().unwrap();
    let agent = start(&cluster, &manifests, &["--nodeport-addresses=127.0.0.0/8", GATE], &log);
    let to = at(LOCALHOST[0], NODE_PORT);
    let connect = || cluster.node().run(|| TcpStream::connect(to)).unwrap();
    let mut client = None;
    eventually("it listens", || {
        client = connect().ok();
        client.is_some()
    });
    let (mut client, (mut server, source)) = (client.unwrap(), listener.accept().unwrap());
    assert_eq!(source.ip(), ip(NODE[0]), "the relay connects from the node's address");
    client.write_all(b"a question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "a question");
    server.write_all(b"an answer").unwrap();
    drop(server);
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "an answer");

    // As a neighbour would where route_localnet is set.
    let from_node_address = || -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&at(NODE[0], 0).into())?;
        socket.connect(&to.into())?;
        Ok(socket.into())
    };
    let mut stranger = cluster.node().run(from_node_address).unwrap().unwrap();
    let ended = stranger.read(&mut [0; 1]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    // Nothing listens in the family whose loopback range is not named.
    cluster.eventually(LOCALHOST[1], at(LOCALHOST[1], NODE_PORT), Tcp, is_refused);

    // Open connections end with the agent.
    let mut open = connect().unwrap();
    let _accepted = listener.accept().unwrap();
    open.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert!(agent.stop().success());
    let ended = open.read(&mut [0; 1]);
    assert!(matches!(&ended, Ok(0)) || ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
}

#[test]
fn a_port_of_another_program_is_named_once_and_served_when_it_is_free() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    let one = |name: &str, address: &str, port: u16| -> [Value; 2] {
        let service = service(name).cluster_ip(address).port(Tcp, 80).node_port(port.into()).build();
        [service, on_pod_port(slice(name, "4")).endpoint(LOCAL[0][0]).build()]
    };
    let objects = [one("shop/taken", "10.96.0.31", 30081), one("shop/free", "10.96.0.32", 30082)].concat();
    manifests.write_objects("two.json", &[vec![node_object()], objects].concat());
    let other = cluster.node().run(|| TcpListener::bind("0.0.0.0:30081")).unwrap().unwrap();
    let agent = start(&cluster, &manifests, &[ADDRESSES, GATE], &log);
    let failures = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family=\"IPv4\"}";
    // It is tried again.
    eventually("it fails twice", || metric(&agent, failures).is_some_and(|count| count >= 2.0));
    cluster.eventually_reaches(LOCALHOST[0], at(LOCALHOST[0], 30082), &[LOCAL[0][0].to_owned()]);
    let lines = || -> Vec<String> {
        log.text().lines().filter(|line| line.contains("node port 30081/TCP")).map(str::to_owned).collect()
    };
    let [line] = &lines()[..] else { panic!("{:?}", lines()) };
    assert!(line.contains("of Service shop/taken is not served on 127.0.0.1:30081"), "{line}");
    drop(other);
    cluster.eventually_reaches(LOCALHOST[0], at(LOCALHOST[0], 30081), &[LOCAL[0][0].to_owned()]);
    assert!(lines().last().is_some_and(|line| line.contains("is served on 127.0.0.1:30081 now")), "{:?}", lines());
    assert!(agent.stop().success());
}

/// The gate alone serves nothing, and the log names the other setting.
#[test]
fn the_gate_without_a_loopback_range_serves_nothing() {
    let (cluster, manifests, log) = (cluster(), ManifestDirectory::new(), Scratch::new("log"));
    write(&manifests, &shop::web(), |family| vec![LOCAL[family][0]]);
    let agent = start(&cluster, &manifests, &["--nodeport-addresses=all", GATE], &log);
    assert!(log.text().contains("add localhost to nodePortAddresses"), "{}", log.text());
    cluster.assert_served(NODE[0], at(NODE[0], NODE_PORT), Tcp, [LOCAL[0][0]]);
    for transport in [Tcp, Udp] {
        eventually_refuses(&cluster, transport);
    }
    assert!(agent.stop().success());
}
