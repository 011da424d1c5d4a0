//! A name vector against the zone, and against a server over real sockets.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::Value;
use thiserror::Error;
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::model::{Change, Object};
use vmap_proxy_dns::options::DEFAULT_TTL;
use vmap_proxy_dns::{DnsMetrics, DnsServer, Options, StartError, Update, Upstream};
use vmap_proxy_dns_zone::{Answer, InvalidDomain, NameContent, QuestionType, Records, Zone, ZoneConfig};

use super::schema::{Absence, DeletedKind, Expected, NameStep, NameVector, QueryType, Question};

/// Longest wait for an answer on an ordinary machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The reason why a vector could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// A manifest is malformed.
    #[error("a manifest cannot be read: {0}")]
    Manifest(#[from] serde_json::Error),
    /// The domain cannot be one.
    #[error(transparent)]
    Domain(#[from] InvalidDomain),
    /// The server did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The server is silent.
    #[error("asking the server: {0}")]
    Io(#[from] io::Error),
    /// A name of the vector, or an answer, is malformed.
    #[error("{0}")]
    Message(String),
    /// The server ended, or does not get ready.
    #[error("the server does not get ready")]
    NotReady,
}

/// A question with another answer than expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The question.
    pub question: Question,
    /// 0: before the steps; else the number of the step.
    pub phase: usize,
    /// The answer.
    pub found: Expected,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { question, phase, found } = self;
        let Question { ask, record_type, answer } = question;
        write!(f, "phase {phase}: {ask} {record_type:?}: {found:?} in place of {answer:?}")
    }
}

/// Something that takes changes and answers questions.
trait Names {
    fn take(&mut self, changes: Vec<(ObjectRef, NameContent)>) -> Result<(), RunError>;
    fn ask(&mut self, question: &Question) -> Result<Expected, RunError>;
}

/// Runs a vector against the zone alone.
///
/// # Errors
/// [`RunError`]: the vector could not be run.
pub fn against_zone(vector: &NameVector) -> Result<Vec<Failure>, RunError> {
    let mut zone = Zone::new(ZoneConfig::new(&vector.domain, vector.pod_names)?);
    for (object, content) in changes(&[], &vector.objects)? {
        zone.apply(&object, content);
    }
    zone.set_complete();
    phases(vector, &mut zone)
}

/// Runs a vector against a server, each question over UDP and TCP.
///
/// # Errors
/// [`RunError`]: the vector could not be run.
pub fn against_server(vector: &NameVector) -> Result<Vec<Failure>, RunError> {
    let options = Options {
        addresses: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        zone: ZoneConfig::new(&vector.domain, vector.pod_names)?,
        ttl: DEFAULT_TTL,
        upstream: Upstream::Servers(Vec::new()),
        cluster_ranges: Vec::new(),
        client_ranges: Vec::new(),
        take_over: None,
    };
    let server = DnsServer::start(options, DnsMetrics::new(&vector.domain))?;
    let mut running = Running { server, address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), generation: 0 };
    running.send(Update::NodeAddresses(Vec::new()))?;
    running.send(Update::Changes(changes(&[], &vector.objects)?))?;
    running.send(Update::Complete)?;
    running.find_address()?;
    phases(vector, &mut running)
}

fn phases(vector: &NameVector, names: &mut impl Names) -> Result<Vec<Failure>, RunError> {
    let mut failures = Vec::new();
    let first = NameStep { delete: Vec::new(), apply: Vec::new(), questions: vector.questions.clone() };
    for (phase, step) in std::iter::once(&first).chain(&vector.steps).enumerate() {
        let gone: Vec<ObjectRef> = step
            .delete
            .iter()
            .map(|deleted| ObjectRef {
                kind: match deleted.kind {
                    DeletedKind::Service => Kind::Service,
                    DeletedKind::EndpointSlice => Kind::EndpointSlice,
                },
                namespace: deleted.namespace.clone(),
                name: deleted.name.clone(),
            })
            .collect();
        names.take(changes(&gone, &step.apply)?)?;
        for question in &step.questions {
            let found = names.ask(question)?;
            if found != question.answer {
                failures.push(Failure { question: question.clone(), phase, found });
            }
        }
    }
    Ok(failures)
}

fn changes(gone: &[ObjectRef], applied: &[Value]) -> Result<Vec<(ObjectRef, NameContent)>, RunError> {
    let mut all: Vec<_> = gone.iter().map(|object| (object.clone(), NameContent::Gone)).collect();
    for manifest in applied {
        let object: Object = serde_json::from_value(manifest.clone())?;
        let reference = object.reference();
        all.push((reference, NameContent::read(&Change::Apply(object)).0));
    }
    Ok(all)
}

impl Names for Zone {
    fn take(&mut self, changes: Vec<(ObjectRef, NameContent)>) -> Result<(), RunError> {
        changes.into_iter().for_each(|(object, content)| self.apply(&object, content));
        Ok(())
    }

    fn ask(&mut self, question: &Question) -> Result<Expected, RunError> {
        let labels: Vec<&[u8]> = question.ask.split('.').map(str::as_bytes).collect();
        Ok(match self.answer(&labels, question_type(question.record_type)) {
            Answer::Records(records) => Expected::Records(texts(&records)),
            Answer::NoData(_) => Expected::None(Absence::NoData),
            Answer::NameError(_) => Expected::None(Absence::NameError),
            Answer::NotOurs => Expected::None(Absence::NotOurs),
            Answer::NotReady => return Err(RunError::NotReady),
        })
    }
}

fn question_type(record_type: QueryType) -> QuestionType {
    match record_type {
        QueryType::A => QuestionType::A,
        QueryType::Aaaa => QuestionType::Aaaa,
        QueryType::Srv => QuestionType::Srv,
        QueryType::Ptr => QuestionType::Ptr,
        QueryType::Txt => QuestionType::Txt,
        QueryType::Soa => QuestionType::Soa,
        QueryType::Mx => QuestionType::Other,
    }
}

fn texts(records: &Records<'_>) -> BTreeSet<String> {
    match records {
        Records::A(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Records::Aaaa(addresses) => addresses.iter().map(ToString::to_string).collect(),
        Records::Srv(targets) => targets.iter().map(|target| format!("{} {}", target.port, target.host)).collect(),
        Records::Ptr(names) => names.iter().cloned().collect(),
        Records::Cname(name) => BTreeSet::from([(*name).to_owned()]),
        Records::Txt(text) => BTreeSet::from([(*text).to_owned()]),
        Records::Soa(zone) => BTreeSet::from([zone.clone().into_owned()]),
    }
}

/// A server on the loopback interface.
struct Running {
    server: DnsServer,
    address: SocketAddr,
    /// The number of markers so far.
    generation: usize,
}

impl Running {
    fn send(&self, update: Update) -> Result<(), RunError> {
        if self.server.update(update) { Ok(()) } else { Err(RunError::NotReady) }
    }

    fn find_address(&mut self) -> Result<(), RunError> {
        let deadline = Instant::now() + PATIENCE;
        let listening = self.server.listening();
        while Instant::now() < deadline {
            if let Some(address) = listening.borrow().iter().flatten().next() {
                self.address = *address;
                return Ok(());
            }
            std::thread::yield_now();
        }
        Err(RunError::NotReady)
    }

    /// Changes are applied on another thread: waits for a marker behind them.
    fn settle(&mut self) -> Result<(), RunError> {
        self.generation += 1;
        let service = format!("marker-{}", self.generation);
        let marker = serde_json::json!({
            "kind": "Service", "metadata": {"namespace": "marker", "name": service}, "spec": {"clusterIP": "192.0.2.99"},
        });
        self.send(Update::Changes(changes(&[], &[marker])?))?;
        let deadline = Instant::now() + PATIENCE;
        // The domain does not matter: the first name that exists below `marker` is found by its reverse name, too.
        while Instant::now() < deadline {
            let message = self.udp(&question_message("99.2.0.192.in-addr.arpa", RecordType::PTR)?)?;
            let is_there = |text: &str| text.starts_with(&format!("{service}."));
            if message.answers.iter().any(|record| is_there(&record.data.to_string())) {
                return Ok(());
            }
        }
        Err(RunError::NotReady)
    }

    fn udp(&self, question: &Message) -> Result<Message, RunError> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&encoded(question)?, self.address)?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let length = socket.recv(&mut buffer)?;
        decoded(buffer.get(..length).unwrap_or_default())
    }

    fn tcp(&self, question: &Message) -> Result<Message, RunError> {
        let bytes = encoded(question)?;
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = u16::try_from(bytes.len()).map_err(|error| RunError::Message(error.to_string()))?;
        stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        decoded(&answer)
    }
}

fn encoded(message: &Message) -> Result<Vec<u8>, RunError> {
    message.to_vec().map_err(|error| RunError::Message(error.to_string()))
}

fn decoded(bytes: &[u8]) -> Result<Message, RunError> {
    Message::from_vec(bytes).map_err(|error| RunError::Message(error.to_string()))
}

fn question_message(name: &str, record_type: RecordType) -> Result<Message, RunError> {
    let name = Name::from_ascii(format!("{name}.")).map_err(|error| RunError::Message(error.to_string()))?;
    let mut message = Message::new(1, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(name, record_type));
    Ok(message)
}

impl Names for Running {
    fn take(&mut self, changes: Vec<(ObjectRef, NameContent)>) -> Result<(), RunError> {
        self.send(Update::Changes(changes))?;
        self.settle()
    }

    fn ask(&mut self, question: &Question) -> Result<Expected, RunError> {
        let record_type = match question.record_type {
            QueryType::A => RecordType::A,
            QueryType::Aaaa => RecordType::AAAA,
            QueryType::Srv => RecordType::SRV,
            QueryType::Ptr => RecordType::PTR,
            QueryType::Txt => RecordType::TXT,
            QueryType::Soa => RecordType::SOA,
            QueryType::Mx => RecordType::MX,
        };
        let message = question_message(&question.ask, record_type)?;
        let (udp, tcp) = (expected_of(&self.udp(&message)?), expected_of(&self.tcp(&message)?));
        if udp == tcp { Ok(udp) } else { Err(RunError::Message(format!("UDP has {udp:?}, TCP has {tcp:?}"))) }
    }
}

fn expected_of(message: &Message) -> Expected {
    let without_dot = |name: &Name| name.to_ascii().trim_end_matches('.').to_owned();
    let records = message.answers.iter().map(|record| match &record.data {
        RData::SRV(srv) => format!("{} {}", srv.port, without_dot(&srv.target)),
        RData::PTR(name) => without_dot(name),
        RData::CNAME(name) => without_dot(name),
        RData::SOA(_) => without_dot(&record.name),
        other => other.to_string(),
    });
    let records: BTreeSet<String> = records.collect();
    match message.metadata.response_code {
        ResponseCode::NXDomain => Expected::None(Absence::NameError),
        // The server of the vectors has no upstream servers.
        ResponseCode::Refused => Expected::None(Absence::NotOurs),
        _ if records.is_empty() => Expected::None(Absence::NoData),
        _ => Expected::Records(records),
    }
}
