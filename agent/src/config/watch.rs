//! Follows the configuration file: kube-proxy ends with an error when it
//! changes, to be started again with the new one.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::files::backoff::Backoff;
use crate::files::read::{self, ReadError};
use crate::files::watch::FileWatch;

/// A directory whose files change all the time is looked at no more often.
const QUIET: Duration = Duration::from_millis(50);

/// The places to watch are looked up until they are what is watched, but no more
/// often than this: links may change all the time.
const MOST_LOOKS: usize = 8;

/// Why the file can't be followed at present.
#[derive(Debug, Error)]
enum WatchError {
    #[error("the configuration file cannot be watched for changes: {0}")]
    Watch(#[source] io::Error),
    #[error("the configuration file cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("no thread can be had to read the configuration file with: {0}")]
    Thread(#[source] io::Error),
}

/// Resolves when the file's content is no longer what it was at the call.
///
/// The file itself is watched: that also tells when another one takes its place.
/// Its directory, which may be a busy one, is watched where it does not: a
/// mounted ConfigMap changes by another directory taking the old one's place
/// behind a symbolic link. A file that is gone or can't be read for a moment
/// has not changed. What fails is logged once and tried again.
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
    /// Looks at the file, and waits until something happens around it unless it
    /// has changed.
    async fn wait(&mut self) -> Result<bool, WatchError> {
        // Before the look, so that nothing is missed in between.
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

/// On a thread of its own: the file system may not answer, and nothing else
/// waits for that.
async fn read_aside(path: PathBuf) -> Result<String, WatchError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let work = move || {
        // Fails only when nobody waits any more.
        let _ = sender.send(read::read(&path));
    };
    std::thread::Builder::new().name("configuration".to_owned()).spawn(work).map_err(WatchError::Thread)?;
    match receiver.await {
        Ok(read) => Ok(read?.1),
        Err(_) => Err(WatchError::Read(io::Error::other("its reader ended early").into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Starts to follow `file`, changes it once, and waits until that is seen.
    fn sees(file: &Path, change: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut follower = Follower { path: file, watch: None, original: None };
            // The first look takes the content and waits.
            while follower.original.is_none() {
                let waiting = std::pin::pin!(follower.wait());
                let _ = tokio::time::timeout(Duration::from_millis(20), waiting).await;
            }
            change();
            let seen = async { while !follower.wait().await.unwrap() {} };
            tokio::time::timeout(Duration::from_secs(30), seen).await.unwrap();
        });
    }

    fn directory(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("vmap-proxy-watch-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_file_that_is_written_has_changed() {
        let directory = directory("file");
        let file = directory.join("config.conf");
        fs::write(&file, "old").unwrap();
        sees(&file, || fs::write(&file, "new").unwrap());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_another_one_replaces_has_changed() {
        let directory = directory("replaced");
        let (file, fresh) = (directory.join("config.conf"), directory.join("fresh"));
        fs::write(&file, "old").unwrap();
        sees(&file, || {
            fs::write(&fresh, "new").unwrap();
            fs::rename(&fresh, &file).unwrap();
        });
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_config_map_that_is_updated_has_changed() {
        let directory = directory("config-map");
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
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_link_to_a_file_elsewhere_is_followed_there() {
        let (directory, elsewhere) = (directory("link"), directory("elsewhere"));
        let (link, file) = (directory.join("config.conf"), elsewhere.join("config.conf"));
        fs::write(&file, "old").unwrap();
        symlink(&file, &link).unwrap();
        sees(&link, || fs::write(&file, "new").unwrap());
        fs::remove_dir_all(directory).unwrap();
        fs::remove_dir_all(elsewhere).unwrap();
    }
}
