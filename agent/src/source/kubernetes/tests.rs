use std::time::Duration;

use vmap_proxy_compiler::model::objects::Object;

use super::backoff::Backoff;
use super::resource::Resource;

#[test]
fn requests_carry_kube_proxys_selectors() {
    let paths: Vec<_> = Resource::all("n1", false).iter().map(|resource| resource.page(500, Some("a=b"))).collect();
    assert_eq!(
        paths,
        [
            "/api/v1/nodes?fieldSelector=metadata.name%3Dn1&limit=500&continue=a%3Db",
            "/apis/networking.k8s.io/v1/servicecidrs?limit=500&continue=a%3Db",
            "/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name\
             &fieldSelector=spec.clusterIP%21%3DNone&limit=500&continue=a%3Db",
            "/apis/discovery.k8s.io/v1/endpointslices?labelSelector=%21service.kubernetes.io%2Fheadless&limit=500&continue=a%3Db",
        ]
    );
}

/// Headless Services have names, and so have those of other proxies.
#[test]
fn with_names_everything_is_followed() {
    let paths: Vec<_> = Resource::all("n1", true).iter().map(|resource| resource.page(1000, None)).collect();
    assert_eq!(paths[2..], ["/api/v1/services?limit=1000", "/apis/discovery.k8s.io/v1/endpointslices?limit=1000"]);
    let headless = serde_json::json!({
        "kind": "Service", "metadata": {"name": "s", "namespace": "n"}, "spec": {"clusterIP": "None"},
    });
    let headless: Object = serde_json::from_value(headless).unwrap();
    assert!(!Resource::all("n1", true)[2].leaves_out(&headless));
    assert!(Resource::all("n1", false)[2].leaves_out(&headless));
}

#[test]
fn waits_double_up_to_the_longest() {
    let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
    for expected in [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000] {
        let (wait, expected) = (backoff.next(), Duration::from_millis(expected));
        assert!(wait >= expected && wait <= expected * 2, "{wait:?} should be between {expected:?} and twice that");
    }
    backoff.reset();
    assert!(backoff.next() <= Duration::from_millis(1600));
}
