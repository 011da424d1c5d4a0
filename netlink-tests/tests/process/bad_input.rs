//! Input that can't be right costs what it names and nothing else: a line in the log names object and place, everything
//! else goes on working, and nothing programmed is lost.

use serde_json::{Value, json};
use vmap_proxy_lab::ProbeResult;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_lab::http;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, NODE, POD, POD_PORT, REMOTE, at, ip, node_object};
use vmap_proxy_testbed::holdings::Holdings;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{ServiceManifest, SliceManifest, service, slice};
use vmap_proxy_testbed::nft::nft;

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");
/// Of the Service that must go on working.
const GOOD: &str = "10.96.0.10";

fn good() -> [Value; 3] {
    let slice = slice("shop/good", "1").port(Tcp, POD_PORT.into()).endpoint(LOCAL[0][0]);
    [node_object(), service("shop/good").cluster_ip(GOOD).port(Tcp, 80).build(), slice.build()]
}

/// A Service on cluster IP 10.96.0.`number`, port 80.
fn web(name: &str, number: u8) -> ServiceManifest {
    service(name).cluster_ip(&format!("10.96.0.{number}")).port(Tcp, 80)
}

fn served_by(name: &str, pod: &str) -> SliceManifest {
    slice(name, "1").port(Tcp, POD_PORT.into()).endpoint(pod)
}

/// An agent that serves the good Service, and whose manifests are spoilt in the course of a test.
struct Victim {
    cluster: Cluster,
    manifests: ManifestDirectory,
    agent: AgentProcess,
    before: [Holdings; 2],
}

impl Victim {
    fn new() -> Self {
        let cluster = Cluster::new();
        let manifests = ManifestDirectory::new();
        manifests.write_objects("good.json", &good());
        let agent = AgentProcess::start(PROGRAM, cluster.node(), &manifests, &[]);
        let before = Holdings::read(cluster.node());
        Self { cluster, manifests, agent, before }
    }

    /// Adds objects and waits for the line in the log that has all these words.
    #[track_caller]
    fn complains(&mut self, objects: &[Value], words: &[&str]) {
        self.manifests.write_objects("bad.json", objects);
        let mut all = vec!["bad.json"];
        all.extend(words);
        self.expect_line(&all);
    }

    /// Adds a file of text.
    #[track_caller]
    fn complains_of_text(&mut self, text: &str, words: &[&str]) {
        self.manifests.write("bad.yaml", text);
        let mut all = vec!["bad.yaml"];
        all.extend(words);
        self.expect_line(&all);
    }

    #[track_caller]
    fn expect_line(&mut self, words: &[&str]) {
        self.expect_lines(&[words]);
    }

    /// Waits for several lines in any order.
    #[track_caller]
    fn expect_lines(&mut self, lines: &[&[&str]]) {
        for line in self.agent.wait_for_all(lines) {
            assert!(line.contains("WARN") || line.contains("ERROR"), "{line}");
        }
        self.good_one_works();
    }

    #[track_caller]
    fn good_one_works(&self) {
        self.cluster.assert_served(POD[0], at(GOOD, 80), Tcp, [LOCAL[0][0]]);
    }

    /// Returns the state that the usable objects produce.
    #[track_caller]
    fn synced(&mut self) {
        self.agent.wait_for(&["synced in"]);
    }

    /// Takes the spoilt file away; then the kernel holds what it did before.
    #[track_caller]
    fn ends_well(mut self) {
        self.manifests.write_objects("good.json", &good());
        for name in ["bad.json", "bad.yaml"] {
            if self.manifests.path().join(name).exists() {
                self.manifests.remove(name);
            }
        }
        // One more Service tells when the agent has seen all that.
        let last = web("shop/last", 250).build();
        self.manifests.write_objects("last.json", &[last, served_by("shop/last", LOCAL[0][3]).build()]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
        while !matches!(self.cluster.connect(POD[0], at("10.96.0.250", 80), Tcp, 1)[0], ProbeResult::Answered { .. }) {
            assert!(std::time::Instant::now() < deadline);
        }
        self.manifests.remove("last.json");
        self.agent.wait_for(&["synced in", "removed"]);
        while !self.differences().is_empty() {
            assert!(std::time::Instant::now() < deadline, "{:#?}", self.differences());
        }
        self.good_one_works();
        self.agent.stop();
    }

    /// Chains that nothing points to any more may still be there.
    fn differences(&self) -> Vec<String> {
        let now = Holdings::read(self.cluster.node());
        let lines = now.iter().zip(&self.before).flat_map(|(now, before)| now.differences(before));
        lines.filter(|line| !line.starts_with("chain ")).collect()
    }
}

#[test]
fn malformed_documents_are_named_with_file_and_line() {
    let mut victim = Victim::new();
    victim.complains_of_text(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: broken\nspec:\n  ports: [\n",
        &["Service broken"],
    );
    victim.complains_of_text("not: [a, manifest]\n", &["kind"]);
    victim.complains_of_text("apiVersion: v1\nkind: Service\nmetadata: {}\n", &["metadata.name"]);
    victim.complains_of_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: 80}\n",
        &["Service default/a"],
    );
    victim.complains_of_text("\u{0}\u{1}binary", &[]);
    victim.complains_of_text(
        "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n",
        &["EndpointSlice", "discovery.k8s.io/v1"],
    );
    victim.manifests.write("bad.json", "{\"kind\": \"Service\", ");
    victim.expect_line(&["bad.json"]);
    // The good documents of a file count, whatever stands beside them.
    let text = "kind: [\n---\napiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\nspec: {clusterIP: \
                10.96.0.11, ports: [{name: tcp, port: 80}]}\n";
    victim.manifests.write_objects("bad.json", &[served_by("shop/late", LOCAL[0][1]).build()]);
    victim.complains_of_text(text, &["document 1"]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.11", 80), Tcp, [LOCAL[0][1]]);
    victim.ends_well();
}

#[test]
fn a_file_that_breaks_takes_nothing_away() {
    let mut victim = Victim::new();
    victim.manifests.write("good.json", "{\"kind\": \"Service\", \"spec\": ");
    victim.expect_line(&["good.json"]);
    victim.manifests.write("good.json", "");
    victim.expect_line(&["good.json", "has become empty"]);
    assert_eq!(victim.differences(), [] as [String; 0]);
    victim.ends_well();
}

#[test]
fn impossible_fields_cost_only_what_they_name() {
    let mut victim = Victim::new();
    let bad = |name: &str| format!("shop/{name}");
    victim.complains(
        &[service(&bad("address")).cluster_ip("10.96.0.999").port(Tcp, 80).build()],
        &["Service shop/address", "10.96.0.999"],
    );
    let ports = web("shop/ports", 20).port(Tcp, 70_000).named("a").port(Udp, 0).named("b").port(Udp, 53);
    let backends = served_by("shop/ports", LOCAL[0][1]).port(Udp, POD_PORT.into());
    victim.complains(&[ports.build(), backends.build()], &["Service shop/ports", "spec.ports[1].port", "70000"]);
    victim.expect_line(&["bad.json", "Service shop/ports", "spec.ports[2].port", "0 is not a port"]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.20", 80), Tcp, [LOCAL[0][1]]);
    victim.cluster.assert_served(POD[0], at("10.96.0.20", 53), Udp, [LOCAL[0][1]]);

    let endpoints = served_by("shop/ends", LOCAL[0][1]).endpoint("10.244.1.1000").endpoint(LOCAL[0][2]);
    let portless = slice("shop/ends", "2").port(Tcp, 0).endpoint(LOCAL[0][3]);
    let objects = [web("shop/ends", 21).build(), endpoints.build(), portless.build()];
    victim.manifests.write_objects("bad.json", &objects);
    victim.expect_lines(&[
        &["bad.json", "EndpointSlice shop/ends-1", "10.244.1.1000"],
        &["bad.json", "EndpointSlice shop/ends-2", "ports[0].port"],
    ]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.21", 80), Tcp, [LOCAL[0][1], LOCAL[0][2]]);

    let protocol = web("shop/protocol", 22).spec("ports", json!([{"name": "tcp", "port": 80, "protocol": "QUIC"}]));
    victim.complains(&[protocol.build()], &["Service shop/protocol", "QUIC"]);
    let affinity = web("shop/affinity", 23).affinity(-1);
    victim.complains(&[affinity.build()], &["Service shop/affinity", "timeoutSeconds"]);
    let external = web("shop/external", 24).external_ip("10.0.0").external_ip("203.0.113.24");
    victim.complains(
        &[external.build(), served_by("shop/external", LOCAL[0][1]).build()],
        &["Service shop/external", "externalIPs[0]"],
    );
    victim.synced();
    victim.cluster.assert_served(CLIENT[0], at("203.0.113.24", 80), Tcp, [LOCAL[0][1]]);
    victim.ends_well();
}

#[test]
fn fields_of_a_newer_kubernetes_are_no_error() {
    let mut victim = Victim::new();
    let newer = web("shop/newer", 30).spec("teleport", json!({"to": "mars"}));
    victim.manifests.write_objects("bad.json", &[newer.build(), served_by("shop/newer", LOCAL[0][1]).build()]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.30", 80), Tcp, [LOCAL[0][1]]);
    assert!(!victim.agent.log().iter().any(|line| line.contains("WARN") && line.contains("newer")));
    victim.ends_well();
}

/// A slice whose Service does not exist has a line at the start only: later that is how Services come and go.
#[test]
fn a_slice_without_its_service_waits_for_it() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    let mut objects = good().to_vec();
    objects.push(served_by("shop/orphan", LOCAL[0][1]).build());
    manifests.write_objects("good.json", &objects);
    let mut agent = AgentProcess::launch(PROGRAM, cluster.node(), &manifests, &[]);
    agent.wait_for(&["EndpointSlice shop/orphan-1", "no Service"]);
    agent.wait_for(&["programmed 1 service,"]);
    cluster.assert_served(POD[0], at(GOOD, 80), Tcp, [LOCAL[0][0]]);
    manifests.write_objects("service.json", &[web("shop/orphan", 11).build()]);
    agent.wait_for(&["synced in"]);
    cluster.assert_served(POD[0], at("10.96.0.11", 80), Tcp, [LOCAL[0][1]]);
    agent.stop();
}

#[test]
fn an_empty_directory_is_no_reason_to_stop() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    let mut agent = AgentProcess::launch(PROGRAM, cluster.node(), &manifests, &[]);
    agent.wait_for(&[&manifests.path().display().to_string(), "holds no *.yaml"]);
    agent.wait_for(&["programmed 0 services"]);
    manifests.write_objects("good.json", &good());
    agent.wait_for(&["synced in"]);
    cluster.assert_served(POD[0], at(GOOD, 80), Tcp, [LOCAL[0][0]]);
    agent.stop();
}

/// As in kube-proxy one of them gets it; which one is not left to chance, and the other is named.
#[test]
fn the_older_of_two_services_has_the_frontend_that_both_want() {
    let mut victim = Victim::new();
    let objects = |older: &str, younger: &str| {
        let claim = |name: &str, number: u8, time: &str| {
            web(name, number).external_ip("203.0.113.40").node_port(30080).created(time).build()
        };
        [
            claim(older, 41, "2026-01-01T00:00:00Z"),
            claim(younger, 42, "2026-02-01T00:00:00Z"),
            served_by("shop/a", LOCAL[0][1]).build(),
            served_by("shop/b", LOCAL[0][2]).build(),
        ]
    };
    victim.manifests.write_objects("bad.json", &objects("shop/b", "shop/a"));
    victim.expect_line(&["Service shop/a", "203.0.113.40 port 80/TCP", "Service shop/b"]);
    victim.cluster.assert_served(CLIENT[0], at("203.0.113.40", 80), Tcp, [LOCAL[0][2]]);
    victim.cluster.assert_served(CLIENT[0], at(NODE[0], 30080), Tcp, [LOCAL[0][2]]);
    for (address, pod) in [("10.96.0.42", LOCAL[0][1]), ("10.96.0.41", LOCAL[0][2])] {
        victim.cluster.assert_served(POD[0], at(address, 80), Tcp, [pod]);
    }
    // One cluster IP given out twice, which the API server would refuse.
    let duplicate =
        [web("shop/c", 10).created("2026-01-01T00:00:00Z").build(), served_by("shop/c", LOCAL[0][3]).build()];
    victim.manifests.write_objects("bad.json", &duplicate);
    victim.expect_line(&["Service shop/", "10.96.0.10 port 80/TCP"]);
    victim.ends_well();
}

#[test]
fn names_of_any_length_are_served() {
    let mut victim = Victim::new();
    let namespace = "n".repeat(63);
    let name = format!("{namespace}/{}", "s".repeat(253));
    let port = "p".repeat(63);
    let long = service(&name).cluster_ip("10.96.0.50").port(Tcp, 80).named(&port);
    let backend = slice(&name, "1").port(Tcp, POD_PORT.into()).named(&port).endpoint(LOCAL[0][1]);
    victim.manifests.write_objects("bad.json", &[long.build(), backend.build()]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.50", 80), Tcp, [LOCAL[0][1]]);
    // The kernel takes 127 bytes; the listing shows where something is left out.
    let listed =
        victim.cluster.node().run(|| nft(&["list", "map", "ip", "vmap-proxy", "services"], "")).unwrap().unwrap();
    assert!(listed.contains(&format!("{namespace}/sss")) && listed.contains("..."), "{listed}");
    victim.ends_well();
}

#[test]
fn policies_that_contradict_each_other_do_what_kube_proxy_does() {
    let mut victim = Victim::new();
    // A local external policy without anything external, a health check port without a load balancer, source ranges
    // without one, affinity without a timeout: none of it has an effect.
    let odd = web("shop/odd", 60)
        .external_local()
        .spec("healthCheckNodePort", json!(30_999))
        .spec("loadBalancerSourceRanges", json!(["192.0.2.128/25"]))
        .spec("sessionAffinity", json!("ClientIP"));
    let none_local = web("shop/remote", 61).internal_local().node_port(30061);
    let objects = [
        odd.build(),
        served_by("shop/odd", REMOTE[0][0]).build(),
        none_local.build(),
        served_by("shop/remote", REMOTE[0][1]).build(),
    ];
    victim.manifests.write_objects("bad.json", &objects);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.60", 80), Tcp, [REMOTE[0][0]]);
    // Nothing local for the cluster IP: dropped. The node port does not care about the internal policy.
    victim.cluster.assert_silence(POD[0], at("10.96.0.61", 80), Tcp);
    victim.cluster.assert_served(CLIENT[0], at(NODE[0], 30061), Tcp, [REMOTE[0][1]]);
    victim.ends_well();
}

#[test]
fn hints_for_unknown_zones_leave_every_endpoint() {
    let mut victim = Victim::new();
    let hinted = slice("shop/hinted", "1").port(Tcp, POD_PORT.into());
    let hinted = hinted.endpoint(LOCAL[0][1]).zone_hint("atlantis").endpoint(REMOTE[0][1]).zone_hint("");
    victim.manifests.write_objects("bad.json", &[web("shop/hinted", 70).build(), hinted.build()]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.70", 80), Tcp, [LOCAL[0][1], REMOTE[0][1]]);
    victim.ends_well();
}

#[test]
fn source_ranges_may_overlap_and_need_not_parse() {
    let mut victim = Victim::new();
    let guarded = |ranges: &[&str]| {
        let service = web("shop/guarded", 80).load_balancer_ip("203.0.113.80");
        let service = ranges.iter().fold(service, |service, range| service.source_range(range));
        [service.build(), served_by("shop/guarded", LOCAL[0][1]).build()]
    };
    let ranges =
        ["198.51.100.0/24", "198.51.100.16/28", "198.51.0.0/16", "198.51.100.23/32", "everyone", " 192.0.2.0/33 "];
    victim.complains(&guarded(&ranges), &["Service shop/guarded", "loadBalancerSourceRanges[4]", "everyone"]);
    victim.expect_line(&["bad.json", "Service shop/guarded", "loadBalancerSourceRanges[5]"]);
    victim.synced();
    let to = at("203.0.113.80", 80);
    victim.cluster.assert_served(CLIENT[0], to, Tcp, [LOCAL[0][1]]);
    victim.cluster.assert_silence(POD[0], to, Tcp);
    // Nothing but nonsense is no range at all, and no firewall, as in kube-proxy.
    victim.complains(&guarded(&["nobody"]), &["Service shop/guarded", "loadBalancerSourceRanges[0]", "nobody"]);
    victim.synced();
    victim.cluster.assert_served(POD[0], to, Tcp, [LOCAL[0][1]]);
    victim.ends_well();
}

#[test]
fn mixed_families_are_sorted_out() {
    let mut victim = Victim::new();
    // The label of the family decides; the address below it is of the other one.
    let mixed = service("shop/mixed")
        .port(Tcp, 80)
        .spec("clusterIP", json!("10.96.0.90"))
        .spec("clusterIPs", json!(["10.96.0.90", "10.96.0.91"]))
        .spec("ipFamilies", json!(["IPv4", "IPv6"]))
        .external_ip("2001:db8:3::90")
        .external_ip("203.0.113.90");
    let slice = slice("shop/mixed", "1").port(Tcp, POD_PORT.into()).endpoint(LOCAL[0][1]);
    let strays = slice.endpoint(LOCAL[1][1]).address_type("IPv4");
    victim.manifests.write_objects("bad.json", &[mixed.build(), strays.build()]);
    victim.expect_lines(&[
        &["bad.json", "Service shop/mixed", "clusterIPs[1]", "10.96.0.91"],
        &["bad.json", "EndpointSlice shop/mixed-1", LOCAL[1][1]],
    ]);
    victim.synced();
    for address in ["10.96.0.90", "203.0.113.90"] {
        victim.cluster.assert_served(CLIENT[0], at(address, 80), Tcp, [LOCAL[0][1]]);
    }
    victim.cluster.assert_silence(POD[0], at("10.96.0.91", 80), Tcp);
    victim.ends_well();
}

#[test]
fn the_node_itself_may_be_an_endpoint() {
    let mut victim = Victim::new();
    victim.cluster.serve(at(NODE[0], 9000), Tcp);
    let on_node = slice("shop/host", "1").port(Tcp, 9000).endpoint(NODE[0]);
    let host = web("shop/host", 100).node_port(30100);
    victim.manifests.write_objects("bad.json", &[host.build(), on_node.build()]);
    victim.synced();
    for (from, to) in
        [(POD[0], at("10.96.0.100", 80)), (NODE[0], at("10.96.0.100", 80)), (CLIENT[0], at(NODE[0], 30100))]
    {
        let result = victim.cluster.connect(from, to, Tcp, 1)[0];
        assert!(matches!(result, ProbeResult::Answered { by, .. } if by.ip() == ip(NODE[0])), "{from}: {result}");
    }
    victim.ends_well();
}

/// Without the capability to change the network, the error names it and the remedy.
#[test]
fn without_permission_it_says_so_and_ends() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    manifests.write_objects("good.json", &good());
    let agent = AgentProcess::launch_without_permission(PROGRAM, cluster.node(), &manifests);
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(1), "{log:?}");
    let errors: Vec<&String> = log.iter().filter(|line| line.starts_with("Error: ")).collect();
    assert!(matches!(errors[..], [error] if error.contains("NET_ADMIN")), "{log:?}");
}

#[test]
fn a_path_that_is_not_there_ends_it() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    std::fs::remove_dir(manifests.path()).unwrap();
    let agent = AgentProcess::launch(PROGRAM, cluster.node(), &manifests, &[]);
    let (status, log) = agent.end();
    assert_eq!(status.code(), Some(1), "{log:?}");
    let path = manifests.path().display().to_string();
    assert!(log.iter().any(|line| line.starts_with("Error: ") && line.contains(&path)), "{log:?}");
}

/// A Service of 60 kB that asks for half a million frontends: anybody who may create Services may write it.
#[test]
fn a_service_that_asks_for_too_much_costs_only_itself() {
    let mut victim = Victim::new();
    let mut hostile = service("shop/hostile").cluster_ip("10.96.0.66");
    for port in 1..=1_000 {
        hostile = hostile.port(Tcp, port).named(&format!("p{port}"));
    }
    for number in 0..500 {
        hostile = hostile.external_ip(&format!("203.0.{}.{}", number / 250, number % 250 + 1));
    }
    let line = ["WARN", "Service shop/hostile is not programmed for IPv4", "the limit is 500000"];
    victim.manifests.write_objects("bad.json", &[hostile.build()]);
    victim.expect_line(&line);
    // Another Service comes while it is there.
    victim
        .manifests
        .write_objects("more.json", &[web("shop/more", 11).build(), served_by("shop/more", LOCAL[0][1]).build()]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.11", 80), Tcp, [LOCAL[0][1]]);
    let peak = victim.agent.peak_memory_kib();
    assert!(peak < 150 << 10, "{peak} KiB");
    // Not at every change that has nothing to do with it.
    let named = victim.agent.log().iter().filter(|text| line.iter().all(|word| text.contains(word))).count();
    assert_eq!(named, 1);
    // Its acceptable part is served.
    let bearable = web("shop/hostile", 66).build();
    victim.manifests.write_objects("bad.json", &[bearable, served_by("shop/hostile", LOCAL[0][2]).build()]);
    victim.synced();
    victim.cluster.assert_served(POD[0], at("10.96.0.66", 80), Tcp, [LOCAL[0][2]]);
    victim.manifests.remove("more.json");
    victim.synced();
    victim.ends_well();
}

/// Many source ranges cost the Service that has them; others work, and `/livez` answers, while they are programmed.
#[test]
fn many_source_ranges_cost_only_their_service() {
    const RANGES: u32 = 20_000;
    let mut victim = Victim::new();
    // Every other address of 100.64.0.0/10: nothing can be merged. And the clients' own range.
    let range = |number| format!("{}/32", std::net::Ipv4Addr::from(0x6440_0000 + 2 * number));
    let guarded = (0..RANGES).fold(web("shop/guarded", 80).load_balancer_ip("203.0.113.80"), |service, number| {
        service.source_range(&range(number))
    });
    let guarded = guarded.source_range("198.51.100.0/24").build();
    victim.manifests.write_objects("bad.json", &[guarded, served_by("shop/guarded", LOCAL[0][1]).build()]);
    let address = ([127, 0, 0, 1], 10256).into();
    let to = at("203.0.113.80", 80);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(180);
    while !matches!(victim.cluster.connect(CLIENT[0], to, Tcp, 1)[0], ProbeResult::Answered { .. }) {
        assert!(std::time::Instant::now() < deadline, "{:#?}", victim.agent.log());
        victim.good_one_works();
        assert_eq!(victim.cluster.node().run(|| http::get_blocking(address, "/livez")).unwrap().unwrap().status, 200);
    }
    victim.synced();
    victim.cluster.assert_silence(POD[0], to, Tcp);
    victim.good_one_works();
    victim.ends_well();
}
