//! Reads files on a separate thread, and waits for each only as long as a
//! working file system takes. A file on a hung file system affects only itself.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::files::read::{self, ReadError};
use crate::files::stamp::Stamp;

use super::watch::directory_of;

/// Longest time of a file system for one file.
const PATIENCE: Duration = Duration::from_secs(10);

/// Maximum number of waiting results, each of which may hold a file.
const AHEAD: usize = 4;

/// Maximum number of hung threads at a time; further files are not tried.
const MOST_STUCK: usize = 64;

/// The extensions that are read in a directory, as `kubectl apply -f` does.
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// Looks at files, one after the other.
#[derive(Debug)]
pub(super) struct Reader {
    patience: Duration,
    /// Files whose file system has not answered yet, and the waiting threads.
    stuck: HashMap<PathBuf, JoinHandle<()>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { patience: PATIENCE, stuck: HashMap::new() }
    }
}

/// The path to check, and its known state.
pub(super) type Job<J> = (PathBuf, J);

impl Reader {
    /// Does `work` for each job on another thread and hands the results to
    /// `take`, in order, on this one. If no thread can be created, this one
    /// does both.
    pub(super) fn each<J, R>(
        &mut self,
        jobs: Vec<Job<J>>,
        work: impl Fn(&Path, &J) -> Result<R, ReadError> + Clone + Send + 'static,
        mut take: impl FnMut(&Path, Result<R, ReadError>),
    ) where
        J: Send + Sync + 'static,
        R: Send + 'static,
    {
        self.stuck.retain(|_, thread| !thread.is_finished());
        let jobs = Arc::new(jobs);
        let mut next = 0;
        while next < jobs.len() {
            if self.is_stuck(&jobs[next].0) {
                take(&jobs[next].0, Err(ReadError::Hangs(self.patience)));
                next += 1;
                continue;
            }
            let end = (next..jobs.len()).find(|&at| self.is_stuck(&jobs[at].0)).unwrap_or(jobs.len());
            next = self.run(&jobs, next..end, work.clone(), &mut take);
        }
    }

    fn is_stuck(&self, path: &Path) -> bool {
        self.stuck.len() >= MOST_STUCK || self.stuck.contains_key(path)
    }

    /// Returns how far it came: to the end of `range`, or past one that hangs.
    fn run<J, R>(
        &mut self,
        jobs: &Arc<Vec<Job<J>>>,
        range: std::ops::Range<usize>,
        work: impl Fn(&Path, &J) -> Result<R, ReadError> + Clone + Send + 'static,
        take: &mut impl FnMut(&Path, Result<R, ReadError>),
    ) -> usize
    where
        J: Send + Sync + 'static,
        R: Send + 'static,
    {
        let (sender, receiver) = sync_channel(AHEAD);
        let (theirs, their_work, their_range) = (jobs.clone(), work.clone(), range.clone());
        let look = move || {
            for (path, known) in &theirs[their_range] {
                if sender.send(their_work(path, known)).is_err() {
                    // It took too long, and the receiver is gone.
                    return;
                }
            }
        };
        let Ok(thread) = thread::Builder::new().name("manifests".to_owned()).spawn(look) else {
            for (path, known) in &jobs[range.clone()] {
                take(path, work(path, known));
            }
            return range.end;
        };
        for at in range.clone() {
            let path = &jobs[at].0;
            match receiver.recv_timeout(self.patience) {
                Ok(result) => take(path, result),
                Err(RecvTimeoutError::Timeout) => {
                    take(path, Err(ReadError::Hangs(self.patience)));
                    self.stuck.insert(path.clone(), thread);
                    return at + 1;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    take(path, Err(io::Error::other("its reader ended early").into()));
                    return at + 1;
                }
            }
        }
        range.end
    }
}

/// The meaning of a path given by the operator.
#[derive(Debug)]
pub(super) struct Listing {
    /// Whether it is a directory.
    pub(super) is_directory: bool,
    /// Whether it is reached through a link.
    pub(super) is_linked: bool,
    /// The files behind it, by name.
    pub(super) files: Vec<PathBuf>,
}

/// The files behind a path: itself, or those of the directory (not of its
/// subdirectories) that look like manifests, by name. Hidden files are left
/// out: editors put their own there. What they are is found out by reading.
pub(super) fn list(path: &Path, (): &()) -> Result<Listing, ReadError> {
    let is_linked = behind_links(path).is_some();
    if !fs::metadata(path)?.is_dir() {
        return Ok(Listing { is_directory: false, is_linked, files: vec![path.to_owned()] });
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let path = entry.path();
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_manifest = path.extension().is_some_and(|found| EXTENSIONS.iter().any(|wanted| found == *wanted));
        // Symbolic links are followed: a mounted ConfigMap consists of them.
        if is_manifest && !is_hidden && !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(Listing { is_directory: true, is_linked, files })
}

/// The target of the path, if it is a link.
fn behind_links(path: &Path) -> Option<PathBuf> {
    let target = fs::canonicalize(path).ok()?;
    std::path::absolute(path).is_ok_and(|path| path != target).then_some(target)
}

/// The change of a file since it was last read.
#[derive(Debug)]
pub(super) enum Found {
    /// It is the same.
    Unchanged,
    /// It was read.
    Text(FileText),
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct FileText {
    /// See [`Stamp::of`].
    pub(super) stamp: Option<Stamp>,
    /// Its content.
    pub(super) text: String,
    /// The directory in which it really is, if links lead there.
    pub(super) directory: Option<PathBuf>,
}

/// Reads a file unless it is unchanged.
pub(super) fn read(path: &Path, known: &Option<Stamp>) -> Result<Found, ReadError> {
    let metadata = fs::metadata(path).map_err(|error| explain(path, error))?;
    let stamp = Stamp::of(&metadata);
    if stamp.is_some() && stamp == *known {
        return Ok(Found::Unchanged);
    }
    // The stamp is taken first, so that a concurrent write yields another one.
    let (_, text) = read::read(path)?;
    let directory = behind_links(path).and_then(|file| directory_of(&file));
    Ok(Found::Text(FileText { stamp, text, directory }))
}

fn explain(path: &Path, error: io::Error) -> ReadError {
    let is_link = || fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    if error.kind() == io::ErrorKind::NotFound && is_link() { ReadError::Dangling } else { error.into() }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn outcomes(reader: &mut Reader, hung: &Arc<Mutex<Receiver<()>>>) -> Vec<String> {
        let jobs = ["a", "hung", "b", "c"].map(|name| (PathBuf::from(name), ())).to_vec();
        let hung = hung.clone();
        let work = move |path: &Path, (): &()| {
            if path == Path::new("hung") {
                // Until the other end is dropped.
                let _ = hung.lock().unwrap().recv();
            }
            Ok(path.display().to_string())
        };
        let mut outcomes = Vec::new();
        reader.each(jobs, work, |path, result: Result<String, _>| {
            outcomes.push(result.unwrap_or_else(|error| format!("{}: {error}", path.display())));
        });
        outcomes
    }

    #[test]
    fn a_file_that_hangs_is_passed_over_until_its_file_system_answers() {
        let (sender, receiver) = channel::<()>();
        let receiver = Arc::new(Mutex::new(receiver));
        // Long enough for the other files on a machine that is busy.
        let mut reader = Reader { patience: Duration::from_secs(3), ..Reader::default() };
        for _ in 0..2 {
            let outcomes = outcomes(&mut reader, &receiver);
            assert_eq!(outcomes[0], "a");
            assert!(outcomes[1].contains("hung: its file system has not answered"), "{outcomes:?}");
            assert_eq!(outcomes[2..], ["b", "c"]);
            assert_eq!(reader.stuck.len(), 1, "no second thread waits for it");
        }
        drop(sender);
        reader.patience = PATIENCE;
        while reader.stuck.values().any(|thread| !thread.is_finished()) {
            thread::yield_now();
        }
        assert_eq!(outcomes(&mut reader, &receiver), ["a", "hung", "b", "c"]);
    }
}
