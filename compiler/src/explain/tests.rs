#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::{Value, json};

use super::answer::{Fate, FrontendState};
use super::{Code, Explanation, Known, ServiceAnswer};
use crate::evaluate::{Evaluator, Host, Packet, Verdict};
use crate::model::types::ServiceName;
use crate::model::{Change, Endpoint, PerFamily, Protocol, ProxyConfig, Store};
use crate::plan::Planner;

struct Cluster {
    store: Store,
    planner: Planner,
    host: Host,
}

impl Cluster {
    fn of(objects: &[Value]) -> Self {
        let config = ProxyConfig { node_name: "node-1".to_owned(), ..ProxyConfig::default() };
        let mut store = Store::new("node-1");
        let host = Host { local_addresses: vec!["192.0.2.11".parse().unwrap()], bridges: Vec::new() };
        store.set_interface_addresses(host.local_addresses.clone());
        let node = json!({"kind": "Node", "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}});
        for object in objects.iter().chain([&node]) {
            store.apply(Change::Apply(serde_json::from_value(object.clone()).unwrap()));
        }
        let mut planner = Planner::new(config, store.node());
        planner.resync(&mut store, PerFamily::default()).for_each(drop);
        Self { store, planner, host }
    }

    fn known(&self) -> Known<'_> {
        Known { store: &self.store, planner: &self.planner, host: &self.host }
    }

    fn ask(&self, to: &str, port: u16) -> Explanation {
        self.known().packet_of_any(&packet("198.51.100.7", to, port))
    }

    fn service(&self, name: &str) -> ServiceAnswer {
        let (namespace, name) = name.split_once('/').unwrap();
        self.known().service(&ServiceName::new(namespace, name))
    }
}

fn packet(from: &str, to: &str, port: u16) -> Packet {
    Packet {
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        protocol: Protocol::Tcp,
        port,
        input_interface: Some("eth0".to_owned()),
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

fn slice(name: &str, service: &str, ports: Value, endpoints: Value) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
    })
}

fn cart() -> Value {
    service("cart", json!({"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]}))
}

fn codes(answer: &Explanation) -> Vec<Code> {
    answer.decisions.iter().chain(&answer.notes).map(|decision| decision.code).collect()
}

#[test]
fn a_packet_to_a_service_names_its_endpoints_and_fields() {
    let endpoints = json!([
        {"addresses": ["10.244.1.7"]},
        {"addresses": ["10.244.1.8"], "conditions": {"ready": false}},
        {"addresses": ["bad"]},
        {"addresses": ["10.244.1.9"]},
    ]);
    let cluster = Cluster::of(&[cart(), slice("cart-x7", "cart", json!([{"name": "http", "port": 8080}]), endpoints)]);
    let answer = cluster.ask("10.96.0.10", 80);
    assert_eq!((answer.verdict, answer.decision.code), (Fate::Dnat, Code::Frontend));
    let causes: Vec<String> = answer.decision.causes.iter().map(ToString::to_string).collect();
    assert_eq!(causes, ["Service shop/cart spec.clusterIPs=10.96.0.10", "Service shop/cart spec.ports[0].port=80"]);
    let used: Vec<(String, usize, String)> = answer
        .endpoints
        .iter()
        .map(|one| (one.address.to_string(), one.one_in, one.cause.as_ref().unwrap().to_string()))
        .collect();
    let ready = |index| format!("EndpointSlice shop/cart-x7 endpoints[{index}].conditions.ready=true");
    // The unusable entry counts in the positions.
    assert_eq!(used, [("10.244.1.7".to_owned(), 2, ready(0)), ("10.244.1.9".to_owned(), 2, ready(3))]);
    assert_eq!(answer.unused[0].cause.to_string(), "EndpointSlice shop/cart-x7 endpoints[1].conditions.ready=false");
    let bad = answer.notes.iter().find(|note| note.code == Code::BadField).unwrap();
    assert_eq!(bad.causes[0].field, "endpoints[2].addresses[0]");
    // It reads back from its JSON.
    let text = serde_json::to_string(&answer).unwrap();
    assert_eq!(serde_json::from_str::<Explanation>(&text).unwrap(), answer);
}

#[test]
fn the_wrong_name_of_a_port_is_named() {
    let endpoints = json!([{"addresses": ["10.244.1.7"]}]);
    let cluster = Cluster::of(&[cart(), slice("cart-x7", "cart", json!([{"name": "web", "port": 8080}]), endpoints)]);
    let answer = cluster.ask("10.96.0.10", 80);
    assert_eq!((answer.verdict, answer.decision.code), (Fate::Reject, Code::NoEndpoint));
    assert_eq!(answer.decision.causes[0].to_string(), "EndpointSlice shop/cart-x7 ports[0].name=web");
    assert!(codes(&answer).contains(&Code::OtherPort), "{answer:#?}");
}

#[test]
fn a_service_without_slices_is_refused_for_that() {
    let answer = Cluster::of(&[cart()]).ask("10.96.0.10", 80);
    assert_eq!((answer.verdict, answer.decision.code), (Fate::Reject, Code::NoEndpoint));
    assert!(codes(&answer).contains(&Code::NoSlice), "{answer:#?}");
}

#[test]
fn an_undefined_port_names_the_service_that_has_the_address() {
    let answer = Cluster::of(&[cart()]).ask("10.96.0.10", 81);
    assert_eq!((answer.verdict, answer.decision.code), (Fate::Reject, Code::UndefinedPort));
    assert_eq!(answer.decision.causes[0].to_string(), "Service shop/cart spec.clusterIPs=10.96.0.10");
    assert!(answer.decision.text.contains("has no port 81/TCP, only 80/TCP"), "{}", answer.decision.text);
}

#[test]
fn a_contested_address_names_both_services() {
    let mut young =
        service("young", json!({"clusterIP": "10.96.0.11", "externalIPs": ["203.0.113.5"], "ports": [{"port": 80}]}));
    let mut old =
        service("old", json!({"clusterIP": "10.96.0.12", "externalIPs": ["203.0.113.5"], "ports": [{"port": 80}]}));
    young["metadata"]["creationTimestamp"] = json!("2026-11-02T00:00:00Z");
    old["metadata"]["creationTimestamp"] = json!("2026-11-01T00:00:00Z");
    let ports = json!([{"name": "", "port": 8080}]);
    let slices = ["young", "old"].map(|name| slice(name, name, ports.clone(), json!([{"addresses": ["10.244.1.7"]}])));
    let cluster = Cluster::of(&[&[young, old], &slices[..]].concat());
    let answer = cluster.ask("203.0.113.5", 80);
    assert_eq!(answer.service.as_ref().unwrap().name, "old");
    let note = answer.notes.iter().find(|note| note.code == Code::Contested).unwrap();
    assert_eq!(note.causes[0].to_string(), "Service shop/old metadata.creationTimestamp=2026-11-01T00:00:00Z");
    let young = cluster.service("shop/young");
    assert!(young.reasons.iter().any(|reason| reason.code == Code::Contested), "{young:#?}");
    let states: Vec<FrontendState> = young.ports[0].frontends.iter().map(|frontend| frontend.state).collect();
    assert_eq!(states, [FrontendState::Denied, FrontendState::Serves]);
}

#[test]
fn a_service_that_is_not_programmed_names_the_reason() {
    let port = || json!([{"port": 80}]);
    let mut labelled = service("other", json!({"clusterIP": "10.96.0.14", "ports": port()}));
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "mesh"});
    let many: Vec<String> = (0..2000).map(|n| format!("203.0.{}.{}", n / 250, n % 250)).collect();
    let ports: Vec<Value> = (1..=100).map(|n| json!({"name": format!("p{n}"), "port": n})).collect();
    let cluster = Cluster::of(&[
        labelled,
        service("headless", json!({"clusterIP": "None", "ports": port()})),
        service("name", json!({"type": "ExternalName"})),
        service("bad", json!({"clusterIP": "10.96.0.300", "ports": port()})),
        service("large", json!({"clusterIP": "10.96.0.15", "externalIPs": many, "ports": ports})),
    ]);
    for (name, code) in [
        ("shop/other", Code::OtherProxy),
        ("shop/headless", Code::Headless),
        ("shop/name", Code::ExternalName),
        ("shop/bad", Code::NoClusterIp),
        ("shop/large", Code::TooLarge),
        ("shop/none", Code::NoService),
    ] {
        let answer = cluster.service(name);
        assert_eq!(
            (answer.programmed, answer.reasons.first().map(|reason| reason.code)),
            (false, Some(code)),
            "{name}"
        );
    }
    assert!(cluster.service("shop/bad").reasons.iter().any(|reason| reason.code == Code::BadField));
}

#[test]
fn addresses_are_found_page_by_page() {
    let services: Vec<Value> = (0..10)
        .map(|n| service(&format!("s{n}"), json!({"clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}]})))
        .collect();
    let cluster = Cluster::of(&services);
    let (mut after, mut pages) = (None, 0);
    let found = loop {
        let page = cluster.known().find_address("10.96.0.7".parse().unwrap(), after.as_ref(), 3);
        pages += 1;
        match (page.found, page.last) {
            (Some(found), _) => break found,
            (None, last) => after = Some(last.unwrap()),
        }
    };
    assert_eq!((found.to_string().as_str(), pages), ("shop/s7", 3));
    let none = cluster.known().find_address("10.96.9.9".parse().unwrap(), None, usize::MAX);
    assert_eq!((none.found, none.last), (None, None));
}

/// The excerpt must hold everything that the packet can meet.
#[test]
fn an_excerpt_evaluates_as_the_whole_rule_set() {
    let ports = json!([{"name": "", "port": 80}]);
    let local = json!([{"addresses": ["10.244.1.7"], "nodeName": "node-1"}, {"addresses": ["10.244.2.8"]}]);
    // The endpoint of one Service is a frontend of another that has no endpoint.
    let chained = json!([{"addresses": ["10.96.0.12"]}, {"addresses": ["10.96.0.10"]}, {"addresses": ["10.244.2.9"]}]);
    let mut lb = service(
        "lb",
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.10", "externalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["198.51.100.0/25"], "sessionAffinity": "ClientIP",
        "ports": [{"port": 80, "nodePort": 30080}]}),
    );
    lb["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.80"}]}});
    let cluster = Cluster::of(&[
        lb,
        service("chain", json!({"clusterIP": "10.96.0.11", "ports": [{"port": 80}]})),
        service("empty", json!({"clusterIP": "10.96.0.12", "ports": [{"port": 80, "nodePort": 30081}]})),
        slice("lb", "lb", ports.clone(), local),
        slice("chain", "chain", ports, chained),
        json!({"kind": "ServiceCIDR", "metadata": {"name": "all"}, "spec": {"cidrs": ["10.96.0.0/16"]}}),
    ]);
    let whole = cluster.planner.ruleset();
    let evaluator = Evaluator::new(&whole, cluster.host.clone());
    let mut verdicts = std::collections::BTreeSet::new();
    for from in ["198.51.100.7", "198.51.100.200", "10.244.1.7", "192.0.2.11"] {
        for to in ["10.96.0.10", "10.96.0.11", "10.96.0.12", "10.96.0.13", "203.0.113.80", "192.0.2.11", "10.244.1.7"] {
            for port in [80, 81, 30080, 30081] {
                let mut packet = packet(from, to, port);
                packet.input_interface = packet.input_interface.filter(|_| from != "192.0.2.11");
                let expected = evaluator.evaluate(&packet);
                let answer = cluster.known().packet(&packet, None);
                let endpoints: Vec<Endpoint> =
                    answer.endpoints.iter().map(|one| Endpoint { address: one.address, port: one.port }).collect();
                let wanted: Vec<Endpoint> = match &expected.verdict {
                    Verdict::Dnat { endpoints } | Verdict::Inconsistent { endpoints, .. } => {
                        endpoints.iter().copied().collect()
                    }
                    _ => Vec::new(),
                };
                assert_eq!(endpoints, wanted, "{packet:?}");
                let path: Vec<&str> = answer.path.iter().map(|step| step.rule.as_str()).collect();
                let wanted: Vec<&str> = expected.trace.iter().map(|step| step.rule_text.as_str()).collect();
                assert_eq!(path, wanted, "{packet:?}");
                verdicts.insert(format!("{:?}", answer.verdict));
            }
        }
    }
    assert_eq!(verdicts.len(), 5, "{verdicts:?}");
}
