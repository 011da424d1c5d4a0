//! The API server goes away, forgets, refuses: traffic goes on.

use vmap_proxy_testbed::api_objects::{Endpoint, NAMESPACE, cluster_ip, service, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, local_pod, remote_pod};

use crate::{apply, apply_service, cluster, frontend};

#[test]
fn traffic_goes_on_without_the_api_server_and_then_catches_up() {
    let mut cluster = cluster();
    let steady = apply_service(&cluster, "steady", 1, &[Endpoint::local(7), Endpoint::remote(7)]);
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    apply_service(&cluster, "old", 3, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let traffic = cluster.traffic(CLIENT_POD, steady);
    let before = cluster.generation();

    let Some(double) = cluster.api.double() else { return };
    double.pause();
    // The agent does not see the events meanwhile.
    double.server.apply(slice("shop", &[Endpoint::local(2)]));
    double.server.apply(service("new", &cluster_ip(4), |_| {}));
    double.server.apply(slice("new", &[Endpoint::remote(4)]));
    double.server.delete(Resource::Services, NAMESPACE, "old");
    double.server.compact();
    let line = agent.wait_for_line("trying again");
    assert!(line.contains("WARN"), "{line}");
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    assert_eq!(cluster.generation(), before, "nothing is programmed without the API server");

    let Some(double) = cluster.api.double() else { return };
    double.resume().unwrap();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2)]);
    cluster.eventually_reaches(CLIENT_POD, frontend(&cluster_ip(4), 80), &[remote_pod(4)]);
    traffic.stop();
}

#[test]
fn a_relist_sends_only_differences() {
    let mut cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1), Endpoint::remote(1)]);
    apply_service(&cluster, "cart", 3, &[Endpoint::local(2)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    // The duration of a change of one endpoint's address, for comparison.
    let before = cluster.generation();
    apply(&cluster, &[slice("shop", &[Endpoint::local(3), Endpoint::remote(1)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(3), remote_pod(1)]);
    let one_change = cluster.generation() - before;
    assert!(one_change > 0);

    let before = cluster.generation();
    let Some(double) = cluster.api.double() else { return };
    double.server.compact();
    for resource in Resource::ALL {
        let lists = lists(double.server.requests(), resource);
        double.server.expire_watches(resource);
        double.wait_until(|server| {
            server.open_watches(resource) == 1 && self::lists(server.requests(), resource) > lists
        });
    }
    // It comes behind the lists on the same streams.
    apply(&cluster, &[slice("shop", &[Endpoint::local(4), Endpoint::remote(1)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(4), remote_pod(1)]);
    assert_eq!(cluster.generation() - before, one_change, "the lists sent something");
}

/// Returns the number of requests that begin a list of a resource.
pub(crate) fn lists(requests: Vec<String>, resource: Resource) -> usize {
    let start = format!("GET {}?", resource.path());
    let is_list = |request: &&String| !request.contains("watch=true") || request.contains("sendInitialEvents=true");
    requests.iter().filter(|request| request.starts_with(&start)).filter(is_list).count()
}

#[test]
fn a_refused_resource_is_named_and_tried_again() {
    let mut cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let before = cluster.generation();
    let Some(double) = cluster.api.double() else { return };
    double.server.refuse(Resource::EndpointSlices, 403, "endpointslices.discovery.k8s.io is forbidden");
    let agent = cluster.agent();
    let line = agent.wait_for_line("ClusterRole");
    assert!(line.contains("endpointslices") && line.contains("forbidden"), "{line}");
    // Services are listed by now or soon; half of the truth is not programmed.
    let Some(double) = cluster.api.double() else { return };
    double.wait_until(|server| server.open_watches(Resource::Services) == 1);
    assert_eq!(cluster.generation(), before);
    assert!(!agent.log().iter().any(|line| line.contains(" programmed ")));
    let Some(double) = cluster.api.double() else { return };
    double.server.allow(Resource::EndpointSlices);
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
}

#[test]
fn expired_credentials_are_named_and_traffic_goes_on() {
    let mut cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let traffic = cluster.traffic(CLIENT_POD, shop);
    let Some(double) = cluster.api.double() else { return };
    for resource in Resource::ALL {
        double.server.refuse(resource, 401, "Unauthorized");
        double.server.end_watches(resource);
    }
    let line = agent.wait_for_line(" answers 401 Unauthorized");
    assert!(line.contains("token has expired"), "{line}");
    double.server.apply(slice("shop", &[Endpoint::local(1), Endpoint::local(2)]));
    for resource in Resource::ALL {
        double.server.allow(resource);
    }
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1), local_pod(2)]);
    traffic.stop();
}

#[test]
fn an_event_that_does_not_parse_harms_no_other() {
    let mut cluster = cluster();
    if let Some(double) = cluster.api.double() {
        double.server.set_protobuf(false);
    }
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let agent = cluster.agent();
    agent.wait_until_ready();
    let traffic = cluster.traffic(CLIENT_POD, shop);
    let Some(double) = cluster.api.double() else { return };
    double.wait_until(|server| server.open_watches(Resource::Services) == 1);
    let broken = r#"{"type":"MODIFIED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"shop","namespace":"vmap-proxy-test","resourceVersion":"99"},"spec":{"ports":"none"}}}"#;
    double.server.send_raw(Resource::Services, format!("{broken}\n"));
    let line = agent.wait_for_line("can't be read");
    assert!(line.contains("shop"), "{line}");
    apply(&cluster, &[service("next", &cluster_ip(6), |_| {}), slice("next", &[Endpoint::local(6)])]);
    cluster.eventually_reaches(CLIENT_POD, frontend(&cluster_ip(6), 80), &[local_pod(6)]);
    traffic.stop();
}
