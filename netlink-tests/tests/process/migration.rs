//! `vmap-proxy check-migration` beside the table that kube-proxy writes in nftables mode.

use serde_json::{Value, json};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::NODE_NAME;
use vmap_proxy_testbed::nft::{load_nft, nft_in};

use crate::{cluster, vmap_proxy};

/// As kube-proxy 1.36 writes it for `shop/web` (NodePort, policy Cluster) with two endpoints, `shop/local` (NodePort,
/// policy Local) with one on this node, and `shop/empty`.
const TABLE: &str = r#"
table ip kube-proxy {
  comment "rules for kube-proxy"
  map service-ips {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.10 . tcp . 80 : goto service-JQ6KXZ5W-shop/web/tcp/http,
                 10.96.0.11 . tcp . 80 : goto service-AAAAAAAA-shop/local/tcp/http }
  }
  map service-nodeports {
    type inet_proto . inet_service : verdict
    elements = { tcp . 30080 : goto external-JQ6KXZ5W-shop/web/tcp/http,
                 tcp . 30081 : goto external-AAAAAAAA-shop/local/tcp/http }
  }
  map no-endpoint-services {
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = { 10.96.0.12 . tcp . 80 : goto reject-chain }
  }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
  }
  chain endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain reject-chain { reject; }
  chain mark-for-masquerade { meta mark set mark or 0x4000; }
  chain service-JQ6KXZ5W-shop/web/tcp/http {
    ip daddr 10.96.0.10 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
    numgen random mod 2 vmap { 0 : goto endpoint-XTL3Q2DS-shop/web/tcp/http__10.244.1.11/8080,
                               1 : goto endpoint-YTL3Q2DS-shop/web/tcp/http__10.244.2.11/8080 }
  }
  chain external-JQ6KXZ5W-shop/web/tcp/http {
    jump mark-for-masquerade
    goto service-JQ6KXZ5W-shop/web/tcp/http
  }
  chain service-AAAAAAAA-shop/local/tcp/http {
    ip daddr 10.96.0.11 tcp dport 80 ip saddr != 10.244.0.0/16 jump mark-for-masquerade
    numgen random mod 2 vmap { 0 : goto endpoint-BBBBBBBB-shop/local/tcp/http__10.244.1.12/8080,
                               1 : goto endpoint-CCCCCCCC-shop/local/tcp/http__10.244.2.12/8080 }
  }
  chain local-AAAAAAAA-shop/local/tcp/http {
    numgen random mod 1 vmap { 0 : goto endpoint-BBBBBBBB-shop/local/tcp/http__10.244.1.12/8080 }
  }
  chain external-AAAAAAAA-shop/local/tcp/http {
    ip saddr 10.244.0.0/16 goto service-AAAAAAAA-shop/local/tcp/http
    fib saddr type local jump mark-for-masquerade
    fib saddr type local goto service-AAAAAAAA-shop/local/tcp/http
    goto local-AAAAAAAA-shop/local/tcp/http
  }
  chain endpoint-XTL3Q2DS-shop/web/tcp/http__10.244.1.11/8080 {
    ip saddr 10.244.1.11 jump mark-for-masquerade
    meta l4proto tcp dnat to 10.244.1.11:8080
  }
  chain endpoint-YTL3Q2DS-shop/web/tcp/http__10.244.2.11/8080 {
    ip saddr 10.244.2.11 jump mark-for-masquerade
    meta l4proto tcp dnat to 10.244.2.11:8080
  }
  chain endpoint-BBBBBBBB-shop/local/tcp/http__10.244.1.12/8080 { meta l4proto tcp dnat to 10.244.1.12:8080; }
  chain endpoint-CCCCCCCC-shop/local/tcp/http__10.244.2.12/8080 { meta l4proto tcp dnat to 10.244.2.12:8080; }
}
"#;

fn service(name: &str, address: &str, more: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": address, "clusterIPs": [address], "type": "NodePort",
                 "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    });
    for (field, value) in more.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    service
}

fn slice(service: &str, addresses: [&str; 2]) -> Value {
    let endpoints: Vec<Value> = addresses
        .into_iter()
        .zip([NODE_NAME, "node-2"])
        .map(|(address, node)| json!({"addresses": [address], "nodeName": node}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
        "metadata": {"name": service, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// The same objects as kube-proxy has, or with another second endpoint.
fn manifests(second: &str) -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let ports = |number: u16| json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": number}]);
    let objects = [
        node_object(),
        service("web", "10.96.0.10", json!({"ports": ports(30080)})),
        slice("web", [LOCAL[0][0], second]),
        service("local", "10.96.0.11", json!({"ports": ports(30081), "externalTrafficPolicy": "Local"})),
        slice("local", [LOCAL[0][1], REMOTE[0][1]]),
        service("empty", "10.96.0.12", json!({"type": "ClusterIP"})),
    ];
    manifests.write_objects("all.json", &objects);
    manifests
}

fn check(node: &NetNs, manifests: &ManifestDirectory) -> (i32, Value, String) {
    let mut command = vmap_proxy(&["check-migration", "-o", "json", "--node-name", NODE_NAME]);
    command.args(["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]).arg("--manifests").arg(manifests.path());
    let output = node.run(|| command.output()).unwrap().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), error)
}

#[test]
fn a_kube_proxy_with_the_same_objects_does_the_same() {
    let cluster = cluster();
    let manifests = manifests(REMOTE[0][0]);
    let (status, _, error) = check(cluster.node(), &manifests);
    assert_eq!((status, error.contains("no table kube-proxy")), (1, true), "{error}");
    load_nft(cluster.node(), TABLE).unwrap();
    let before = nft_in(cluster.node(), &["list", "ruleset"], "").unwrap();
    let (status, report, error) = check(cluster.node(), &manifests);
    assert_eq!(status, 0, "{report:#}{error}");
    // Five frontends, each from a pod, from this node and from outside.
    assert_eq!((&report["frontends"], &report["compared"]), (&5.into(), &15.into()), "{report:#}");
    assert_eq!(report["notCompared"], json!([]), "{report:#}");
    assert_eq!(nft_in(cluster.node(), &["list", "ruleset"], "").unwrap(), before);
}

#[test]
fn differences_are_named_with_frontend_client_and_reason() {
    let cluster = cluster();
    load_nft(cluster.node(), TABLE).unwrap();
    // Another endpoint; and kube-proxy masquerades one more client.
    let rule = "insert rule ip kube-proxy service-AAAAAAAA-shop/local/tcp/http jump mark-for-masquerade";
    load_nft(cluster.node(), rule).unwrap();
    let (status, report, error) = check(cluster.node(), &manifests(REMOTE[0][2]));
    assert_eq!(status, 3, "{report:#}{error}");
    let differences = report["differences"].as_array().unwrap();
    let find = |frontend: &str, client: &str| {
        differences.iter().find(|one| one["frontend"] == frontend && one["client"] == client)
    };
    let web = find("10.96.0.10:80/TCP", "outside").unwrap();
    assert_eq!(web["service"], "shop/web", "{report:#}");
    assert!(web["kubeProxy"].as_str().unwrap().contains(REMOTE[0][0]), "{web}");
    assert!(web["vmapProxy"].as_str().unwrap().contains(REMOTE[0][2]), "{web}");
    let local = find("10.96.0.11:80/TCP", "pod").unwrap();
    assert!(local["kubeProxy"].as_str().unwrap().contains("masqueraded"), "{local}");
    assert!(local["vmapProxy"].as_str().unwrap().contains("source kept"), "{local}");
    assert!(find("10.96.0.11:80/TCP", "outside").is_none(), "masqueraded by both: {report:#}");
    assert!(find("10.96.0.12:80/TCP", "outside").is_none(), "{report:#}");
}
