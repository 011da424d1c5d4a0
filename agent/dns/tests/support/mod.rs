//! A server on the loopback interface, clients, and an upstream server.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, from_value, json};
use vmap_proxy_compiler::model::{Change, Object};
use vmap_proxy_dns::options::DEFAULT_TTL;
use vmap_proxy_dns::{DnsMetrics, DnsServer, Options, Update, Upstream};
use vmap_proxy_dns_zone::{NameContent, ZoneConfig};

/// Longer than any answer takes, except for one that never comes.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    server: DnsServer,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: DnsMetrics,
}

/// Options of a server on a free port, with these upstream servers.
pub(crate) fn options(upstream: &[SocketAddr]) -> Options {
    Options {
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        zone: ZoneConfig::default(),
        ttl: DEFAULT_TTL,
        upstream: Upstream::Servers(upstream.to_vec()),
        cluster_ranges: Vec::new(),
        client_ranges: Vec::new(),
        take_over: None,
    }
}

impl Server {
    /// Starts a server that knows nothing yet.
    pub(crate) fn start(options: Options) -> Self {
        let metrics = DnsMetrics::new("cluster.local");
        let server = DnsServer::start(options, metrics.clone()).unwrap();
        server.update(Update::NodeAddresses(vec![Ipv4Addr::LOCALHOST.into()]));
        let mut listening = server.listening();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let address = runtime.block_on(async {
            let first = listening.wait_for(|listening| listening.iter().any(Option::is_some));
            let listening = tokio::time::timeout(PATIENCE, first).await.unwrap().unwrap();
            listening.iter().copied().flatten().next().unwrap()
        });
        Self { server, address, metrics }
    }

    /// A server that knows just these objects.
    pub(crate) fn with(objects: &[Value], upstream: &[SocketAddr]) -> Self {
        let server = Self::start(options(upstream));
        server.apply(objects);
        server.update(Update::Complete);
        server.wait_until_complete();
        server
    }

    /// Asks until everything that was sent before is applied: until then the answer is SERVFAIL.
    fn wait_until_complete(&self) {
        let end = Instant::now() + PATIENCE;
        while self.udp(&question("dns-version.cluster.local", RecordType::TXT)).answers.is_empty() {
            assert!(Instant::now() < end, "the server does not become complete");
        }
    }

    pub(crate) fn update(&self, update: Update) {
        assert!(self.server.update(update));
    }

    pub(crate) fn apply(&self, objects: &[Value]) {
        let changes = objects.iter().map(|value| {
            let object: Object = from_value(value.clone()).unwrap();
            let reference = object.reference();
            (reference, NameContent::read(&Change::Apply(object)).0)
        });
        self.update(Update::Changes(changes.collect()));
    }

    pub(crate) fn udp(&self, question: &Message) -> Message {
        Message::from_vec(&self.udp_bytes(&question.to_vec().unwrap())).unwrap()
    }

    pub(crate) fn udp_bytes(&self, question: &[u8]) -> Vec<u8> {
        let socket = client();
        socket.send_to(question, self.address).unwrap();
        let mut buffer = vec![0; 65536];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, self.address);
        buffer.truncate(length);
        buffer
    }

    pub(crate) fn tcp(&self, question: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        over_tcp(&mut stream, question)
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        self.metrics.encode(&mut text);
        text
    }
}

pub(crate) fn client() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// A question and its answer over an open connection.
pub(crate) fn over_tcp(stream: &mut TcpStream, question: &Message) -> Message {
    let bytes = question.to_vec().unwrap();
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length[..], &bytes].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(format!("{text}.")).unwrap()
}

/// A question without EDNS.
pub(crate) fn question(text: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), record_type));
    message
}

/// The same with EDNS, and the offered size.
pub(crate) fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

/// The data of the answer section, sorted.
pub(crate) fn answers(message: &Message) -> Vec<String> {
    let mut all: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    all.sort();
    all
}

pub(crate) fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

pub(crate) fn web() -> Value {
    service(
        "web",
        json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::a"],
            "ports": [{"name": "http", "port": 80}],
        }),
    )
}

/// A headless Service `big` with this number of endpoints.
pub(crate) fn big(endpoints: usize) -> Vec<Value> {
    let slices = (0..endpoints).step_by(100).map(|first| {
        let endpoints = (first..endpoints.min(first + 100)).map(
            |pod| json!({"addresses": [format!("10.244.{}.{}", pod / 250, pod % 250)], "hostname": format!("p{pod}")}),
        );
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints.collect::<Vec<_>>(),
            "ports": [{"name": "http", "port": 8080}],
            "metadata": {
                "namespace": "shop", "name": format!("big-{first}"), "labels": {"kubernetes.io/service-name": "big"},
            },
        })
    });
    [service("big", json!({"clusterIP": "None"}))].into_iter().chain(slices).collect()
}

/// An upstream server: `good.example` has an address, `slow.example` gets no
/// answer, and nothing else exists. Counts the questions.
pub(crate) struct UpstreamServer {
    pub(crate) address: SocketAddr,
    pub(crate) questions: Arc<AtomicUsize>,
}

impl UpstreamServer {
    pub(crate) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let questions = Arc::new(AtomicUsize::new(0));
        let count = questions.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::SeqCst);
                let question = Message::from_vec(&buffer[..length]).unwrap();
                if let Some(answer) = upstream_answer(&question) {
                    socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
                }
            }
        });
        Self { address, questions }
    }

    pub(crate) fn count(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

fn upstream_answer(question: &Message) -> Option<Message> {
    let query = question.queries[0].clone();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    let good = query.name == name("good.example");
    match query.query_type {
        _ if query.name == name("slow.example") => return None,
        RecordType::A if good => {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            answer.add_answer(Record::from_rdata(query.name, 60, data));
        }
        _ => {
            if !good {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            let soa = SOA::new(name("ns.example"), name("mail.example"), 1, 2, 3, 4, 30);
            answer.add_authority(Record::from_rdata(name("example"), 60, RData::SOA(soa)));
        }
    }
    Some(answer)
}
