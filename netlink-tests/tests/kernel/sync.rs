//! The programmed state and the kernel's state stay equal over changes,
//! restarts, damage and refusals, and only elements grow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use serde_json::Value;
use vmap_proxy_agent::source::Event;
use vmap_proxy_compiler::model::{Change, ProxyConfig};
use vmap_proxy_compiler::plan::Operation;
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Key, ListNumber};
use vmap_proxy_compiler::ruleset::target::{Domain, Pool};
use vmap_proxy_conformance::model::generate::{ModelChange, Scenario, scenario};
use vmap_proxy_conformance::schema::ObjectRef;
use vmap_proxy_conformance::under_test;
use vmap_proxy_lab::{NetNs, Transport};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{
    CLIENT, Cluster, LOCAL, NODE, POD, POD_PORT, REMOTE, at, ip, node_object, proxy_config,
};
use vmap_proxy_testbed::holdings::{Holdings, await_holdings, learned};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{ServiceManifest, SliceManifest, service, service_cidr, slice};
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::nft::nft;
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::syncer_thread::SyncerThread;

const NOTHING: [String; 0] = [];
const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// A Service on cluster IP 10.96.0.`number`, port 80.
fn web(name: &str, number: u8) -> ServiceManifest {
    service(name).cluster_ip(&format!("10.96.0.{number}")).port(Transport::Tcp, 80)
}

fn served_by<'a>(name: &str, pods: impl IntoIterator<Item = &'a str>) -> SliceManifest {
    slice(name, "1").port(Transport::Tcp, POD_PORT.into()).endpoints(pods)
}

/// The tables, chains, rules, sets and maps that `nft` lists, by kind. Elements are left out of the listing.
fn objects(namespace: &NetNs) -> BTreeMap<String, usize> {
    let text = namespace.run(|| nft(&["-j", "-t", "list", "ruleset"], "")).unwrap().unwrap();
    let root: Value = serde_json::from_str(&text).unwrap();
    let mut counts = BTreeMap::new();
    for object in root["nftables"].as_array().unwrap() {
        let kind = object.as_object().unwrap().keys().next().unwrap();
        *counts.entry(kind.clone()).or_insert(0) += 1;
    }
    counts
}

/// Services of both families with 0 to 9 endpoints, some with affinity and local policies.
pub(crate) fn many_services(count: u32) -> Vec<Value> {
    let mut objects = Vec::new();
    for number in 0..count {
        let name = format!("shop/web-{number}");
        let low = number & 0xffff;
        let mut web = service(&name)
            .cluster_ip(&format!("10.96.{}.{}", low >> 8, low & 0xff))
            .cluster_ip(&format!("fd00:10:96::{number:x}"))
            .port(Transport::Tcp, 80);
        web = match number % 10 {
            3 => web.affinity(600),
            4 => web.node_port(i64::from(number)).external_local(),
            5 => web.load_balancer_ip(&format!("203.{}.{}.1", low >> 8, low & 0xff)).source_range("198.51.100.0/24"),
            _ => web,
        };
        objects.push(web.build());
        for prefix in ["10.244.1.", "fd00:10:244:1::"] {
            let mut endpoints = slice(&name, prefix.get(..2).unwrap()).port(Transport::Tcp, 8080);
            if prefix.contains(':') {
                endpoints = endpoints.address_type("IPv6");
            }
            for endpoint in 0..number % 10 {
                endpoints = endpoints.endpoint(&format!("{prefix}{}", 10 + endpoint));
            }
            objects.push(endpoints.build());
        }
    }
    objects
}

/// Slow: programs 10,000 Services.
#[test]
fn ten_and_ten_thousand_services_need_the_same_objects() {
    let [few, many] = [10, 10_000].map(|count| {
        let namespace = NetNs::new("node").unwrap();
        let (proxy, report) = Proxy::start(&namespace, proxy_config(), &many_services(count));
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        let slots = proxy.with(|syncer| {
            let endpoints = vmap_proxy_compiler::ruleset::maps::Map::Endpoints(Domain::Frontend, Pool::Main);
            syncer.kernel().read_elements(Family::Ipv6, endpoints).unwrap().len()
        });
        // Not vacuous: the elements did grow, in either family.
        assert_eq!(slots, usize::try_from(count).unwrap() / 10 * (0..10).sum::<usize>());
        objects(&namespace)
    });
    assert_eq!(few, many);
    assert_eq!(few["table"], 2);
}

#[test]
fn a_restart_changes_nothing_and_clients_stay_where_they_are() {
    let cluster = Cluster::new();
    let mut objects = vec![node_object(), served_by("shop/web", LOCAL[0]).build()];
    objects.push(web("shop/web", 10).node_port(30080).affinity(600).build());
    let (proxy, first) = Proxy::start(cluster.node(), proxy_config(), &objects);
    assert!(first.added > 0);
    let ways = [(POD[0], at("10.96.0.10", 80)), (CLIENT[0], at(NODE[0], 30080)), (NODE[0], at("10.96.0.10", 80))];
    let answers = || ways.map(|(from, to)| cluster.answers(from, to, Transport::Tcp, 8));
    let went = answers();
    let mut flows = ways.map(|(from, to)| cluster.flow(from, to, Transport::Tcp));
    let known = learned(cluster.node(), Family::Ipv4);
    assert_eq!(known.len(), ways.len());
    let holdings = Holdings::read(cluster.node());
    drop(proxy);

    let (_restarted, report) = Proxy::start(cluster.node(), proxy_config(), &objects);
    assert!(report.is_empty(), "{report:?}");
    assert!(Holdings::read(cluster.node()) == holdings);
    assert_eq!(learned(cluster.node(), Family::Ipv4), known);
    assert_eq!(answers(), went);
    for (flow, before) in flows.iter_mut().zip(&went) {
        assert_eq!(BTreeSet::from([cluster.ask(flow, 10)]), *before);
    }
}

#[test]
fn a_restart_after_changes_sends_only_the_difference() {
    let namespace = NetNs::new("node").unwrap();
    let mut objects: Vec<Value> = (1..=50)
        .flat_map(|number| {
            let name = format!("shop/web-{number}");
            [web(&name, number).build(), served_by(&name, [LOCAL[0][0], LOCAL[0][1]]).build()]
        })
        .collect();
    let (proxy, first) = Proxy::start(&namespace, proxy_config(), &objects);
    assert!(first.added > 150, "{first:?}");
    drop(proxy);

    // While nobody looks an endpoint of one Service is replaced, and another Service leaves.
    let replaced = served_by("shop/web-7", [LOCAL[0][2], LOCAL[0][1]]).build();
    objects[13] = replaced;
    objects.drain(98..);
    let (proxy, report) = Proxy::start(&namespace, proxy_config(), &objects);
    assert!(!report.is_empty());
    // One slot, one hairpin connection; cluster IP, frontend, two slots.
    assert_eq!((report.added, report.objects), (2, 0), "{report:?}");
    assert!((5..=6).contains(&report.removed), "{report:?}");
    drop(proxy);
    let (_proxy, report) = Proxy::start(&namespace, proxy_config(), &objects);
    assert!(report.is_empty(), "{report:?}");
}

/// nft declares a slot as an `integer`, a type without a size that lets older versions of it abort at any listing.
#[test]
fn a_table_that_nft_loaded_is_put_right() {
    let namespace = NetNs::new("node").unwrap();
    let objects = [web("shop/web", 10).node_port(30080).build(), served_by("shop/web", LOCAL[0]).build()];
    let (proxy, _) = Proxy::start(&namespace, proxy_config(), &objects);
    let whole = Holdings::read(&namespace);
    drop(proxy);
    let listing = namespace.run(|| nft(&["list", "ruleset"], "")).unwrap().unwrap();
    load_nft(&namespace, &format!("flush ruleset\n{listing}")).unwrap();

    let (proxy, report) = Proxy::start(&namespace, proxy_config(), &objects);
    assert!(report.objects > 0, "{report:?}");
    assert!(Holdings::read(&namespace) == whole);
    drop(proxy);
    let (_proxy, report) = Proxy::start(&namespace, proxy_config(), &objects);
    assert!(report.is_empty(), "{report:?}");
}

#[test]
fn damage_by_others_is_repaired_at_once() {
    let cluster = Cluster::new();
    let manifests = ManifestDirectory::new();
    let many: Vec<String> = (0..70).map(|number| format!("10.244.1.{}", 100 + number)).collect();
    let objects = [
        node_object(),
        web("shop/web", 10).cluster_ip("fd00:10:96::10").node_port(30080).affinity(600).build(),
        served_by("shop/web", LOCAL[0]).build(),
        slice("shop/web", "6").port(Transport::Tcp, POD_PORT.into()).endpoints(LOCAL[1]).build(),
        // Enough endpoints for a chain that jumps to another.
        web("shop/many", 11).build(),
        served_by("shop/many", many.iter().map(String::as_str)).build(),
    ];
    manifests.write_objects("shop.json", &objects);
    let mut agent = AgentProcess::start(PROGRAM, cluster.node(), &manifests, &[]);
    let whole = Holdings::read(cluster.node());
    let chain = whole[0].chain_names().find(|name| name.contains("sticky-max-7")).unwrap();
    let damages = [
        "flush ruleset".to_owned(),
        "delete table ip6 vmap-proxy".to_owned(),
        "delete element ip vmap-proxy services { 10.96.0.10 . tcp . 80 }".to_owned(),
        "flush map ip6 vmap-proxy endpoints".to_owned(),
        "add element ip vmap-proxy cluster-ips { 10.96.0.99 }".to_owned(),
        format!("flush chain ip vmap-proxy {chain}"),
        "flush chain ip vmap-proxy draw-127".to_owned(),
        "flush chain ip vmap-proxy lb-max-127; delete chain ip vmap-proxy draw-127".to_owned(),
        "flush table ip vmap-proxy".to_owned(),
        // A map can't go while a rule looks into it.
        "flush table ip vmap-proxy; delete set ip vmap-proxy hairpin-connections".to_owned(),
        "insert rule ip6 vmap-proxy nat-prerouting drop".to_owned(),
    ];
    for damage in damages {
        load_nft(cluster.node(), &damage).unwrap();
        await_holdings(cluster.node(), &whole, &damage);
        for (family, from) in POD.into_iter().enumerate() {
            let to = [at("10.96.0.10", 80), at("fd00:10:96::10", 80)][family];
            assert_eq!(cluster.answers(from, to, Transport::Tcp, 4).len(), 1, "{damage}");
        }
        cluster.answers(CLIENT[0], at(NODE[0], 30080), Transport::Tcp, 4);
    }
    agent.wait_for(&["vmap-proxy was changed by process", "(nft)"]);
    agent.wait_for(&["repaired in"]);
    agent.stop();
    // Stopping takes nothing away.
    cluster.answers(POD[0], at("10.96.0.10", 80), Transport::Tcp, 4);
}

#[test]
fn what_the_kernel_refuses_costs_only_its_service() {
    let cluster = Cluster::new();
    let guarded = service("shop/guarded")
        .cluster_ip("10.96.0.20")
        .port(Transport::Tcp, 80)
        .load_balancer_ip("203.0.113.20")
        .source_range("198.51.100.0/24");
    let first = [
        node_object(),
        web("shop/web", 10).build(),
        served_by("shop/web", [LOCAL[0][0]]).build(),
        served_by("shop/guarded", [LOCAL[0][1]]).build(),
    ];
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &first);
    let refuse = |operation: &Operation| operation.owner.as_deref() == Some("shop/guarded");
    proxy.with(move |syncer| syncer.kernel().refuse_when(Some(refuse)));

    let later = [guarded.build(), web("shop/later", 30).build(), served_by("shop/later", [LOCAL[0][2]]).build()];
    let report = proxy.apply(&later);
    let owners: BTreeSet<&str> = report.refused.iter().filter_map(|refused| refused.owner.as_deref()).collect();
    assert_eq!(owners, BTreeSet::from(["shop/guarded"]), "{:?}", report.refused);
    assert!(report.refused[0].description.contains("shop/guarded"), "{:?}", report.refused);
    let quarantined = proxy.with(|syncer| syncer.planner().quarantined().count());
    assert_eq!(quarantined, 1);
    for (address, pod) in [("10.96.0.10", LOCAL[0][0]), ("10.96.0.30", LOCAL[0][2])] {
        cluster.assert_served(POD[0], at(address, 80), Transport::Tcp, [pod]);
    }
    // The others go on changing.
    proxy.apply(&[served_by("shop/web", [LOCAL[0][3]]).build()]);
    cluster.assert_served(POD[0], at("10.96.0.10", 80), Transport::Tcp, [LOCAL[0][3]]);

    // A comparison tries it again, and blames it again.
    let compare = || {
        proxy.with(|syncer| syncer.mark_damaged());
        proxy.apply(&[])
    };
    let report = compare();
    assert!(report.refused.iter().all(|refused| refused.owner.as_deref() == Some("shop/guarded")), "{report:?}");
    assert_eq!(proxy.with(|syncer| syncer.planner().quarantined().count()), 1);

    // With the obstacle gone, the next comparison brings it in, and so would a change of the Service.
    proxy.with(|syncer| syncer.kernel().refuse_when(None));
    let report = compare();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    assert_eq!(proxy.with(|syncer| syncer.planner().quarantined().count()), 0);
    cluster.assert_served(CLIENT[0], at("203.0.113.20", 80), Transport::Tcp, [LOCAL[0][1]]);
    proxy.with(move |syncer| syncer.kernel().refuse_when(Some(refuse)));
    proxy.apply(&[guarded.clone().external_ip("203.0.113.22").build()]);
    assert_eq!(proxy.with(|syncer| syncer.planner().quarantined().count()), 1);
    proxy.with(|syncer| syncer.kernel().refuse_when(None));
    let report = proxy.apply(&[guarded.label("touched", "yes").external_ip("203.0.113.21").build()]);
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    for frontend in ["10.96.0.20", "203.0.113.20", "203.0.113.21"] {
        cluster.assert_served(CLIENT[0], at(frontend, 80), Transport::Tcp, [LOCAL[0][1]]);
    }
    assert_eq!(proxy.with(|syncer| syncer.planner().quarantined().count()), 0);
}

#[test]
fn what_was_learned_leaves_with_its_endpoint() {
    let cluster = Cluster::new();
    let pods = [LOCAL[0][0], LOCAL[0][1], REMOTE[0][0]];
    let objects = [
        node_object(),
        web("shop/web", 10).node_port(30080).affinity(600).build(),
        served_by("shop/web", pods).build(),
    ];
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    let clients = [POD[0], LOCAL[0][2], LOCAL[0][3], REMOTE[0][1], REMOTE[0][2], REMOTE[0][3], CLIENT[0], NODE[0]];
    let of = |entry: &(&Key, &Data)| match entry.1 {
        Data::Endpoint(endpoint) => endpoint.address,
        other => panic!("{other:?}"),
    };
    // They are placed at random: until each pod has some, which takes one or two rounds.
    let mut before = learned(cluster.node(), Family::Ipv4);
    for round in 0.. {
        assert!(round < 60, "no client reaches some pod: {before:?}");
        load_nft(cluster.node(), "flush map ip vmap-proxy affinity").unwrap();
        for client in clients {
            let first = cluster.answers(client, at("10.96.0.10", 80), Transport::Tcp, 1);
            assert_eq!(cluster.answers(client, at(NODE[0], 30080), Transport::Tcp, 1), first, "{client}");
        }
        before = learned(cluster.node(), Family::Ipv4);
        // One entry for all frontends of the service port.
        assert_eq!(before.len(), clients.len());
        if before.iter().map(|entry| of(&entry)).collect::<BTreeSet<IpAddr>>() == pods.map(ip).into() {
            break;
        }
    }

    proxy.apply(&[served_by("shop/web", [pods[0], pods[2]]).build()]);
    let after = learned(cluster.node(), Family::Ipv4);
    let expected: BTreeMap<_, _> =
        before.iter().filter(|entry| of(entry) != ip(pods[1])).map(|(key, data)| (*key, *data)).collect();
    assert_eq!(after, expected);
    for client in clients {
        let answered = cluster.answers(client, at("10.96.0.10", 80), Transport::Tcp, 4);
        assert!(answered.len() == 1 && !answered.contains(&ip(pods[1])), "{answered:?}");
    }
    proxy.delete("Service shop/web");
    assert_eq!(learned(cluster.node(), Family::Ipv4), BTreeMap::new());
}

/// The number of a list that is gone goes to the next; what clients learned of the first must not lead them there.
#[test]
fn a_number_that_is_free_again_leads_nobody_astray() {
    let cluster = Cluster::new();
    let (pods, others) = ([LOCAL[0][0], LOCAL[0][1]], [REMOTE[0][0], REMOTE[0][1]]);
    let objects = [node_object(), web("shop/web", 10).affinity(600).build(), served_by("shop/web", pods).build()];
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    let clients = [POD[0], CLIENT[0], NODE[0]];
    let numbers = || -> BTreeSet<ListNumber> {
        let learned = learned(cluster.node(), Family::Ipv4);
        let number = |key: &Key| if let Key::Affinity(_, number) = key { *number } else { panic!("{key:?}") };
        learned.keys().map(number).collect()
    };
    for client in clients {
        cluster.answers(client, at("10.96.0.10", 80), Transport::Tcp, 1);
    }
    let first = numbers();
    assert_eq!(first.len(), 1);
    proxy.delete("Service shop/web");
    proxy.apply(&[web("shop/other", 20).affinity(600).build(), served_by("shop/other", others).build()]);
    for client in clients {
        let answered = cluster.answers(client, at("10.96.0.20", 80), Transport::Tcp, 1);
        assert!(answered.iter().all(|pod| others.map(ip).contains(pod)), "{client}: {answered:?}");
    }
    assert_eq!(numbers(), first, "the number is used again");
}

#[test]
fn service_ranges_come_and_go() {
    let cluster = Cluster::new();
    let objects = [
        node_object(),
        service_cidr("kubernetes", &["10.96.0.0/16", "fd00:10:96::/108"]),
        web("shop/web", 10).build(),
        served_by("shop/web", [LOCAL[0][0]]).build(),
    ];
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    let (inside, added) = (at("10.96.0.77", 80), at("10.97.0.77", 80));
    // If no rule drops it, a packet to an unused address leaves through the uplink.
    let is_dropped = |to| {
        let counter = "table ip count { chain out { type filter hook postrouting priority 300;
            ip daddr { 10.96.0.77, 10.97.0.77 } counter name \"left\"; }; counter left {}; }";
        load_nft(cluster.node(), &format!("table ip count; delete table ip count; {counter}")).unwrap();
        cluster.assert_silence(POD[0], to, Transport::Udp);
        let listed = cluster.node().run(|| nft(&["list", "counter", "ip", "count", "left"], "")).unwrap().unwrap();
        listed.contains("packets 0 ")
    };
    assert!(is_dropped(inside) && !is_dropped(added));
    proxy.apply(&[service_cidr("more", &["10.97.0.0/24"])]);
    assert!(is_dropped(inside) && is_dropped(added));
    proxy.delete("ServiceCIDR kubernetes");
    assert!(!is_dropped(inside) && is_dropped(added));
    cluster.assert_served(POD[0], at("10.96.0.10", 80), Transport::Tcp, [LOCAL[0][0]]);
}

/// One sync may hear of both: a Service that is gone, and something that concerns all others.
#[test]
fn a_service_that_goes_while_the_node_changes_is_gone() {
    let cluster = Cluster::new();
    let objects = [
        node_object(),
        web("shop/web", 10).build(),
        served_by("shop/web", [LOCAL[0][0]]).build(),
        web("shop/other", 11).build(),
        served_by("shop/other", [LOCAL[0][1]]).build(),
    ];
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects);
    cluster.assert_served(POD[0], at("10.96.0.10", 80), Transport::Tcp, [LOCAL[0][0]]);
    let report = proxy.change(&["Service shop/web"], &[service_cidr("kubernetes", &["10.112.0.0/16"])]);
    assert!(report.node_changed && report.removed > 0, "{report:?}");
    let listed = cluster.node().run(|| nft(&["list", "map", "ip", "vmap-proxy", "services"], "")).unwrap().unwrap();
    assert!(listed.contains("shop/other") && !listed.contains("shop/web"), "{listed}");
    cluster.assert_served(POD[0], at("10.96.0.11", 80), Transport::Tcp, [LOCAL[0][1]]);
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20)
}

fn change(change: &ModelChange) -> Vec<Change> {
    match change {
        ModelChange::Apply(manifest) => under_test::changes(&[], std::slice::from_ref(manifest)).unwrap(),
        ModelChange::Delete(key) => {
            let (kind, namespace, name) = (key.kind.clone(), key.namespace.clone(), key.name.clone());
            under_test::changes(&[ObjectRef { kind, namespace, name }], &[]).unwrap()
        }
    }
}

/// Programs `objects` in a namespace of their own, then each change in turn.
fn program(scenario: &Scenario, objects: &[Value], changes: &[ModelChange]) -> (NetNs, SyncerThread, ProxyConfig) {
    let namespace = NetNs::new("node").unwrap();
    let config = under_test::proxy_config(scenario.config.as_object().unwrap(), &scenario.node.name).unwrap();
    let syncer = start(&namespace, &config, scenario, objects);
    for one in changes {
        syncer.apply(change(one)).unwrap();
    }
    (namespace, syncer, config)
}

fn start(namespace: &NetNs, config: &ProxyConfig, scenario: &Scenario, objects: &[Value]) -> SyncerThread {
    let syncer = SyncerThread::start(namespace, config.clone()).unwrap();
    let addresses = scenario.node.local_addresses.iter().chain(&scenario.node.primary_ips).copied().collect();
    syncer.with(move |syncer| syncer.set_interface_addresses(addresses)).unwrap();
    syncer.apply(under_test::changes(&[], objects).unwrap()).unwrap();
    syncer
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn changes_one_by_one_leave_what_a_fresh_start_makes(scenario in scenario()) {
        let (changed, syncer, config) = program(&scenario, &scenario.objects, &scenario.changes);
        syncer.with(|syncer| syncer.tidy().unwrap()).unwrap();
        let mut model = scenario.start();
        scenario.changes.iter().for_each(|change| model.change(change));
        let end: Vec<Value> = model.objects().cloned().collect();
        let (fresh, _syncer, _) = program(&scenario, &end, &[]);
        let ours = Holdings::read(&changed);
        for (mut ours, mut theirs) in Holdings::read(&changed).into_iter().zip(Holdings::read(&fresh)) {
            ours.forget_unused_chains();
            theirs.forget_unused_chains();
            prop_assert_eq!(ours.differences(&theirs), NOTHING);
        }
        drop(syncer);
        let restarted = start(&changed, &config, &scenario, &end);
        let report = restarted.with(|syncer| {
            syncer.take(Event::Synced);
            syncer.resync().unwrap()
        });
        prop_assert!(report.unwrap().is_empty());
        prop_assert!(Holdings::read(&changed) == ours);
    }
}
