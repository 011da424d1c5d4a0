//! Protobuf and JSON: the same objects from both, and what a broken answer in either costs.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource};
use vmap_proxy_agent::source::{Event, ObjectChange};
use vmap_proxy_compiler::model::objects::ObjectRef;
use vmap_proxy_conformance::model::generate::{ModelChange, Scenario, scenario};
use vmap_proxy_conformance::{own_dir, repository_dir, schema};
use vmap_proxy_testbed::apiserver::{ApiServer, Fault, Lists, Resource, protobuf};

use super::kubernetes_source::follower::{
    Follower, LIMIT, all_watched, lists, options, server_with_one_of_each, service, service_cidr, slice, watched_by,
};

/// All that a source hands on up to the end of its first lists.
async fn handed_on(server: &ApiServer, node_name: &str, encoding: Encoding) -> BTreeMap<ObjectRef, ObjectChange> {
    let options = KubernetesOptions { node_name: node_name.to_owned(), encoding, ..options(server) };
    let source = KubernetesSource::connect(options).await.unwrap().with_names(true);
    let (sender, mut events) = mpsc::channel(8);
    let task = tokio::spawn(source.run(sender));
    let mut found = BTreeMap::new();
    loop {
        match timeout(LIMIT, events.recv()).await.unwrap().unwrap() {
            Event::Changes(changes) => {
                found.extend(changes.into_iter().map(|change| (change.object().clone(), change)));
            }
            Event::Synced => break,
            Event::ListStarted(_) | Event::ListCompleted(_) => {}
            Event::Degraded(line) => panic!("{line}"),
        }
    }
    task.abort();
    found
}

/// Compares what both encodings hand on. Returns the number of objects.
async fn compare(server: &ApiServer, node_name: &str) -> usize {
    let from_json = handed_on(server, node_name, Encoding::Json).await;
    let from_protobuf = handed_on(server, node_name, Encoding::Protobuf).await;
    assert_eq!(from_json.keys().collect::<Vec<_>>(), from_protobuf.keys().collect::<Vec<_>>());
    for (object, change) in &from_json {
        assert_eq!(change, &from_protobuf[object], "{object}");
    }
    from_json.len()
}

/// Serves the objects, each in a place of its own, since those of different origins have the same names.
async fn serve(objects: impl IntoIterator<Item = (String, Value)>) -> (ApiServer, Vec<String>) {
    let server = ApiServer::start().await.unwrap();
    let mut nodes = Vec::new();
    for (number, (origin, mut object)) in objects.into_iter().enumerate() {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "Service" | "EndpointSlice" => {
                let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
                object["metadata"]["namespace"] = json!(format!("{origin}-{namespace}-{number}"));
            }
            "Node" => {
                let name = format!("node-{number}");
                object["metadata"]["name"] = json!(name);
                nodes.push(name);
            }
            "ServiceCIDR" => object["metadata"]["name"] = json!(format!("range-{number}")),
            other => panic!("{origin} has a {other:?}"),
        }
        server.apply(object);
    }
    (server, nodes)
}

fn objects_of_vectors() -> Vec<(String, Value)> {
    let dirs = [repository_dir(), own_dir()];
    let vectors = dirs.iter().flat_map(|dir| schema::load_dir(dir).unwrap());
    vectors
        .flat_map(|vector| {
            let later = vector.steps.iter().flat_map(|step| step.apply.clone());
            let objects: Vec<Value> = vector.objects.into_iter().chain(later).collect();
            objects.into_iter().map(move |object| (vector.name.clone(), object))
        })
        .collect()
}

fn objects_of_examples() -> Vec<(String, Value)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut objects = Vec::new();
    for file in schema::files(&dir).unwrap() {
        let text = std::fs::read_to_string(&file).unwrap();
        let followed = |document: &Value| Resource::ALL.iter().any(|resource| document["kind"] == resource.kind());
        let documents = serde_saphyr::from_multiple::<Value>(&text).unwrap();
        objects.extend(documents.into_iter().filter(followed).map(|document| ("example".to_owned(), document)));
    }
    objects
}

/// Every object of the vectors and the examples.
#[tokio::test]
async fn both_encodings_hand_on_the_same_objects() {
    let objects: Vec<_> = objects_of_vectors().into_iter().chain(objects_of_examples()).collect();
    let (nodes, others): (Vec<_>, Vec<_>) = objects.into_iter().partition(|(_, object)| object["kind"] == "Node");
    let (server, _) = serve(others.clone()).await;
    assert_eq!(compare(&server, "none").await, others.len());
    assert!(others.len() > 300, "{}", others.len());
    // A source follows one Node.
    let (server, names) = serve(nodes).await;
    for name in names {
        assert_eq!(compare(&server, &name).await, 1);
    }
}

fn objects_of_scenario(scenario: Scenario) -> Vec<(String, Value)> {
    let changed = scenario.changes.into_iter().filter_map(|change| match change {
        ModelChange::Apply(object) => Some(object),
        ModelChange::Delete(_) => None,
    });
    scenario.objects.into_iter().chain(changed).map(|object| ("random".to_owned(), object)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn both_encodings_hand_on_the_same_random_objects(scenario in scenario()) {
        Runtime::new().unwrap().block_on(async {
            let (server, nodes) = serve(objects_of_scenario(scenario)).await;
            compare(&server, nodes.first().map_or("none", String::as_str)).await;
        });
    }
}

/// What no vector has: deletion, triggers, marks, labels of every kind, and fields that the proxy does not read.
#[tokio::test]
async fn both_encodings_hand_on_the_same_odd_objects() {
    let mut odd_service = service("odd", "10.0.0.9");
    odd_service["metadata"]["creationTimestamp"] = json!("2024-02-29T23:59:59Z");
    odd_service["metadata"]["annotations"] = json!({"note": "ü\n\"\u{1f980}\"", "empty": ""});
    odd_service["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "u", "controller": true}]);
    odd_service["spec"]["ports"] = json!([
        {"name": "by-name", "port": 1, "targetPort": "http", "nodePort": 30001, "appProtocol": "h2c"},
        {"name": "wrong", "port": 99999, "protocol": "ICMP"}, {"name": "negative", "port": -1, "nodePort": -5},
    ]);
    odd_service["spec"]["sessionAffinity"] = json!("ClientIP");
    odd_service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 77}});
    odd_service["spec"]["externalIPs"] = json!(["203.0.113.5", "no address"]);
    odd_service["status"]["loadBalancer"]["ingress"] = json!([
        {"ip": "203.0.113.7", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]}, {"hostname": "lb.example"},
    ]);
    let mut empty_affinity = service("empty-affinity", "10.0.0.10");
    empty_affinity["spec"]["sessionAffinity"] = json!("ClientIP");
    empty_affinity["spec"]["sessionAffinityConfig"] = json!({});
    let mut external = service("external", "");
    external["spec"] = json!({"type": "ExternalName", "externalName": "db.example"});

    let mut odd_slice = slice("odd-1", "odd", 1);
    odd_slice["metadata"]["deletionTimestamp"] = json!("2026-11-26T00:00:00Z");
    odd_slice["metadata"]["annotations"] =
        json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-25T10:00:00.123456789Z"});
    odd_slice["endpoints"] = json!([
        {"addresses": ["10.1.0.1", "10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.1.0.3"], "hostname": "db-0", "nodeName": "n2", "zone": "z",
            "deprecatedTopology": {"a": "b"}, "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n1"}]}},
        {"addresses": [], "hints": {}}, {"addresses": ["fd00::1"], "conditions": {}},
    ]);
    odd_slice["ports"] = json!([{"name": "", "port": 8080}, {"port": 1, "protocol": "UDP"}, {"name": "none"}, {"name": "zero", "port": 0}]);
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}, "deletionTimestamp": "2026-11-26T00:00:00Z"},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64", "no range"],
            "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}, {"key": "a", "value": "b", "effect": "NoExecute"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}],
            "images": [{"names": ["image"], "sizeBytes": 123456789012_u64}]},
    });
    let server = ApiServer::start().await.unwrap();
    server.apply_all([odd_service, empty_affinity, external, odd_slice, node, service_cidr()]);
    for lists in Lists::ALL {
        server.set_lists(lists);
        assert_eq!(compare(&server, "n1").await, 6);
    }
}

/// The encodings that were asked for; the version has only one.
fn accepted(server: &ApiServer) -> Vec<String> {
    let requests = server.requests().into_iter().zip(server.header("accept"));
    requests.filter(|(request, _)| !request.ends_with("/version")).map(|(_, accept)| accept).collect()
}

#[tokio::test]
async fn the_encoding_is_negotiated() {
    let server = server_with_one_of_each().await;
    let both = "application/vnd.kubernetes.protobuf, application/json";
    for (has_protobuf, encoding, accept) in [
        (true, Encoding::Protobuf, both),
        (false, Encoding::Protobuf, both),
        (true, Encoding::Json, "application/json"),
    ] {
        server.set_protobuf(has_protobuf);
        let before = accepted(&server).len();
        let mut follower = Follower::with(KubernetesOptions { encoding, ..options(&server) }).await;
        follower.synced().await;
        assert_eq!((follower.objects.len(), follower.log.iter().any(|line| line.contains("can't"))), (4, false));
        watched_by(&server, 1).await;
        drop(follower);
        watched_by(&server, 0).await;
        let asked = accepted(&server).split_off(before);
        assert!(asked.iter().all(|asked| asked == accept), "{asked:?}");
    }
}

#[tokio::test]
async fn protobuf_needs_less_than_half_the_bytes() {
    let server = server_with_one_of_each().await;
    server.apply_all((0..500).flat_map(|number| {
        let name = format!("s-{number}");
        [service(&name, "10.0.1.1"), slice(&name, &name, 5)]
    }));
    let mut bytes = Vec::new();
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let before = server.bytes_sent();
        handed_on(&server, "n1", encoding).await;
        bytes.push(server.bytes_sent() - before);
    }
    assert!(bytes[1] * 2 < bytes[0], "{bytes:?}");
}

/// A broken object costs itself; its Service keeps the state that was known.
#[tokio::test]
async fn a_broken_object_inside_a_good_frame_is_skipped() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    let metadata = |name: &str| json!({"name": name, "namespace": "shop", "resourceVersion": "6"});
    let broken = protobuf::broken_object(&metadata("cart"));
    for frame in [
        protobuf::frame("MODIFIED", protobuf::wrapped("v1", "Service", broken)),
        protobuf::frame("ADDED", protobuf::wrapped("v1", "Service", vec![0xff])),
        protobuf::frame("ADDED", protobuf::wrapped("v1", "Pod", Vec::new())),
        protobuf::frame("NOVELTY", b"whatever".to_vec()),
    ] {
        server.send_raw(Resource::Services, frame);
    }
    server.apply(service("good", "10.0.0.8"));
    follower.until(|follower| follower.has("good")).await;
    assert_eq!(follower.cluster_ip("cart").as_deref(), Some("10.0.0.1"));
    assert_eq!(lists(&server, Resource::Services), 1, "the stream goes on");
}

/// Answers whose header promises another encoding, or whose objects are no protobuf: JSON is asked for instead.
#[tokio::test]
async fn a_server_that_cannot_speak_protobuf_is_asked_for_json() {
    for fault in [Fault::JsonAsProtobuf, Fault::WrongMagic] {
        for lists in Lists::ALL {
            let server = server_with_one_of_each().await;
            server.set_lists(lists);
            server.set_fault(Resource::Services, Some(fault));
            let mut follower = Follower::start(&server).await;
            follower.synced().await;
            assert_eq!(follower.objects.len(), 4);
            let lines: Vec<_> = follower.log.iter().filter(|line| line.contains("can't")).collect();
            assert_eq!(lines.len(), 1, "{fault:?}, {lists:?}: {:?}", follower.log);
            let expected = "can't follow Services: the API server announces protobuf and sends something else";
            assert!(lines[0].starts_with(expected) && lines[0].ends_with("trying again with JSON"), "{lines:?}");
            assert!(accepted(&server).contains(&"application/json".to_owned()));
        }
    }
}

/// With `contentType: application/json` there is nothing else to ask for; the source waits.
#[tokio::test]
async fn protobuf_under_the_name_of_json_is_waited_out() {
    for lists in Lists::ALL {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.set_fault(Resource::Services, Some(Fault::ProtobufAsJson));
        let options = KubernetesOptions { encoding: Encoding::Json, ..options(&server) };
        let mut follower = Follower::with(options).await;
        let is_told = |line: &String| line.contains("announces JSON and sends something else");
        follower.until(|follower| follower.log.iter().any(is_told)).await;
        server.set_fault(Resource::Services, None);
        follower.synced().await;
        assert_eq!(follower.objects.len(), 4);
        assert!(accepted(&server).iter().all(|accept| accept == "application/json"));
    }
}

#[tokio::test]
async fn a_truncated_list_is_not_taken_for_a_whole_one() {
    for lists in Lists::ALL {
        let server = server_with_one_of_each().await;
        server.set_lists(lists);
        server.set_fault(Resource::Services, Some(Fault::TruncatedFrame));
        let mut follower = Follower::start(&server).await;
        let is_told = |line: &String| line.contains("the list can't be used") || line.contains("the list ended early");
        follower.until(|follower| follower.log.iter().any(is_told)).await;
        assert!(follower.count("listed Service") == 0);
        server.set_fault(Resource::Services, None);
        follower.synced().await;
        assert_eq!(follower.objects.len(), 4);
    }
}

#[tokio::test]
async fn a_watch_that_breaks_inside_a_frame_goes_on_and_loses_nothing() {
    let server = server_with_one_of_each().await;
    let mut follower = Follower::start(&server).await;
    follower.synced().await;
    all_watched(&server).await;
    // Half a frame, and the end.
    let frame = protobuf::frame("ADDED", protobuf::wrapped("v1", "Service", vec![0; 100]));
    server.send_raw(Resource::Services, &frame[..50]);
    server.end_watches(Resource::Services);
    let is_told = |line: &String| line.contains("the watch ended inside an event");
    follower.until(|follower| follower.log.iter().any(is_told)).await;
    server.apply(service("first", "10.0.0.8"));
    follower.until(|follower| follower.has("first")).await;
    // A whole frame whose object has the wrong magic.
    all_watched(&server).await;
    server.send_raw(Resource::Services, protobuf::frame("ADDED", b"k9s\0anything".to_vec()));
    server.apply(service("second", "10.0.0.9"));
    follower.until(|follower| follower.has("second")).await;
    assert!(follower.log.iter().any(|line| line.contains("k9s\\x00")), "{:?}", follower.log);
    assert!(accepted(&server).contains(&"application/json".to_owned()));
    assert_eq!(lists(&server, Resource::Services), 1, "neither needs a list");
}
