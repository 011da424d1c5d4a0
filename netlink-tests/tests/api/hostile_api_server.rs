//! API servers that are slow, broken or hostile: every loop has a pause, every
//! wait an end, and a cause one line.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::Event;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_compiler::model::checked::{CheckedChange, Content};
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_testbed::apiserver::{ApiServer, Fault, Lists, Resource};

/// Nothing takes this long; a test that waits for what never comes ends.
const LIMIT: Duration = Duration::from_secs(60);

/// The pauses are long enough to be distinguished from the machine's own slowness.
fn timing() -> Timing {
    Timing {
        shortest_retry: Duration::from_millis(100),
        longest_retry: Duration::from_millis(1200),
        short_watch: Duration::from_millis(100),
        ..Timing::default()
    }
}

fn service(name: &str, ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}})
}

struct Running {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    lines: Vec<String>,
    services: Vec<String>,
    is_synced: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    async fn start(server: &ApiServer, timing: Timing) -> Self {
        let options = KubernetesOptions {
            kubeconfig: Some(server.kubeconfig()),
            master: None,
            node_name: "n1".to_owned(),
            encoding: Encoding::Protobuf,
            timing,
            metrics: Metrics::new(),
        };
        let source = KubernetesSource::connect(options).await.unwrap();
        let (sender, events) = mpsc::channel(8);
        let task = tokio::spawn(source.run(sender));
        Self { events, task, lines: Vec::new(), services: Vec::new(), is_synced: false }
    }

    async fn step(&mut self) {
        match timeout(LIMIT, self.events.recv()).await.unwrap().unwrap() {
            Event::Synced => self.is_synced = true,
            Event::Degraded(line) => self.lines.push(line),
            Event::Changes(changes) => {
                for change in changes {
                    let CheckedChange { object, content, .. } = change.checked;
                    match content {
                        Content::Service(_) => self.services.push(object.name),
                        Content::Gone if object.kind == Kind::Service => {
                            self.services.retain(|name| *name != object.name);
                        }
                        _ => {}
                    }
                }
            }
            Event::ListStarted(_) | Event::ListCompleted(_) => {}
        }
    }

    /// Takes what comes until the server has been asked so often.
    async fn until_asked(&mut self, server: &ApiServer, count: usize) {
        let asked = server.wait_until(|server| requests(server, Resource::Services) >= count);
        tokio::select! {
            asked = timeout(LIMIT, asked) => asked.unwrap(),
            () = self.until(|_| false) => {}
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.step().await;
        }
    }
}

fn requests(server: &ApiServer, resource: Resource) -> usize {
    let start = format!("GET {}?", resource.path());
    server.requests().iter().filter(|request| request.starts_with(&start)).count()
}

/// No more requests than the shortest pause allows in this time, and a few.
fn assert_paced(what: &str, count: usize, took: Duration) {
    let allowed = 4 + (took.as_secs_f64() / timing().shortest_retry.as_secs_f64()) as usize;
    assert!(count <= allowed, "{what}: {count} requests in {took:?}");
}

/// Changes without end, as fast as the server sends them, behind each of which
/// the watch ends (or is too old).
#[tokio::test]
async fn watches_that_end_behind_each_event_are_paced() {
    for fault in [Fault::EndsAfterEvent, Fault::ExpiresAfterEvent] {
        let server = ApiServer::start().await.unwrap();
        server.apply(service("s", "10.0.0.1"));
        server.set_fault(Resource::Services, Some(fault));
        let mut running = Running::start(&server, timing()).await;
        running.until(|running| running.is_synced).await;
        let started = Instant::now();
        // Each request meets a new event: without a pause this is a loop.
        for number in 0..12 {
            server.apply(service(&format!("s-{number}"), "10.0.0.2"));
            running.until(|running| running.services.contains(&format!("s-{number}"))).await;
        }
        assert_paced(&format!("{fault:?}"), requests(&server, Resource::Services), started.elapsed());
        assert!(running.lines.len() <= 1, "{fault:?}: {:?}", running.lines);
    }
}

#[tokio::test]
async fn a_list_without_end_is_given_up_and_told_once() {
    for fault in [Fault::EndlessPages, Fault::EmptyPages] {
        let server = ApiServer::start().await.unwrap();
        server.set_lists(Lists::Pages);
        server.apply(service("s", "10.0.0.1"));
        server.set_fault(Resource::Services, Some(fault));
        let mut running = Running::start(&server, timing()).await;
        let started = Instant::now();
        running.until(|running| !running.lines.is_empty()).await;
        assert!(running.lines[0].contains("the list does not end"), "{:?}", running.lines);
        let asked = requests(&server, Resource::Services) + 20;
        running.until_asked(&server, asked).await;
        // A handful of pages each time, and a pause.
        assert_paced(&format!("{fault:?}"), requests(&server, Resource::Services) / 6, started.elapsed());
        server.set_fault(Resource::Services, None);
        running.until(|running| running.is_synced).await;
        assert_eq!(running.lines.len(), 1, "{fault:?}: {:?}", running.lines);
    }
}

/// Nothing works, for any resource.
#[tokio::test]
async fn a_storm_of_500_is_paced_and_told_once() {
    let server = ApiServer::start().await.unwrap();
    server.apply(service("s", "10.0.0.1"));
    let mut running = Running::start(&server, timing()).await;
    running.until(|running| running.is_synced).await;
    let (before, started) = (requests(&server, Resource::Services), Instant::now());
    for resource in Resource::ALL {
        server.refuse(resource, 500, "internal error");
        server.break_watches(resource);
    }
    running.until_asked(&server, before + 6).await;
    assert_paced("500", requests(&server, Resource::Services) - before, started.elapsed());
    // 100, 200, 400, 800 and 1200 ms, at the least.
    assert!(started.elapsed() >= Duration::from_millis(1500), "{:?}", started.elapsed());
    Resource::ALL.into_iter().for_each(|resource| server.allow(resource));
    server.apply(service("t", "10.0.0.2"));
    running.until(|running| running.services.contains(&"t".to_owned())).await;
    assert!(running.lines.len() <= Resource::ALL.len(), "{:?}", running.lines);
    assert_eq!(running.lines.iter().filter(|line| line.contains("Service")).count(), 2, "{:?}", running.lines);
}

/// 136 years are what fits into the field.
#[tokio::test]
async fn a_server_that_asks_for_years_of_patience_is_asked_again() {
    let server = ApiServer::start().await.unwrap();
    server.apply(service("s", "10.0.0.1"));
    server.set_fault(Resource::Services, Some(Fault::Busy(u32::MAX)));
    let mut running = Running::start(&server, timing()).await;
    running.until(|running| !running.lines.is_empty()).await;
    server.set_fault(Resource::Services, None);
    running.until(|running| running.is_synced).await;
    assert!(running.services.contains(&"s".to_owned()));
}

/// Something between us and the server, or an imitation of one, that knows no
/// `sendInitialEvents`: the bookmark never comes, changes always do.
#[tokio::test]
async fn a_streaming_list_that_changes_keep_open_is_given_up() {
    let server = ApiServer::start().await.unwrap();
    server.set_lists(Lists::Streaming);
    server.set_forgets_bookmark(true);
    server.apply(service("s", "10.0.0.1"));
    let mut running = Running::start(&server, Timing { list_idle: Duration::from_millis(500), ..timing() }).await;
    let changing = async {
        for number in 0_u64.. {
            server.apply(service("busy", &format!("10.0.1.{}", number % 250)));
            // The rate is the fault itself.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        () = changing => {}
        () = running.until(|running| running.is_synced) => {}
    }
    assert!(server.requests().iter().any(|request| request.contains("limit=500")));
}

/// A byte now and then is not a list.
#[tokio::test]
async fn a_list_that_trickles_is_given_up_and_told_once() {
    let server = ApiServer::start().await.unwrap();
    server.set_lists(Lists::Pages);
    server.apply_all((0..20).map(|number| service(&format!("s-{number}"), "10.0.0.1")));
    server.set_slow(Some((1, Duration::from_millis(100))));
    let mut running = Running::start(&server, Timing { list_idle: Duration::from_millis(500), ..timing() }).await;
    let is_told = |running: &Running| running.lines.iter().any(|line| line.contains("Services: the list is too slow"));
    running.until(is_told).await;
    let asked = requests(&server, Resource::Services) + 2;
    running.until_asked(&server, asked).await;
    server.set_slow(None);
    running.until(|running| running.is_synced).await;
    assert_eq!(running.lines.iter().filter(|line| line.contains("Services")).count(), 1, "{:?}", running.lines);
}

/// API servers of 1.30 and older select Services by name alone.
#[tokio::test]
async fn an_old_server_is_asked_without_the_field_selector() {
    for lists in Lists::ALL {
        let server = ApiServer::start().await.unwrap();
        server.set_lists(lists);
        server.apply_all([service("s", "10.0.0.1"), service("headless", "None")]);
        server.set_fault(Resource::Services, Some(Fault::NoFieldSelector));
        let mut running = Running::start(&server, timing()).await;
        running.until(|running| running.is_synced).await;
        assert_eq!((running.services.as_slice(), running.lines.as_slice()), (&["s".to_owned()][..], &[][..]));
        let watched = server.wait_until(|server| server.open_watches(Resource::Services) == 1);
        timeout(LIMIT, watched).await.unwrap();
        server.apply_all([service("headless-2", "None"), service("t", "10.0.0.2")]);
        running.until(|running| running.services.contains(&"t".to_owned())).await;
        assert_eq!(running.services, ["s", "t"]);
        let start = format!("GET {}?", Resource::Services.path());
        let all: Vec<_> = server.requests().into_iter().filter(|request| request.starts_with(&start)).collect();
        let with_selector = all.iter().filter(|request| request.contains("fieldSelector")).count();
        assert!(with_selector == 1 && all.len() >= 2, "{all:#?}");
        assert!(all.iter().all(|request| request.contains("labelSelector")), "{all:#?}");
    }
}
