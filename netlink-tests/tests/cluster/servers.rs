//! The agent's answers to monitoring and load balancers.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use vmap_proxy_testbed::api_objects::{Endpoint, NAMESPACE, cluster_ip, node, service, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, NODE_IP, local_pod};

use crate::{apply, apply_service, cluster, frontend};

pub(crate) const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_256);
pub(crate) const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_249);

/// The value of a metric, its labels in braces included in `name`.
fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in:\n{text}")).parse().unwrap()
}

#[test]
fn health_mode_configuration_and_metrics_are_served() {
    let cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    for path in ["/healthz", "/livez"] {
        let reply = cluster.eventually_replies(HEALTHZ, path, |reply| reply.status == 200);
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(body["healthy"], json!(true), "{path}: {}", reply.body);
    }
    assert_eq!(cluster.get(METRICS, "/proxyMode").unwrap().body, "nftables");
    assert_eq!(cluster.get(METRICS, "/healthz").unwrap().body, "ok");
    let configuration: Value = serde_json::from_str(&cluster.get(METRICS, "/configz").unwrap().body).unwrap();
    assert_eq!(configuration["kubeproxy.config.k8s.io"]["clusterCIDR"], "10.244.0.0/16");

    // A change whose time is known: how long it took from there to the packets.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 1;
    let mut triggered = slice("shop", &[Endpoint::local(2)]);
    triggered["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": rfc3339(now)});
    apply(&cluster, &[triggered]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2)]);
    let programmed = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#;
    let reply = cluster
        .eventually_replies(METRICS, "/metrics", |reply| reply.status == 200 && metric(&reply.body, programmed) >= 1.0);
    let full = r#"kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#;
    let partial = r#"kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"}"#;
    assert!(metric(&reply.body, full) >= 1.0);
    assert!(metric(&reply.body, partial) >= 1.0);
    // Each connection that was made above, from the counter of the element.
    let connections = format!(r#"vmap_proxy_service_connections_total{{namespace="{NAMESPACE}",service="shop","#);
    cluster.eventually_replies(METRICS, "/metrics", |reply| {
        let line = reply.body.lines().find_map(|line| line.strip_prefix(&connections)?.rsplit_once(' '));
        line.is_some_and(|(_, count)| count.parse::<u64>().unwrap() >= 1)
    });
}

/// Seconds since 1970 as the annotation has them.
fn rfc3339(seconds: u64) -> String {
    // Days to a date: Howard Hinnant's civil_from_days.
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[test]
fn load_balancers_learn_which_services_have_local_endpoints() {
    let cluster = cluster();
    // The addresses of node ports: by default only the Node's own address.
    let checks = frontend(NODE_IP, 30_999);
    let local = |service: &mut Value| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service["spec"]["healthCheckNodePort"] = json!(checks.port());
        service["spec"]["ports"][0]["nodePort"] = json!(30_080);
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.200", "ipMode": "VIP"}]}});
    };
    apply(&cluster, &[service("shop", &cluster_ip(2), local), slice("shop", &[Endpoint::remote(1)])]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let replies = |status: u16, endpoints: u64| {
        let reply = cluster.eventually_replies(checks, "/", |reply| reply.status == status);
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(body["service"], json!({"namespace": NAMESPACE, "name": "shop"}), "{}", reply.body);
        assert_eq!(body["localEndpoints"], json!(endpoints), "{}", reply.body);
    };
    replies(503, 0);
    apply(&cluster, &[slice("shop", &[Endpoint::remote(1), Endpoint::local(1), Endpoint::local(2)])]);
    replies(200, 2);
    // A pod that is going is served to its end, but load balancers look elsewhere.
    apply(&cluster, &[slice("shop", &[Endpoint::remote(1), Endpoint::local(1).terminating()])]);
    replies(503, 0);
    apply(&cluster, &[slice("shop", &[Endpoint::local(3)])]);
    replies(200, 1);
    cluster.api.delete(Resource::Services, NAMESPACE, "shop").unwrap();
    let deadline = std::time::Instant::now() + vmap_proxy_testbed::PATIENCE;
    while cluster.get(checks, "/").is_ok() {
        assert!(std::time::Instant::now() < deadline, "the port of a Service that is gone still answers");
    }
}

#[test]
fn a_node_that_is_going_tells_load_balancers() {
    let mut cluster = cluster();
    // A real API server sets deletion timestamps itself.
    if cluster.api.double().is_none() {
        return;
    }
    apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let taint = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1"}]);
    let going: [Value; 2] = [
        node(|node| node["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z")),
        node(|node| node["spec"]["taints"] = taint),
    ];
    for going in going {
        cluster.eventually_replies(HEALTHZ, "/healthz", |reply| reply.status == 200);
        apply(&cluster, &[going]);
        let reply = cluster.eventually_replies(HEALTHZ, "/healthz", |reply| reply.status == 503);
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!(body["nodeEligible"], json!(false), "{}", reply.body);
        assert_eq!(cluster.get(HEALTHZ, "/livez").unwrap().status, 200);
        apply(&cluster, &[node(|_| {})]);
    }
    cluster.eventually_replies(HEALTHZ, "/healthz", |reply| reply.status == 200);
}

#[test]
fn the_pages_of_every_component_are_there() {
    let cluster = cluster();
    let agent = cluster.agent();
    agent.wait_until_ready();
    let page = |path: &str| cluster.eventually_replies(METRICS, path, |reply| reply.status == 200).body;
    assert!(page("/statusz").contains("Binary version: v1.36.0+vmap-proxy."));
    assert!(page("/flagz").contains("\nv=2\n"));
    assert_eq!(page("/healthz"), "ok");
    assert!(page("/metrics/slis").contains(r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#));
    assert!(page("/metrics").contains("kubernetes_build_info{"));
    // Fields that kubeadm leaves empty are filled in.
    let configuration: serde_json::Value = serde_json::from_str(&page("/configz")).unwrap();
    let effective = &configuration["kubeproxy.config.k8s.io"];
    assert_eq!(effective["detectLocalMode"], "ClusterCIDR");
    assert_eq!(effective["nodePortAddresses"], serde_json::json!(["primary"]));
}
