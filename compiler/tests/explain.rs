//! Searches and reasons of `explain` that single answers do not show: pages of a search for a Pod, and who wins a frontend.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::{Value, from_value, json};
use vmap_proxy_compiler::evaluate::Host;
use vmap_proxy_compiler::explain::Known;
use vmap_proxy_compiler::model::{Change, Family, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::claims::Reason;
use vmap_proxy_compiler::program;

fn slice(namespace: &str, service: &str, number: u8, target: &Value) -> Object {
    let slice = json!({
        "metadata": {
            "namespace": namespace, "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.244.1.{number}")], "targetRef": target}],
    });
    Object::EndpointSlice(from_value(slice).unwrap())
}

#[test]
fn a_pod_is_found_page_by_page_in_its_namespace_alone() {
    let mut store = Store::new("node-1");
    let pod = |namespace: &str, name: &str| json!({"kind": "Pod", "namespace": namespace, "name": name});
    for (namespace, service, number, target) in [
        ("shop", "a", 1, pod("shop", "a-0")),
        ("shop", "b", 2, json!({"kind": "Pod", "name": "b-0"})),
        ("shop", "c", 3, pod("shop", "c-0")),
        ("shop", "d", 4, pod("other", "d-0")),
        ("shop", "e", 5, json!({"kind": "Node", "name": "e-0"})),
        ("shop-2", "a", 6, pod("shop-2", "z-0")),
    ] {
        store.apply(Change::Apply(slice(namespace, service, number, &target)));
    }
    let planner = program(ProxyConfig::default(), &mut store);
    let host = Host::default();
    let known = Known { store: &store, planner: &planner, host: &host };
    // Two Services a page, as an agent answers: the address, and the number of pages.
    let find = |namespace: &str, name: &str, family| {
        let mut after = None;
        for pages in 1.. {
            let page = known.find_pod((namespace, name), family, after.as_ref(), 2);
            match (page.address, page.last) {
                (None, Some(last)) => after = Some(last),
                (address, _) => return (address.map(|address| address.to_string()), pages),
            }
        }
        panic!("no end of the pages")
    };
    let found = |address: &str, pages| (Some(address.to_owned()), pages);
    assert_eq!(find("shop", "a-0", Family::Ipv4), found("10.244.1.1", 1));
    assert_eq!(find("shop", "b-0", Family::Ipv4), found("10.244.1.2", 1));
    assert_eq!(find("shop", "c-0", Family::Ipv4), found("10.244.1.3", 2));
    assert_eq!(find("shop-2", "z-0", Family::Ipv4), found("10.244.1.6", 1));
    for (namespace, name) in [("shop", "d-0"), ("shop", "e-0"), ("shop", "z-0"), ("other", "d-0"), ("none", "a-0")] {
        assert_eq!(find(namespace, name, Family::Ipv4).0, None, "{namespace}/{name}");
    }
    assert_eq!(find("shop", "a-0", Family::Ipv6).0, None);
}

#[test]
fn the_reason_for_a_frontend_is_an_age_only_where_ages_decide() {
    for (holder, wanting, reason) in [
        (20_260_101_000_000, 20_260_102_000_000, Reason::Older),
        (20_260_101_000_000, 20_260_101_000_000, Reason::NameAtSameTime),
        (0, 20_260_101_000_000, Reason::Undated),
        (0, 0, Reason::Name),
    ] {
        assert_eq!(Reason::of(holder, wanting), reason);
    }
    assert_eq!(Reason::Name.to_string(), "comes first by name (neither has a creationTimestamp)");
    assert!(Reason::Name.is_name() && !Reason::Undated.is_name());
}
