//! Measures what a connection to a NodePort on localhost costs: through the
//! relay, beside the same pod by the rules and directly. The ways take turns, so
//! that what else the machine does meets all of them alike.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use vmap_proxy_agent::localhost_node_ports::LocalhostNodePorts;
use vmap_proxy_agent::localhost_node_ports::changes::{NodePort, NodePortChanges};
use vmap_proxy_agent::localhost_node_ports::limits::Limits;
use vmap_proxy_agent::metrics::{Format, Metrics};
use vmap_proxy_agent::process;
use vmap_proxy_compiler::model::types::ServiceName;
use vmap_proxy_compiler::model::{Endpoint, Protocol};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::target::NodePortKey;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::cluster::{Cluster, LOCAL, NODE, at, ip, node_object, proxy_config};
use vmap_proxy_testbed::manifests::{service, slice};
use vmap_proxy_testbed::proxy::Proxy;

use crate::scale::Failure;
use crate::scale::memory::resident;
use crate::scale::statistics::{Summary, milliseconds};

const NODE_PORT: u16 = 30_090;
const POD_PORT: u16 = 9090;
/// The NodePorts of the measurement of many begin here.
const FIRST_PORT: u16 = 10_000;
/// The bytes of one write or read of the measurement of throughput.
const CHUNK: usize = 256 << 10;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Rounds over all ways.
    pub rounds: usize,
    /// New connections in a round.
    pub connections: usize,
    /// Questions on an open connection in a round.
    pub questions: usize,
    /// Bytes that are sent in a round.
    pub bytes: u64,
    /// NodePorts, each in both families.
    pub node_ports: u16,
}

/// The figures of one way to the pod.
#[derive(Debug, Default)]
struct Way {
    connect_us: Vec<f64>,
    question_us: Vec<f64>,
    mib_per_second: Vec<f64>,
}

/// Measures, and returns a table.
///
/// # Errors
/// If a namespace, a socket or the relay fails.
pub fn measure(extent: &Extent) -> Result<String, Failure> {
    process::raise_descriptor_limit();
    let cluster = Cluster::new();
    let pod = at(LOCAL[0][0], POD_PORT);
    let listener = cluster.lab().owner(pod.ip())?.run(|| TcpListener::bind(pod))??;
    std::thread::spawn(move || serve(&listener));
    let objects = [
        node_object(),
        service("shop/raw").cluster_ip("10.96.0.30").port(Tcp, 80).node_port(NODE_PORT.into()).build(),
        slice("shop/raw", "4").port(Tcp, POD_PORT.into()).endpoint(LOCAL[0][0]).build(),
    ];
    let (_proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    let (relay, metrics) = start_relay(&cluster)?;
    relay.change(serving([(Family::Ipv4, NODE_PORT)], pod));
    wait_for_listeners(&metrics, "IPv4", 1)?;

    let ways =
        [("pod", pod), ("node address, by the rules", at(NODE[0], NODE_PORT)), ("relay", at("127.0.0.1", NODE_PORT))];
    let mut figures: Vec<Way> = ways.iter().map(|_| Way::default()).collect();
    // The first round warms up.
    for round in 0..=extent.rounds {
        for ((_, target), way) in ways.iter().zip(&mut figures) {
            let (connect, question, rate) = cluster.node().run(|| one_round(*target, extent))??;
            if round > 0 {
                way.connect_us.push(connect);
                way.question_us.push(question);
                way.mib_per_second.push(rate);
            }
        }
    }
    let mut text = String::from(
        "| way | new connection with one question, µs | question on an open connection, µs | one way, MiB/s |\n\
         |---|---:|---:|---:|\n",
    );
    for ((name, _), way) in ways.iter().zip(figures) {
        let [connect, question, rate] =
            [way.connect_us, way.question_us, way.mib_per_second].map(|values| Summary::of(values).p50);
        writeln!(text, "| {name} | {connect:.0} | {question:.1} | {rate:.0} |")?;
    }
    drop(relay);
    writeln!(text, "\n{}", many_ports(&cluster, extent.node_ports)?)?;
    Ok(text)
}

fn start_relay(cluster: &Cluster) -> Result<(LocalhostNodePorts, Metrics), Failure> {
    let (limits, metrics) = (Limits::of(process::descriptor_limit()), Metrics::new());
    let relay = cluster.node().run(|| LocalhostNodePorts::start(limits, metrics.localhost().clone()))??;
    Ok((relay, metrics))
}

/// One Service for each port.
fn serving(ports: impl IntoIterator<Item = (Family, u16)>, pod: SocketAddr) -> NodePortChanges {
    let service = |(family, port): (Family, u16)| {
        let node_port = NodePort {
            key: NodePortKey { protocol: Protocol::Tcp, port },
            endpoints: Box::new([Endpoint { address: pod.ip(), port: pod.port() }]),
            keeping_flows: Box::default(),
            affinity: None,
        };
        ((ServiceName::new("shop", &format!("raw-{port}")), family), vec![node_port])
    };
    NodePortChanges { is_complete: true, services: ports.into_iter().map(service).collect() }
}

fn wait_for_listeners(metrics: &Metrics, family: &str, count: usize) -> Result<(), Failure> {
    let sample = format!("localhost_nodeport_listeners{{ip_family=\"{family}\"}} {count}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !metrics.encode(Format::Prometheus, &[]).lines().any(|line| line.ends_with(&sample)) {
        if Instant::now() > deadline {
            let why = "is the limit of open files (ulimit -Hn) less than eight times the number of NodePorts?";
            return Err(format!("{family}: {count} sockets do not listen after a minute; {why}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// The pod: answers each byte of a question with one, and reads what is longer.
fn serve(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        // A client that has gone ends its connection alone.
        std::thread::spawn(move || answer(&mut stream));
    }
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            // The end of a long one is acknowledged, so that its last byte has arrived.
            0 => return stream.write_all(b"."),
            1 => stream.write_all(b".")?,
            _ => {}
        }
    }
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0; 1])
}

/// The medians of a connection and a question in microseconds, and the rate.
fn one_round(target: SocketAddr, extent: &Extent) -> Result<(f64, f64, f64), Failure> {
    let timed = |work: &mut dyn FnMut() -> std::io::Result<()>| -> Result<f64, Failure> {
        let begun = Instant::now();
        work()?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    };
    let mut connect = Vec::with_capacity(extent.connections);
    for _ in 0..extent.connections {
        connect.push(timed(&mut || {
            let mut stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            ask(&mut stream)
        })?);
    }
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    let mut question = Vec::with_capacity(extent.questions);
    for _ in 0..extent.questions {
        question.push(timed(&mut || ask(&mut stream))?);
    }
    let chunk = vec![0; CHUNK];
    let (begun, mut sent) = (Instant::now(), 0);
    while sent < extent.bytes {
        stream.write_all(&chunk)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut end = Vec::new();
    stream.read_to_end(&mut end)?;
    let rate = sent as f64 / f64::from(1 << 20) / begun.elapsed().as_secs_f64();
    Ok((Summary::of(connect).p50, Summary::of(question).p50, rate))
}

/// How long it takes until so many NodePorts are served in both families, and
/// what they hold.
fn many_ports(cluster: &Cluster, count: u16) -> Result<String, Failure> {
    let (relay, metrics) = start_relay(cluster)?;
    let ports = (0..count).flat_map(|port| Family::ALL.map(|family| (family, FIRST_PORT + port)));
    let changes = serving(ports, SocketAddr::new(ip(LOCAL[0][0]), POD_PORT));
    let (before, begun) = (resident()?, Instant::now());
    relay.change(changes);
    for family in ["IPv4", "IPv6"] {
        wait_for_listeners(&metrics, family, count.into())?;
    }
    let (elapsed, after) = (milliseconds(begun.elapsed()), resident()?);
    let kib = (after.anonymous_mib - before.anonymous_mib).max(0.0) * 1024.0 / (2.0 * f64::from(count));
    Ok(format!(
        "{count} NodePorts in two families: all {} sockets listen after {elapsed:.0} ms, and take {kib:.1} KiB of the \
         process's memory each.",
        2 * u32::from(count)
    ))
}
