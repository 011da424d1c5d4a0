//! The server as tests handle it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use serde_json::Value;
use tempfile::TempPath;
use tokio::sync::{broadcast, oneshot, watch};

use super::faults::Fault;
use super::lists::Lists;
use super::objects::{Objects, Resource, Stored};
use super::respond::respond;

/// A message to the running watches.
#[derive(Debug, Clone)]
pub(super) enum Signal {
    Changed,
    Bookmark,
    Raw(Resource, Vec<u8>),
    Object(Resource, Arc<Stored>),
    BookmarkAt(Resource, u64),
    Expire(Resource),
    Break(Resource),
    End(Resource),
}

/// The server's state, kept across restarts.
pub(super) struct State {
    pub(super) objects: Objects,
    pub(super) requests: Vec<String>,
    pub(super) headers: Vec<HeaderMap>,
    pub(super) events: Vec<Value>,
    pub(super) event_refusal: Option<(u16, String)>,
    /// The status with which the version is refused.
    pub(super) version_refusal: Option<u16>,
    pub(super) lists: Lists,
    pub(super) has_protobuf: bool,
    pub(super) bytes_sent: usize,
    pub(super) forgets_bookmark: bool,
    pub(super) slow: Option<(usize, Duration)>,
    pub(super) faults: BTreeMap<Resource, Fault>,
    refusals: BTreeMap<Resource, (u16, String)>,
    breaks: BTreeMap<Resource, usize>,
    expired_pages: BTreeSet<Resource>,
}

impl State {
    pub(super) fn refusal(&self, resource: Option<Resource>) -> Option<(u16, String)> {
        self.refusals.get(&resource?).cloned()
    }

    pub(super) fn take_break(&mut self, resource: Resource) -> Option<usize> {
        self.breaks.remove(&resource)
    }

    pub(super) fn take_expired_page(&mut self, resource: Resource) -> bool {
        self.expired_pages.remove(&resource)
    }
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) signals: broadcast::Sender<Signal>,
    /// Counts what tests may wait for: requests, watches opened and closed.
    pub(super) changed: watch::Sender<u64>,
    watches: Mutex<BTreeMap<Resource, Arc<AtomicUsize>>>,
}

/// Counts a running watch until it is dropped.
pub(super) struct OpenWatch {
    count: Arc<AtomicUsize>,
    changed: watch::Sender<u64>,
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Shared {
    pub(super) fn count_watch(&self, resource: Resource) -> OpenWatch {
        let count = self.watches(resource);
        count.fetch_add(1, Ordering::SeqCst);
        self.changed.send_modify(|count| *count += 1);
        OpenWatch { count, changed: self.changed.clone() }
    }

    fn watches(&self, resource: Resource) -> Arc<AtomicUsize> {
        let mut watches = self.watches.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        watches.entry(resource).or_default().clone()
    }
}

/// A running double. It ends when dropped.
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    running: Option<Running>,
    kubeconfig: TempPath,
}

/// Stops the server when dropped, and waits until it has stopped.
struct Running {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic over there has been printed, and shows as missing answers.
            let _ = thread.join();
        }
    }
}

impl ApiServer {
    /// Starts one without objects, on a port of its own.
    ///
    /// # Errors
    /// No port, or no thread.
    pub async fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                objects: Objects::default(),
                requests: Vec::new(),
                headers: Vec::new(),
                faults: BTreeMap::new(),
                events: Vec::new(),
                event_refusal: None,
                version_refusal: None,
                lists: Lists::PagesFromCache,
                has_protobuf: true,
                bytes_sent: 0,
                forgets_bookmark: false,
                slow: None,
                refusals: BTreeMap::new(),
                breaks: BTreeMap::new(),
                expired_pages: BTreeSet::new(),
            }),
            signals: broadcast::Sender::new(4096),
            changed: watch::Sender::new(0),
            watches: Mutex::default(),
        });
        let (running, address) = Running::start(shared.clone(), SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let kubeconfig = tempfile::Builder::new().prefix("apiserver-double-").suffix(".yaml").tempfile()?;
        let kubeconfig = kubeconfig.into_temp_path();
        let server = Self { shared, address, running: Some(running), kubeconfig };
        fs::write(&server.kubeconfig, server.kubeconfig_text())?;
        Ok(server)
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A kubeconfig file for it; goes with the server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.to_path_buf()
    }

    fn kubeconfig_text(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: double\n  cluster: {{server: '{}'}}\n\
             users:\n- name: proxy\n  user: {{token: secret}}\n\
             contexts:\n- name: double\n  context: {{cluster: double, user: proxy}}\ncurrent-context: double\n",
            self.url()
        )
    }

    /// Creates or replaces an object, by its `kind` and `metadata`, and returns
    /// its version.
    pub fn apply(&self, object: Value) -> u64 {
        let version = self.shared.with(|state| state.objects.apply(object));
        self.tell(Signal::Changed);
        version
    }

    /// Creates or replaces many, in one go.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) {
        self.shared.with(|state| {
            for object in objects {
                state.objects.apply(object);
            }
        });
        self.tell(Signal::Changed);
    }

    /// Deletes an object, if it is there.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) {
        self.shared.with(|state| state.objects.delete(resource, namespace, name));
        self.tell(Signal::Changed);
    }

    /// Forgets the history: a new watch or a page from before gets 410.
    pub fn compact(&self) {
        self.shared.with(|state| state.objects.compact());
    }

    /// Ends the running watches of a resource by an ERROR event with 410.
    pub fn expire_watches(&self, resource: Resource) {
        self.tell(Signal::Expire(resource));
    }

    /// Ends the running watches of a resource, as at their timeout.
    pub fn end_watches(&self, resource: Resource) {
        self.tell(Signal::End(resource));
    }

    /// Breaks the running watches of a resource off, in the middle of the body.
    pub fn break_watches(&self, resource: Resource) {
        self.tell(Signal::Break(resource));
    }

    /// Breaks the next list or watch of a resource off after `length` bytes.
    pub fn break_next(&self, resource: Resource, length: usize) {
        self.shared.with(|state| state.breaks.insert(resource, length));
    }

    /// Answers the next page of a resource that is not the first with 410.
    pub fn expire_next_page(&self, resource: Resource) {
        self.shared.with(|state| state.expired_pages.insert(resource));
    }

    /// Sends a bookmark on every watch that wants them.
    pub fn bookmark(&self) {
        self.tell(Signal::Bookmark);
    }

    /// Sends a bookmark of this version on the running watches of a resource.
    pub fn bookmark_at(&self, resource: Resource, version: u64) {
        self.tell(Signal::BookmarkAt(resource, version));
    }

    /// Sends the event that this object was added on the running watches of a resource, whatever kind it is of.
    pub fn send_object(&self, resource: Resource, object: &Value) {
        if let Some(stored) = Stored::of_any_kind(object) {
            self.tell(Signal::Object(resource, Arc::new(stored)));
        }
    }

    /// Sends this on the running watches of a resource, whatever it is.
    pub fn send_raw(&self, resource: Resource, bytes: impl Into<Vec<u8>>) {
        self.tell(Signal::Raw(resource, bytes.into()));
    }

    /// Whether protobuf is served (it is at first), or JSON alone, as by
    /// something that imitates an API server.
    pub fn set_protobuf(&self, served: bool) {
        self.shared.with(|state| state.has_protobuf = served);
    }

    /// Bytes of all bodies so far.
    pub fn bytes_sent(&self) -> usize {
        self.shared.with(|state| state.bytes_sent)
    }

    /// Answers every request for a resource with this status from now on.
    pub fn refuse(&self, resource: Resource, code: u16, message: &str) {
        self.shared.with(|state| state.refusals.insert(resource, (code, message.to_owned())));
    }

    /// Answers every Event with this status from now on.
    pub fn refuse_events(&self, code: u16, message: &str) {
        self.shared.with(|state| state.event_refusal = Some((code, message.to_owned())));
    }

    /// Answers every question for the version with this status from now on.
    pub fn refuse_version(&self, code: u16) {
        self.shared.with(|state| state.version_refusal = Some(code));
    }

    /// Ends [`refuse`](Self::refuse).
    pub fn allow(&self, resource: Resource) {
        self.shared.with(|state| state.refusals.remove(&resource));
    }

    /// Which lists it has; those of [`Lists::PagesFromCache`] at first.
    pub fn set_lists(&self, lists: Lists) {
        self.shared.with(|state| state.lists = lists);
    }

    /// Whether the bookmark at the end of streaming lists is left out, as by
    /// something that ignores what it does not know.
    pub fn set_forgets_bookmark(&self, forgets: bool) {
        self.shared.with(|state| state.forgets_bookmark = forgets);
    }

    /// Sends bodies in pieces of this number of bytes, with a pause behind each.
    pub fn set_slow(&self, slow: Option<(usize, Duration)>) {
        self.shared.with(|state| state.slow = slow);
    }

    /// Behaves like this towards whoever asks for a resource from now on.
    pub fn set_fault(&self, resource: Resource, fault: Option<Fault>) {
        self.shared.with(|state| match fault {
            Some(fault) => drop(state.faults.insert(resource, fault)),
            None => drop(state.faults.remove(&resource)),
        });
    }

    /// Goes away: connections end, new ones are refused. Objects stay and can
    /// be changed.
    pub fn pause(&mut self) {
        self.running = None;
    }

    /// Comes back at the same address.
    ///
    /// # Errors
    /// Somebody else has taken the port.
    pub async fn resume(&mut self) -> io::Result<()> {
        let (running, _) = Running::start(self.shared.clone(), self.address).await?;
        self.running = Some(running);
        Ok(())
    }

    /// The requests so far, as `GET /api/v1/services?limit=500`.
    pub fn requests(&self) -> Vec<String> {
        self.shared.with(|state| state.requests.clone())
    }

    /// The value of a header in each request so far; empty where it is absent.
    pub fn header(&self, name: &str) -> Vec<String> {
        let value = |headers: &HeaderMap| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).unwrap_or_default()
        };
        self.shared.with(|state| state.headers.iter().map(value).collect())
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The events that were posted.
    pub fn events(&self) -> Vec<Value> {
        self.shared.with(|state| state.events.clone())
    }

    /// Waits until `condition` holds, which may look at anything the server
    /// tells.
    pub async fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        while !condition(self) {
            // The sender lives as long as the server.
            let _ = changed.changed().await;
        }
    }

    /// Watches of a resource that have caught up and wait for changes.
    pub fn open_watches(&self, resource: Resource) -> usize {
        self.shared.watches(resource).load(Ordering::SeqCst)
    }

    fn tell(&self, signal: Signal) {
        // No watch is running: nobody to tell.
        let _ = self.shared.signals.send(signal);
    }
}

impl Running {
    async fn start(shared: Arc<Shared>, address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        let thread = std::thread::Builder::new().name("apiserver-double".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            // Dropping the runtime closes every connection.
            runtime.block_on(async move {
                let listener = match tokio::net::TcpListener::bind(address).await {
                    Ok(listener) => listener,
                    Err(error) => return drop(ready.send(Err(error))),
                };
                let _ = ready.send(listener.local_addr());
                let router = Router::new().fallback(respond).with_state(shared);
                tokio::select! {
                    _ = axum::serve(listener, router) => {}
                    _ = stopped => {}
                }
            });
        })?;
        let address = is_ready.await.map_err(io::Error::other)??;
        Ok((Self { stop: Some(stop), thread: Some(thread) }, address))
    }
}
