//! Random EndpointSlices.

use std::ops::Range;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

use super::services::PORT_CHOICES;
use super::surroundings::NODE_NAME;
use super::{SERVICE_PLACES, rarely, service_name};
use crate::model::{ObjectKey, Protocol};

/// Slices of one Service and family, so that they can overlap.
const SLICES: usize = 2;

/// A pod: its number in the pod range of its node, and that node. Node names
/// are fixed, or two slices could disagree about where an endpoint runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pod {
    subnet: u8,
    number: u8,
    node: Option<&'static str>,
}

/// All pods. The last is on no known node.
pub(super) const PODS: [Pod; 7] = [
    Pod { subnet: 1, number: 5, node: Some(NODE_NAME) },
    Pod { subnet: 1, number: 6, node: Some(NODE_NAME) },
    Pod { subnet: 1, number: 7, node: Some(NODE_NAME) },
    Pod { subnet: 2, number: 5, node: Some("heron") },
    Pod { subnet: 2, number: 6, node: Some("heron") },
    Pod { subnet: 3, number: 5, node: Some("osprey") },
    Pod { subnet: 9, number: 5, node: None },
];

impl Pod {
    /// Its address; `family` as in `addressType`.
    pub(super) fn address(self, family: &str) -> String {
        let Self { subnet, number, .. } = self;
        match family {
            "IPv4" => format!("10.244.{subnet}.{number}"),
            _ => format!("fd00:10:244:{subnet}::{number}"),
        }
    }

    /// Returns whether it runs on the node that the proxy runs on.
    pub(super) fn is_local(self) -> bool {
        self.node == Some(NODE_NAME)
    }
}

/// The owner of a slice.
#[derive(Debug, Clone, Copy)]
struct Place {
    service: usize,
    index: usize,
    family: &'static str,
}

impl Place {
    fn name(self) -> String {
        let (_, service) = service_name(self.service);
        format!("{service}-{}-{}", self.family.to_lowercase(), self.index)
    }
}

/// Conditions; `None`: absent.
type Conditions = (Option<bool>, Option<bool>, Option<bool>);

#[derive(Debug, Clone)]
struct Endpoint {
    pod: Pod,
    conditions: Conditions,
    zones: Vec<&'static str>,
    nodes: Vec<&'static str>,
}

/// Whether a port of the slice has a name, and if so, which.
#[derive(Debug, Clone, Copy)]
enum PortName {
    Choice,
    Empty,
    Absent,
}

#[derive(Debug, Clone)]
struct Port {
    choice: usize,
    name: PortName,
    number: Option<u16>,
}

/// A slice of a Service in one of these places.
pub(super) fn slice(services: Range<usize>) -> impl Strategy<Value = Value> {
    (place(services), endpoints(), ports(), rarely(3), rarely(3)).prop_map(
        |(place, endpoints, ports, headless, ownerless)| {
            let mut manifest = manifest(place, &endpoints, &ports);
            let labels = &mut manifest["metadata"]["labels"];
            if headless {
                labels["service.kubernetes.io/headless"] = json!("");
            }
            if ownerless {
                *labels = json!({});
            }
            manifest
        },
    )
}

/// The key of a random place.
pub(super) fn key() -> impl Strategy<Value = ObjectKey> {
    place(0..SERVICE_PLACES).prop_map(|place| ObjectKey {
        kind: "EndpointSlice".into(),
        namespace: service_name(place.service).0.into(),
        name: place.name(),
    })
}

fn place(services: Range<usize>) -> impl Strategy<Value = Place> {
    (services, 0..SLICES, select(vec!["IPv4", "IPv6"])).prop_map(|(service, index, family)| Place {
        service,
        index,
        family,
    })
}

/// Pods with conditions and hints. A kind of hint counts only if every ready
/// endpoint has it, so slices mostly agree on one.
fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    const NO_HINTS: (u32, u32) = (0, 0);
    let hint_chances = prop_oneof![
        4 => Just(NO_HINTS),
        3 => Just((100, 0)),
        2 => Just((0, 100)),
        2 => Just((100, 100)),
        1 => Just((80, 80)),
    ];
    (subsequence(PODS.to_vec(), 0..=5), hint_chances).prop_flat_map(|(pods, (zones, nodes))| {
        let endpoint = |pod: Pod| {
            (conditions(), hints(&["z-east", "z-west"], zones), hints(&[NODE_NAME, "heron"], nodes))
                .prop_map(move |(conditions, zones, nodes)| Endpoint { pod, conditions, zones, nodes })
        };
        pods.into_iter().map(endpoint).collect::<Vec<_>>()
    })
}

fn conditions() -> impl Strategy<Value = Conditions> {
    prop_oneof![
        8 => Just((Some(true), Some(true), Some(false))),
        3 => Just((Some(false), Some(true), Some(true))),
        2 => Just((Some(false), Some(false), Some(true))),
        2 => Just((Some(false), Some(false), Some(false))),
        1 => Just((None, None, None)),
        2 => any::<Conditions>(),
    ]
}

fn hints(names: &'static [&'static str], percent: u32) -> BoxedStrategy<Vec<&'static str>> {
    let some = subsequence(names, 1..=names.len());
    match percent {
        0 => Just(Vec::new()).boxed(),
        100 => some.boxed(),
        _ => prop_oneof![100 - percent => Just(Vec::new()), percent => some].boxed(),
    }
}

/// Mostly all ports that a Service can have, so that most of them have
/// endpoints; the rest has no name, no number, or is missing.
fn ports() -> impl Strategy<Value = Vec<Port>> {
    let port = |choice| {
        let name = prop_oneof![
            20 => Just(PortName::Choice),
            2 => Just(PortName::Empty),
            1 => Just(PortName::Absent),
        ];
        let number = prop_oneof![12 => Just(Some(8080)), 12 => Just(Some(8081)), 1 => Just(None)];
        let port = (name, number).prop_map(move |(name, number)| Port { choice, name, number });
        proptest::option::weighted(0.9, port)
    };
    let ports: Vec<_> = (0..PORT_CHOICES.len()).map(port).collect();
    ports.prop_map(|ports| {
        let mut unnamed = 0;
        let mut ports: Vec<Port> = ports.into_iter().flatten().collect();
        // Names within a slice are unique, also the empty one.
        ports.retain(|port| {
            unnamed += usize::from(matches!(port.name, PortName::Empty | PortName::Absent));
            matches!(port.name, PortName::Choice) || unnamed == 1
        });
        ports
    })
}

fn manifest(place: Place, endpoints: &[Endpoint], ports: &[Port]) -> Value {
    let (namespace, service) = service_name(place.service);
    // Of different ages, so that the newest is defined.
    let created = format!("2025-02-0{}T00:00:00Z", SLICES - place.index);
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": place.name(),
            "creationTimestamp": created,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": place.family,
        "endpoints": endpoints.iter().map(|e| endpoint_value(place, e)).collect::<Vec<_>>(),
        "ports": ports.iter().map(port_value).collect::<Vec<_>>(),
    })
}

fn endpoint_value(place: Place, endpoint: &Endpoint) -> Value {
    let mut value = json!({"addresses": [endpoint.pod.address(place.family)]});
    if let Some(node) = endpoint.pod.node {
        value["nodeName"] = json!(node);
    }
    let (ready, serving, terminating) = endpoint.conditions;
    let conditions = [("ready", ready), ("serving", serving), ("terminating", terminating)];
    for (name, condition) in conditions {
        if let Some(condition) = condition {
            value["conditions"][name] = json!(condition);
        }
    }
    let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Value>();
    if !endpoint.zones.is_empty() {
        value["hints"]["forZones"] = named(&endpoint.zones);
    }
    if !endpoint.nodes.is_empty() {
        value["hints"]["forNodes"] = named(&endpoint.nodes);
    }
    value
}

fn port_value(port: &Port) -> Value {
    let choice = &PORT_CHOICES[port.choice];
    let mut value = json!({});
    match port.name {
        PortName::Choice => value["name"] = json!(choice.name),
        PortName::Empty => value["name"] = json!(""),
        PortName::Absent => {}
    }
    if let Some(number) = port.number {
        value["port"] = json!(number);
    }
    // TCP is the default.
    if choice.protocol != Protocol::Tcp {
        value["protocol"] = json!(choice.protocol.name());
    }
    value
}
