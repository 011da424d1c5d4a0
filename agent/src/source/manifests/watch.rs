//! Reports that manifests may have changed; the catalog finds out which.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::files::watch::{FileWatch, Touched};

/// Programs write a file in several steps; events within this time belong to
/// the same change.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never comes to rest is read this often.
const LONGEST_BURST: Duration = Duration::from_secs(1);

/// The source of the manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// The requested paths. Each is watched itself, which shows its removal or
    /// replacement.
    pub(super) roots: HashSet<PathBuf>,
    /// Directories of roots that may appear, or be replaced behind a link. Only
    /// events about the roots count, because other files there may change
    /// often.
    pub(super) parents: HashSet<PathBuf>,
    /// Directories whose content matters.
    pub(super) contents: HashSet<PathBuf>,
}

impl Places {
    /// Directories rather than the files in them: a file that is replaced by a
    /// rename, or reached through a link that is swapped (as a mounted ConfigMap
    /// is), is another file afterwards.
    fn watched(&self) -> HashSet<PathBuf> {
        self.roots.iter().chain(&self.parents).chain(&self.contents).cloned().collect()
    }

    fn concern(&self, touched: &Touched) -> bool {
        let Touched::Paths(paths) = touched else { return true };
        paths.iter().any(|path| {
            self.roots.contains(path)
                || self.contents.contains(path)
                || directory_of(path).is_some_and(|directory| self.contents.contains(&directory))
        })
    }
}

/// Watches the places of the manifests.
#[derive(Debug, Default)]
pub(super) struct FileWatcher {
    /// `None`: none could be had yet, or it has failed.
    watch: Option<FileWatch>,
    places: Places,
}

impl FileWatcher {
    /// Follows these places, and no others. Returns whether a watch was added,
    /// because earlier events were not seen then.
    ///
    /// # Errors
    /// The kernel refuses an inotify instance or a watch. Worth another try.
    pub(super) fn follow(&mut self, places: Places) -> io::Result<bool> {
        self.places = places;
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(FileWatch::new()?),
        };
        watch.set(&self.places.watched())
    }

    /// Waits until something has changed and come to rest. Cancel safe: the
    /// next rescan reads everything new, including changes noticed before.
    pub(super) async fn changed(&mut self) {
        while !self.touched().await {}
        let latest = Instant::now() + LONGEST_BURST;
        let mut quiet = Instant::now() + QUIET;
        while let Ok(matters) = timeout_at(quiet.min(latest), self.touched()).await {
            if matters {
                quiet = Instant::now() + QUIET;
            }
        }
    }

    /// Waits until anything has happened, and returns whether it matters.
    async fn touched(&mut self) -> bool {
        let Some(watch) = &mut self.watch else { return std::future::pending().await };
        match watch.next().await {
            Ok(touched) => self.places.concern(&touched),
            Err(error) => {
                tracing::warn!("watching manifests failed, they are looked at again now: {error}");
                self.watch = None;
                true
            }
        }
    }
}

/// The directory that holds `path`; `.` for a bare name.
pub(super) fn directory_of(path: &Path) -> Option<PathBuf> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
}
