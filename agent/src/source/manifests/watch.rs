//! Tells that manifests may have changed; which ones, the catalog finds out.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

use super::SourceError;
use super::catalog::Catalog;

/// Programs write a file in several steps; what follows within this time
/// belongs to the same change.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never comes to rest is read this often.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// Watches directories rather than files: a file that is replaced by a rename,
/// or reached through a link that is swapped (as a mounted ConfigMap is), is
/// another file afterwards.
pub(super) struct FileWatcher {
    watcher: RecommendedWatcher,
    touched: mpsc::UnboundedReceiver<Vec<PathBuf>>,
    /// Watched directories by (device, inode): one that was deleted and made
    /// again has to be watched again.
    watched: HashMap<PathBuf, (u64, u64)>,
    /// Watched only for what happens to these paths themselves.
    roots: HashSet<PathBuf>,
    /// Whose content matters.
    contents: HashSet<PathBuf>,
}

impl FileWatcher {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// The kernel gives no inotify instance.
    pub(super) fn new() -> Result<Self, SourceError> {
        let (sender, touched) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let paths = match event {
                // Opening and reading is what we do ourselves.
                Ok(event) if !is_change(event.kind) => return,
                Ok(event) if event.need_rescan() => Vec::new(),
                Ok(event) => event.paths,
                Err(error) => {
                    warn!("watching manifests: {error}");
                    Vec::new()
                }
            };
            // Fails only when nobody listens any more.
            let _ = sender.send(paths);
        })
        .map_err(SourceError::Watch)?;
        Ok(Self { watcher, touched, watched: HashMap::new(), roots: HashSet::new(), contents: HashSet::new() })
    }

    /// Follows what the catalog reads now, and nothing else. Returns whether a
    /// watch was added: what happened before it was not seen.
    ///
    /// # Errors
    /// The kernel refuses a watch (`fs.inotify.max_user_watches`).
    pub(super) fn follow(&mut self, catalog: &Catalog) -> Result<bool, SourceError> {
        self.roots = catalog.roots().map(Path::to_owned).collect();
        self.contents = catalog.roots().filter(|root| root.is_dir()).map(Path::to_owned).collect();
        for file in catalog.files() {
            self.contents.extend(directory_of(file));
            self.contents.extend(fs::canonicalize(file).ok().and_then(|file| directory_of(&file)));
        }
        let mut wanted = self.contents.clone();
        wanted.extend(self.roots.iter().filter_map(|root| directory_of(root)));
        let gone: Vec<_> = self.watched.keys().filter(|path| !wanted.contains(*path)).cloned().collect();
        for path in gone {
            // Refused if the directory is gone, and the watch with it.
            let _ = self.watcher.unwatch(&path);
            self.watched.remove(&path);
        }
        let mut is_new = false;
        for path in wanted {
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let identity = (metadata.dev(), metadata.ino());
            if self.watched.get(&path) == Some(&identity) {
                continue;
            }
            if self.watched.remove(&path).is_some() {
                let _ = self.watcher.unwatch(&path);
            }
            self.watcher.watch(&path, RecursiveMode::NonRecursive).map_err(SourceError::Watch)?;
            self.watched.insert(path, identity);
            is_new = true;
        }
        Ok(is_new)
    }

    /// Waits until something has changed and come to rest. Cancel safe: what
    /// was noticed before is noticed again by the next rescan, which reads
    /// everything that is new.
    pub(super) async fn changed(&mut self) {
        while let Some(paths) = self.touched.recv().await {
            if self.matters(&paths) {
                break;
            }
        }
        let latest = Instant::now() + LONGEST_BURST;
        let mut quiet = Instant::now() + QUIET;
        while let Ok(Some(paths)) = timeout_at(quiet.min(latest), self.touched.recv()).await {
            if self.matters(&paths) {
                quiet = Instant::now() + QUIET;
            }
        }
    }

    /// The directory above a root may be a busy one, `/tmp` say.
    fn matters(&self, paths: &[PathBuf]) -> bool {
        paths.is_empty()
            || paths.iter().any(|path| {
                self.roots.contains(path)
                    || self.contents.contains(path)
                    || directory_of(path).is_some_and(|directory| self.contents.contains(&directory))
            })
    }
}

fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

/// The directory that holds `path`; `.` for a bare name.
fn directory_of(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}
