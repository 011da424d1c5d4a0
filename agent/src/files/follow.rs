//! Follows one file: the configuration, at whose change the process ends with an
//! error, as kube-proxy does, to be started again with the new file; and
//! `/etc/resolv.conf`.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::backoff::Backoff;
use super::read::{self, ReadError};
use super::watch::FileWatch;

/// Shortest time between two checks of a directory whose files change
/// constantly.
const QUIET: Duration = Duration::from_millis(50);

/// Maximum number of attempts to resolve the paths to watch. Links may change at
/// any time, so the result may differ from the watched paths.
const MOST_LOOKS: usize = 8;

/// The reason why the file cannot be followed at present.
#[derive(Debug, Error)]
enum WatchError {
    #[error("it cannot be watched for changes: {0}")]
    Watch(#[source] io::Error),
    #[error("it cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("no thread could be created to read it: {0}")]
    Thread(#[source] io::Error),
}

/// Returns when the file's content differs from that at the time of the call.
///
/// The file itself is watched, which also shows its replacement. Its directory,
/// which may be a busy one, is watched only where that is not enough: a mounted
/// ConfigMap changes when a symbolic link points to another directory. A file
/// that is missing or unreadable for a moment counts as unchanged. A failure is
/// logged once, and the operation is tried again.
pub async fn changed(path: &Path) {
    let mut follower = Follower { path, watch: None, original: None };
    let mut backoff = Backoff::default();
    let mut was_told = false;
    loop {
        match follower.wait().await {
            Ok(true) => return,
            Ok(false) => {
                backoff.reset();
                was_told = false;
            }
            Err(error) => {
                let wait = backoff.next_wait();
                if !std::mem::replace(&mut was_told, true) {
                    tracing::warn!("{}: {error}; trying again in {wait:?} and then less often", path.display());
                }
                tokio::time::sleep(wait).await;
            }
        }
    }
}

struct Follower<'a> {
    path: &'a Path,
    watch: Option<FileWatch>,
    original: Option<String>,
}

impl Follower<'_> {
    /// Checks the file, and waits for the next event near it unless it has
    /// changed.
    async fn wait(&mut self) -> Result<bool, WatchError> {
        // Before the check, so that no event is missed in between.
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(FileWatch::new().map_err(WatchError::Watch)?),
        };
        for _ in 0..MOST_LOOKS {
            if !watch.set(&paths_around(self.path)).map_err(WatchError::Watch)? {
                break;
            }
        }
        match (read_aside(self.path.to_owned()).await, &self.original) {
            (Ok(text), Some(original)) if !text.is_empty() && text != *original => return Ok(true),
            (Ok(text), None) => self.original = Some(text),
            (Err(WatchError::Read(error)), Some(_)) if !error.is_transient() => {}
            (Ok(_), Some(_)) => {}
            (Err(error), _) => return Err(error),
        }
        if let Err(error) = watch.next().await {
            self.watch = None;
            return Err(WatchError::Watch(error));
        }
        tokio::time::sleep(QUIET).await;
        Ok(false)
    }
}

fn paths_around(path: &Path) -> HashSet<PathBuf> {
    let target = std::fs::canonicalize(path).ok();
    let mut paths = HashSet::from([path.to_owned()]);
    if target.is_some() && target == std::path::absolute(path).ok() {
        return paths;
    }
    for path in [Some(path), target.as_deref()].into_iter().flatten() {
        paths.insert(path.to_owned());
        paths.insert(match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        });
    }
    paths
}

/// On a separate thread, because the file system may not answer, and nothing
/// else must wait for it.
async fn read_aside(path: PathBuf) -> Result<String, WatchError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let work = move || {
        // Fails only if the receiver is gone.
        let _ = sender.send(read::read(&path));
    };
    std::thread::Builder::new().name("file-reader".to_owned()).spawn(work).map_err(WatchError::Thread)?;
    match receiver.await {
        Ok(read) => Ok(read?.1),
        Err(_) => Err(WatchError::Read(io::Error::other("its reader ended early").into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Starts to follow `file`, changes it once, and waits until the change is
    /// noticed.
    fn sees(file: &Path, change: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut follower = Follower { path: file, watch: None, original: None };
            // The first check reads the content and waits.
            while follower.original.is_none() {
                let waiting = std::pin::pin!(follower.wait());
                let _ = tokio::time::timeout(Duration::from_millis(20), waiting).await;
            }
            change();
            let seen = async { while !follower.wait().await.unwrap() {} };
            tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap();
        });
    }

    #[test]
    fn a_file_that_is_written_has_changed() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let file = directory.join("config.conf");
        fs::write(&file, "old").unwrap();
        sees(&file, || fs::write(&file, "new").unwrap());
    }

    #[test]
    fn a_file_that_another_one_replaces_has_changed() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let (file, fresh) = (directory.join("config.conf"), directory.join("fresh"));
        fs::write(&file, "old").unwrap();
        sees(&file, || {
            fs::write(&fresh, "new").unwrap();
            fs::rename(&fresh, &file).unwrap();
        });
    }

    #[test]
    fn a_config_map_that_is_updated_has_changed() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        for (version, content) in [("1", "old"), ("2", "new")] {
            fs::create_dir_all(directory.join(version)).unwrap();
            fs::write(directory.join(version).join("config.conf"), content).unwrap();
        }
        symlink("1", directory.join("..data")).unwrap();
        symlink("..data/config.conf", directory.join("config.conf")).unwrap();
        sees(&directory.join("config.conf"), || {
            symlink("2", directory.join("..data_tmp")).unwrap();
            fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        });
    }

    #[test]
    fn a_link_to_a_file_elsewhere_is_followed_there() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (directory.path().join("config.conf"), elsewhere.path().join("config.conf"));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        sees(&link, || fs::write(&file, "new").unwrap());
    }
}
