//! Every row of the schema (kubernetes/dns, version 1.1.0), and each known error
//! of other servers.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use serde_json::json;
use support::{apply, ask, delete, headless, labels, service, slice, slice_with, zone};
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_dns_zone::{Answer, QuestionType, Zone, ZoneConfig};

use QuestionType::{A, Aaaa, Other, Ptr, Soa, Srv, Txt};

fn web() -> serde_json::Value {
    service(
        "shop",
        "web",
        json!({
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:10:96::a"],
            "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": 99}],
        }),
    )
}

fn ranges() -> serde_json::Value {
    json!({"kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00:10:96::/112"]}})
}

fn sts() -> serde_json::Value {
    slice(
        "shop",
        "my-service",
        "v4",
        json!([
            {"addresses": ["10.244.1.10"], "hostname": "my-sts-0"},
            {"addresses": ["10.244.1.11"], "hostname": "my-sts-1", "conditions": {"ready": true}},
            {"addresses": ["10.244.2.10"], "hostname": "my-sts-2", "conditions": {"ready": false}},
            {"addresses": ["10.244.2.99"]},
        ]),
    )
}

#[test]
fn the_version_of_the_schema() {
    let zone = zone(&[]);
    assert_eq!(ask(&zone, "dns-version.cluster.local", Txt), "TXT 1.1.0");
    assert_eq!(ask(&zone, "dns-version.cluster.local", A), "NODATA");
}

#[test]
fn a_service_with_cluster_ips() {
    let zone = zone(&[web(), ranges()]);
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local", A), "10.96.0.10");
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local", Aaaa), "fd00:10:96::a");
    let http = "80 web.shop.svc.cluster.local (10.96.0.10, fd00:10:96::a)";
    assert_eq!(ask(&zone, "_http._tcp.web.shop.svc.cluster.local", Srv), http);
    let dns = "53 web.shop.svc.cluster.local (10.96.0.10, fd00:10:96::a)";
    assert_eq!(ask(&zone, "_dns._udp.web.shop.svc.cluster.local", Srv), dns);
    for unknown in ["_http._udp", "_dns._tcp", "__tcp", "_._tcp", "_x._tcp", "_http._sctp", "http._tcp", "_http.tcp"] {
        assert_eq!(ask(&zone, &format!("{unknown}.web.shop.svc.cluster.local"), Srv), "NXDOMAIN", "{unknown}");
    }
    assert_eq!(ask(&zone, "10.0.96.10.in-addr.arpa", Ptr), "web.shop.svc.cluster.local");
    let v6 = "a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa";
    assert_eq!(ask(&zone, v6, Ptr), "web.shop.svc.cluster.local");
}

#[test]
fn a_headless_service() {
    let zone = zone(&[headless("shop", "my-service"), sts()]);
    let name = "my-service.shop.svc.cluster.local";
    assert_eq!(ask(&zone, name, A), "10.244.1.10, 10.244.1.11, 10.244.2.99");
    assert_eq!(ask(&zone, &format!("my-sts-0.{name}"), A), "10.244.1.10");
    // Not ready.
    assert_eq!(ask(&zone, &format!("my-sts-2.{name}"), A), "NXDOMAIN");
    // Without a host name: a stable label.
    assert_eq!(ask(&zone, &format!("10-244-2-99.{name}"), A), "10.244.2.99");
    assert_eq!(
        ask(&zone, &format!("_http._tcp.{name}"), Srv),
        format!(
            "8080 10-244-2-99.{name} (10.244.2.99), 8080 my-sts-0.{name} (10.244.1.10), 8080 my-sts-1.{name} (10.244.1.11)"
        )
    );
    assert_eq!(ask(&zone, "10.1.244.10.in-addr.arpa", Ptr), format!("my-sts-0.{name}"));
    assert_eq!(ask(&zone, "99.2.244.10.in-addr.arpa", Ptr), format!("10-244-2-99.{name}"));
    assert_eq!(ask(&zone, "10.2.244.10.in-addr.arpa", Ptr), "not ours");
}

#[test]
fn addresses_that_are_not_ready_may_be_published() {
    let spec = json!({"clusterIP": "None", "publishNotReadyAddresses": true});
    let mut zone = zone(&[service("shop", "my-service", spec), sts()]);
    let name = "my-sts-2.my-service.shop.svc.cluster.local";
    assert_eq!(ask(&zone, name, A), "10.244.2.10");
    assert_eq!(ask(&zone, "10.2.244.10.in-addr.arpa", Ptr), name);
    apply(&mut zone, &headless("shop", "my-service"));
    assert_eq!(ask(&zone, name, A), "NXDOMAIN");
    assert_eq!(ask(&zone, "10.2.244.10.in-addr.arpa", Ptr), "not ours");
}

#[test]
fn an_external_name_is_an_alias_for_every_type() {
    let spec = json!({"type": "ExternalName", "externalName": "Example.com."});
    let zone = zone(&[service("shop", "out", spec)]);
    for question in [A, Aaaa, Txt, Other] {
        assert_eq!(ask(&zone, "out.shop.svc.cluster.local", question), "CNAME Example.com");
    }
    assert_eq!(ask(&zone, "x.out.shop.svc.cluster.local", A), "NXDOMAIN");
}

#[test]
fn pod_names_can_be_switched_off() {
    let zone = zone(&[]);
    assert_eq!(ask(&zone, "10-244-1-7.shop.pod.cluster.local", A), "10.244.1.7");
    assert_eq!(ask(&zone, "10-244-1-7.shop.pod.cluster.local", Aaaa), "NODATA");
    assert_eq!(ask(&zone, "fd00--7.shop.pod.cluster.local", Aaaa), "fd00::7");
    assert_eq!(ask(&zone, "x.shop.pod.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&zone, "1-2-3-4.x.shop.pod.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&zone, "shop.pod.cluster.local", A), "NODATA");
    let mut off = Zone::new(ZoneConfig::new("cluster.local", false).unwrap());
    off.set_complete();
    assert_eq!(ask(&off, "10-244-1-7.shop.pod.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&off, "pod.cluster.local", A), "NXDOMAIN");
}

/// coredns #1814, #1228: NXDOMAIN would hide the names below, and is cached.
#[test]
fn existing_names_without_such_records_are_no_errors() {
    let only_v4 = service("shop", "four", json!({"clusterIP": "10.96.0.4", "ports": [{"name": "p", "port": 1}]}));
    let zone = zone(&[only_v4, headless("shop", "my-service"), sts(), headless("quiet", "none")]);
    let exist = [
        "cluster.local",
        "svc.cluster.local",
        "shop.svc.cluster.local",
        "quiet.svc.cluster.local",
        "four.shop.svc.cluster.local",
        "_tcp.four.shop.svc.cluster.local",
        "_p._tcp.four.shop.svc.cluster.local",
        "my-service.shop.svc.cluster.local",
        "_tcp.my-service.shop.svc.cluster.local",
        "my-sts-0.my-service.shop.svc.cluster.local",
    ];
    for name in exist {
        assert_eq!(ask(&zone, name, Aaaa), "NODATA", "{name}");
        assert_eq!(ask(&zone, name, Other), "NODATA", "{name}");
    }
    let unknown = [
        "x.cluster.local",
        "x.svc.cluster.local",
        "x.shop.svc.cluster.local",
        "_udp.four.shop.svc.cluster.local",
        "_sctp.my-service.shop.svc.cluster.local",
        "x.four.shop.svc.cluster.local",
        "x.my-service.shop.svc.cluster.local",
        "x._p._tcp.four.shop.svc.cluster.local",
        "www.example.com.shop.svc.cluster.local",
        "_tcp.none.quiet.svc.cluster.local",
    ];
    for name in unknown {
        assert_eq!(ask(&zone, name, A), "NXDOMAIN", "{name}");
    }
    assert_eq!(ask(&zone, "cluster.local", Soa), "SOA cluster.local");
    assert_eq!(ask(&zone, "svc.cluster.local", Soa), "NODATA");
}

/// The schema's answer, and CoreDNS' (coredns #1814, kubernetes/dns #234).
#[test]
fn a_headless_service_without_a_ready_endpoint_does_not_exist() {
    let mut zone = zone(&[headless("shop", "my-service")]);
    let name = "my-service.shop.svc.cluster.local";
    assert_eq!(ask(&zone, name, A), "NXDOMAIN");
    assert_eq!(ask(&zone, "shop.svc.cluster.local", A), "NODATA");
    apply(
        &mut zone,
        &slice("shop", "my-service", "v4", json!([{"addresses": ["10.1.1.1"], "conditions": {"ready": false}}])),
    );
    assert_eq!(ask(&zone, name, A), "NXDOMAIN");
    assert_eq!(ask(&zone, &format!("_http._tcp.{name}"), Srv), "NXDOMAIN");
}

/// coredns #6518, #1365: answers made from half an update.
#[test]
fn an_endpoint_that_stays_is_in_every_answer() {
    const SLICES: usize = 100;
    let endpoints = |slice: usize, generation: usize| {
        let all = (0..100).map(|pod| {
            // The first of each slice stays; the others get new addresses one generation after the other.
            let third = if pod == 0 { 0 } else { generation };
            json!({"addresses": [format!("10.{third}.{slice}.{pod}")], "hostname": format!("sts-{slice}-{pod}")})
        });
        json!(all.collect::<Vec<_>>())
    };
    let mut zone = zone(&[headless("shop", "big")]);
    for number in 0..SLICES {
        apply(&mut zone, &slice("shop", "big", &number.to_string(), endpoints(number, 0)));
    }
    let name = labels("big.shop.svc.cluster.local");
    for generation in 1..3 {
        for number in 0..SLICES {
            apply(&mut zone, &slice("shop", "big", &number.to_string(), endpoints(number, generation)));
            let Answer::Records(vmap_proxy_dns_zone::Records::A(addresses)) = zone.answer(&name, A) else {
                panic!("no addresses after slice {number}");
            };
            assert_eq!(addresses.len(), SLICES * 100);
            let stays = addresses.iter().filter(|address| address.octets()[1] == 0 && address.octets()[3] == 0);
            assert_eq!(stays.count(), SLICES);
            let host = format!("sts-{number}-0.big.shop.svc.cluster.local");
            assert_eq!(ask(&zone, &host, A), format!("10.0.{number}.0"));
        }
    }
}

/// An endpoint that moves from one slice to another is in both for a moment.
#[test]
fn an_endpoint_in_two_slices_is_answered_once_and_survives_either() {
    let pod = json!([{"addresses": ["10.1.1.1"], "hostname": "pod"}]);
    let mut zone =
        zone(&[headless("shop", "s"), slice("shop", "s", "a", pod.clone()), slice("shop", "s", "b", pod.clone())]);
    let all = |zone: &Zone| {
        let srv = ask(zone, "_http._tcp.s.shop.svc.cluster.local", Srv);
        [
            ask(zone, "s.shop.svc.cluster.local", A),
            ask(zone, "pod.s.shop.svc.cluster.local", A),
            srv,
            ask(zone, "1.1.1.10.in-addr.arpa", Ptr),
        ]
    };
    let pod = "pod.s.shop.svc.cluster.local";
    let expected = ["10.1.1.1".to_owned(), "10.1.1.1".to_owned(), format!("8080 {pod} (10.1.1.1)"), pod.to_owned()];
    assert_eq!(all(&zone), expected);
    delete(&mut zone, Kind::EndpointSlice, "shop", "s-a");
    assert_eq!(all(&zone), expected);
    delete(&mut zone, Kind::EndpointSlice, "shop", "s-b");
    assert_eq!(all(&zone), ["NXDOMAIN", "NXDOMAIN", "NXDOMAIN", "not ours"]);
}

/// kubernetes/dns #116: only the last of them was answered.
#[test]
fn several_endpoints_may_have_one_host_name() {
    let endpoints =
        json!([{"addresses": ["10.1.1.1"], "hostname": "twin"}, {"addresses": ["10.1.1.2"], "hostname": "twin"}]);
    let more = json!([{"addresses": ["10.1.1.3"], "hostname": "twin"}]);
    let zone = zone(&[headless("shop", "s"), slice("shop", "s", "a", endpoints), slice("shop", "s", "b", more)]);
    assert_eq!(ask(&zone, "twin.s.shop.svc.cluster.local", A), "10.1.1.1, 10.1.1.2, 10.1.1.3");
    // One target, with all of its addresses.
    let srv = "8080 twin.s.shop.svc.cluster.local (10.1.1.1, 10.1.1.2, 10.1.1.3)";
    assert_eq!(ask(&zone, "_http._tcp.s.shop.svc.cluster.local", Srv), srv);
}

/// coredns #6607: a slice made by hand.
#[test]
fn a_host_name_with_a_dot_costs_only_the_name() {
    let mut zone = zone(&[headless("shop", "s")]);
    let endpoints =
        json!([{"addresses": ["10.1.1.1"], "hostname": "a.b"}, {"addresses": ["10.1.1.2"], "hostname": "c"}]);
    let problems = apply(&mut zone, &slice("shop", "s", "x", endpoints));
    assert_eq!(
        problems,
        [
            "EndpointSlice shop/s-x: endpoints[0].hostname: \"a.b\" is not a DNS label; the endpoint has a name made of its \
          address instead"
        ]
    );
    assert_eq!(ask(&zone, "s.shop.svc.cluster.local", A), "10.1.1.1, 10.1.1.2");
    assert_eq!(ask(&zone, "a.b.s.shop.svc.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&zone, "10-1-1-1.s.shop.svc.cluster.local", A), "10.1.1.1");
}

/// coredns #7430: the label ended in a hyphen.
#[test]
fn the_made_up_label_of_an_ipv6_address_is_a_host_name() {
    let endpoints = json!([{"addresses": ["fd00:1::"]}]);
    let slice = slice_with("shop", "s", "v6", "IPv6", endpoints, json!([{"name": "http", "port": 80}]));
    let zone = zone(&[headless("shop", "s"), slice]);
    let srv = "80 fd00-1--0.s.shop.svc.cluster.local (fd00:1::)";
    assert_eq!(ask(&zone, "_http._tcp.s.shop.svc.cluster.local", Srv), srv);
    assert_eq!(ask(&zone, "fd00-1--0.s.shop.svc.cluster.local", Aaaa), "fd00:1::");
    assert_eq!(ask(&zone, "s.shop.svc.cluster.local", A), "NODATA");
}

/// kubernetes #127716, coredns #6898.
#[test]
fn endpoints_of_services_with_a_cluster_ip_have_no_names() {
    let pod = json!([{"addresses": ["10.244.1.7"], "hostname": "pod"}]);
    let mut zone = zone(&[web(), slice("shop", "web", "a", pod), ranges()]);
    assert_eq!(ask(&zone, "7.1.244.10.in-addr.arpa", Ptr), "not ours");
    assert_eq!(ask(&zone, "pod.web.shop.svc.cluster.local", A), "NXDOMAIN");
    // It becomes headless, and then an alias.
    apply(&mut zone, &headless("shop", "web"));
    assert_eq!(ask(&zone, "7.1.244.10.in-addr.arpa", Ptr), "pod.web.shop.svc.cluster.local");
    assert_eq!(ask(&zone, "10.0.96.10.in-addr.arpa", Ptr), "NXDOMAIN");
    apply(&mut zone, &service("shop", "web", json!({"type": "ExternalName", "externalName": "example.com"})));
    assert_eq!(ask(&zone, "7.1.244.10.in-addr.arpa", Ptr), "not ours");
}

/// kubernetes #124207: a name that changes at random.
#[test]
fn an_address_of_several_services_has_all_their_names_in_order() {
    let pod = |name: &str| json!([{"addresses": ["10.1.1.1"], "hostname": name}]);
    let objects = [
        headless("shop", "b"),
        slice("shop", "b", "x", pod("pod")),
        headless("shop", "a"),
        slice("shop", "a", "x", pod("pod")),
        headless("aaa", "z"),
        slice("aaa", "z", "x", json!([{"addresses": ["10.1.1.1"]}])),
    ];
    let zone = zone(&objects);
    let names = "10-1-1-1.z.aaa.svc.cluster.local, pod.a.shop.svc.cluster.local, pod.b.shop.svc.cluster.local";
    assert_eq!(ask(&zone, "1.1.1.10.in-addr.arpa", Ptr), names);
}

#[test]
fn odd_names_are_reported_or_do_not_exist() {
    let mut zone = zone(&[]);
    let long = "x".repeat(64);
    for (bad, field) in [("_x", "name"), ("A", "name"), (long.as_str(), "name"), ("a.b", "name"), ("", "name")] {
        let problems = apply(&mut zone, &service("shop", bad, json!({"clusterIP": "10.96.0.1"})));
        assert!(problems[0].contains(&format!("metadata.{field}: ")), "{problems:?}");
        let name = format!("{bad}.shop.svc.cluster.local");
        assert_eq!(ask(&zone, &name, A), "NXDOMAIN", "{name}");
    }
    let problems = apply(
        &mut zone,
        &service(
            "shop",
            "s",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "_P", "port": 1}, {"name": "q", "port": 2}]}),
        ),
    );
    assert!(problems[0].contains("spec.ports[0].name"), "{problems:?}");
    assert_eq!(ask(&zone, "_q._tcp.s.shop.svc.cluster.local", Srv), "2 s.shop.svc.cluster.local (10.96.0.1)");
    let problems = apply(&mut zone, &service("shop", "e", json!({"type": "ExternalName", "externalName": "a b"})));
    assert!(problems[0].contains("spec.externalName"), "{problems:?}");
    assert_eq!(ask(&zone, "e.shop.svc.cluster.local", A), "NODATA");
    // Bytes that are no text, empty labels, many labels.
    for labels in [&[&b"\xff\xfe"[..], b"svc", b"cluster", b"local"][..], &[b"", b"svc", b"cluster", b"local"]] {
        assert!(matches!(zone.answer(labels, A), Answer::NameError(_)));
    }
    let many = [&b"a"[..]; 120];
    assert_eq!(zone.answer(&many, A), Answer::NotOurs);
    assert_eq!(zone.answer(&[], A), Answer::NotOurs);
}

#[test]
fn case_does_not_matter() {
    let zone = zone(&[web()]);
    assert_eq!(ask(&zone, "WEB.Shop.SVC.Cluster.LOCAL", A), "10.96.0.10");
    assert_eq!(ask(&zone, "_HTTP._Tcp.web.shop.svc.cluster.local", Other), "NODATA");
    assert_eq!(ask(&zone, "10.0.96.10.IN-ADDR.ARPA", Ptr), "web.shop.svc.cluster.local");
}

/// NXDOMAIN would be cached by the clients.
#[test]
fn nothing_is_denied_before_everything_is_listed() {
    let mut zone = Zone::new(ZoneConfig::default());
    apply(&mut zone, &web());
    for name in ["web.shop.svc.cluster.local", "kubernetes.default.svc.cluster.local", "10.0.96.10.in-addr.arpa"] {
        assert_eq!(ask(&zone, name, A), "SERVFAIL", "{name}");
    }
    assert_eq!(ask(&zone, "example.com", A), "not ours");
    zone.set_complete();
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local", A), "10.96.0.10");
}

#[test]
fn reverse_names_of_known_ranges_are_ours() {
    let mut zone = zone(&[web(), ranges()]);
    zone.add_ranges(["10.244.0.0/16".parse().unwrap()]);
    let node = json!({"kind": "Node", "metadata": {"name": "n"}, "spec": {"podCIDRs": ["10.9.1.0/24"]}});
    apply(&mut zone, &node);
    for name in ["11.0.96.10.in-addr.arpa", "1.2.244.10.in-addr.arpa", "1.1.9.10.in-addr.arpa"] {
        assert_eq!(ask(&zone, name, Ptr), "NXDOMAIN", "{name}");
    }
    for name in ["96.10.in-addr.arpa", "0.244.10.in-addr.arpa"] {
        assert_eq!(ask(&zone, name, Ptr), "NODATA", "{name}");
    }
    for name in ["10.in-addr.arpa", "8.8.8.8.in-addr.arpa", "1.2.9.10.in-addr.arpa", "in-addr.arpa"] {
        assert_eq!(ask(&zone, name, Ptr), "not ours", "{name}");
    }
    let Answer::NameError(apex) = zone.answer(&labels("11.0.96.10.in-addr.arpa"), Ptr) else { panic!() };
    assert_eq!(apex, "96.10.in-addr.arpa");
    // A Node that loses its ranges for a moment keeps them.
    apply(&mut zone, &json!({"kind": "Node", "metadata": {"name": "n"}, "spec": {}}));
    assert_eq!(zone.pod_ranges().len(), 1);
}

#[test]
fn a_new_list_removes_what_it_does_not_hold() {
    let mut zone = zone(&[web(), headless("shop", "my-service"), sts(), ranges()]);
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr] {
        zone.begin_list(kind);
    }
    // Until the end of the list everything stays.
    apply(&mut zone, &headless("shop", "my-service"));
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local", A), "10.96.0.10");
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceCidr] {
        zone.end_list(kind);
    }
    assert_eq!(ask(&zone, "web.shop.svc.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&zone, "10.0.96.10.in-addr.arpa", Ptr), "not ours");
    assert_eq!(ask(&zone, "my-service.shop.svc.cluster.local", A), "NXDOMAIN");
    assert_eq!(ask(&zone, "10.1.244.10.in-addr.arpa", Ptr), "not ours");
    assert_eq!(zone.service_count(), 1);
}

#[test]
fn the_domain_is_checked() {
    for good in ["cluster.local", "Cluster.Local.", "k8s"] {
        let mut zone = Zone::new(ZoneConfig::new(good, true).unwrap());
        zone.set_complete();
        apply(&mut zone, &web());
        let domain = good.to_lowercase();
        let name = format!("web.shop.svc.{}", domain.trim_end_matches('.'));
        assert_eq!(ask(&zone, &name, A), "10.96.0.10", "{name}");
    }
    for bad in ["", ".", "a..b", "a b", &"x".repeat(64), &["x".repeat(40), "y".repeat(40)].join(".")] {
        assert!(ZoneConfig::new(bad, true).is_err(), "{bad}");
    }
}
