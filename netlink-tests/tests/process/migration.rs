//! `vmap-proxy check-migration` beside the rules that kube-proxy writes in nftables mode and in iptables mode.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::NODE_NAME;
use vmap_proxy_testbed::nft::{load_nft, nft_in};
use vmap_proxy_testbed::skip::skipped;

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
    check_with(node, manifests, None)
}

/// With the text of `iptables-save`, or with the table in the kernel.
fn check_with(node: &NetNs, manifests: &ManifestDirectory, iptables: Option<&str>) -> (i32, Value, String) {
    let mut command = vmap_proxy(&["check-migration", "-o", "json", "--node-name", NODE_NAME]);
    command.args(["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]).arg("--manifests").arg(manifests.path());
    if iptables.is_some() {
        command.args(["--iptables-save", "-"]);
    }
    let output = node.run(|| with_input(&mut command, iptables.unwrap_or_default())).unwrap();
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

/// As kube-proxy 1.36 writes it in iptables mode for `shop/web` (NodePort, three endpoints), `shop/local` (NodePort,
/// policy Local), `shop/empty`, `shop/sticky` (session affinity) and `shop/office` (load balancer with source ranges),
/// between rules of others.
const IPTABLES: &str = r#"
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:OTHER - [0:0]
:KUBE-EXT-LOCAL - [0:0]
:KUBE-EXT-OFFICE - [0:0]
:KUBE-EXT-WEB - [0:0]
:KUBE-FW-OFFICE - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-LOCAL1 - [0:0]
:KUBE-SEP-LOCAL2 - [0:0]
:KUBE-SEP-OFFICE - [0:0]
:KUBE-SEP-STICKY1 - [0:0]
:KUBE-SEP-STICKY2 - [0:0]
:KUBE-SEP-WEB1 - [0:0]
:KUBE-SEP-WEB2 - [0:0]
:KUBE-SEP-WEB3 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-LOCAL - [0:0]
:KUBE-SVC-OFFICE - [0:0]
:KUBE-SVC-STICKY - [0:0]
:KUBE-SVC-WEB - [0:0]
:KUBE-SVL-LOCAL - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -p tcp -m tcp --dport 9999 -j OTHER
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A OTHER -p tcp -j DNAT --to-destination 192.0.2.99
-A KUBE-EXT-LOCAL -s 10.244.0.0/16 -m comment --comment "pod traffic for shop/local:http external destinations" -j KUBE-SVC-LOCAL
-A KUBE-EXT-LOCAL -m comment --comment "masquerade LOCAL traffic for shop/local:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-EXT-LOCAL -m comment --comment "route LOCAL traffic for shop/local:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-LOCAL
-A KUBE-EXT-LOCAL -j KUBE-SVL-LOCAL
-A KUBE-EXT-OFFICE -m comment --comment "masquerade traffic for shop/office:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-OFFICE -j KUBE-SVC-OFFICE
-A KUBE-EXT-WEB -m comment --comment "masquerade traffic for shop/web:http external destinations" -j KUBE-MARK-MASQ
-A KUBE-EXT-WEB -j KUBE-SVC-WEB
-A KUBE-FW-OFFICE -s 203.0.113.128/25 -m comment --comment "shop/office:http loadbalancer IP" -j KUBE-EXT-OFFICE
-A KUBE-FW-OFFICE -m comment --comment "other traffic to shop/office:http will be dropped by KUBE-PROXY-FIREWALL"
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/local:http" -m tcp --dport 30081 -j KUBE-EXT-LOCAL
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/web:http" -m tcp --dport 30080 -j KUBE-EXT-WEB
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SEP-LOCAL1 -s 10.244.1.12/32 -m comment --comment "shop/local:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-LOCAL1 -p tcp -m comment --comment "shop/local:http" -m tcp -j DNAT --to-destination 10.244.1.12:8080
-A KUBE-SEP-LOCAL2 -s 10.244.2.12/32 -m comment --comment "shop/local:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-LOCAL2 -p tcp -m comment --comment "shop/local:http" -m tcp -j DNAT --to-destination 10.244.2.12:8080
-A KUBE-SEP-OFFICE -p tcp -m comment --comment "shop/office:http" -m tcp -j DNAT --to-destination 10.244.1.13:8080
-A KUBE-SEP-STICKY1 -p tcp -m comment --comment "shop/sticky:http" -m recent --set --name KUBE-SEP-STICKY1 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.1.11:8080
-A KUBE-SEP-STICKY2 -p tcp -m comment --comment "shop/sticky:http" -m recent --set --name KUBE-SEP-STICKY2 --mask 255.255.255.255 --rsource -m tcp -j DNAT --to-destination 10.244.2.11:8080
-A KUBE-SEP-WEB1 -s 10.244.1.11/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB1 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.1.11:8080
-A KUBE-SEP-WEB2 -s 10.244.2.11/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB2 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.2.11:8080
-A KUBE-SEP-WEB3 -s 10.244.2.13/32 -m comment --comment "shop/web:http" -j KUBE-MARK-MASQ
-A KUBE-SEP-WEB3 -p tcp -m comment --comment "shop/web:http" -m tcp -j DNAT --to-destination 10.244.2.13:8080
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-WEB
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment "shop/local:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-LOCAL
-A KUBE-SERVICES -d 10.96.0.13/32 -p tcp -m comment --comment "shop/sticky:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-STICKY
-A KUBE-SERVICES -d 10.96.0.14/32 -p tcp -m comment --comment "shop/office:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-OFFICE
-A KUBE-SERVICES -d 203.0.113.14/32 -p tcp -m comment --comment "shop/office:http loadbalancer IP" -m tcp --dport 80 -j KUBE-FW-OFFICE
-A KUBE-SERVICES ! -d 127.0.0.0/8 -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-LOCAL ! -s 10.244.0.0/16 -d 10.96.0.11/32 -p tcp -m comment --comment "shop/local:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-LOCAL -m comment --comment "shop/local:http -> 10.244.1.12:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-LOCAL1
-A KUBE-SVC-LOCAL -m comment --comment "shop/local:http -> 10.244.2.12:8080" -j KUBE-SEP-LOCAL2
-A KUBE-SVC-OFFICE ! -s 10.244.0.0/16 -d 10.96.0.14/32 -p tcp -m comment --comment "shop/office:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-OFFICE -m comment --comment "shop/office:http -> 10.244.1.13:8080" -j KUBE-SEP-OFFICE
-A KUBE-SVC-STICKY ! -s 10.244.0.0/16 -d 10.96.0.13/32 -p tcp -m comment --comment "shop/sticky:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-STICKY -m comment --comment "shop/sticky:http -> 10.244.1.11:8080" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-STICKY1 --mask 255.255.255.255 --rsource -j KUBE-SEP-STICKY1
-A KUBE-SVC-STICKY -m comment --comment "shop/sticky:http -> 10.244.2.11:8080" -m recent --rcheck --seconds 10800 --reap --name KUBE-SEP-STICKY2 --mask 255.255.255.255 --rsource -j KUBE-SEP-STICKY2
-A KUBE-SVC-STICKY -m comment --comment "shop/sticky:http -> 10.244.1.11:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-STICKY1
-A KUBE-SVC-STICKY -m comment --comment "shop/sticky:http -> 10.244.2.11:8080" -j KUBE-SEP-STICKY2
-A KUBE-SVC-WEB ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m comment --comment "shop/web:http cluster IP" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-WEB -m comment --comment "shop/web:http -> 10.244.1.11:8080" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-WEB1
-A KUBE-SVC-WEB -m comment --comment "shop/web:http -> 10.244.2.11:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-WEB2
-A KUBE-SVC-WEB -m comment --comment "shop/web:http -> 10.244.2.13:8080" -j KUBE-SEP-WEB3
-A KUBE-SVL-LOCAL -m comment --comment "shop/local:http -> 10.244.1.12:8080" -j KUBE-SEP-LOCAL1
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A INPUT -p tcp -m multiport --dports 22,53 -j ACCEPT
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NODEPORTS -p tcp -m comment --comment "shop/local:http health check node port" -m tcp --dport 32700 -j ACCEPT
-A KUBE-PROXY-FIREWALL -d 203.0.113.14/32 -p tcp -m comment --comment "shop/office:http traffic not accepted by KUBE-FW-OFFICE" -m tcp --dport 80 -j DROP
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m comment --comment "shop/empty:http has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
COMMIT
"#;

fn with_input(command: &mut Command, input: &str) -> Output {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that reads nothing closes its input.
    let _ = process.stdin.take().unwrap().write_all(input.as_bytes());
    process.wait_with_output().unwrap()
}

/// Loads the rules and prints them again, as the variant of iptables writes them; with counters, if wanted.
fn saved(node: &NetNs, variant: &str, rules: &str, flags: &[&str]) -> String {
    let run = |program: &str, flags: &[&str], input: &str| {
        let mut command = Command::new(format!("iptables-{variant}-{program}"));
        let output = node.run(|| with_input(command.args(flags), input)).unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    run("restore", &[], rules);
    run("save", flags, "")
}

/// The objects behind [`IPTABLES`], with this third endpoint of `shop/web`.
fn iptables_manifests(third: &str) -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let ports = |number: u16| json!([{"name": "http", "port": 80, "protocol": "TCP", "nodePort": number}]);
    let mut web = slice("web", [LOCAL[0][0], REMOTE[0][0]]);
    web["endpoints"].as_array_mut().unwrap().push(json!({"addresses": [third], "nodeName": "node-2"}));
    let mut office = slice("office", [LOCAL[0][2], LOCAL[0][2]]);
    office["endpoints"].as_array_mut().unwrap().pop();
    let mut balanced = service(
        "office",
        "10.96.0.14",
        json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
               "loadBalancerSourceRanges": ["203.0.113.128/25"]}),
    );
    balanced["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.14"}]}});
    let objects = [
        node_object(),
        service("web", "10.96.0.10", json!({"ports": ports(30080)})),
        web,
        service("local", "10.96.0.11", json!({"ports": ports(30081), "externalTrafficPolicy": "Local"})),
        slice("local", [LOCAL[0][1], REMOTE[0][1]]),
        service("empty", "10.96.0.12", json!({"type": "ClusterIP"})),
        service("sticky", "10.96.0.13", json!({"type": "ClusterIP", "sessionAffinity": "ClientIP"})),
        slice("sticky", [LOCAL[0][0], REMOTE[0][0]]),
        balanced,
        office,
    ];
    manifests.write_objects("all.json", &objects);
    manifests
}

/// The variants of iptables that this kernel has.
fn variants(node: &NetNs) -> Vec<&'static str> {
    let mut legacy = Command::new("iptables-legacy-save");
    let has_legacy =
        node.run(|| legacy.args(["-t", "nat"]).output()).unwrap().is_ok_and(|output| output.status.success());
    if !has_legacy {
        skipped(format_args!("legacy iptables was not tested: the kernel or the program is missing"));
    }
    if has_legacy { vec!["nft", "legacy"] } else { vec!["nft"] }
}

#[test]
fn a_kube_proxy_in_iptables_mode_with_the_same_objects_does_the_same() {
    let cluster = cluster();
    for variant in variants(cluster.node()) {
        for flags in [&[][..], &["-c"]] {
            let text = saved(cluster.node(), variant, IPTABLES, flags);
            let manifests = iptables_manifests(REMOTE[0][2]);
            let (status, report, error) = check_with(cluster.node(), &manifests, Some(&text));
            assert_eq!(status, 0, "{variant}: {report:#}{error}");
            // Eight frontends, each from a pod, from this node and from outside.
            assert_eq!((&report["frontends"], &report["compared"]), (&8.into(), &24.into()), "{variant}: {report:#}");
            assert_eq!(report["notCompared"], json!([]), "{variant}: {report:#}");
        }
    }
}

#[test]
fn differences_from_iptables_mode_are_named() {
    let cluster = cluster();
    let rules = IPTABLES
        // One client more is masqueraded, and source ranges are another.
        .replace("-A KUBE-SVL-LOCAL", "-A KUBE-SVL-LOCAL -j KUBE-MARK-MASQ\n-A KUBE-SVL-LOCAL")
        .replace("-s 203.0.113.128/25", "-s 198.51.100.0/24")
        // An endpoint gets more than its share.
        .replace("--probability 0.33333333349", "--probability 0.60000000009")
        .replace("-j REJECT --reject-with icmp-port-unreachable", "-j DROP");
    let text = saved(cluster.node(), "nft", &rules, &[]);
    let (status, report, error) = check_with(cluster.node(), &iptables_manifests(REMOTE[0][2]), Some(&text));
    assert_eq!(status, 3, "{report:#}{error}");
    let differences = report["differences"].as_array().unwrap();
    let find = |frontend: &str, client: &str| {
        let found = differences.iter().find(|one| one["frontend"] == frontend && one["client"] == client);
        found.map(|one| (one["kubeProxy"].as_str().unwrap(), one["vmapProxy"].as_str().unwrap()))
    };
    let (theirs, ours) = find("10.96.0.10:80/TCP", "pod").unwrap();
    assert!(theirs.ends_with("10.244.1.11:8080 by 60.0 %") && ours.ends_with("by 33.3 %"), "{report:#}");
    let (theirs, ours) = find("node port 30081/TCP", "outside").unwrap();
    assert!(theirs.contains("masqueraded") && ours.contains("source kept"), "{report:#}");
    assert!(find("node port 30081/TCP", "pod").is_none(), "{report:#}");
    let (theirs, ours) = find("203.0.113.14:80/TCP", "outside").unwrap();
    assert!(theirs.starts_with("reaches") && ours == "dropped", "{report:#}");
    assert_eq!(find("10.96.0.12:80/TCP", "outside"), Some(("dropped", "refused")), "{report:#}");
    assert!(find("10.96.0.13:80/TCP", "outside").is_none(), "{report:#}");
}

#[test]
fn a_text_that_is_not_of_iptables_save_is_refused() {
    let cluster = cluster();
    for (text, words) in [
        ("hello\n", "line 1: \"hello\""),
        ("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", "no chain KUBE-SERVICES"),
        ("*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES -d \"10.0.0.1\nCOMMIT\n", "line 3"),
        ("", "no chain KUBE-SERVICES"),
    ] {
        let (status, _, error) = check_with(cluster.node(), &iptables_manifests(REMOTE[0][2]), Some(text));
        assert_eq!((status, error.contains(words)), (1, true), "{text:?}: {error}");
    }
    // What is not understood is not compared, and named.
    let rules = IPTABLES.replace("-A KUBE-SVL-LOCAL -m comment", "-A KUBE-SVL-LOCAL -m ttl --ttl-eq 5 -m comment");
    let (status, report, error) = check_with(cluster.node(), &iptables_manifests(REMOTE[0][2]), Some(&rules));
    assert_eq!(status, 0, "{report:#}{error}");
    let unknown = "node port 30081/TCP from outside: --ttl-eq in chain KUBE-SVL-LOCAL is not understood";
    assert_eq!(report["notCompared"], json!([unknown]), "{report:#}");
}
