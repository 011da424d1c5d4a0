//! A table of another layout is replaced: no connection notices it, and clients stay where they were if the maps that
//! remember them have the same shape.
//!
//! `OLD_AGENT=PROGRAM UPGRADES=N cargo test -p netlink-tests --test traffic upgrade::no_connection_fails_through`
//! upgrades from another build, and goes back to it.

use serde_json::Value;
use vmap_proxy_compiler::ruleset::{Family, LAYOUT};
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::{Tcp, Udp};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::{CLIENT, Cluster, LOCAL, NODE, POD, POD_PORT, REMOTE, at, node_object, proxy_config};
use vmap_proxy_testbed::continuous::none_fails_while;
use vmap_proxy_testbed::holdings::{Holdings, learned};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{service, slice};
use vmap_proxy_testbed::nft::load_nft;
use vmap_proxy_testbed::other_layout::{as_stand_in, install, listing};
use vmap_proxy_testbed::proxy::Proxy;
use vmap_proxy_testbed::skip::skipped;

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Upgrades and downgrades of each kind, unless `UPGRADES` is another number.
const UPGRADES: u32 = 2;

const AFFINITY_BY_FRONTEND: &str = include_str!("layouts/affinity-by-frontend.nft");

/// A Service with affinity in IPv4, as the stored layout has it, and one without in IPv6: nft 1.0.6 can't load the rule
/// of IPv6 that learns affinity.
fn objects() -> Vec<Value> {
    let cart = service("shop/cart").cluster_ip("10.96.0.10").port(Tcp, 80).named("http").node_port(30080);
    let pods = slice("shop/cart", "v4").port(Tcp, POD_PORT.into()).named("http");
    let web = service("shop/web").cluster_ip("fd00:10:96::10").port(Tcp, 80).port(Udp, 80);
    let more_pods = slice("shop/web", "v6").port(Tcp, POD_PORT.into()).port(Udp, POD_PORT.into());
    vec![
        node_object(),
        cart.affinity(600).build(),
        pods.endpoints([LOCAL[0][0], REMOTE[0][0], REMOTE[0][1]]).build(),
        web.build(),
        more_pods.address_type("IPv6").endpoints([LOCAL[1][0], REMOTE[1][0]]).build(),
    ]
}

/// The layout of a version to come: another number, and sets and hooks that can't be changed in place. The maps of
/// affinity are the same.
fn of_another_version(listing: &str) -> String {
    let changes = [
        (LAYOUT, "layout 4711"),
        ("set cluster-ips {", "set cluster-ips {\n\t\tsize 4096"),
        ("hook prerouting priority dstnat;", "hook prerouting priority dstnat + 1;"),
    ];
    changes.into_iter().fold(listing.to_owned(), |text, (ours, theirs)| {
        assert!(text.contains(ours), "no {ours} in {text}");
        text.replace(ours, theirs)
    })
}

/// Returns whether this kernel and this nft take the stored layout. Kernels from 6.12.115 on refuse an expression that
/// nft 1.0.6 makes for its source ranges (decision 17): the version that had it did not run there either.
fn takes_the_stored_layout() -> bool {
    let taken = load_nft(&NetNs::new("trial").unwrap(), AFFINITY_BY_FRONTEND);
    if let Err(error) = &taken {
        skipped(format!("in part: the layout of an earlier version can't be loaded here: {error}"));
    }
    taken.is_ok()
}

#[test]
fn no_connection_fails_while_the_layout_changes() {
    let cluster = Cluster::new();
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects());
    let expected = Holdings::read(cluster.node());
    let ours = listing(cluster.node());
    drop(proxy);
    let layouts = [AFFINITY_BY_FRONTEND, &of_another_version(&ours)];
    let ways = [
        (POD[0], at("10.96.0.10", 80), Tcp),
        (NODE[0], at("10.96.0.10", 80), Tcp),
        (REMOTE[0][3], at("10.96.0.10", 80), Tcp),
        (CLIENT[0], at(NODE[0], 30080), Tcp),
    ];
    // The stored layout has no Service of IPv6.
    let ways_of_both = [&ways[..], &[(POD[1], at("fd00:10:96::10", 80), Udp)]].concat();
    for (layout, ways) in layouts.into_iter().zip([&ways[..], &ways_of_both]) {
        if layout == AFFINITY_BY_FRONTEND && !takes_the_stored_layout() {
            continue;
        }
        let connections = none_fails_while(&cluster, ways, || {
            for round in 0..5 {
                install(cluster.node(), layout);
                let (_proxy, report) = Proxy::start(cluster.node(), proxy_config(), &objects());
                assert!(report.refused.is_empty() && report.objects > 0, "{report:?}");
                for (now, expected) in Holdings::read(cluster.node()).iter().zip(&expected) {
                    assert_eq!(now.differences(expected), [] as [String; 0], "round {round}");
                }
            }
        });
        assert!(connections > 100, "{connections}");
    }
}

#[test]
fn clients_stay_where_they_are_if_the_maps_that_remember_them_do() {
    let cluster = Cluster::new();
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects());
    let ways = [POD[0], NODE[0], CLIENT[0], REMOTE[0][3]].map(|client| (client, at("10.96.0.10", 80)));
    let went = ways.map(|(client, frontend)| cluster.answers(client, frontend, Tcp, 1));
    let known = learned(cluster.node(), Family::Ipv4);
    assert_eq!(known.len(), ways.len());
    drop(proxy);
    install(cluster.node(), &of_another_version(&listing(cluster.node())));
    assert_eq!(learned(cluster.node(), Family::Ipv4), known, "nft has loaded them");
    let (_proxy, report) = Proxy::start(cluster.node(), proxy_config(), &objects());
    assert!(report.objects > 0, "{report:?}");
    assert_eq!(learned(cluster.node(), Family::Ipv4), known);
    assert_eq!(ways.map(|(client, frontend)| cluster.answers(client, frontend, Tcp, 5)), went);
}

/// An agent is killed while it replaces a table: the next one continues from the state it left.
#[test]
fn a_stand_in_that_was_left_over_is_removed() {
    let cluster = Cluster::new();
    let (proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects());
    let expected = Holdings::read(cluster.node());
    cluster.answers(CLIENT[0], at("10.96.0.10", 80), Tcp, 1);
    let known = learned(cluster.node(), Family::Ipv4);
    let ours = listing(cluster.node());
    drop(proxy);
    let stand_in = as_stand_in(&ours);
    let delete = "delete table ip vmap-proxy; delete table ip6 vmap-proxy;\n".to_owned();
    let switched_off = "add table ip vmap-proxy { flags dormant; }; add table ip6 vmap-proxy { flags dormant; }";
    let old = format!("{delete}{}", of_another_version(&ours));
    // Before the old table is switched off, before it is deleted, when it is gone, and when the new one is there.
    for left in [old.clone(), format!("{old}{switched_off}"), delete, String::new()] {
        load_nft(cluster.node(), &stand_in).unwrap();
        load_nft(cluster.node(), &left).unwrap();
        let (_proxy, _) = Proxy::start(cluster.node(), proxy_config(), &objects());
        for (now, expected) in Holdings::read(cluster.node()).iter().zip(&expected) {
            assert_eq!(now.differences(expected), [] as [String; 0], "{left}");
        }
        assert_eq!(learned(cluster.node(), Family::Ipv4), known, "{left}");
    }
}

/// The agent as a process is replaced by another build and the other way round, after SIGTERM and after SIGKILL. The
/// other build is what `OLD_AGENT` names, else the same program.
#[test]
fn no_connection_fails_through_upgrades_and_downgrades() {
    let old = std::env::var("OLD_AGENT").unwrap_or_else(|_| PROGRAM.to_owned());
    let rounds = std::env::var("UPGRADES").ok().and_then(|number| number.parse().ok()).unwrap_or(UPGRADES);
    let (cluster, manifests) = (Cluster::new(), ManifestDirectory::new());
    manifests.write_objects("services.json", &objects());
    let start = |program: &str| AgentProcess::start(program, cluster.node(), &manifests, &[]);
    let mut agent = start(PROGRAM);
    let expected = Holdings::read(cluster.node());
    agent.stop();
    agent = start(&old);
    let ways = [
        (POD[0], at("10.96.0.10", 80), Tcp),
        (NODE[0], at("10.96.0.10", 80), Tcp),
        (REMOTE[0][3], at("10.96.0.10", 80), Tcp),
        (CLIENT[0], at(NODE[0], 30080), Tcp),
        (POD[1], at("fd00:10:96::10", 80), Udp),
    ];
    let connections = none_fails_while(&cluster, &ways, || {
        for round in 0..rounds {
            for (program, is_killed) in [(PROGRAM, false), (&*old, false), (PROGRAM, true), (&*old, true)] {
                if is_killed {
                    agent.kill();
                } else {
                    agent.stop();
                }
                agent = start(program);
                if program == PROGRAM {
                    for (now, expected) in Holdings::read(cluster.node()).iter().zip(&expected) {
                        assert_eq!(now.differences(expected), [] as [String; 0], "round {round}");
                    }
                }
            }
        }
    });
    eprintln!("{connections} connections through {} upgrades and as many downgrades from and to {old}", 2 * rounds);
    assert!(connections > 20, "{connections}");
}
