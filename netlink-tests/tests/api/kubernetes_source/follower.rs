//! A running source, followed as the sync loop follows it, and the objects of the server it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_agent::source::{Event, Origin};
use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_testbed::apiserver::{ApiServer, Resource};

/// Nothing takes this long; a test that waits for what never comes ends.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Retries within milliseconds; silences stay long.
pub(crate) fn timing() -> Timing {
    Timing {
        shortest_retry: Duration::from_millis(10),
        longest_retry: Duration::from_millis(50),
        short_watch: Duration::from_millis(10),
        ..Timing::default()
    }
}

pub(crate) fn options(server: &ApiServer) -> KubernetesOptions {
    KubernetesOptions {
        kubeconfig: Some(server.kubeconfig()),
        master: None,
        node_name: "n1".to_owned(),
        encoding: Encoding::Protobuf,
        timing: timing(),
        metrics: Metrics::new(),
    }
}

pub(crate) fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
        "status": {"loadBalancer": {}},
    })
}

pub(crate) fn slice(name: &str, service: &str, endpoints: usize) -> Value {
    let endpoints: Vec<_> = (0..endpoints)
        .map(|index| {
            json!({
                "addresses": [format!("10.1.{}.{}", index / 250, index % 250)],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "nodeName": "n1",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("{service}-{index}"), "uid": "u"},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

pub(crate) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}})
}

pub(crate) fn service_cidr() -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.0.0.0/16"]}})
}

pub(crate) async fn server_with_one_of_each() -> ApiServer {
    let server = ApiServer::start().await.unwrap();
    server.apply_all([node("n1"), node("n2"), service_cidr(), service("cart", "10.0.0.1"), slice("cart-1", "cart", 2)]);
    server
}

/// A running source and what a sync loop would know from it.
pub(crate) struct Follower {
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) objects: BTreeMap<ObjectRef, Content>,
    /// Objects not seen again since the list of their kind began.
    pub(crate) unseen: BTreeMap<Kind, BTreeSet<ObjectRef>>,
    /// Everything but the changes, as text.
    pub(crate) log: Vec<String>,
    pub(crate) is_synced: bool,
    pub(crate) task: JoinHandle<()>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    pub(crate) async fn start(server: &ApiServer) -> Self {
        Self::with(options(server)).await
    }

    pub(crate) async fn with(options: KubernetesOptions) -> Self {
        let source = KubernetesSource::connect(options).await.unwrap();
        let (sender, events) = mpsc::channel(8);
        let task = tokio::spawn(source.run(sender));
        Self { events, objects: BTreeMap::new(), unseen: BTreeMap::new(), log: Vec::new(), is_synced: false, task }
    }

    /// Takes the next event as the sync loop would.
    pub(crate) async fn step(&mut self) {
        let event = timeout(LIMIT, self.events.recv()).await;
        match event.unwrap_or_else(|_| panic!("nothing more came; {:?}", self.log)).unwrap() {
            Event::ListStarted(kind) => {
                let known = self.objects.keys().filter(|object| object.kind == kind).cloned().collect();
                self.unseen.insert(kind, known);
                self.log.push(format!("list {kind}"));
            }
            Event::ListCompleted(kind) => {
                for gone in self.unseen.remove(&kind).unwrap() {
                    self.objects.remove(&gone);
                }
                self.log.push(format!("listed {kind}"));
            }
            Event::Changes(changes) => {
                assert!((1..=512).contains(&changes.len()));
                for change in changes {
                    assert_eq!(change.origin, Origin::ApiServer);
                    let CheckedChange { object, content, .. } = change.checked;
                    if content == Content::Gone {
                        self.objects.remove(&object);
                        continue;
                    }
                    if let Some(unseen) = self.unseen.get_mut(&object.kind) {
                        unseen.remove(&object);
                    }
                    if content != Content::Kept {
                        self.objects.insert(object, content);
                    }
                }
            }
            Event::Synced => {
                assert!(!self.is_synced, "Synced is sent once");
                self.is_synced = true;
                self.log.push("synced".to_owned());
            }
            Event::Degraded(reason) => {
                assert!(!reason.contains('\n'), "{reason:?}");
                self.log.push(reason);
            }
        }
    }

    pub(crate) async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.step().await;
        }
    }

    pub(crate) async fn synced(&mut self) {
        self.until(|follower| follower.is_synced).await;
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.objects.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.objects.keys().any(|object| object.name == name)
    }

    pub(crate) fn cluster_ip(&self, name: &str) -> Option<String> {
        self.objects.iter().find_map(|(reference, object)| match object {
            Content::Service(service) if reference.name == name => Some(service.ipv4.as_ref()?.cluster_ip.to_string()),
            _ => None,
        })
    }

    pub(crate) fn count(&self, line: &str) -> usize {
        self.log.iter().filter(|found| *found == line).count()
    }
}

/// Returns how often a resource was listed, by either kind of list.
pub(crate) fn lists(server: &ApiServer, resource: Resource) -> usize {
    let is_list = |request: &&String| !request.contains("watch=true") || request.contains("sendInitialEvents=true");
    requests_for(server, resource).iter().filter(is_list).count()
}

pub(crate) fn requests_for(server: &ApiServer, resource: Resource) -> Vec<String> {
    let start = format!("GET {}?", resource.path());
    server.requests().into_iter().filter(|request| request.starts_with(&start)).collect()
}

pub(crate) async fn all_watched(server: &ApiServer) {
    watched_by(server, 1).await;
}

/// Waits until this number of sources follows every resource: no request of theirs is under way then.
pub(crate) async fn watched_by(server: &ApiServer, sources: usize) {
    let is_watched = |server: &ApiServer| Resource::ALL.iter().all(|kind| server.open_watches(*kind) == sources);
    timeout(LIMIT, server.wait_until(is_watched)).await.unwrap();
}
