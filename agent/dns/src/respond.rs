//! From the bytes of a question to its answer.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use rand::seq::SliceRandom;
use vmap_proxy_dns_zone::{Answer, QuestionType, Records, Target, Zone};

use crate::clients::Clients;
use crate::forward::{Forwarder, Outcome};
use crate::hot::HotAnswers;
use crate::message::{Answered, Reply, Request, Transport, header_only, sets};
use crate::metrics::{Plugin, Seen, ZoneLabel};
use crate::options::DEFAULT_TTL;

/// The most aliases that are followed for one question.
const MOST_ALIASES: usize = 8;

/// The target of the log lines for each question.
const QUESTIONS: &str = "vmap_proxy_dns::questions";

/// The bytes of an A and of an AAAA record whose owner is the asked name.
const A_BYTES: usize = 16;
const AAAA_BYTES: usize = 28;

/// The state that questions are answered from.
pub(crate) struct State {
    pub(crate) zone: Zone,
    pub(crate) clients: Clients,
    /// `None`: names outside of the cluster are refused.
    pub(crate) forwarder: Option<Forwarder>,
    /// Grows with each change of the others.
    pub(crate) generation: u64,
}

/// Answers questions. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Responder {
    pub(crate) state: Arc<RwLock<State>>,
    /// The TTL of records of the cluster, in seconds.
    pub(crate) ttl: u32,
    /// The serial number in SOA records.
    pub(crate) serial: u32,
    /// The cluster IP that this listener serves in place of a Service's
    /// endpoints. Everybody who gets there is answered, as by the endpoints.
    pub(crate) cluster_ip: Option<IpAddr>,
}

/// The reaction to a message.
pub(crate) enum Reaction {
    /// There is no answer: it is no question.
    Ignore,
    /// The answer is encoded.
    Reply(Seen),
    /// An upstream server has to be asked.
    Forward(Box<Forward>),
}

/// A question that an upstream server has to answer.
pub(crate) struct Forward {
    request: Request,
    /// The question for the upstream server.
    query: Query,
    /// The aliases that lead there.
    aliases: Vec<Vec<Answered>>,
}

/// The answer of the zone, or the name that leads out of it.
enum Step {
    Reply(Reply),
    Leave { name: Name, aliases: Vec<Vec<Answered>> },
}

impl Responder {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same as [`Self::react`] for datagrams, with the answers that were given
    /// before.
    pub(crate) fn react_again(
        &self,
        hot: &mut HotAnswers,
        bytes: &[u8],
        client: IpAddr,
        out: &mut Vec<u8>,
    ) -> Reaction {
        if tracing::enabled!(target: QUESTIONS, tracing::Level::TRACE) {
            // Each of them is logged.
            return self.react(bytes, client, Transport::Udp, out);
        }
        let (may_ask, generation) = {
            let state = self.state();
            (self.may_ask(&state, client), state.generation)
        };
        if may_ask && let Some(seen) = hot.get(generation, bytes, out) {
            return Reaction::Reply(seen);
        }
        let reaction = self.react(bytes, client, Transport::Udp, out);
        if let Reaction::Reply(seen) = &reaction
            && seen.plugin == Plugin::Kubernetes
        {
            hot.put(bytes, out, *seen);
        }
        reaction
    }

    fn may_ask(&self, state: &State, client: IpAddr) -> bool {
        self.cluster_ip.is_some() || state.clients.may_ask(client)
    }

    /// Reacts to a message; an answer is encoded into `out`.
    pub(crate) fn react(&self, bytes: &[u8], client: IpAddr, transport: Transport, out: &mut Vec<u8>) -> Reaction {
        let Some([_, _, flags, _, count_high, count_low, ..]) = bytes.first_chunk::<12>() else {
            return Reaction::Ignore;
        };
        // Nobody answers an answer: two servers would never end.
        if flags & 0x80 != 0 {
            return Reaction::Ignore;
        }
        let state = self.state();
        let refusal = if !self.may_ask(&state, client) {
            Some(ResponseCode::Refused)
        } else if flags & 0x78 != 0 {
            Some(ResponseCode::NotImp)
        } else if [*count_high, *count_low] != [0, 1] {
            // RFC 9619: exactly one.
            Some(ResponseCode::FormErr)
        } else {
            None
        };
        let request = match flags & 0x78 {
            0 => Message::from_vec(bytes).ok().and_then(|message| Request::new(message, transport)),
            _ => None,
        };
        let Some(request) = request else {
            let code = refusal.unwrap_or(ResponseCode::FormErr);
            header_only(bytes, code, out);
            return Reaction::Reply(Seen {
                record_type: RecordType::ZERO,
                zone: ZoneLabel::Root,
                code,
                plugin: Plugin::None,
            });
        };
        match refusal.or_else(|| refuse(&request)) {
            Some(code) => self.send(&request, &Reply::empty(code), Plugin::None, ZoneLabel::Root, out),
            None => self.answer(&state, request, out),
        }
    }

    /// Returns whether this is the server itself, which asks whether it answers.
    pub(crate) fn is_own_question(&self, client: IpAddr) -> bool {
        self.cluster_ip == Some(client)
    }

    fn answer(&self, state: &State, request: Request, out: &mut Vec<u8>) -> Reaction {
        match self.ask_zone(state, &request) {
            Step::Reply(reply) => self.send(&request, &reply, Plugin::Kubernetes, ZoneLabel::Cluster, out),
            Step::Leave { name, aliases } => self.leave(state, request, name, aliases, out),
        }
    }

    /// Encodes an answer. One that cannot be encoded becomes SERVFAIL.
    fn send(&self, request: &Request, reply: &Reply, plugin: Plugin, zone: ZoneLabel, out: &mut Vec<u8>) -> Reaction {
        Reaction::Reply(self.encode(request, reply, plugin, zone, out))
    }

    fn encode(&self, request: &Request, reply: &Reply, plugin: Plugin, zone: ZoneLabel, out: &mut Vec<u8>) -> Seen {
        let mut code = reply.code;
        if let Err(error) = request.encode(reply, out) {
            tracing::debug!("DNS: the answer for {} cannot be encoded: {error}", request.query.name());
            code = ResponseCode::ServFail;
            // Without records it can.
            let _ = request.encode(&Reply::empty(code), out);
        }
        let query = &request.query;
        tracing::trace!(target: QUESTIONS, "{} {}: {code}", query.name(), query.query_type());
        Seen { record_type: query.query_type(), zone, code, plugin }
    }

    /// The name is not in the zone.
    fn leave(
        &self,
        state: &State,
        request: Request,
        name: Name,
        aliases: Vec<Vec<Answered>>,
        out: &mut Vec<u8>,
    ) -> Reaction {
        let zone = if aliases.is_empty() { ZoneLabel::Root } else { ZoneLabel::Cluster };
        let Some(forwarder) = state.forwarder.as_ref().filter(|_| request.wants_recursion() || !aliases.is_empty())
        else {
            let reply = if aliases.is_empty() {
                Reply::empty(ResponseCode::Refused)
            } else {
                Reply { authoritative: true, answers: aliases, ..Reply::default() }
            };
            return self.send(&request, &reply, Plugin::None, zone, out);
        };
        let query = Query::query(name.to_lowercase(), request.query.query_type());
        if let Some(outcome) = forwarder.cached(&query) {
            let reply = self.reply_of(&request, aliases, outcome);
            return self.send(&request, &reply, Plugin::Cache, zone, out);
        }
        Reaction::Forward(Box::new(Forward { request, query, aliases }))
    }

    /// Asks the upstream servers, and encodes the answer.
    pub(crate) async fn finish(&self, forward: Forward, out: &mut Vec<u8>) -> Seen {
        let Forward { request, query, aliases } = forward;
        let zone = if aliases.is_empty() { ZoneLabel::Root } else { ZoneLabel::Cluster };
        let forwarder = self.state().forwarder.clone();
        let outcome = match forwarder {
            Some(forwarder) => forwarder.ask(query).await,
            None => Outcome { code: ResponseCode::ServFail, ..Outcome::default() },
        };
        let reply = self.reply_of(&request, aliases, outcome);
        self.encode(&request, &reply, Plugin::Forward, zone, out)
    }

    fn reply_of(&self, request: &Request, aliases: Vec<Vec<Answered>>, outcome: Outcome) -> Reply {
        let Outcome { code, mut answers, authorities } = outcome;
        // Clients may send mixed case, and compare.
        for record in answers.iter_mut().filter(|record| record.name == request.query.name) {
            record.name.clone_from(&request.query.name);
        }
        let mut all = aliases;
        all.extend(sets(answers));
        Reply { code, recursion_available: true, answers: all, authorities, ..Reply::default() }
    }

    /// Follows aliases within the zone.
    fn ask_zone(&self, state: &State, request: &Request) -> Step {
        let (name, record_type) = (&request.query.name, request.query.query_type());
        let mut aliases: Vec<Vec<Answered>> = Vec::new();
        let mut current = name.clone();
        while aliases.len() < MOST_ALIASES {
            let labels: Vec<&[u8]> = current.iter().collect();
            let answer = state.zone.answer(&labels, question_type(record_type));
            match answer {
                Answer::NotOurs => return Step::Leave { name: current, aliases },
                Answer::Records(Records::Cname(target)) => {
                    let Some(target) = to_name(target) else { break };
                    let alias = Record::from_rdata(current, self.ttl, RData::CNAME(CNAME(target.clone())));
                    aliases.push(vec![Answered::Record(alias)]);
                    if matches!(record_type, RecordType::CNAME | RecordType::ANY) {
                        return Step::Reply(authoritative(state, aliases));
                    }
                    current = target;
                }
                answer => return Step::Reply(self.reply(state, answer, &current, aliases, request)),
            }
        }
        Step::Reply(Reply::empty(ResponseCode::ServFail))
    }

    fn reply(
        &self,
        state: &State,
        answer: Answer<'_>,
        owner: &Name,
        aliases: Vec<Vec<Answered>>,
        request: &Request,
    ) -> Reply {
        let mut reply = authoritative(state, aliases);
        match answer {
            Answer::Records(records) => self.add_records(records, owner, request, &mut reply),
            Answer::NoData(_) if request.query.query_type() == RecordType::ANY => {
                // RFC 8482: one small record in place of all.
                let data = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
                reply.answers.push(vec![Answered::Record(Record::from_rdata(owner.clone(), self.ttl, data))]);
            }
            Answer::NoData(apex) => reply.authorities.extend(self.soa(&apex)),
            Answer::NameError(apex) => {
                reply.code = ResponseCode::NXDomain;
                reply.authorities.extend(self.soa(&apex));
            }
            Answer::NotReady | Answer::NotOurs => {
                reply.code = ResponseCode::ServFail;
                reply.authoritative = false;
            }
        }
        reply
    }

    fn add_records(&self, records: Records<'_>, owner: &Name, request: &Request, reply: &mut Reply) {
        let record = |data| Record::from_rdata(owner.clone(), self.ttl, data);
        // Through an alias it is another name.
        let is_asked = reply.answers.is_empty();
        let address = |address: IpAddr| match address {
            address if is_asked => Answered::Address { address, ttl: self.ttl },
            IpAddr::V4(address) => Answered::Record(record(RData::A(A(address)))),
            IpAddr::V6(address) => Answered::Record(record(RData::AAAA(AAAA(address)))),
        };
        let set: Vec<Answered> = match records {
            Records::A(addresses) => {
                let some = self.choose(&addresses, A_BYTES, request, reply);
                some.into_iter().map(|one| address(one.into())).collect()
            }
            Records::Aaaa(addresses) => {
                let some = self.choose(&addresses, AAAA_BYTES, request, reply);
                some.into_iter().map(|one| address(one.into())).collect()
            }
            other => self.other_records(other, owner, reply).into_iter().map(Answered::Record).collect(),
        };
        if !set.is_empty() {
            reply.answers.push(set);
        }
    }

    /// Records of types other than addresses.
    fn other_records(&self, records: Records<'_>, owner: &Name, reply: &mut Reply) -> Vec<Record> {
        let record = |data| Record::from_rdata(owner.clone(), self.ttl, data);
        let of_names = |names: &[String]| -> Vec<Name> { names.iter().filter_map(|name| to_name(name)).collect() };
        match records {
            Records::Srv(targets) => self.targets(targets, owner, reply),
            Records::Ptr(names) => of_names(&names).into_iter().map(|name| record(RData::PTR(PTR(name)))).collect(),
            Records::Cname(name) => to_name(name).map(|name| record(RData::CNAME(CNAME(name)))).into_iter().collect(),
            Records::Txt(text) => vec![record(RData::TXT(TXT::new(vec![text.to_owned()])))],
            Records::Soa(apex) => self.soa(&apex).into_iter().collect(),
            // `add_records` makes these.
            Records::A(_) | Records::Aaaa(_) => Vec::new(),
        }
    }

    /// The addresses in random order. None if they cannot fit into a datagram,
    /// and as many as fit into the largest TCP message.
    fn choose<T: Copy>(&self, addresses: &[T], bytes: usize, request: &Request, reply: &mut Reply) -> Vec<T> {
        // The header, the question, and the record of EDNS.
        let rest = request.limit().saturating_sub(12 + request.query.name.len() + 4 + 11);
        let most = rest / bytes;
        if addresses.len() > most {
            reply.truncated = true;
            if request.transport() == Transport::Udp {
                return Vec::new();
            }
        }
        let mut some = addresses.to_vec();
        if some.len() > 1 {
            some.shuffle(&mut rand::rng());
        }
        if reply.truncated {
            // Aliases before it need bytes as well.
            some.truncate(most.saturating_sub(64));
        }
        some
    }

    fn targets(&self, targets: Vec<Target>, owner: &Name, reply: &mut Reply) -> Vec<Record> {
        let weight = u16::try_from(100 / targets.len().max(1)).unwrap_or(1).max(1);
        let mut records = Vec::with_capacity(targets.len());
        for Target { port, host, addresses } in targets {
            let Some(host) = to_name(&host) else { continue };
            records.push(Record::from_rdata(
                owner.clone(),
                self.ttl,
                RData::SRV(SRV::new(0, weight, port, host.clone())),
            ));
            let of_host = addresses.into_iter().map(|address| {
                let data = match address {
                    IpAddr::V4(address) => RData::A(A(address)),
                    IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                };
                Record::from_rdata(host.clone(), self.ttl, data)
            });
            reply.additionals.extend(sets(of_host));
        }
        records.shuffle(&mut rand::rng());
        records
    }

    fn soa(&self, apex: &str) -> Option<Record> {
        let apex = to_name(apex)?;
        let below = |label: &str| Name::from_ascii(label).and_then(|name| name.append_domain(&apex));
        let (server, contact) = (below("ns.dns").ok()?, below("hostmaster").ok()?);
        let data = SOA::new(server, contact, self.serial, 7200, 1800, 86400, self.ttl);
        Some(Record::from_rdata(apex, self.ttl, RData::SOA(data)))
    }
}

fn authoritative(state: &State, answers: Vec<Vec<Answered>>) -> Reply {
    let recursion_available = state.forwarder.is_some();
    Reply { authoritative: true, recursion_available, answers, ..Reply::default() }
}

/// Answers messages without sockets, threads and upstream servers: the bytes of a
/// client in, the bytes for it out.
pub struct Answerer(Responder);

impl std::fmt::Debug for Answerer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answerer").finish_non_exhaustive()
    }
}

impl Answerer {
    /// Answers from this zone. Names outside of it are refused.
    pub fn new(zone: Zone) -> Self {
        let state = State { zone, clients: Clients::default(), forwarder: None, generation: 0 };
        Self(Responder { state: Arc::new(RwLock::new(state)), ttl: DEFAULT_TTL, serial: 1, cluster_ip: None })
    }

    /// The answer to a message of this node; `None` if it gets none.
    pub fn answer(&self, message: &[u8], is_tcp: bool) -> Option<Vec<u8>> {
        let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
        let mut out = Vec::new();
        match self.0.react(message, Ipv4Addr::LOCALHOST.into(), transport, &mut out) {
            Reaction::Reply(_) => Some(out),
            Reaction::Ignore | Reaction::Forward(_) => None,
        }
    }
}

/// Questions that are answered without a look at their name.
fn refuse(request: &Request) -> Option<ResponseCode> {
    if request.edns_version().is_some_and(|version| version > 0) {
        return Some(ResponseCode::BADVERS);
    }
    if request.query.query_class() != DNSClass::IN {
        return Some(ResponseCode::Refused);
    }
    match request.query.query_type() {
        RecordType::AXFR | RecordType::IXFR => Some(ResponseCode::Refused),
        RecordType::OPT | RecordType::TSIG | RecordType::ZERO => Some(ResponseCode::FormErr),
        _ => None,
    }
}

fn question_type(record_type: RecordType) -> QuestionType {
    match record_type {
        RecordType::A => QuestionType::A,
        RecordType::AAAA => QuestionType::Aaaa,
        RecordType::SRV => QuestionType::Srv,
        RecordType::PTR => QuestionType::Ptr,
        RecordType::TXT => QuestionType::Txt,
        RecordType::SOA => QuestionType::Soa,
        _ => QuestionType::Other,
    }
}

/// An absolute name; `None` if the text is none, which the zone has checked.
fn to_name(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use hickory_proto::op::{MessageType, OpCode};
    use proptest::prelude::*;
    use serde_json::json;
    use vmap_proxy_compiler::model::{Change, Object};
    use vmap_proxy_dns_zone::{NameContent, ZoneConfig};

    use super::*;

    fn responder() -> Responder {
        let mut zone = Zone::new(ZoneConfig::default());
        let service = json!({
            "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]},
        });
        let object: Object = serde_json::from_value(service).unwrap();
        let reference = object.reference();
        zone.apply(&reference, NameContent::read(&Change::Apply(object)).0);
        zone.set_complete();
        let clients = Clients::new(vec!["10.244.0.0/16".parse().unwrap()]);
        let state = Arc::new(RwLock::new(State { zone, clients, forwarder: None, generation: 0 }));
        Responder { state, ttl: 5, serial: 1, cluster_ip: None }
    }

    fn question() -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
        message.add_query(Query::query(name, RecordType::A));
        message.to_vec().unwrap()
    }

    #[test]
    fn only_this_node_and_its_pods_are_answered() {
        let responder = responder();
        let mut out = Vec::new();
        let mut code = |client: &str| {
            let Reaction::Reply(seen) = responder.react(&question(), client.parse().unwrap(), Transport::Udp, &mut out)
            else {
                panic!("no reply for {client}");
            };
            let answer = Message::from_vec(&out).unwrap();
            assert_eq!(answer.queries.len(), 1);
            // The refusal is no longer than the question: nobody can be flooded with it.
            assert!(seen.code == ResponseCode::NoError || out.len() <= question().len());
            seen.code
        };
        assert_eq!(code("10.244.9.9"), ResponseCode::NoError);
        assert_eq!(code("127.0.0.1"), ResponseCode::NoError);
        assert_eq!(code("192.0.2.1"), ResponseCode::Refused);
        assert_eq!(code("2001:db8::1"), ResponseCode::Refused);
    }

    fn react(bytes: &[u8]) {
        let mut out = Vec::new();
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Reaction::Reply(_) = responder().react(bytes, IpAddr::from([127, 0, 0, 1]), transport, &mut out) {
                assert!(out.len() >= 12 && out[..2] == bytes[..2] && out[2] & 0x80 != 0, "{out:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            react(&bytes);
        }

        #[test]
        fn any_change_of_a_question_is_survived(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = question();
            for (position, byte) in changes {
                let position = position.index(bytes.len());
                bytes[position] = byte;
            }
            react(&bytes);
            react(&bytes[..cut.index(bytes.len())]);
        }
    }
}
