//! Objects for the tests, and answers as text.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeSet;

use serde_json::{Value, from_value, json};
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::model::{Change, Object};
use vmap_proxy_dns_zone::{Answer, NameContent, QuestionType, Records, Zone, ZoneConfig};

/// A headless Service `namespace/name`.
pub(crate) fn headless(namespace: &str, name: &str) -> Value {
    service(namespace, name, json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}))
}

/// A Service with this spec.
pub(crate) fn service(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// A slice of a Service, named `service-suffix`, with one port `http`, TCP 8080.
pub(crate) fn slice(namespace: &str, service: &str, suffix: &str, endpoints: Value) -> Value {
    slice_with(namespace, service, suffix, "IPv4", endpoints, json!([{"name": "http", "port": 8080}]))
}

/// A slice of a Service with all of its content.
pub(crate) fn slice_with(
    namespace: &str,
    service: &str,
    suffix: &str,
    address_type: &str,
    endpoints: Value,
    ports: Value,
) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": address_type, "endpoints": endpoints, "ports": ports,
        "metadata": {
            "namespace": namespace, "name": format!("{service}-{suffix}"),
            "labels": {"kubernetes.io/service-name": service},
        },
    })
}

pub(crate) fn object(value: &Value) -> Object {
    from_value(value.clone()).unwrap()
}

/// Applies an object; returns its problems.
pub(crate) fn apply(zone: &mut Zone, value: &Value) -> Vec<String> {
    let object = object(value);
    let reference = object.reference();
    let (content, problems) = NameContent::read(&Change::Apply(object));
    zone.apply(&reference, content);
    problems.iter().map(ToString::to_string).collect()
}

pub(crate) fn delete(zone: &mut Zone, kind: Kind, namespace: &str, name: &str) {
    let reference = ObjectRef { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    zone.apply(&reference, NameContent::Gone);
}

/// A complete zone with these objects, which must have no problems.
pub(crate) fn zone(objects: &[Value]) -> Zone {
    let mut zone = Zone::new(ZoneConfig::default());
    for value in objects {
        assert_eq!(apply(&mut zone, value), Vec::<String>::new(), "{value}");
    }
    zone.set_complete();
    zone
}

pub(crate) fn labels(name: &str) -> Vec<&[u8]> {
    name.split('.').map(str::as_bytes).collect()
}

/// An answer as text: `NXDOMAIN`, `NODATA`, or its records in their order.
pub(crate) fn ask(zone: &Zone, name: &str, question: QuestionType) -> String {
    text(&zone.answer(&labels(name), question))
}

pub(crate) fn text(answer: &Answer<'_>) -> String {
    match answer {
        Answer::Records(records) => records_text(records),
        Answer::NoData(_) => "NODATA".to_owned(),
        Answer::NameError(_) => "NXDOMAIN".to_owned(),
        Answer::NotReady => "SERVFAIL".to_owned(),
        Answer::NotOurs => "not ours".to_owned(),
    }
}

fn sorted(texts: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = texts.collect();
    let set: BTreeSet<&String> = all.iter().collect();
    assert_eq!(set.len(), all.len(), "a record is there twice: {all:?}");
    set.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn records_text(records: &Records<'_>) -> String {
    match records {
        Records::A(addresses) => sorted(addresses.iter().map(ToString::to_string)),
        Records::Aaaa(addresses) => sorted(addresses.iter().map(ToString::to_string)),
        Records::Srv(targets) => sorted(targets.iter().map(|target| {
            let addresses = sorted(target.addresses.iter().map(ToString::to_string));
            format!("{} {} ({addresses})", target.port, target.host)
        })),
        Records::Ptr(names) => {
            assert!(names.is_sorted(), "{names:?}");
            sorted(names.iter().cloned())
        }
        Records::Cname(name) => format!("CNAME {name}"),
        Records::Txt(text) => format!("TXT {text}"),
        Records::Soa(zone) => format!("SOA {zone}"),
    }
}
