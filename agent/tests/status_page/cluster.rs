//! A server with the state of a large cluster, without a kernel: compiled as for
//! a first sync, and asked as a running agent's sync thread is.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::thread;
use std::time::SystemTime;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use vmap_proxy_agent::health::listen::Listen;
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::query::answer::{State, answer};
use vmap_proxy_agent::query::journal::Journal;
use vmap_proxy_agent::query::protocol::{JournalEntry, JournalService};
use vmap_proxy_agent::query::server::{self, Asked, Facts};
use vmap_proxy_agent::status_page;
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};

/// The Services, with the hostile one.
pub(crate) const SERVICES: usize = 100_000;

/// Names that would do harm as HTML. An API server lets none of them in; files
/// may have them.
pub(crate) const HOSTILE_NAME: &str = "<img src=x onerror=\"document.title='harmed'\">";
pub(crate) const HOSTILE_PORT: &str = "</td><script>document.title='harmed'</script>";
pub(crate) const HOSTILE_SLICE: &str = "\"><svg onload=document.title='harmed'>&amp;";
/// The namespace of the hostile Service: the first in the order of names.
pub(crate) const HOSTILE_NAMESPACE: &str = "a'-<b>bold";

/// The address of the server, which runs until the process ends.
pub(crate) fn server() -> SocketAddr {
    static SERVER: LazyLock<SocketAddr> = LazyLock::new(start);
    *SERVER
}

fn start() -> SocketAddr {
    let (questions, asked) = server::channel();
    let (programmed, is_programmed) = std::sync::mpsc::channel();
    thread::spawn(move || answer_all(asked, &programmed));
    is_programmed.recv().unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let facts =
                Facts { started: SystemTime::now(), source: "objects of a test".to_owned(), metrics: Metrics::new() };
            let listen = Listen::new("metrics", "metricsBindAddress", "127.0.0.1:0".parse().unwrap(), true);
            let mut listening = listen.listening.subscribe();
            tokio::spawn(async move {
                let _ = tell.send(listening.wait_for(Option::is_some).await.unwrap().unwrap());
            });
            listen.serve(status_page::router(questions, facts)).await.unwrap();
        });
    });
    told.recv().unwrap()
}

fn answer_all(mut asked: mpsc::Receiver<Asked>, programmed: &std::sync::mpsc::Sender<()>) {
    let mut store = Store::new("node-1");
    for object in objects() {
        let problems = store.apply(Change::Apply(object));
        assert!(problems.is_empty(), "{problems:?}");
    }
    let config = ProxyConfig { node_name: "node-1".to_owned(), ..ProxyConfig::default() };
    let planner = vmap_proxy_compiler::program(config, &mut store);
    let journal = journal();
    let (store, planner, journal) = (&store, &planner, &journal);
    let state = State { store, planner, ready: true, pending: false, digest: 0, journal };
    programmed.send(()).unwrap();
    while let Some(Asked { question, reply }) = asked.blocking_recv() {
        let _ = reply.send(answer(&state, &question));
    }
}

fn journal() -> Journal {
    let sync = |ended: u64, microseconds: u64, changed: &str, failure: Option<&str>| JournalEntry {
        ended: 1_790_000_000_000 + ended,
        microseconds,
        added: 3,
        removed: 1,
        commits: 1,
        repaired: microseconds > 100_000,
        services: vec![JournalService { name: changed.to_owned(), added: 3, removed: 1 }],
        failure: failure.map(str::to_owned),
        ..JournalEntry::default()
    };
    let hostile = format!("{HOSTILE_NAMESPACE}/{HOSTILE_NAME}");
    Journal::from_iter([
        sync(9_000, 310, &hostile, None),
        sync(8_000, 2_000, "", Some("<b>refused</b> by the kernel")),
        sync(7_000, 480, "team-001/backend-000001", None),
        sync(1_000, 1_900_000, "", None),
    ])
}

fn object(value: Value) -> Object {
    let of_kind = value["kind"].as_str().unwrap().to_owned();
    match of_kind.as_str() {
        "Service" => Object::Service(serde_json::from_value(value).unwrap()),
        "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
        _ => Object::Node(serde_json::from_value(value).unwrap()),
    }
}

fn service(namespace: &str, name: &str, port: &str, slice: &str, number: u32) -> [Object; 2] {
    let from = |base: [u8; 4]| Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + number).to_string();
    let service = json!({
        "kind": "Service",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "clusterIP": from([10, 1, 0, 0]), "ports": [{ "name": port, "port": 80 }] },
    });
    let slice = json!({
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace, "name": slice, "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": [from([10, 130, 0, 0])] }],
        "ports": [{ "name": port, "port": 8080 }],
    });
    [object(service), object(slice)]
}

fn objects() -> impl Iterator<Item = Object> {
    let node = object(json!({
        "kind": "Node",
        "metadata": { "name": "node-1" },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.11" }] },
    }));
    let hostile = service(HOSTILE_NAMESPACE, HOSTILE_NAME, HOSTILE_PORT, HOSTILE_SLICE, 0);
    let ordinary = (1..u32::try_from(SERVICES).unwrap()).flat_map(|number| {
        let namespace = format!("team-{:03}", number % 100);
        let name = format!("backend-{number:06}");
        service(&namespace, &name, "http", &name, number)
    });
    [node].into_iter().chain(hostile).chain(ordinary)
}
