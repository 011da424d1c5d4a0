//! Waits for changes below some directories, by inotify.
//!
//! Only events that can change a file are requested. Opening, reading and
//! closing are not: the agent does that itself, and each check would cause the
//! next. Nothing is queued here. The kernel's queue is bounded
//! (`fs.inotify.max_queued_events`), joins equal events, and reports when it
//! has lost some.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Events that can replace a file or change its content.
fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        // Also permissions.
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
}

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Touched {
    /// Something happened to these paths, each at least once.
    Paths(BTreeSet<PathBuf>),
    /// The kernel has lost events: anything may have changed.
    Anything,
}

/// Watches directories and files.
#[derive(Debug)]
pub struct FileWatch {
    inotify: AsyncFd<Descriptor>,
    /// Every path of a watched inode.
    watched: HashMap<WatchDescriptor, BTreeSet<PathBuf>>,
    /// Requested paths that do not exist.
    missing: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl FileWatch {
    /// Creates a watcher without paths. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The kernel gives no inotify instance: no descriptor, no memory, or
    /// `fs.inotify.max_user_instances`.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        // SAFETY: the descriptor that `Descriptor` names is its own, the same at every call, and closed only with it.
        let inotify = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) }?;
        Ok(Self { inotify, watched: HashMap::new(), missing: BTreeSet::new() })
    }

    /// Watches these paths and no others; missing paths are skipped. Returns
    /// whether the caller has to check again because a change may have caused
    /// no event: a path is watched that was not before, or one is missing that
    /// was not. A directory that was deleted and created again is a different
    /// one.
    ///
    /// # Errors
    /// If the kernel refuses a watch (`fs.inotify.max_user_watches`, no
    /// memory). The other paths are watched.
    pub fn set(&mut self, wanted: &HashSet<PathBuf>) -> io::Result<bool> {
        let mut watched: HashMap<WatchDescriptor, BTreeSet<PathBuf>> = HashMap::new();
        let mut missing = BTreeSet::new();
        let mut refused = None;
        for path in wanted {
            match self.inotify.get_ref().0.add_watch(path, changes()) {
                Ok(watch) => {
                    watched.entry(watch).or_default().insert(path.clone());
                }
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP | Errno::ENAMETOOLONG) => {
                    missing.insert(path.clone());
                }
                Err(errno) => refused = Some(errno),
            }
        }
        for watch in self.watched.keys().filter(|watch| !watched.contains_key(watch)) {
            // Refused if the watched path, and the watch with it, is gone.
            let _ = self.inotify.get_ref().0.rm_watch(*watch);
        }
        let is_known = |(watch, paths): (&WatchDescriptor, &BTreeSet<PathBuf>)| {
            self.watched.get(watch).is_some_and(|known| paths.is_subset(known))
        };
        let is_new = !watched.iter().all(is_known) || !missing.is_subset(&self.missing);
        self.watched = watched;
        self.missing = missing;
        match refused {
            Some(errno) => Err(errno.into()),
            None => Ok(is_new),
        }
    }

    /// Waits for the next changes. Cancel safe.
    ///
    /// # Errors
    /// If the inotify descriptor fails.
    pub async fn next(&mut self) -> io::Result<Touched> {
        loop {
            let events = {
                let mut ready = self.inotify.readable().await?;
                match ready.try_io(|inotify| Ok(inotify.get_ref().0.read_events()?)) {
                    Ok(events) => events?,
                    Err(_would_block) => continue,
                }
            };
            match self.touched(events) {
                Touched::Paths(paths) if paths.is_empty() => {}
                touched => return Ok(touched),
            }
        }
    }

    fn touched(&mut self, events: Vec<InotifyEvent>) -> Touched {
        let mut touched = BTreeSet::new();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                return Touched::Anything;
            }
            let Some(paths) = self.watched.get(&event.wd) else { continue };
            match &event.name {
                Some(name) => touched.extend(paths.iter().map(|path| path.join(name))),
                None => touched.extend(paths.iter().cloned()),
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                self.watched.remove(&event.wd);
            }
        }
        Touched::Paths(touched)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::Future;
    use std::time::Duration;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), test).await.unwrap() });
    }

    fn only(path: &std::path::Path) -> Touched {
        Touched::Paths([path.to_owned()].into())
    }

    #[test]
    fn reading_is_no_change_and_writing_is() {
        run(async {
            let temporary = tempfile::tempdir().unwrap();
            let directory = temporary.path();
            let (read, written) = (directory.join("read"), directory.join("written"));
            fs::write(&read, "text").unwrap();
            let mut watch = FileWatch::new().unwrap();
            assert!(watch.set(&[directory.to_owned()].into()).unwrap());
            assert!(!watch.set(&[directory.to_owned()].into()).unwrap());
            for _ in 0..100 {
                fs::read(&read).unwrap();
                fs::read_dir(directory).unwrap().for_each(drop);
            }
            fs::write(&written, "text").unwrap();
            // If the reads had caused events, they would come first.
            assert_eq!(watch.next().await.unwrap(), only(&written));
        });
    }

    #[test]
    fn a_directory_that_was_made_again_is_a_new_one() {
        run(async {
            let temporary = tempfile::tempdir().unwrap();
            let directory = temporary.path();
            let inner = directory.join("inner");
            fs::create_dir(&inner).unwrap();
            let mut watch = FileWatch::new().unwrap();
            watch.set(&[inner.clone()].into()).unwrap();
            fs::remove_dir(&inner).unwrap();
            assert_eq!(watch.next().await.unwrap(), only(&inner));
            // A caller that checked just before the deletion has not noticed it, so it is reported once.
            assert!(watch.set(&[inner.clone()].into()).unwrap());
            assert!(!watch.set(&[inner.clone()].into()).unwrap());
            fs::create_dir(&inner).unwrap();
            assert!(watch.set(&[inner.clone()].into()).unwrap());
            fs::write(inner.join("file"), "").unwrap();
            assert_eq!(watch.next().await.unwrap(), only(&inner.join("file")));
        });
    }
}
