//! The server beside a plain UDP echo: questions a second of one core, round trips, and memory.
//!
//! ```sh
//! cargo bench -p vmap-proxy-dns
//! ```
//!
//! Answers a second of one core are answers divided by the CPU time of the server's thread, so that the client and
//! other programs on the machine matter little. Round trips are those of one client that waits for each answer.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed step ends the benchmark, and it prints its table"
)]

use std::fs;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use serde_json::{Value, from_value, json};
use tokio::io::Interest;
use vmap_proxy_compiler::model::{Change, Object};
use vmap_proxy_dns::options::DEFAULT_TTL;
use vmap_proxy_dns::{DnsMetrics, DnsServer, Options, Update, Upstream};
use vmap_proxy_dns_zone::{NameContent, ZoneConfig};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 5;
/// Questions on the way at a time.
const WINDOW: usize = 64;
const DURATION: Duration = Duration::from_secs(5);
const ROUND_TRIPS: usize = 50_000;

fn main() {
    let before = resident();
    let server = server();
    let address = listening(&server);
    fill(&server);
    let hit = |number: usize| question(&format!("svc-{}.shop.svc.cluster.local.", number % SERVICES), RecordType::A);
    await_answer(address, &hit(SERVICES - 1));
    println!("memory for {SERVICES} Services x {ENDPOINTS}: {} KiB", resident().saturating_sub(before) / 1024);

    let echo = echo();
    println!("{:<44} {:>16} {:>10} {:>10}", "", "per core, 1/s", "p50, us", "p99, us");
    let questions: Vec<Vec<u8>> = (0..1000).map(|number| hit(number * 7)).collect();
    let searches: Vec<Vec<u8>> = (0..1000)
        .map(|number| question(&format!("www{number}.example.com.shop.svc.cluster.local."), RecordType::AAAA))
        .collect();
    row("plain UDP echo of the same questions", "echo", echo, &questions);
    row("a cluster IP", "dns", address, &questions);
    row("a search that ends here (NXDOMAIN)", "dns", address, &searches);
}

fn row(what: &str, thread: &str, address: SocketAddr, questions: &[Vec<u8>]) {
    let per_core = throughput(thread, address, questions);
    let (p50, p99) = round_trips(address, questions);
    println!("{what:<44} {per_core:>16.0} {:>10.1} {:>10.1}", p50.as_secs_f64() * 1e6, p99.as_secs_f64() * 1e6);
}

fn throughput(thread: &str, address: SocketAddr, questions: &[Vec<u8>]) -> f64 {
    let socket = client(address);
    let mut buffer = [0; 2048];
    let (mut sent, mut answered) = (0, 0_u64);
    for _ in 0..WINDOW {
        socket.send(&questions[sent % questions.len()]).unwrap();
        sent += 1;
    }
    let (begun, cpu) = (Instant::now(), cpu_time(thread));
    while begun.elapsed() < DURATION {
        socket.recv(&mut buffer).unwrap();
        answered += 1;
        socket.send(&questions[sent % questions.len()]).unwrap();
        sent += 1;
    }
    answered as f64 / (cpu_time(thread) - cpu).as_secs_f64()
}

fn round_trips(address: SocketAddr, questions: &[Vec<u8>]) -> (Duration, Duration) {
    let socket = client(address);
    let mut buffer = [0; 2048];
    let mut times: Vec<Duration> = (0..ROUND_TRIPS)
        .map(|number| {
            let begun = Instant::now();
            socket.send(&questions[number % questions.len()]).unwrap();
            socket.recv(&mut buffer).unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(address).unwrap();
    socket
}

fn question(name: &str, record_type: RecordType) -> Vec<u8> {
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message.to_vec().unwrap()
}

fn server() -> DnsServer {
    let options = Options {
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        zone: ZoneConfig::default(),
        ttl: DEFAULT_TTL,
        upstream: Upstream::Servers(Vec::new()),
        cluster_ranges: Vec::new(),
        client_ranges: Vec::new(),
    };
    let server = DnsServer::start(options, DnsMetrics::new("cluster.local")).unwrap();
    server.update(Update::NodeAddresses(Vec::new()));
    server
}

fn listening(server: &DnsServer) -> SocketAddr {
    loop {
        if let Some(address) = server.listening().borrow().iter().copied().flatten().next() {
            return address;
        }
        thread::yield_now();
    }
}

fn fill(server: &DnsServer) {
    for number in 0..SERVICES {
        let name = format!("svc-{number}");
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        let service = json!({
            "kind": "Service", "metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": format!("10.96.{high}.{low}"), "ports": [{"name": "http", "port": 80}]},
        });
        let endpoints: Vec<Value> =
            (0..ENDPOINTS).map(|pod| json!({"addresses": [format!("10.{}.{high}.{low}", 100 + pod)]})).collect();
        let slice = json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
            "metadata": {"namespace": "shop", "name": format!("{name}-a"), "labels": {"kubernetes.io/service-name": name}},
        });
        let changes = [service, slice].map(|value| {
            let object: Object = from_value(value).unwrap();
            let reference = object.reference();
            (reference, NameContent::read(&Change::Apply(object)).0)
        });
        server.update(Update::Changes(changes.to_vec()));
    }
    server.update(Update::Complete);
}

/// Waits until a name has an address.
fn await_answer(address: SocketAddr, question: &[u8]) {
    let socket = client(address);
    let mut buffer = [0; 2048];
    loop {
        socket.send(question).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        if !Message::from_vec(&buffer[..length]).unwrap().answers.is_empty() {
            return;
        }
    }
}

/// Sends every datagram back: the loop of the server, without a server in it.
fn echo() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    let serve = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let state = UdpSocketState::new(UdpSockRef::from(&socket)).unwrap();
            let socket = tokio::net::UdpSocket::from_std(socket).unwrap();
            let mut storage = vec![[0_u8; 4096]; BATCH_SIZE];
            let mut metas = [RecvMeta::default(); BATCH_SIZE];
            loop {
                let mut buffers: Vec<_> = storage.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
                let receive = || state.recv(UdpSockRef::from(&socket), &mut buffers, &mut metas);
                let count = socket.async_io(Interest::READABLE, receive).await.unwrap();
                for (meta, buffer) in metas.iter().zip(&storage).take(count) {
                    for contents in buffer[..meta.len].chunks(meta.stride.max(1)) {
                        let transmit = Transmit {
                            destination: meta.addr,
                            ecn: None,
                            contents,
                            segment_size: None,
                            src_ip: meta.dst_ip,
                        };
                        state.try_send(UdpSockRef::from(&socket), &transmit).unwrap();
                    }
                }
            }
        });
    };
    thread::Builder::new().name("echo".to_owned()).spawn(serve).unwrap();
    address
}

/// The CPU time of the thread with this name.
fn cpu_time(name: &str) -> Duration {
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
            let times = fs::read_to_string(path.join("schedstat")).unwrap();
            return Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap());
        }
    }
    panic!("there is no thread {name}");
}

/// The resident memory of the process in bytes.
fn resident() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
