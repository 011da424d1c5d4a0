//! The Kubernetes Events of the agent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use serde_json::{Value, json};
use vmap_proxy_testbed::api_objects::{Endpoint, NAMESPACE, NODE, cluster_ip, service, slice};
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, EndToEnd, NODE_IP, local_pod};

use crate::{apply, apply_service, cluster, frontend};

/// The first Event of this reason, about a Node or Service of this name.
fn event(cluster: &mut EndToEnd, reason: &str, name: &str) -> Option<Value> {
    let double = cluster.api.double()?;
    let is_it = |event: &Value| event["reason"] == reason && event["regarding"]["name"] == name;
    double.wait_until(|server| server.events().iter().any(is_it));
    double.server.events().into_iter().find(is_it)
}

#[test]
fn events_are_sent_as_kube_proxy_does() {
    let mut cluster = cluster();
    // Others listen where health is to be asked for.
    let taken = |address: SocketAddr| cluster.node().run(|| TcpListener::bind(address).unwrap()).unwrap();
    let _health = taken(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10_256));
    let checks = frontend(NODE_IP, 30_999);
    let _checks = taken(checks);
    let local = |service: &mut Value| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service["spec"]["healthCheckNodePort"] = json!(checks.port());
        service["spec"]["ports"][0]["nodePort"] = json!(30_080);
    };
    apply(&cluster, &[service("checked", &cluster_ip(2), local), slice("checked", &[Endpoint::local(1)])]);
    let agent = cluster.agent();
    agent.wait_until_ready();

    let Some(starting) = event(&mut cluster, "Starting", NODE) else { return };
    assert_eq!(starting["type"], "Normal");
    assert_eq!(starting["action"], "StartKubeProxy");
    assert_eq!(starting["reportingController"], "kube-proxy");
    assert_eq!(starting["regarding"]["kind"], "Node");
    assert_eq!(starting["regarding"]["uid"], NODE);
    assert!(starting["eventTime"].is_string(), "{starting}");

    let health = event(&mut cluster, "FailedToStartProxierHealthcheck", NODE).unwrap();
    assert_eq!(health["type"], "Warning");
    assert!(health["note"].as_str().unwrap().contains("10256"), "{health}");

    let checked = event(&mut cluster, "FailedToStartServiceHealthcheck", "checked").unwrap();
    assert_eq!(checked["type"], "Warning");
    assert_eq!(checked["regarding"]["kind"], "Service");
    assert_eq!(checked["regarding"]["namespace"], NAMESPACE);
    assert!(checked["note"].as_str().unwrap().contains(&checks.to_string()), "{checked}");
}

#[test]
fn a_service_whose_address_is_taken_is_told() {
    let mut cluster = cluster();
    let agent = cluster.agent();
    agent.wait_until_ready();
    let external = |created: &'static str| {
        move |service: &mut Value| {
            service["metadata"]["creationTimestamp"] = json!(created);
            service["spec"]["externalIPs"] = json!(["203.0.113.77"]);
        }
    };
    let old = service("old", &cluster_ip(2), external("2026-01-01T00:00:00Z"));
    apply(&cluster, &[old, slice("old", &[Endpoint::local(1)])]);
    cluster.eventually_reaches(CLIENT_POD, frontend("203.0.113.77", 80), &[local_pod(1)]);
    let young = service("young", &cluster_ip(3), external("2026-02-01T00:00:00Z"));
    apply(&cluster, &[young, slice("young", &[Endpoint::local(2)])]);

    let Some(conflict) = event(&mut cluster, "FrontendConflict", "young") else { return };
    assert_eq!(conflict["type"], "Warning");
    let note = conflict["note"].as_str().unwrap();
    assert!(note.contains("203.0.113.77 port 80/TCP") && note.contains("/old"), "{note}");
    cluster.eventually_reaches(CLIENT_POD, frontend("203.0.113.77", 80), &[local_pod(1)]);
}

#[test]
fn a_service_that_is_too_large_is_told() {
    let mut cluster = cluster();
    let agent = cluster.agent();
    agent.wait_until_ready();
    let large = service("large", &cluster_ip(2), |service| {
        let ports = (1..=1_000).map(|port| json!({"name": format!("p{port}"), "port": port, "protocol": "TCP"}));
        service["spec"]["ports"] = ports.collect();
        service["spec"]["externalIPs"] = (1..=250).map(|host| json!(format!("203.0.113.{host}"))).collect();
    });
    apply(&cluster, &[large]);
    let shop = apply_service(&cluster, "shop", 3, &[Endpoint::local(1)]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);

    let Some(event) = event(&mut cluster, "ServiceTooLarge", "large") else { return };
    assert_eq!((&event["type"], &event["regarding"]["kind"]), (&json!("Warning"), &json!("Service")));
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("753000 elements") && note.contains("the limit is 500000"), "{note}");
}

#[test]
fn refused_events_disturb_nothing() {
    let mut cluster = cluster();
    let Some(double) = cluster.api.double() else { return };
    double.server.refuse_events(403, "events.events.k8s.io is forbidden");
    let agent = cluster.agent();
    agent.wait_until_ready();
    let Some(double) = cluster.api.double() else { return };
    double.wait_until(|server| server.requests().iter().any(|request| request.contains("/events")));
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    let lines = agent.log();
    assert!(!lines.iter().any(|line| line.contains("Starting") || line.contains("forbidden")), "{lines:#?}");
}
