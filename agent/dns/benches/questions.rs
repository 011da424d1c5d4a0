//! The server beside a plain UDP echo: questions a second of one core, round trips, and memory.
//!
//! ```sh
//! cargo bench -p vmap-proxy-dns
//! ```
//!
//! Answers a second of one core are answers divided by the CPU time of the server's thread, so that the client and
//! other programs on the machine matter little; `user` is the time of one question that is spent in the program, not in
//! the kernel. Round trips are those of one client that waits for each answer, and `loaded` those at 75,000 questions a
//! second, for which the machine has to be idle.
//!
//! `DNS_PEER=ADDRESS:PORT,PID` adds the rows of another server with one thread, which has the same 10,000 names, such as
//! unbound:
//!
//! ```sh
//! for n in $(seq 0 9999); do
//!     echo "local-data: 'svc-$n.shop.svc.cluster.local. 5 IN A 10.96.$((n / 256)).$((n % 256))'"
//! done > names.conf
//! printf '%s\n' server: 'interface: 127.0.0.1@5300' 'num-threads: 1' 'username: ""' 'chroot: ""' 'use-syslog: no' \
//!     'local-zone: cluster.local. static' 'include: names.conf' > unbound.conf
//! unbound -d -c unbound.conf & DNS_PEER=127.0.0.1:5300,$! cargo bench -p vmap-proxy-dns
//! ```
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a failed step ends the benchmark, and it prints its table"
)]

use std::fs;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use serde_json::{Value, from_value, json};
use tokio::io::Interest;
use vmap_proxy_compiler::model::{Change, Object, ObjectRef};
use vmap_proxy_dns::options::DEFAULT_TTL;
use vmap_proxy_dns::{DnsMetrics, DnsServer, Options, Update, Upstream};
use vmap_proxy_dns_zone::{NameContent, ZoneConfig};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 5;
/// Questions of a burst.
const WINDOW: usize = 64;
const DURATION: Duration = Duration::from_secs(5);
const ROUND_TRIPS: usize = 50_000;
/// Questions a second for the round trips under load: half of the goal.
const LOAD: u32 = 75_000;

fn main() {
    let before = resident();
    let server = server();
    let address = listening(&server);
    fill(&server);
    let hit = |number: usize| question(&format!("svc-{}.shop.svc.cluster.local.", number % SERVICES), RecordType::A);
    await_answer(address, &hit(SERVICES - 1));
    println!("memory for {SERVICES} Services x {ENDPOINTS}: {} KiB", resident().saturating_sub(before) / 1024);
    let (p50, p99) = first_answers(&server, address);
    println!("from an event to the first answer: p50 {p50:.1?}, p99 {p99:.1?}");

    let echo = echo();
    println!(
        "{:<44} {:>14} {:>9} {:>9} {:>9} {:>11} {:>11}",
        "", "per core, 1/s", "user, us", "p50, us", "p99, us", "loaded p50", "loaded p99"
    );
    let few: Vec<Vec<u8>> = (0..1000).map(|number| hit(number * 7)).collect();
    let all: Vec<Vec<u8>> = (0..SERVICES).map(hit).collect();
    let searches = |count: usize| -> Vec<Vec<u8>> {
        (0..count)
            .map(|number| question(&format!("www{number}.example.com.shop.svc.cluster.local."), RecordType::AAAA))
            .collect()
    };
    let (echo_thread, server_thread) = (Thread::own("echo"), Thread::own("dns"));
    row("plain UDP echo of the same questions", &echo_thread, echo, &few);
    row("a cluster IP, of 1,000", &server_thread, address, &few);
    row("a cluster IP, of 10,000", &server_thread, address, &all);
    row("a search that ends here, of 1,000", &server_thread, address, &searches(1000));
    row("a search that ends here, of 10,000", &server_thread, address, &searches(10_000));
    if let Ok(peer) = std::env::var("DNS_PEER") {
        let (address, process) = peer.split_once(',').expect("DNS_PEER is ADDRESS:PORT,PID");
        let (address, thread) =
            (address.parse().expect("DNS_PEER begins with ADDRESS:PORT"), Thread::first_of(process));
        await_answer(address, &hit(SERVICES - 1));
        row("a peer: a cluster IP, of 1,000", &thread, address, &few);
        row("a peer: a cluster IP, of 10,000", &thread, address, &all);
        row("a peer: a search that ends here, of 1,000", &thread, address, &searches(1000));
        row("a peer: a search that ends here, of 10,000", &thread, address, &searches(10_000));
    }
}

/// A thread, by its folder in `/proc`.
struct Thread(PathBuf);

impl Thread {
    /// The thread of this program that has the name.
    fn own(name: &str) -> Self {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let has_name = |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        Self(tasks.into_iter().find(has_name).unwrap_or_else(|| panic!("there is no thread {name}")))
    }

    /// The first thread of another process.
    fn first_of(process: &str) -> Self {
        Self(["/proc", process, "task", process].iter().collect())
    }
}

fn row(what: &str, thread: &Thread, address: SocketAddr, questions: &[Vec<u8>]) {
    let (per_core, user) = throughput(thread, address, questions);
    let (p50, p99) = round_trips(address, questions);
    let (loaded_p50, loaded_p99) = loaded_round_trips(address, questions);
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    println!(
        "{what:<44} {per_core:>14.0} {:>9.2} {:>9.1} {:>9.1} {:>11.1} {:>11.1}",
        micros(user),
        micros(p50),
        micros(p99),
        micros(loaded_p50),
        micros(loaded_p99)
    );
}

/// Sends questions in bursts, so that the server has several to read at a time, as under load. Waking the client for an
/// answer counts as time of the server, of the echo as well.
fn throughput(thread: &Thread, address: SocketAddr, questions: &[Vec<u8>]) -> (f64, Duration) {
    let socket = client(address);
    let mut buffer = [0; 2048];
    let (mut sent, mut answered) = (0, 0_u64);
    let (begun, before) = (Instant::now(), CpuTime::of(thread));
    while begun.elapsed() < DURATION {
        for _ in 0..WINDOW {
            socket.send(&questions[sent % questions.len()]).unwrap();
            sent += 1;
        }
        for _ in 0..WINDOW {
            socket.recv(&mut buffer).unwrap();
            answered += 1;
        }
    }
    let after = CpuTime::of(thread);
    let total = after.total - before.total;
    let (user, kernel) = (after.user_ticks - before.user_ticks, after.kernel_ticks - before.kernel_ticks);
    let in_user_space = total.mul_f64(user as f64 / (user + kernel).max(1) as f64);
    (answered as f64 / total.as_secs_f64(), in_user_space.div_f64(answered as f64))
}

fn round_trips(address: SocketAddr, questions: &[Vec<u8>]) -> (Duration, Duration) {
    let socket = client(address);
    let mut buffer = [0; 2048];
    let times = (0..ROUND_TRIPS)
        .map(|number| {
            let begun = Instant::now();
            socket.send(&questions[number % questions.len()]).unwrap();
            socket.recv(&mut buffer).unwrap();
            begun.elapsed()
        })
        .collect();
    quantiles(times)
}

/// Round trips of questions that are sent at a fixed rate, whether earlier ones were answered or not.
fn loaded_round_trips(address: SocketAddr, questions: &[Vec<u8>]) -> (Duration, Duration) {
    let socket = client(address);
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 2048];
    let mut sent: Vec<Instant> = vec![Instant::now(); 1 << 16];
    let mut times = Vec::new();
    let begun = Instant::now();
    let mut number = 0_u32;
    while begun.elapsed() < DURATION {
        if begun.elapsed() >= Duration::from_secs(1) * number / LOAD {
            let id = number as u16;
            let mut question = questions[number as usize % questions.len()].clone();
            question[..2].copy_from_slice(&id.to_be_bytes());
            sent[usize::from(id)] = Instant::now();
            // A full queue is a lost question.
            let _ = socket.send(&question);
            number += 1;
        }
        while socket.recv(&mut buffer).is_ok() {
            times.push(sent[usize::from(u16::from_be_bytes([buffer[0], buffer[1]]))].elapsed());
        }
    }
    quantiles(times)
}

fn quantiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// From the event of a new Service until its name has an address.
fn first_answers(server: &DnsServer, address: SocketAddr) -> (Duration, Duration) {
    let times = (0..500)
        .map(|number| {
            let name = format!("new-{number}");
            let asked = question(&format!("{name}.shop.svc.cluster.local."), RecordType::A);
            let change = change(json!({
                "kind": "Service", "metadata": {"namespace": "shop", "name": name},
                "spec": {"clusterIP": "10.97.0.1", "ports": [{"name": "http", "port": 80}]},
            }));
            let begun = Instant::now();
            server.update(Update::Changes(vec![change]));
            await_answer(address, &asked);
            begun.elapsed()
        })
        .collect();
    quantiles(times)
}

fn change(value: Value) -> (ObjectRef, NameContent) {
    let object: Object = from_value(value).unwrap();
    let reference = object.reference();
    (reference, NameContent::read(&Change::Apply(object)).0)
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
        take_over: None,
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
        server.update(Update::Changes([service, slice].map(change).to_vec()));
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

/// The CPU time of a thread: all of it, and how often the kernel's clock found it in user space and in the kernel.
struct CpuTime {
    total: Duration,
    user_ticks: u64,
    kernel_ticks: u64,
}

impl CpuTime {
    /// Of a thread until now.
    fn of(Thread(path): &Thread) -> Self {
        let times = fs::read_to_string(path.join("schedstat")).unwrap();
        let total = Duration::from_nanos(times.split(' ').next().unwrap().parse().unwrap());
        let stat = fs::read_to_string(path.join("stat")).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap();
        let fields: Vec<&str> = behind_name.split_whitespace().collect();
        let ticks = |field: usize| fields[field].parse().unwrap();
        Self { total, user_ticks: ticks(11), kernel_ticks: ticks(12) }
    }
}

/// The resident memory of the process in bytes.
fn resident() -> u64 {
    let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
