use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use vmap_proxy_compiler::model::checked::Content;
use vmap_proxy_compiler::model::objects::Kind;
use vmap_proxy_compiler::model::types::Service;

use super::document::{Format, parse, split};
use super::{Event, ManifestSource, ObjectChange, SourceError};
use crate::source::Origin;

/// A directory that goes when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("vmap-proxy-manifests-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn source(&self) -> ManifestSource {
        ManifestSource::new(vec![self.0.clone()], "n1")
    }

    fn read(&self) -> (Vec<String>, Vec<String>) {
        read(&self.source())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn read(source: &ManifestSource) -> (Vec<String>, Vec<String>) {
    let (objects, problems) = source.read_once().unwrap();
    let objects = objects.iter().map(|change| change.object().to_string()).collect();
    (objects, problems.iter().map(ToString::to_string).collect())
}

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {ip}\n  ports:\n  - port: 80\n"
    )
}

#[test]
fn documents_are_cut_at_markers_and_keep_their_lines() {
    let text = "# licence\n---\na: 1\n--- # second\nb: |\n  --- not a marker\n---\n# nothing\n--- {c: 3}\n...\n";
    let lines: Vec<_> =
        split(text, Format::Yaml).into_iter().map(|document| (document.line, &text[document.range])).collect();
    assert_eq!(lines, [(2, "---\na: 1\n"), (4, "--- # second\nb: |\n  --- not a marker\n"), (9, "--- {c: 3}\n...\n")]);
    let text = "{\"a\": 1}\n\n{\"b\":\n2} {oops";
    let lines: Vec<_> =
        split(text, Format::Json).into_iter().map(|document| (document.line, &text[document.range])).collect();
    assert_eq!(lines, [(1, "{\"a\": 1}"), (3, "{\"b\":\n2}"), (4, "{oops")]);
}

#[test]
fn every_kind_is_read_and_others_are_named() {
    let scratch = Scratch::new();
    scratch.file(
        "all.yaml",
        &[
            service("cart", "10.0.0.1"),
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\naddressType: IPv4\nendpoints:\n- addresses: [10.1.0.1]\n  futureField: {a: 1}\n".to_owned(),
            "apiVersion: v1\nkind: Node\nmetadata: {name: n1, namespace: nonsense}\n".to_owned(),
            "apiVersion: networking.k8s.io/v1beta1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.0.0.0/16]}\n".to_owned(),
            "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: my-sts}\n".to_owned(),
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: other}\n".to_owned(),
        ]
        .join("---\n"),
    );
    let (objects, problems) = scratch.read();
    assert_eq!(objects, ["Service default/cart", "EndpointSlice shop/cart-1", "Node n1", "ServiceCIDR kubernetes"]);
    assert_eq!(problems, [""; 0]);
    let skipped = parse("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: my-sts}\n", 1, Format::Yaml).skipped;
    assert_eq!(skipped, ["StatefulSet my-sts"]);
}

#[test]
fn lists_are_taken_apart() {
    let scratch = Scratch::new();
    scratch.file(
        "a.json",
        r#"{"apiVersion": "v1", "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "managedFields": [{"f:x": {}}]},
             "spec": {"clusterIP": "None"}},
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bad"}, "spec": {"ports": [{"port": "x"}]}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        ], "kind": "List"}"#,
    );
    scratch.file(
        "b.yaml",
        "items:\n- metadata: {name: b}\n  spec: {clusterIP: None}\nkind: ServiceList\napiVersion: v1\n",
    );
    scratch.file("c.yaml", "kind: EndpointSliceList\napiVersion: discovery.k8s.io/v1\nitems:\n- metadata: {name: c, labels: {kubernetes.io/service-name: c}}\n  addressType: IPv4\n");
    scratch.file("d.yaml", "kind: List\napiVersion: v1\nitems: []\n---\nkind: List\napiVersion: v1\n---\nkind: List\napiVersion: v1\nitems: null\n");
    let (objects, problems) = scratch.read();
    assert_eq!(objects, ["Service default/a", "Service default/b", "EndpointSlice default/c"]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(
        problems[0].contains("a.json:1: document 1: Service default/bad: item 2 of the list: invalid type"),
        "{problems:?}"
    );
}

#[test]
fn a_malformed_document_costs_only_itself() {
    let scratch = Scratch::new();
    scratch.file(
        "mixed.yaml",
        &[
            service("good", "10.0.0.1"),
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: broken\n spec: [\n".to_owned(),
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: mistyped\nspec:\n  ports:\n  - port: eighty\n"
                .to_owned(),
            "apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n".to_owned(),
            "apiVersion: v1\nkind: Service\nmetadata: {}\n".to_owned(),
            "just text\n".to_owned(),
            service("last", "10.0.0.2"),
        ]
        .join("---\n"),
    );
    let (objects, problems) = scratch.read();
    assert_eq!(objects, ["Service default/good", "Service default/last"]);
    let expected = [
        ("mixed.yaml:14: document 2: Service broken: ", "; correct it"),
        ("mixed.yaml:22: document 3: Service default/mistyped: ", "; correct it"),
        ("mixed.yaml:23: document 4: EndpointSlice old: ", "convert it to discovery.k8s.io/v1"),
        ("mixed.yaml:27: document 5: Service: `metadata.name` is missing", "; correct it"),
        ("mixed.yaml:32: document 6: ", "; correct it"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, (start, rest)) in problems.iter().zip(expected) {
        assert!(
            problem.contains(start) && problem.contains(rest) && !problem.contains('\n'),
            "{problem} should have {start:?}"
        );
    }
}

#[test]
fn what_cannot_be_programmed_is_named_with_its_file() {
    let scratch = Scratch::new();
    let spoilt = service("spoilt", "10.0.0.1") + "  externalIPs: [10.0.0.256]\n";
    scratch.file("a.yaml", &[service("good", "10.0.0.2"), spoilt].join("---\n"));
    let (objects, problems) = scratch.read();
    // The rest of the object is used.
    assert_eq!(objects, ["Service default/good", "Service default/spoilt"]);
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    for words in ["a.yaml:9: document 2: Service default/spoilt: spec.externalIPs[0]: ", "10.0.0.256", "; correct it"] {
        assert!(problem.contains(words), "{problem}");
    }
}

#[test]
fn a_service_without_cluster_ip_and_legacy_endpoints_get_a_line_each() {
    let scratch = Scratch::new();
    scratch.file("chart.yaml", include_str!("testdata/service-without-cluster-ip.yaml"));
    let (objects, problems) = scratch.read();
    assert_eq!(objects, ["Service ingress-nginx/ingress-nginx-controller"]);
    let lines = [
        "Service ingress-nginx/ingress-nginx-controller: spec.clusterIP: it is absent, so nothing of the Service is served",
        "Endpoints ingress-nginx/ingress-nginx-controller: apiVersion v1 of Endpoints is not read; convert it to an \
         EndpointSlice of discovery.k8s.io/v1",
    ];
    assert_eq!(problems.len(), lines.len(), "{problems:?}");
    for line in lines {
        assert!(problems.iter().any(|problem| problem.contains(line)), "{line} is not in {problems:?}");
    }
}

#[test]
fn whole_floats_and_long_comments_are_read() {
    let scratch = Scratch::new();
    let comments = "  # one line of many\n".repeat(100);
    let long = service("long", "10.0.0.1").replace("spec:\n", &format!("spec:\n{comments}"));
    let float = "apiVersion: v1\nkind: Service\nmetadata: {name: float}\nspec:\n  clusterIP: 10.0.0.2\n  ports: [{port: \
                 8.08e+03}]\n";
    scratch.file("a.yaml", &[long, float.to_owned()].join("---\n"));
    let (objects, problems) = scratch.source().read_once().unwrap();
    assert_eq!(problems, []);
    assert_eq!(service_of(&objects[1]).ports[0].port, 8080);
    // The second document begins behind the first, its 107 lines and the mark between them.
    let line = scratch_line(&objects[1]);
    assert_eq!(line, 1 + 107 + 1, "where it was read travels with it");
}

#[test]
fn the_last_of_two_counts_and_both_files_are_named() {
    let scratch = Scratch::new();
    scratch.file("a.yaml", &service("twice", "10.0.0.1"));
    scratch.file("b.yaml", &service("twice", "10.0.0.2"));
    let (objects, problems) = scratch.source().read_once().unwrap();
    assert_eq!((objects.len(), service_of(&objects[0]).cluster_ip.to_string().as_str()), (1, "10.0.0.2"));
    let problem = problems[0].to_string();
    assert!(problem.contains("b.yaml: Service default/twice: is also in ") && problem.contains("a.yaml"), "{problem}");
}

#[test]
fn odd_paths_get_one_clear_line() {
    let scratch = Scratch::new();
    let (objects, problems) = scratch.read();
    assert!(objects.is_empty());
    assert!(problems[0].contains("holds no *.yaml"), "{problems:?}");

    let missing = ManifestSource::new(vec![scratch.0.join("missing")], "n1").read_once().unwrap_err();
    assert!(matches!(missing, SourceError::UnreadablePath { .. }));
    assert!(missing.to_string().ends_with("check the path given with --manifests"), "{missing}");

    fs::write(scratch.0.join("latin.yaml"), b"a: \xe4").unwrap();
    scratch.file(".hidden.yaml", "a: [");
    symlink("nowhere", scratch.0.join("dangling.yaml")).unwrap();
    let (_, problems) = scratch.read();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("dangling.yaml: is a link to a file that does not exist"), "{problems:?}");
    assert!(problems[1].contains("latin.yaml: not UTF-8"), "{problems:?}");
}

/// A running source and its events.
struct Running {
    events: mpsc::Receiver<Event>,
}

impl Running {
    /// Starts it and waits for the first complete list.
    async fn start(paths: Vec<PathBuf>) -> (Self, Vec<String>) {
        let (sender, events) = mpsc::channel(4);
        tokio::spawn(async move { ManifestSource::new(paths, "n1").run(sender).await.unwrap() });
        let mut running = Self { events };
        let (mut started, mut completed, mut listed) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match running.next().await {
                Event::ListStarted(kind) => started.push(kind),
                Event::Changes(changes) => {
                    assert_eq!(started.len(), 4);
                    listed.extend(changes.iter().map(shown));
                }
                Event::ListCompleted(kind) => completed.push(kind),
                Event::Synced => break,
                Event::Degraded(reason) => panic!("{reason}"),
            }
        }
        started.sort();
        completed.sort();
        assert_eq!(started, [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr]);
        assert_eq!(started, completed);
        (running, listed)
    }

    async fn next(&mut self) -> Event {
        timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap()
    }

    async fn changes(&mut self) -> Vec<String> {
        match self.next().await {
            Event::Changes(changes) => {
                let mut shown: Vec<_> = changes.iter().map(shown).collect();
                shown.sort();
                shown
            }
            other => panic!("{other:?}"),
        }
    }
}

fn shown(change: &ObjectChange) -> String {
    let object = change.object();
    match &change.checked.content {
        Content::Service(_) => format!("+{}={}", object.name, service_of(change).cluster_ip),
        Content::Gone => format!("-{}", object.name),
        Content::Kept => format!("={}", object.name),
        _ => format!("+{object}"),
    }
}

fn service_of(change: &ObjectChange) -> &Service {
    match &change.checked.content {
        Content::Service(service) => service.ipv4.as_ref().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The line of the file that an object was read at.
fn scratch_line(change: &ObjectChange) -> usize {
    match &change.origin {
        Origin::File { path, line } => {
            assert!(path.ends_with("a.yaml"), "{path:?}");
            *line
        }
        other => panic!("{other:?}"),
    }
}

/// As careful editors and `kubectl` do it.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn only_differences_are_sent_while_files_change() {
    let scratch = Scratch::new();
    let file = scratch.file("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.2")].join("---\n"));
    let (mut running, listed) = Running::start(vec![scratch.0.clone()]).await;
    assert_eq!(listed, ["+a=10.0.0.1", "+b=10.0.0.2"]);

    replace(&file, &[service("b", "10.0.0.3"), service("a", "10.0.0.1")].join("---\n"));
    assert_eq!(running.changes().await, ["+b=10.0.0.3"]);
    // Same length, same inode, and maybe the same timestamp.
    fs::write(&file, [service("b", "10.0.0.4"), service("a", "10.0.0.1")].join("---\n")).unwrap();
    assert_eq!(running.changes().await, ["+b=10.0.0.4"]);
    let other = scratch.file("c.json", r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}"#);
    assert_eq!(running.changes().await, ["+Node n1"]);
    fs::remove_file(other).unwrap();
    replace(&file, &service("a", "10.0.0.1"));
    assert_eq!(running.changes().await, ["-b", "-n1"]);
    // A comment changes nothing; the next change comes without it.
    fs::write(&file, format!("# hello\n{}", service("a", "10.0.0.1"))).unwrap();
    scratch.file("d.yaml", &service("d", "10.0.0.9"));
    assert_eq!(running.changes().await, ["+d=10.0.0.9"]);
}

#[tokio::test]
async fn a_mistake_while_running_takes_nothing_away() {
    let scratch = Scratch::new();
    let file = scratch.file("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.2")].join("---\n"));
    let (mut running, _) = Running::start(vec![scratch.0.clone()]).await;
    fs::write(&file, ["kind: [", &service("b", "10.0.0.3")].join("\n---\n")).unwrap();
    assert_eq!(running.changes().await, ["+b=10.0.0.3"]);
    fs::write(&file, "").unwrap();
    scratch.file("c.yaml", &service("c", "10.0.0.4"));
    assert_eq!(running.changes().await, ["+c=10.0.0.4"]);
    fs::write(&file, service("b", "10.0.0.3")).unwrap();
    assert_eq!(running.changes().await, ["-a"]);
}

#[tokio::test]
async fn the_covered_object_comes_back_when_the_other_goes() {
    let scratch = Scratch::new();
    scratch.file("a.yaml", &[service("a", "10.0.0.1"), service("b", "10.0.0.5")].join("---\n"));
    let second = scratch.file("b.yaml", &service("a", "10.0.0.2"));
    let (mut running, listed) = Running::start(vec![scratch.0.clone()]).await;
    assert_eq!(listed, ["+a=10.0.0.1", "+b=10.0.0.5", "+a=10.0.0.2"]);
    fs::remove_file(second).unwrap();
    assert_eq!(running.changes().await, ["+a=10.0.0.1"]);
}

#[tokio::test]
async fn a_mounted_config_map_is_followed() {
    let scratch = Scratch::new();
    let version = |number: u32, ip: &str| {
        let directory = scratch.0.join(format!("..{number}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), service("a", ip)).unwrap();
        symlink(format!("..{number}"), scratch.0.join("..new")).unwrap();
        fs::rename(scratch.0.join("..new"), scratch.0.join("..data")).unwrap();
    };
    version(1, "10.0.0.1");
    symlink("..data/a.yaml", scratch.0.join("a.yaml")).unwrap();
    let (mut running, listed) = Running::start(vec![scratch.0.clone()]).await;
    assert_eq!(listed, ["+a=10.0.0.1"]);
    version(2, "10.0.0.2");
    fs::remove_dir_all(scratch.0.join("..1")).unwrap();
    assert_eq!(running.changes().await, ["+a=10.0.0.2"]);
    version(3, "10.0.0.3");
    assert_eq!(running.changes().await, ["+a=10.0.0.3"]);
}

#[tokio::test]
async fn a_directory_that_vanishes_keeps_its_objects_until_it_is_back() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("manifests");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), service("a", "10.0.0.1")).unwrap();
    let (mut running, _) = Running::start(vec![directory.clone()]).await;
    fs::remove_dir_all(&directory).unwrap();
    // The file may be seen to go before its directory does: then it is a
    // deletion like any other.
    let mut seen = Vec::new();
    loop {
        match running.next().await {
            Event::Degraded(reason) => {
                assert!(reason.contains("its earlier content stays programmed"), "{reason}");
                break;
            }
            Event::Changes(changes) => seen.extend(changes.iter().map(shown)),
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.is_empty() || seen == ["-a"], "{seen:?}");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), service("a", "10.0.0.2")).unwrap();
    loop {
        let changes = running.changes().await;
        if changes == ["+a=10.0.0.2"] {
            break;
        }
        assert_eq!(changes, ["-a"], "the new directory was still empty");
    }
}
