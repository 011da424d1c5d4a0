//! Compares our reflector with `watcher` of kube-runtime: time, CPU and memory of one first list, from the API server
//! double into the store, and the bytes that it takes. See `docs/decisions/0050-reflector.md` and
//! `docs/decisions/0076-protobuf.md`.
//!
//! It serves 10,000 Services with 5 endpoints each, and runs every contestant five times, each as a process of its own.
//! With an argument, only those contestants whose names contain it: `ours`.
#![allow(clippy::print_stdout, reason = "a command line program prints its results")]
#![allow(clippy::unwrap_used, reason = "a benchmark of sound input")]

use std::cell::RefCell;
use std::fmt::Debug;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::join;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::watcher;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_compiler::model::objects as slim;
use vmap_proxy_compiler::model::{Change, Object, Store};
use vmap_proxy_testbed::apiserver::{ApiServer, Lists};

const SERVICES: usize = 10_000;
const ENDPOINTS: usize = 5;
const ROUNDS: usize = 5;

/// The candidates: the code, its types or encoding, and the kind of list.
const CONTESTANTS: [&str; 8] = [
    "ours, protobuf, streaming list",
    "ours, JSON, streaming list",
    "ours, protobuf, pages",
    "ours, JSON, pages",
    "kube-runtime, slim types behind DeserializeGuard, streaming list",
    "kube-runtime, slim types behind DeserializeGuard, pages",
    "kube-runtime, slim types, streaming list",
    "kube-runtime, full types without a store, streaming list",
];

fn managed_fields(manager: &str, fields: &Value) -> Value {
    json!([{
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-20T10:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    }])
}

/// As Helm makes one.
fn service(name: &str, number: usize) -> Value {
    let ip = format!("10.{}.{}.{}", 96 + number / 65025, number / 255 % 255, number % 255 + 1);
    let fields = json!({
        "f:metadata": {
            "f:annotations": {".": {}, "f:meta.helm.sh/release-name": {}, "f:meta.helm.sh/release-namespace": {}},
            "f:labels": {".": {}, "f:app.kubernetes.io/name": {}, "f:app.kubernetes.io/managed-by": {}, "f:helm.sh/chart": {}},
        },
        "f:spec": {
            "f:internalTrafficPolicy": {}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
            "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}":
                {".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}},
        },
    });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("7cf1ae2c-8c5a-4d1f-9a57-{number:012}"),
            "creationTimestamp": "2026-11-20T10:00:00Z",
            "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "shop-1.2.3"},
            "annotations": {"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "shop"},
            "managedFields": managed_fields("helm", &fields),
        },
        "spec": {
            "clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "selector": {"app": name}, "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
        },
        "status": {"loadBalancer": {}},
    })
}

fn endpoint(service: &str, pod: usize) -> Value {
    json!({
        "addresses": [format!("10.{}.{}.{}", 128 + pod / 65025, pod / 255 % 255, pod % 255 + 1)],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node-{}", pod % 100), "zone": "zone-a",
        "targetRef": {
            "kind": "Pod", "namespace": "shop", "name": format!("{service}-7d9c6b8f5-{pod}"),
            "uid": format!("5e0f1a2b-8c5a-4d1f-9a57-{pod:012}"),
        },
    })
}

/// As the controller makes one.
fn slice(service: &str, number: usize) -> Value {
    let uid = format!("7cf1ae2c-8c5a-4d1f-9a57-{number:012}");
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(|index| endpoint(service, number * ENDPOINTS + index)).collect();
    let fields = json!({
        "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
        "f:metadata": {
            "f:annotations": {".": {}, "f:endpoints.kubernetes.io/last-change-trigger-time": {}}, "f:generateName": {},
            "f:labels": {".": {}, "f:endpointslice.kubernetes.io/managed-by": {}, "f:kubernetes.io/service-name": {}},
            "f:ownerReferences": {".": {}, format!("k:{{\"uid\":\"{uid}\"}}"): {}},
        },
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-x7k2p"), "generateName": format!("{service}-"), "namespace": "shop",
            "uid": format!("1cf1ae2c-8c5a-4d1f-9a57-{number:012}"), "creationTimestamp": "2026-11-20T10:00:00Z",
            "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-20T10:00:00Z"},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service, "uid": uid, "controller": true,
                "blockOwnerDeletion": true,
            }],
            "managedFields": managed_fields("kube-controller-manager", &fields),
        },
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// The best that kube-runtime can be given: our slim fields, behind the metadata of its own that it insists on.
macro_rules! slim_type {
    ($name:ident, $kind:literal, $group:literal, $plural:literal, { $($field:ident: $type:ty),* }) => {
        #[derive(Debug, Clone, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct $name {
            metadata: ObjectMeta,
            $(#[serde(default)] $field: $type,)*
        }

        impl kube::Resource for $name {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                "v1".into()
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

slim_type!(SlimService, "Service", "", "services", { spec: slim::ServiceSpec, status: slim::ServiceStatus });
slim_type!(SlimSlice, "EndpointSlice", "discovery.k8s.io", "endpointslices", {
    address_type: String, endpoints: Vec<slim::EndpointObject>, ports: Vec<slim::EndpointPortObject>
});

fn metadata(meta: ObjectMeta) -> slim::ObjectMeta {
    slim::ObjectMeta {
        name: meta.name.unwrap_or_default(),
        namespace: meta.namespace.unwrap_or_default(),
        uid: meta.uid.unwrap_or_default(),
        creation_timestamp: meta.creation_timestamp.map(|time| time.0.to_string()),
        deletion_timestamp: meta.deletion_timestamp.map(|time| time.0.to_string()),
        resource_version: meta.resource_version.unwrap_or_default(),
        labels: meta.labels.unwrap_or_default(),
        annotations: meta.annotations.unwrap_or_default(),
    }
}

impl From<SlimService> for Object {
    fn from(object: SlimService) -> Self {
        let SlimService { metadata: meta, spec, status } = object;
        Object::Service(slim::ServiceObject { metadata: metadata(meta), spec, status })
    }
}

impl From<SlimSlice> for Object {
    fn from(object: SlimSlice) -> Self {
        let SlimSlice { metadata: meta, address_type, endpoints, ports } = object;
        Object::EndpointSlice(slim::EndpointSliceObject { metadata: metadata(meta), address_type, endpoints, ports })
    }
}

/// Follows one kind until its list is complete; `take` gets each object. Returns how many there were.
async fn list<K>(client: kube::Client, config: watcher::Config, mut take: impl FnMut(K)) -> usize
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher::watcher(Api::<K>::all(client), config));
    let mut count = 0;
    while let Some(event) = events.next().await {
        match event.unwrap() {
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                count += 1;
                take(object);
            }
            watcher::Event::InitDone => break,
            watcher::Event::Init | watcher::Event::Delete(_) => {}
        }
    }
    count
}

async fn theirs(client: kube::Client, how: &str) -> usize {
    let is_streaming = how.ends_with("streaming list");
    let config = if is_streaming { watcher::Config::default().streaming_lists() } else { watcher::Config::default() };
    let services = config.clone().labels("!service.kubernetes.io/service-proxy-name");
    let slices = config.labels("!service.kubernetes.io/headless");
    let store = RefCell::new(Store::new("n1"));
    let apply = |object: Object| drop(store.borrow_mut().apply(Change::Apply(object)));
    let (services, slices) = if how.contains("Guard") {
        let services =
            list(client.clone(), services, |object: DeserializeGuard<SlimService>| apply(object.0.unwrap().into()));
        let slices = list(client, slices, |object: DeserializeGuard<SlimSlice>| apply(object.0.unwrap().into()));
        join(services, slices).await
    } else if how.contains("slim") {
        let services = list(client.clone(), services, |object: SlimService| apply(object.into()));
        join(services, list(client, slices, |object: SlimSlice| apply(object.into()))).await
    } else {
        join(list::<Service>(client.clone(), services, drop), list::<EndpointSlice>(client, slices, drop)).await
    };
    services + slices
}

async fn ours(source: KubernetesSource) -> usize {
    let (sender, mut events) = tokio::sync::mpsc::channel(4);
    let source = tokio::spawn(source.run(sender));
    let (mut store, mut count) = (Store::new("n1"), 0);
    while let Some(event) = events.recv().await {
        match event {
            Event::ListStarted(kind) => store.begin_list(kind),
            Event::ListCompleted(kind) => store.end_list(kind),
            Event::Changes(changes) => {
                count += changes.len();
                changes.into_iter().for_each(|change| store.take(change.checked));
            }
            Event::Synced => break,
            Event::Degraded(why) => panic!("{why}"),
        }
    }
    source.abort();
    count
}

/// A line of `/proc/self/status`, in KiB.
fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|found| found.starts_with(line)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// User and system time of this process.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let microseconds = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Duration::from_micros((microseconds(usage.user_time()) + microseconds(usage.system_time())).unsigned_abs())
}

async fn contest(how: &str, kubeconfig: &str) {
    let encoding = if how.contains("JSON") { Encoding::Json } else { Encoding::Protobuf };
    let source = KubernetesSource::connect(KubernetesOptions {
        kubeconfig: Some(kubeconfig.into()),
        master: None,
        node_name: "n1".to_owned(),
        encoding,
        timing: Timing::default(),
        metrics: Metrics::new(),
    });
    let source = source.await.unwrap();
    let (before, begun, used) = (memory("VmRSS"), Instant::now(), cpu());
    let count = if how.starts_with("ours") { ours(source).await } else { theirs(source.client(), how).await };
    let (wall, used) = (begun.elapsed().as_millis(), (cpu() - used).as_millis());
    assert!(count >= 2 * SERVICES, "{count}");
    let (peak, after) = (memory("VmHWM") - before, memory("VmRSS") - before);
    println!("{how}: {wall} ms, {used} ms of CPU, {peak} KiB at the peak, {after} KiB in the end");
}

async fn serve(wanted: &str) {
    let server = ApiServer::start().await.unwrap();
    server.apply_all((0..SERVICES).flat_map(|number| {
        let name = format!("service-{number}");
        [service(&name, number), slice(&name, number)]
    }));
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
    for round in 1..=ROUNDS {
        println!("round {round}");
        for how in CONTESTANTS.into_iter().filter(|how| how.contains(wanted)) {
            server.set_lists(if how.ends_with("pages") { Lists::Pages } else { Lists::Streaming });
            let program = std::env::current_exe().unwrap();
            let before = server.bytes_sent();
            let status = Command::new(program).arg(how).arg(server.kubeconfig()).status().unwrap();
            assert!(status.success());
            println!("    {} bytes", server.bytes_sent() - before);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match &arguments[..] {
        [how, kubeconfig] => runtime.block_on(contest(how, kubeconfig)),
        [wanted] => runtime.block_on(serve(wanted)),
        _ => runtime.block_on(serve("")),
    }
}
