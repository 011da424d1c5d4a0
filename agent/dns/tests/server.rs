//! The server over real sockets on the loopback interface.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, RecordType};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use support::{
    Server, UpstreamServer, answers, big, client, name, options, over_tcp, question, service, web, with_edns,
};
use vmap_proxy_dns::Update;

#[test]
fn both_transports_answer_from_the_zone() {
    let server = Server::with(&[web()], &[]);
    let asked = question("Web.SHOP.svc.cluster.local", RecordType::A);
    for answer in [server.udp(&asked), server.tcp(&asked)] {
        assert_eq!((answer.metadata.id, answer.metadata.message_type), (4711, MessageType::Response));
        assert!(answer.metadata.authoritative && answer.metadata.recursion_desired && !answer.metadata.truncation);
        assert_eq!(answers(&answer), ["10.96.0.10"]);
        assert_eq!(answer.answers[0].ttl, 5);
        // The case of the question stays.
        for owner in [&answer.queries[0].name, &answer.answers[0].name] {
            assert!(owner.eq_case(&name("Web.SHOP.svc.cluster.local")), "{owner}");
        }
        assert!(answer.edns.is_none());
    }
    let v6 = server.udp(&with_edns(question("web.shop.svc.cluster.local", RecordType::AAAA), 4096));
    assert_eq!(answers(&v6), ["fd00:10:96::a"]);
    assert_eq!(v6.edns.unwrap().max_payload(), 1232);
}

#[test]
fn negative_answers_carry_the_start_of_authority() {
    let server = Server::with(&[web()], &[]);
    let no_such_name = server.udp(&question("www.example.com.shop.svc.cluster.local", RecordType::A));
    assert_eq!(no_such_name.metadata.response_code, ResponseCode::NXDomain);
    let no_such_type = server.udp(&question("web.shop.svc.cluster.local", RecordType::MX));
    assert_eq!(no_such_type.metadata.response_code, ResponseCode::NoError);
    for answer in [no_such_name, no_such_type] {
        assert!(answer.answers.is_empty());
        let RData::SOA(soa) = &answer.authorities[0].data else { panic!("{:?}", answer.authorities) };
        assert_eq!((soa.minimum, answer.authorities[0].ttl), (5, 5));
        assert_eq!(answer.authorities[0].name, name("cluster.local"));
    }
}

#[test]
fn a_service_record_brings_the_addresses_of_its_target() {
    let server = Server::with(&[web()], &[]);
    let answer = server.udp(&question("_http._tcp.web.shop.svc.cluster.local", RecordType::SRV));
    assert_eq!(answers(&answer), ["0 100 80 web.shop.svc.cluster.local."]);
    let more: BTreeSet<String> = answer.additionals.iter().map(|record| record.data.to_string()).collect();
    assert_eq!(more, BTreeSet::from(["10.96.0.10".to_owned(), "fd00:10:96::a".to_owned()]));
}

#[test]
fn a_set_that_does_not_fit_is_left_out_as_a_whole() {
    let server = Server::with(&big(60), &[]);
    let asked = question("big.shop.svc.cluster.local", RecordType::A);
    for short in [asked.clone(), with_edns(asked.clone(), 700), with_edns(asked.clone(), 0)] {
        let answer = server.udp(&short);
        assert!(answer.metadata.truncation && answer.answers.is_empty(), "{answer}");
        assert_eq!(answer.edns.is_some(), short.edns.is_some());
    }
    for answer in [server.udp(&with_edns(asked.clone(), 1232)), server.udp(&with_edns(asked.clone(), 65000))] {
        assert!(!answer.metadata.truncation);
        assert_eq!(answers(&answer).len(), 60);
    }
    let many = Server::with(&big(200), &[]);
    let bytes = many.udp_bytes(&with_edns(asked.clone(), 65000).to_vec().unwrap());
    assert!(bytes.len() <= 1232, "{}", bytes.len());
    assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    assert_eq!(answers(&many.tcp(&asked)).len(), 200);
    // Additional records are left out without a word.
    let asked = with_edns(question("_http._tcp.big.shop.svc.cluster.local", RecordType::SRV), 1232);
    let few = Server::with(&big(20), &[]).udp(&asked);
    assert!(!few.metadata.truncation && few.answers.len() == 20, "{few}");
    assert!(!few.additionals.is_empty() && few.additionals.len() < 20, "{}", few.additionals.len());
}

#[test]
fn the_largest_message_holds_as_many_endpoints_as_it_can() {
    let server = Server::with(&big(10_000), &[]);
    let asked = question("big.shop.svc.cluster.local", RecordType::A);
    let answer = server.tcp(&asked);
    assert!(answer.metadata.truncation, "{:?} {}", answer.metadata, answer.answers.len());
    assert!((4000..4096).contains(&answer.answers.len()), "{}", answer.answers.len());
    assert_eq!(answers(&server.tcp(&question("p9999.big.shop.svc.cluster.local", RecordType::A))), ["10.244.39.249"]);
}

#[test]
fn addresses_come_in_random_order() {
    let server = Server::with(&big(20), &[]);
    let orders: BTreeSet<Vec<String>> = (0..10)
        .map(|_| {
            let answer = server.udp(&question("big.shop.svc.cluster.local", RecordType::A));
            answer.answers.iter().map(|record| record.data.to_string()).collect()
        })
        .collect();
    assert!(orders.len() > 5, "only {} orders of 20 addresses", orders.len());
}

#[test]
fn odd_questions_are_refused_by_the_book() {
    let server = Server::with(&[web()], &[]);
    let base = || question("web.shop.svc.cluster.local", RecordType::A);
    let code = |message: &Message| server.udp(message).metadata.response_code;

    let mut version = with_edns(base(), 1232);
    version.edns.as_mut().unwrap().set_version(1);
    // BADVERS; the library has two names for this number.
    assert_eq!(u16::from(code(&version)), 16);
    for operation in [OpCode::Notify, OpCode::Update, OpCode::Status] {
        let mut message = base();
        message.metadata.op_code = operation;
        assert_eq!(code(&message), ResponseCode::NotImp, "{operation:?}");
    }
    let mut two = base();
    two.add_query(Query::query(name("web.shop.svc.cluster.local"), RecordType::AAAA));
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut none = base();
    none.queries.clear();
    assert_eq!(code(&none), ResponseCode::FormErr);
    for transfer in [RecordType::AXFR, RecordType::IXFR] {
        assert_eq!(code(&question("cluster.local", transfer)), ResponseCode::Refused);
        assert_eq!(server.tcp(&question("cluster.local", transfer)).metadata.response_code, ResponseCode::Refused);
    }
    let mut class = base();
    class.queries[0].query_class = DNSClass::CH;
    assert_eq!(code(&class), ResponseCode::Refused);
    let any = server.udp(&question("web.shop.svc.cluster.local", RecordType::ANY));
    assert_eq!(any.answers.len(), 1);
    assert_eq!(any.answers[0].record_type(), RecordType::HINFO);
    // Without upstream servers, other names are not answered.
    assert_eq!(code(&question("example.com", RecordType::A)), ResponseCode::Refused);
}

#[test]
fn malformed_messages_get_an_error_and_harm_nothing() {
    let server = Server::with(&[web()], &[]);
    let good = question("web.shop.svc.cluster.local", RecordType::A).to_vec().unwrap();
    let header = &good[..12];
    // A pointer to itself, a label of 64 bytes, a name without end, a cut question.
    let pointer = [header, &[0xC0, 12, 0, 1, 0, 1]].concat();
    let long = [header, &[64], &[b'x'; 64], &[0, 0, 1, 0, 1]].concat();
    let endless = [header, &[1, b'x'].repeat(200)].concat();
    let too_long = [header, &[1, b'x'].repeat(128), &[0, 0, 1, 0, 1]].concat();
    for bytes in [pointer, long, endless, too_long, good[..good.len() - 3].to_vec()] {
        let answer = server.udp_bytes(&bytes);
        assert_eq!(answer.len(), 12);
        assert_eq!((answer[0..2].to_vec(), answer[3]), (good[0..2].to_vec(), 1), "{answer:?}");
    }
    // No answer at all to answers, and to what is no message: the next question is answered first.
    let socket = client();
    let mut answer = good.clone();
    answer[2] |= 0x80;
    for silent in [&answer[..], &good[..11], &[]] {
        socket.send_to(silent, server.address).unwrap();
    }
    let mut last = question("web.shop.svc.cluster.local", RecordType::A);
    last.metadata.id = 99;
    socket.send_to(&last.to_vec().unwrap(), server.address).unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, 99);
}

#[test]
fn nothing_is_denied_before_everything_is_listed() {
    let server = Server::start(options(&[]));
    server.apply(&[web()]);
    let asked = question("web.shop.svc.cluster.local", RecordType::A);
    assert_eq!(server.udp(&asked).metadata.response_code, ResponseCode::ServFail);
    server.update(Update::Complete);
    await_answer(&server, &asked, &["10.96.0.10"]);
}

/// Asks until the answer is there: changes are applied on another thread.
fn await_answer(server: &Server, asked: &Message, expected: &[&str]) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let found = answers(&server.udp(asked));
        if found == expected {
            return;
        }
        assert!(Instant::now() < end, "{found:?} in place of {expected:?}");
    }
}

#[test]
fn other_names_are_forwarded_and_cached() {
    let upstream = UpstreamServer::start();
    let server = Server::with(&[web()], &[upstream.address]);
    let asked = question("Good.Example", RecordType::A);
    for _ in 0..3 {
        let answer = server.udp(&asked);
        assert_eq!(answers(&answer), ["192.0.2.1"]);
        assert!(answer.metadata.recursion_available && !answer.metadata.authoritative);
        assert!(answer.answers[0].name.eq_case(&name("Good.Example")));
    }
    assert_eq!(upstream.count(), 1);
    for _ in 0..3 {
        let answer = server.tcp(&question("no.example", RecordType::A));
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
    }
    assert_eq!(upstream.count(), 2);
    // Searches for other names end here, and are never forwarded.
    server.udp(&question("good.example.svc.cluster.local", RecordType::A));
    assert_eq!(upstream.count(), 2);
    let metrics = server.metrics();
    let address = server.address;
    for line in [
        r#"coredns_cache_hits_total{server="dns://",zones=".",view="",type="success"} 2"#.to_owned(),
        r#"coredns_cache_hits_total{server="dns://",zones=".",view="",type="denial"} 2"#.to_owned(),
        r#"coredns_cache_misses_total{server="dns://",zones=".",view=""} 2"#.to_owned(),
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert!(metrics.contains("coredns_dns_requests_total{server=\"dns://127.0.0.1:"), "{address}: {metrics}");
}

#[test]
fn a_silent_upstream_server_costs_bounded_time_and_only_its_names() {
    let upstream = UpstreamServer::start();
    let server = Server::with(&[web()], &[upstream.address]);
    let begun = Instant::now();
    let socket = client();
    socket.send_to(&question("slow.example", RecordType::A).to_vec().unwrap(), server.address).unwrap();
    // Other questions go on meanwhile.
    assert_eq!(answers(&server.udp(&question("web.shop.svc.cluster.local", RecordType::A))), ["10.96.0.10"]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.response_code, ResponseCode::ServFail);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn an_alias_is_followed_in_the_zone_and_outside() {
    let upstream = UpstreamServer::start();
    let external = |name: &str, target: &str| service(name, json!({"type": "ExternalName", "externalName": target}));
    let objects = [
        web(),
        external("out", "good.example"),
        external("none", "no.example"),
        external("in", "web.shop.svc.cluster.local"),
        external("loop", "loop.shop.svc.cluster.local"),
    ];
    let server = Server::with(&objects, &[upstream.address]);
    let ask = |name: &str| server.udp(&question(&format!("{name}.shop.svc.cluster.local"), RecordType::A));
    assert_eq!(answers(&ask("out")), ["192.0.2.1", "good.example."]);
    assert_eq!(answers(&ask("in")), ["10.96.0.10", "web.shop.svc.cluster.local."]);
    let none = ask("none");
    assert_eq!((none.metadata.response_code, answers(&none)), (ResponseCode::NXDomain, vec!["no.example.".to_owned()]));
    assert_eq!(ask("loop").metadata.response_code, ResponseCode::ServFail);
    let alone = server.udp(&question("out.shop.svc.cluster.local", RecordType::CNAME));
    assert_eq!(answers(&alone), ["good.example."]);
}

#[test]
fn ten_thousand_slow_clients_give_way_to_others() {
    // Descriptors for the clients and the server, which are one process here.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let connections = hard.saturating_sub(600).min(10_000);
    assert!(connections >= 500, "the limit of open files is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard).unwrap();
    let server = Server::with(&[web()], &[]);
    let mut slow = Vec::new();
    for _ in 0..connections {
        let mut stream = TcpStream::connect(server.address).unwrap();
        // Half of a message.
        stream.write_all(&[0, 40, 1, 2, 3]).unwrap();
        slow.push(stream);
    }
    let asked = question("web.shop.svc.cluster.local", RecordType::A);
    assert_eq!(answers(&server.tcp(&asked)), ["10.96.0.10"]);
    assert_eq!(answers(&server.udp(&asked)), ["10.96.0.10"]);
    // The first of them were closed.
    let ended = slow[0].read(&mut [0; 1]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    // All of the server's ends, of one client here, and whatever else the tests of this process have open.
    let open = fs::read_dir("/proc/self/fd").unwrap().count() - slow.len();
    assert!(open < 500, "{open} descriptors besides those of the clients");
}

#[test]
fn one_connection_carries_many_questions() {
    let server = Server::with(&[web()], &[]);
    let mut stream = TcpStream::connect(server.address).unwrap();
    for _ in 0..100 {
        let answer = over_tcp(&mut stream, &question("web.shop.svc.cluster.local", RecordType::A));
        assert_eq!(answers(&answer), ["10.96.0.10"]);
    }
}

#[test]
fn a_port_in_use_costs_only_its_address() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut options = options(&[]);
    options.addresses = vec![taken.local_addr().unwrap(), SocketAddr::from(([127, 0, 0, 1], 0))];
    let server = Server::start(options);
    server.apply(&[web()]);
    server.update(Update::Complete);
    await_answer(&server, &question("web.shop.svc.cluster.local", RecordType::A), &["10.96.0.10"]);
}

#[test]
fn an_answer_comes_from_the_address_that_was_asked() {
    let mut options = options(&[]);
    options.addresses = vec![SocketAddr::from(([0, 0, 0, 0], 0))];
    let server = Server::start(options);
    server.apply(&[web()]);
    server.update(Update::Complete);
    let asked = question("web.shop.svc.cluster.local", RecordType::A).to_vec().unwrap();
    for last in 1..4 {
        let socket = client();
        let to = SocketAddr::from(([127, 0, 0, last], server.address.port()));
        socket.send_to(&asked, to).unwrap();
        let (_, from) = socket.recv_from(&mut [0; 512]).unwrap();
        assert_eq!(from, to);
    }
}

#[test]
fn the_same_question_gets_the_new_answer_after_a_change() {
    let server = Server::with(&[web()], &[]);
    let asked = question("web.shop.svc.cluster.local", RecordType::A);
    for _ in 0..3 {
        assert_eq!(answers(&server.udp(&asked)), ["10.96.0.10"]);
    }
    let mut other = asked.clone();
    other.metadata.id = 815;
    assert_eq!(server.udp(&other).metadata.id, 815);
    server.apply(&[service("web", json!({"clusterIP": "10.96.0.11", "ports": [{"name": "http", "port": 80}]}))]);
    await_answer(&server, &asked, &["10.96.0.11"]);
    assert_eq!(answers(&server.udp(&asked)), ["10.96.0.11"]);
}
