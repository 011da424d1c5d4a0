use serde_json::{Value, json};
use vmap_proxy_compiler::model::{Change, Object, ObjectRef, ProxyConfig, Store};

use super::*;

const DNS: &str = "10.96.0.10:53";
const POD_A: &str = "10.244.1.5:5353";
const POD_B: &str = "10.244.1.6:5353";

/// A proxy on a node with one address, as far as planning goes.
struct Proxy {
    store: Store,
    planner: Planner,
}

impl Proxy {
    fn new() -> Self {
        let mut store = Store::new("node-a");
        let node = json!({"kind": "Node", "metadata": {"name": "node-a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}});
        store.apply(Change::Apply(serde_json::from_value(node).unwrap()));
        store.set_interface_addresses(vec!["192.0.2.11".parse().unwrap(), "192.0.2.211".parse().unwrap()]);
        let config = ProxyConfig { node_name: "node-a".to_owned(), ..ProxyConfig::default() };
        let planner = Planner::new(config, store.node());
        Self { store, planner }
    }

    /// Applies objects, and returns the flows that they make stale.
    fn apply(&mut self, objects: &[Value]) -> StaleFlows {
        for object in objects {
            let problems = self.store.apply(Change::Apply(serde_json::from_value(object.clone()).unwrap()));
            assert!(problems.is_empty(), "{problems:?}");
        }
        self.plan()
    }

    fn delete(&mut self, object: &Value) -> StaleFlows {
        let object: Object = serde_json::from_value(object.clone()).unwrap();
        let reference: ObjectRef = object.reference();
        self.store.apply(Change::Delete(reference));
        self.plan()
    }

    fn plan(&mut self) -> StaleFlows {
        let plans = std::iter::from_fn(|| self.planner.update(&mut self.store));
        let changed: Vec<_> = plans.flat_map(|plan| plan.changed).collect();
        StaleFlows::of_changes(&self.planner, self.store.node(), &changed)
    }
}

fn service(protocol: &str, port: u16, node_port: u16) -> Value {
    json!({"kind": "Service", "metadata": {"name": "dns", "namespace": "kube-system"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10",
            "ports": [{"port": port, "nodePort": node_port, "protocol": protocol}]}})
}

/// Each endpoint with `ready`, `serving`, `terminating`.
fn slice(protocol: &str, endpoints: &[(&str, [bool; 3])]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(address, [ready, serving, terminating])| {
            json!({"addresses": [address],
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating}})
        })
        .collect();
    json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": "dns-a", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "dns"}},
        "ports": [{"name": "", "port": 5353, "protocol": protocol}]})
}

const READY: [bool; 3] = [true, true, false];
const TERMINATING: [bool; 3] = [false, true, true];
const NOT_READY: [bool; 3] = [false, false, false];

fn endpoint(text: &str) -> Endpoint {
    let address: std::net::SocketAddr = text.parse().unwrap();
    Endpoint { address: address.ip(), port: address.port() }
}

/// A flow in zone 0; translated unless it goes to the frontend itself.
fn flow(protocol: Protocol, frontend: &str, goes_to: &str) -> Flow<'static> {
    let Endpoint { address, port } = endpoint(frontend);
    Flow::sample(FrontendKey { address, protocol, port }, endpoint(goes_to), frontend != goes_to)
}

fn udp(stale: &StaleFlows, frontend: &str, goes_to: &str) -> bool {
    stale.covers(&flow(Protocol::Udp, frontend, goes_to))
}

fn sctp(stale: &StaleFlows, frontend: &str, goes_to: &str) -> bool {
    stale.covers(&flow(Protocol::Sctp, frontend, goes_to))
}

#[test]
fn only_flows_to_a_removed_endpoint_are_stale() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY), ("10.244.1.6", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.6", READY)])]);
    for frontend in [DNS, "192.0.2.11:30053"] {
        assert!(udp(&stale, frontend, POD_A), "{frontend}");
        assert!(!udp(&stale, frontend, POD_B), "{frontend}");
    }
    // The NodePort of another host, an address without NodePorts, another port of the cluster IP.
    for elsewhere in ["203.0.113.9:30053", "192.0.2.211:30053", "10.96.0.10:54"] {
        assert!(!udp(&stale, elsewhere, POD_A), "{elsewhere}");
    }
    assert!(!stale.covers(&flow(Protocol::Tcp, DNS, POD_A)));
    assert!(!sctp(&stale, DNS, POD_A));
}

#[test]
fn flows_stay_with_an_endpoint_that_terminates_but_serves() {
    let mut proxy = Proxy::new();
    let dns = service("UDP", 53, 30053);
    proxy.apply(&[dns, slice("UDP", &[("10.244.1.5", READY), ("10.244.1.6", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.5", TERMINATING), ("10.244.1.6", READY)])]);
    assert!(!udp(&stale, DNS, POD_A));
    // That it goes away at last changes no rule, but it makes its flows stale.
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.6", READY)])]);
    assert!(udp(&stale, DNS, POD_A) && !udp(&stale, DNS, POD_B));
}

#[test]
fn flows_leave_an_endpoint_that_stops_serving() {
    let mut proxy = Proxy::new();
    let dns = service("UDP", 53, 30053);
    proxy.apply(&[dns, slice("UDP", &[("10.244.1.5", READY), ("10.244.1.6", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.5", NOT_READY), ("10.244.1.6", READY)])]);
    assert!(udp(&stale, DNS, POD_A) && !udp(&stale, DNS, POD_B));
}

#[test]
fn nothing_is_stale_when_an_endpoint_comes_to_others() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.5", READY), ("10.244.1.6", READY)])]);
    assert_eq!(stale.dumps(), []);
    let stale = proxy.apply(&[service("TCP", 53, 30053), slice("TCP", &[("10.244.1.5", READY)])]);
    assert!(udp(&stale, DNS, POD_A), "the port is TCP's now");
    assert!(proxy.apply(&[slice("TCP", &[])]).is_empty(), "flows of TCP are never stale");
}

#[test]
fn flows_made_past_the_rules_are_stale_once_a_service_has_the_frontend() {
    let mut proxy = Proxy::new();
    let stale = proxy.apply(&[service("UDP", 53, 30053)]);
    assert!(udp(&stale, DNS, DNS) && udp(&stale, "192.0.2.11:30053", "192.0.2.11:30053"));
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.5", READY)])]);
    assert!(udp(&stale, DNS, DNS) && !udp(&stale, DNS, POD_A));
    let mut elsewhere = flow(Protocol::Udp, DNS, DNS);
    elsewhere.in_zone = true;
    assert!(!stale.covers(&elsewhere));
}

#[test]
fn everything_goes_with_the_last_endpoint() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[])]);
    assert!(udp(&stale, DNS, POD_A) && udp(&stale, "192.0.2.11:30053", POD_A));
}

#[test]
fn everything_goes_with_the_frontend() {
    let mut proxy = Proxy::new();
    let endpoints = slice("UDP", &[("10.244.1.5", READY)]);
    proxy.apply(&[service("UDP", 53, 30053), endpoints]);
    let stale = proxy.apply(&[service("UDP", 54, 30054)]);
    for gone in [DNS, "192.0.2.11:30053"] {
        assert!(udp(&stale, gone, POD_A), "{gone}");
        // No Service's frontend: an untranslated flow is not ours.
        assert!(!udp(&stale, gone, gone), "{gone}");
    }
    for new in ["10.96.0.10:54", "192.0.2.11:30054"] {
        assert!(!udp(&stale, new, POD_A) && udp(&stale, new, new), "{new}");
    }
    let stale = proxy.delete(&service("UDP", 54, 30054));
    assert!(udp(&stale, "10.96.0.10:54", POD_A) && udp(&stale, "192.0.2.11:30054", POD_A));
}

#[test]
fn a_frontend_that_changes_hands_is_judged_by_its_new_service() {
    let mut proxy = Proxy::new();
    let named = |mut object: Value, name: &str, service: &str| {
        object["metadata"]["name"] = name.into();
        if object["kind"] == "EndpointSlice" {
            object["metadata"]["labels"]["kubernetes.io/service-name"] = service.into();
        } else {
            object["spec"]["externalIPs"] = json!(["203.0.113.80"]);
        }
        object
    };
    let old = named(service("UDP", 53, 30053), "a-old", "");
    let mut new = named(service("UDP", 53, 30054), "b-new", "");
    new["spec"]["clusterIP"] = "10.96.0.20".into();
    let shared = "203.0.113.80:53";
    proxy.apply(&[old.clone(), named(slice("UDP", &[("10.244.1.5", READY)]), "a", "a-old")]);
    let stale = proxy.apply(&[new, named(slice("UDP", &[("10.244.1.6", READY)]), "b", "b-new")]);
    assert!(!udp(&stale, shared, POD_A), "the older Service keeps it");
    let stale = proxy.delete(&old);
    assert!(udp(&stale, shared, POD_A) && !udp(&stale, shared, POD_B));
    assert!(udp(&stale, DNS, POD_A));
}

#[test]
fn a_service_without_endpoints_takes_no_flows_with_it() {
    let mut proxy = Proxy::new();
    let shared = "203.0.113.80:53";
    let mut idle = service("UDP", 53, 30054);
    idle["metadata"]["name"] = "idle".into();
    idle["spec"]["clusterIP"] = "10.96.0.20".into();
    let mut busy = service("UDP", 53, 30053);
    for object in [&mut idle, &mut busy] {
        object["spec"]["externalIPs"] = json!(["203.0.113.80"]);
    }
    proxy.apply(&[busy, slice("UDP", &[("10.244.1.5", READY)])]);
    let stale = proxy.apply(std::slice::from_ref(&idle));
    assert!(!udp(&stale, shared, POD_A), "it does not serve what another one serves");
    let stale = proxy.delete(&idle);
    assert!(!udp(&stale, shared, POD_A), "and takes nothing away");
}

#[test]
fn sctp_associations_go_only_with_their_pod() {
    let mut proxy = Proxy::new();
    let both = [("10.244.1.5", READY), ("10.244.1.6", READY)];
    proxy.apply(&[service("SCTP", 53, 30053), slice("SCTP", &both)]);
    let stale = proxy.apply(&[slice("SCTP", &[("10.244.1.5", NOT_READY), ("10.244.1.6", READY)])]);
    assert!(!sctp(&stale, DNS, POD_A));
    let stale = proxy.apply(&[slice("SCTP", &[("10.244.1.6", READY)])]);
    assert!(sctp(&stale, DNS, POD_A) && !sctp(&stale, DNS, POD_B) && !udp(&stale, DNS, POD_A));
    let stale = proxy.delete(&service("SCTP", 53, 30053));
    assert!(!sctp(&stale, DNS, POD_B), "its pod lives on");
}

#[test]
fn at_the_start_every_frontend_is_looked_at() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY)])]);
    let stale = StaleFlows::of_start(&proxy.planner, proxy.store.node());
    assert_eq!(stale.to_look_for(), 2);
    for frontend in [DNS, "192.0.2.11:30053"] {
        assert!(!udp(&stale, frontend, POD_A));
        assert!(udp(&stale, frontend, POD_B) && udp(&stale, frontend, frontend), "{frontend}");
    }
    assert!(!udp(&stale, "10.96.0.99:53", POD_B), "nobody's frontend is not ours to clean");
}

#[test]
fn what_was_learned_last_counts() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY)])]);
    let mut pending = proxy.apply(&[slice("UDP", &[("10.244.1.6", READY)])]);
    assert!(udp(&pending, DNS, POD_A) && !udp(&pending, DNS, POD_B));
    pending.merge(proxy.apply(&[slice("UDP", &[("10.244.1.5", READY)])]));
    assert!(!udp(&pending, DNS, POD_A) && udp(&pending, DNS, POD_B));
}

#[test]
fn an_endpoint_that_came_later_is_spared() {
    let mut proxy = Proxy::new();
    proxy.apply(&[service("UDP", 53, 30053), slice("UDP", &[("10.244.1.5", READY), ("10.244.1.7", READY)])]);
    let stale = proxy.apply(&[slice("UDP", &[("10.244.1.7", READY)])]);
    let later = proxy.apply(&[slice("UDP", &[("10.244.1.6", READY), ("10.244.1.7", READY)])]);
    assert!(udp(&stale, DNS, POD_A) && udp(&stale, DNS, POD_B));
    assert_eq!(later.to_look_for(), 0);

    let mut merged = stale.clone();
    merged.merge(later.clone());
    let mut learned = stale.clone();
    learned.learn(&later);
    for stale in [merged, learned] {
        assert!(udp(&stale, DNS, POD_A) && !udp(&stale, DNS, POD_B));
        assert_eq!(stale.to_look_for(), 2, "it is still to be looked for");
    }

    let mut nothing = StaleFlows::default();
    nothing.learn(&stale);
    assert!(nothing.is_empty());
}

#[test]
fn dumps_are_as_narrow_as_the_kernel_can_filter() {
    let stale = |frontends: &[(&str, Protocol)]| {
        let mut stale = StaleFlows::default();
        for (text, protocol) in frontends {
            let Endpoint { address, port } = endpoint(text);
            stale
                .frontends
                .insert(FrontendKey { address, protocol: *protocol, port }, Frontend { fate: Fate::Gone, look: true });
        }
        stale
    };
    let filter = |family, protocol, port, address: Option<&str>| DumpFilter {
        family,
        protocol: Some(protocol),
        port,
        address: address.map(|address| address.parse().unwrap()),
    };
    let (udp, v4, v6) = (Protocol::Udp, Family::Ipv4, Family::Ipv6);
    assert_eq!(stale(&[]).dumps(), []);
    assert_eq!(stale(&[(DNS, udp)]).dumps(), [filter(v4, udp, Some(53), Some("10.96.0.10"))]);
    // Several addresses with one port, IPv6, SCTP: what cannot be compared is left out.
    assert_eq!(stale(&[(DNS, udp), ("10.96.0.20:53", udp)]).dumps(), [filter(v4, udp, Some(53), None)]);
    assert_eq!(stale(&[("[fd00::1]:53", udp)]).dumps(), [filter(v6, udp, Some(53), None)]);
    assert_eq!(
        stale(&[(DNS, Protocol::Sctp), (DNS, udp)]).dumps(),
        [filter(v4, udp, Some(53), Some("10.96.0.10")), filter(v4, Protocol::Sctp, None, Some("10.96.0.10"))]
    );
    let many = ["10.96.0.1:1", "10.96.0.1:2", "10.96.0.1:3", "10.96.0.1:4", "[fd00::1]:1"].map(|text| (text, udp));
    assert_eq!(stale(&many).dumps(), [filter(v4, udp, None, None), filter(v6, udp, Some(1), None)]);
    let families: Vec<Family> = stale(&many).unfiltered_dumps().iter().map(|filter| filter.family).collect();
    assert_eq!(families, [v4, v6]);
}
