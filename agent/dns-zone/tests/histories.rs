//! Random histories of objects, applied one by one, against the independent model
//! of the final state: `PROPTEST_CASES=10000` for a release.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/model.rs"]
mod model;
mod support;

use std::collections::BTreeMap;

use model::{Model, Type};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{apply, ask, delete, service};
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_dns_zone::{QuestionType, Zone, ZoneConfig};

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Apply(Value),
    Delete(&'static str, &'static str, String),
    /// The source lists everything again.
    Relist,
}

fn namespaces() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["shop", "b"])
}

fn services() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["web", "sts", "x"])
}

fn protocols() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["TCP", "UDP", "SCTP"])
}

fn ports() -> impl Strategy<Value = Value> {
    let names = prop::sample::select(vec!["http", "dns"]);
    let port = (names, protocols(), 1..4_u16)
        .prop_map(|(name, protocol, port)| json!({"name": name, "protocol": protocol, "port": port}));
    prop::collection::vec(port, 0..3).prop_map(|mut ports| {
        // The API server lets no name in twice.
        ports.dedup_by_key(|port| port["name"].clone());
        if ports.len() == 2 && ports[0]["name"] == ports[1]["name"] {
            ports.pop();
        }
        json!(ports)
    })
}

fn cluster_ips() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!(["10.96.0.1"]),
        json!(["10.96.0.2"]),
        json!(["10.96.0.1", "fd00::1"]),
        json!(["fd00::1"]),
    ])
}

fn specs() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(|publish| json!({"clusterIP": "None", "publishNotReadyAddresses": publish})),
        any::<bool>().prop_map(|publish| json!({"clusterIP": "None", "publishNotReadyAddresses": publish})),
        (cluster_ips(), ports())
            .prop_map(|(ips, ports)| json!({"clusterIP": ips[0], "clusterIPs": ips, "ports": ports})),
        Just(json!({"type": "ExternalName", "externalName": "example.com"})),
    ]
}

fn endpoints(v6: bool) -> impl Strategy<Value = Value> {
    let hostnames = prop::option::of(prop::sample::select(vec!["pod-0", "pod-1"]));
    let endpoint = (1..4_u8, hostnames, prop::option::of(any::<bool>())).prop_map(move |(address, hostname, ready)| {
        let address = if v6 { format!("fd00::1:{address}") } else { format!("10.1.1.{address}") };
        let mut endpoint = json!({"addresses": [address], "conditions": {"ready": ready}});
        if let Some(hostname) = hostname {
            endpoint["hostname"] = json!(hostname);
        }
        endpoint
    });
    prop::collection::vec(endpoint, 0..4).prop_map(|endpoints| json!(endpoints))
}

/// Slices keep their names when they change their Service.
fn slices() -> impl Strategy<Value = Value> {
    let content = any::<bool>().prop_flat_map(|v6| (Just(v6), endpoints(v6)));
    (namespaces(), services(), 0..3_u8, content, ports()).prop_map(|(namespace, service, number, content, ports)| {
        let (v6, endpoints) = content;
        let family = if v6 { "IPv6" } else { "IPv4" };
        let mut slice = support::slice_with(namespace, service, "", family, endpoints, ports);
        slice["metadata"]["name"] = json!(format!("slice-{number}"));
        slice
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (namespaces(), services(), specs()).prop_map(|(namespace, name, spec)| Step::Apply(service(namespace, name, spec))),
        8 => slices().prop_map(Step::Apply),
        1 => (namespaces(), services()).prop_map(|(namespace, name)| Step::Delete("Service", namespace, name.to_owned())),
        2 => (namespaces(), 0..3_u8)
            .prop_map(|(namespace, number)| Step::Delete("EndpointSlice", namespace, format!("slice-{number}"))),
        1 => Just(Step::Relist),
    ]
}

/// The objects that exist, by kind, namespace and name.
type State = BTreeMap<(String, String, String), Value>;

fn key(object: &Value) -> (String, String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]))
}

fn run(zone: &mut Zone, state: &mut State, step: Step) {
    match step {
        Step::Apply(object) => {
            assert_eq!(apply(zone, &object), Vec::<String>::new());
            state.insert(key(&object), object);
        }
        Step::Delete(kind, namespace, name) => {
            let of = if kind == "Service" { Kind::Service } else { Kind::EndpointSlice };
            delete(zone, of, namespace, &name);
            state.remove(&(kind.to_owned(), namespace.to_owned(), name));
        }
        Step::Relist => {
            // An object went while the connection was lost.
            state.pop_first();
            for kind in [Kind::Service, Kind::EndpointSlice] {
                zone.begin_list(kind);
            }
            for object in state.values() {
                apply(zone, object);
            }
            for kind in [Kind::Service, Kind::EndpointSlice] {
                zone.end_list(kind);
            }
        }
    }
}

const TYPES: [(Type, QuestionType); 6] = [
    (Type::A, QuestionType::A),
    (Type::Aaaa, QuestionType::Aaaa),
    (Type::Srv, QuestionType::Srv),
    (Type::Ptr, QuestionType::Ptr),
    (Type::Txt, QuestionType::Txt),
    (Type::Soa, QuestionType::Soa),
];

/// Every name that there may be, and those beside and below them.
fn questions() -> Vec<String> {
    let mut names = vec!["cluster.local".to_owned(), "local".to_owned(), "dns-version.cluster.local".to_owned()];
    let below = ["", "pod-0.", "pod-1.", "10-1-1-1.", "10-1-1-2.", "fd00--1-3.", "_tcp.", "_udp.", "_sctp.", "none."];
    let ports = ["_http", "_dns"].into_iter().flat_map(|port| {
        ["_tcp", "_udp", "_sctp", "_icmp"].into_iter().map(move |protocol| format!("{port}.{protocol}."))
    });
    let below: Vec<String> = below.into_iter().map(str::to_owned).chain(ports).collect();
    for namespace in ["shop", "b", "c"] {
        names.push(format!("{namespace}.svc.cluster.local"));
        for service in ["web", "sts", "x", "y"] {
            names.extend(below.iter().map(|below| format!("{below}{service}.{namespace}.svc.cluster.local")));
        }
    }
    names
}

proptest! {
    #[test]
    fn any_history_ends_in_the_records_of_its_final_state(steps in prop::collection::vec(steps(), 1..40)) {
        let mut zone = Zone::new(ZoneConfig::default());
        zone.set_complete();
        let mut state = State::new();
        for step in steps {
            run(&mut zone, &mut state, step);
            // Makes the indexes, which the next step has to keep right.
            for name in ["web.shop.svc.cluster.local", "pod-0.sts.b.svc.cluster.local"] {
                ask(&zone, name, QuestionType::A);
            }
        }
        let objects: Vec<Value> = state.values().cloned().collect();
        let model = Model::new(&objects);
        let known: Vec<String> = model.names().cloned().collect();
        for name in known.iter().chain(&questions()) {
            for (of, question) in TYPES {
                prop_assert_eq!(ask(&zone, name, question), model.ask(name, of), "{} {:?}", name, of);
                prop_assert_eq!(ask(&zone, &name.to_uppercase(), question), model.ask(name, of), "{} {:?}", name, of);
            }
        }
        let services = objects.iter().filter(|object| object["kind"] == "Service").count();
        prop_assert_eq!(zone.service_count(), services);
    }

    /// No question makes it panic.
    #[test]
    fn any_labels_are_answered(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8)) {
        let zone = support::zone(&[support::headless("shop", "web")]);
        let mut labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        for end in [&["cluster", "local"][..], &["in-addr", "arpa"], &["ip6", "arpa"], &["svc", "cluster", "local"]] {
            labels.extend(end.iter().map(|label| label.as_bytes()));
            let _ = support::text(&zone.answer(&labels, QuestionType::A));
        }
    }
}
