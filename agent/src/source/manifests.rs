//! Services, EndpointSlices, Nodes and ServiceCIDRs from manifests on disk:
//! ordinary Kubernetes YAML or JSON, followed as it changes.

mod catalog;
mod document;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use compiler::model::objects::{Change, Kind, Object, ObjectRef};
use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use tracing::{info, warn};

use self::catalog::{Catalog, Report};
use self::watch::FileWatcher;
use super::{Event, EventSender};

/// How many objects of the first reading are handed on at a time: the compiler
/// works on them while the next are parsed.
const BATCH: usize = 512;

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
}

/// Why manifests can't be read at all. Single documents that can't be used are
/// no such error but a [`ManifestProblem`].
#[derive(Debug, Error)]
pub enum SourceError {
    /// A path does not exist or may not be read; caused by the operator.
    #[error("can't read manifests at {}: {source}; {}", path.display(), remedy(source))]
    UnreadablePath {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel gives no (more) inotify watches; caused by its limits.
    #[error(
        "can't watch manifests for changes: {0}; raise fs.inotify.max_user_instances and fs.inotify.max_user_watches"
    )]
    Watch(#[source] notify::Error),
    /// The task that reads the files died; a defect of this program.
    #[error("the task that reads manifests ended early: {0}")]
    Reader(#[from] JoinError),
}

fn remedy(error: &io::Error) -> &'static str {
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
    /// Which document of the file, counted from 1.
    pub document: Option<usize>,
    /// The line of the file, counted from 1.
    pub line: Option<usize>,
    /// Which object, as `Service shop/cart`, as far as it can be told.
    pub object: Option<String>,
    /// What is wrong.
    pub what: String,
    /// What to do about it.
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
    fn file(path: &Path, what: String) -> Self {
        Self {
            path: path.to_owned(),
            document: None,
            line: None,
            object: None,
            what,
            remedy: "make it readable; the other files are used, and what it held before stays programmed",
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
            what: "has become empty; what it held stays programmed".to_owned(),
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
    /// Reads `paths` in this order; nothing happens yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self { paths }
    }

    /// Reads everything once: what is valid, each object once in path order,
    /// and what can't be used.
    ///
    /// # Errors
    /// [`SourceError::UnreadablePath`] if one of the paths can't be read.
    pub fn read_once(&self) -> Result<(Vec<Object>, Vec<ManifestProblem>), SourceError> {
        let mut objects: Vec<Object> = Vec::new();
        let mut places: HashMap<ObjectRef, usize> = HashMap::new();
        let report = Catalog::new(self.paths.clone()).load(|object| {
            let place = *places.entry(object.reference()).or_insert(objects.len());
            match objects.get_mut(place) {
                Some(earlier) => *earlier = object,
                None => objects.push(object),
            }
        })?;
        Ok((objects, report.problems))
    }

    /// Sends what the manifests say, then [`Event::Synced`], then every
    /// difference as the files change: one [`Event::Changes`] per burst of
    /// writes. Problems are logged, one line each; a document that becomes
    /// malformed takes nothing away. Returns when nobody listens any more.
    ///
    /// # Errors
    /// [`SourceError`] if a path can't be read or watched at the start. Later
    /// on, that is [`Event::Degraded`] and what was read stays.
    pub async fn run(self, events: EventSender) -> Result<(), SourceError> {
        let mut watcher = FileWatcher::new()?;
        let mut catalog = Catalog::new(self.paths);
        for kind in KINDS {
            let _ = events.send(Event::ListStarted(kind)).await;
        }
        catalog = load(catalog, events.clone()).await?;
        for kind in KINDS {
            let _ = events.send(Event::ListCompleted(kind)).await;
        }
        let mut is_unseen = watcher.follow(&catalog)?;
        if events.send(Event::Synced).await.is_err() {
            return Ok(());
        }
        loop {
            if !is_unseen {
                tokio::select! {
                    () = watcher.changed() => {}
                    () = events.closed() => return Ok(()),
                }
            }
            let (changes, report);
            (catalog, changes, report) = rescan(catalog).await?;
            is_unseen = watcher.follow(&catalog).unwrap_or_else(|error| {
                warn!("{error}");
                false
            });
            log(&report);
            for lost in report.lost {
                let _ = events.send(Event::Degraded(lost)).await;
            }
            if !changes.is_empty() && events.send(Event::Changes(changes)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Reads the files on a thread of their own, so that the sync loop can work
/// meanwhile.
async fn load(mut catalog: Catalog, events: EventSender) -> Result<Catalog, SourceError> {
    spawn_blocking(move || {
        let mut batch = Vec::with_capacity(BATCH);
        let mut count = 0_usize;
        let report = catalog.load(|object| {
            batch.push(Change::Apply(object));
            count += 1;
            if batch.len() == BATCH {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                let _ = events.blocking_send(Event::Changes(full));
            }
        })?;
        if !batch.is_empty() {
            let _ = events.blocking_send(Event::Changes(batch));
        }
        log(&report);
        info!(files = catalog.files().len(), objects = count, "manifests read");
        Ok(catalog)
    })
    .await?
}

async fn rescan(mut catalog: Catalog) -> Result<(Catalog, Vec<Change>, Report), SourceError> {
    Ok(spawn_blocking(move || {
        let (changes, report) = catalog.rescan();
        (catalog, changes, report)
    })
    .await?)
}

fn log(report: &Report) {
    for problem in &report.problems {
        warn!("{problem}");
    }
}
