//! Services, EndpointSlices, Nodes and ServiceCIDRs from manifests on disk:
//! ordinary Kubernetes YAML or JSON, followed as it changes.

mod catalog;
mod document;
#[cfg(fuzzing)]
pub mod fuzzing;
mod reader;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};

use self::catalog::{Catalog, Findings};
use self::watch::{FileWatcher, Places};
use super::{Event, EventSender, ObjectChange};
use crate::files::backoff::Backoff;
use crate::files::read::ReadError;

/// Number of objects of the first reading in one event: the compiler processes
/// them while the next are parsed.
const BATCH: usize = 512;

/// Number of attempts, in about 6 s, to read an unreadable file at the start,
/// before the agent goes on without it, or ends if it is one of the given
/// paths.
const START_ATTEMPTS: u32 = 7;

const KINDS: [Kind; 4] = [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice];

/// Manifests: files, and directories of `*.yaml`, `*.yml` and `*.json` files
/// (subdirectories are not entered, as in `kubectl apply -f`).
///
/// A file may hold several documents, and lists (`List`, `ServiceList`, …).
/// Objects without a namespace belong to `default`. Where two files hold the
/// same object, the last one in path order counts.
#[derive(Debug)]
pub struct ManifestSource {
    paths: Vec<PathBuf>,
    node_name: String,
    with_names: bool,
}

/// The reason why manifests cannot be read at all. An unusable document is a
/// [`ManifestProblem`] instead.
#[derive(Debug, Error)]
pub enum SourceError {
    /// A path does not exist or may not be read; caused by the operator.
    #[error("can't read manifests at {}: {source}; {}", path.display(), remedy(source))]
    UnreadablePath {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: ReadError,
    },
    /// The task that reads the files died; a defect of this program.
    #[error("the task that reads manifests ended early: {0}")]
    Reader(#[from] JoinError),
}

fn remedy(error: &ReadError) -> &'static str {
    let ReadError::Io(error) = error else { return "check the file system" };
    match error.kind() {
        io::ErrorKind::NotFound => "check the path given with --manifests",
        io::ErrorKind::PermissionDenied => "give this user read permission, or run as another",
        _ => "check the file system",
    }
}

/// Something in the manifests that can't be used, or can't be programmed. All
/// else is. Displays as one
/// line with file, object and remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestProblem {
    /// The file or directory.
    pub path: PathBuf,
    /// The number of the document in the file, counted from 1.
    pub document: Option<usize>,
    /// The line of the file, counted from 1.
    pub line: Option<usize>,
    /// The object, as `Service shop/cart`, as far as it is known.
    pub object: Option<String>,
    /// The defect.
    pub what: String,
    /// The remedy.
    pub remedy: &'static str,
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        if let Some(document) = self.document {
            write!(f, "document {document}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl ManifestProblem {
    fn file(path: &Path, what: String, is_tried_again: bool) -> Self {
        Self {
            path: path.to_owned(),
            document: None,
            line: None,
            object: None,
            what,
            remedy: if is_tried_again {
                "it is tried again soon; the other files are used, and its earlier content stays programmed"
            } else {
                "make it readable; the other files are used, and its earlier content stays programmed"
            },
        }
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            document: None,
            line: None,
            object: None,
            what: "holds no *.yaml, *.yml or *.json file".to_owned(),
            remedy: "put manifests there; until then it contributes no Services",
        }
    }

    fn emptied(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            document: None,
            line: None,
            object: None,
            what: "has become empty; its earlier content stays programmed".to_owned(),
            remedy: "delete the file to remove it",
        }
    }

    fn duplicate(reference: &ObjectRef, earlier: &Path, later: &Path) -> Self {
        Self {
            path: later.to_owned(),
            document: None,
            line: None,
            object: Some(reference.to_string()),
            what: format!("is also in {}, this one counts", earlier.display()),
            remedy: "remove one of them",
        }
    }
}

impl ManifestSource {
    /// Reads `paths` in this order, for the node of this name; nothing happens
    /// yet.
    pub fn new(paths: Vec<PathBuf>, node_name: &str) -> Self {
        Self { paths, node_name: node_name.to_owned(), with_names: false }
    }

    /// Reads the names for DNS as well.
    #[must_use]
    pub fn with_names(self, with_names: bool) -> Self {
        Self { with_names, ..self }
    }

    /// Reads everything once. Returns the valid objects, each once in path
    /// order, and the problems.
    ///
    /// # Errors
    /// [`SourceError::UnreadablePath`] if one of the paths can't be read.
    pub fn read_once(&self) -> Result<(Vec<ObjectChange>, Vec<ManifestProblem>), SourceError> {
        let mut changes: Vec<ObjectChange> = Vec::new();
        let mut places: HashMap<ObjectRef, usize> = HashMap::new();
        let findings = self.catalog().load(|change| {
            let place = *places.entry(change.object().clone()).or_insert(changes.len());
            match changes.get_mut(place) {
                Some(earlier) => *earlier = change,
                None => changes.push(change),
            }
        })?;
        Ok((changes, findings.problems))
    }

    /// The files that [`Self::read_once`] reads, without the paths that can't be
    /// listed.
    pub fn files(&self) -> Vec<PathBuf> {
        let listings = self.paths.iter().filter_map(|path| reader::list(path, &()).ok());
        listings.flat_map(|listing| listing.files).collect()
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.paths.clone(), &self.node_name, self.with_names)
    }

    /// Sends the content of the manifests, then [`Event::Synced`], then every
    /// difference as the files change: one [`Event::Changes`] per burst of
    /// writes. Problems are logged, one line each; a document that becomes
    /// malformed removes nothing. A file that cannot be read, for example for
    /// lack of a descriptor, is tried again. Returns when the receiver is gone.
    ///
    /// # Errors
    /// [`SourceError`] if a path cannot be read at the start. Later, that is
    /// [`Event::Degraded`], and the last content stays.
    pub async fn run(self, events: EventSender) -> Result<(), SourceError> {
        for kind in KINDS {
            let _ = events.send(Event::ListStarted(kind)).await;
        }
        let mut follower = Follower { catalog: self.catalog(), events, retry: false, backoff: Backoff::default() };
        follower.load().await?;
        for kind in KINDS {
            let _ = follower.events.send(Event::ListCompleted(kind)).await;
        }
        let mut watcher = Watcher::default();
        let mut is_unseen = watcher.follow(follower.catalog.places());
        if follower.events.send(Event::Synced).await.is_err() {
            return Ok(());
        }
        loop {
            if !is_unseen {
                let events = follower.events.clone();
                tokio::select! {
                    () = watcher.files.changed() => {}
                    () = follower.next_try(watcher.is_refused) => {}
                    () = events.closed() => return Ok(()),
                }
            }
            if !follower.rescan().await? {
                return Ok(());
            }
            is_unseen = watcher.follow(follower.catalog.places());
        }
    }
}

/// Watches files, or knows that it can't.
#[derive(Debug, Default)]
struct Watcher {
    files: FileWatcher,
    is_refused: bool,
}

impl Watcher {
    /// Returns whether something may have changed unseen.
    fn follow(&mut self, places: Places) -> bool {
        match self.files.follow(places) {
            Ok(is_unseen) => {
                self.is_refused = false;
                is_unseen
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_refused, true) {
                    tracing::warn!(
                        "can't watch manifests for changes: {error}; raise fs.inotify.max_user_instances and \
                         fs.inotify.max_user_watches. They are read again from time to time until it can"
                    );
                }
                false
            }
        }
    }
}

/// Hands on the content of the files.
struct Follower {
    catalog: Catalog,
    events: EventSender,
    /// Whether something is to be tried again.
    retry: bool,
    backoff: Backoff,
}

impl Follower {
    /// The first reading. Files with a temporary error are tried again before
    /// anything is programmed. Otherwise a restart would delete their objects
    /// from the kernel.
    async fn load(&mut self) -> Result<(), SourceError> {
        for attempt in 1.. {
            match load(std::mem::take(&mut self.catalog), self.events.clone()).await? {
                (catalog, Ok(retry)) => {
                    (self.catalog, self.retry) = (catalog, retry);
                    break;
                }
                (catalog, Err(SourceError::UnreadablePath { path, source }))
                    if source.is_transient() && attempt < START_ATTEMPTS =>
                {
                    self.catalog = catalog;
                    tracing::warn!("can't read manifests at {} yet: {source}; trying again", path.display());
                    tokio::time::sleep(self.backoff.next_wait()).await;
                }
                (_, Err(error)) => return Err(error),
            }
        }
        self.backoff.reset();
        for _ in 1..START_ATTEMPTS {
            if !self.retry {
                return Ok(());
            }
            tokio::time::sleep(self.backoff.next_wait()).await;
            self.rescan().await?;
        }
        Ok(())
    }

    /// Waits until the next retry of failed files; for ever if there are none.
    async fn next_try(&mut self, is_unwatched: bool) {
        if !self.retry && !is_unwatched {
            self.backoff.reset();
            return std::future::pending().await;
        }
        // Counted only when it is over: a file that changes meanwhile is read at once.
        let wait = self.backoff.clone().next_wait();
        tokio::time::sleep(wait).await;
        self.backoff.next_wait();
    }

    /// Reads new content and hands it on. Returns whether the receiver exists.
    async fn rescan(&mut self) -> Result<bool, SourceError> {
        let mut catalog = std::mem::take(&mut self.catalog);
        let (catalog, changes, findings) = spawn_blocking(move || {
            let (changes, findings) = catalog.rescan();
            (catalog, changes, findings)
        })
        .await?;
        self.catalog = catalog;
        self.retry = findings.retry;
        log(&findings);
        for lost in findings.lost {
            let _ = self.events.send(Event::Degraded(lost)).await;
        }
        Ok(changes.is_empty() || self.events.send(Event::Changes(changes)).await.is_ok())
    }
}

/// Reads the files on a separate thread, so that the sync loop can work
/// meanwhile. Returns whether something has to be tried again.
async fn load(mut catalog: Catalog, events: EventSender) -> Result<(Catalog, Result<bool, SourceError>), SourceError> {
    Ok(spawn_blocking(move || {
        let mut batch = Vec::with_capacity(BATCH);
        let mut count = 0_usize;
        let loaded = catalog.load(|change| {
            batch.push(change);
            count += 1;
            if batch.len() == BATCH {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                let _ = events.blocking_send(Event::Changes(full));
            }
        });
        if !batch.is_empty() {
            let _ = events.blocking_send(Event::Changes(batch));
        }
        let loaded = loaded.map(|findings| {
            log(&findings);
            for lost in findings.lost {
                let _ = events.blocking_send(Event::Degraded(lost));
            }
            tracing::info!(files = catalog.files().len(), objects = count, "manifests read");
            findings.retry
        });
        (catalog, loaded)
    })
    .await?)
}

fn log(findings: &Findings) {
    for problem in &findings.problems {
        tracing::warn!("{problem}");
    }
}
