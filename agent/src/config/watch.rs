//! Follows the configuration file: kube-proxy ends with an error when it
//! changes, to be started again with the new one.

use std::fs;
use std::path::Path;

use notify::{RecursiveMode, Watcher};
use thiserror::Error;
use tokio::sync::mpsc;

/// Why the file can't be followed.
#[derive(Debug, Error)]
pub enum WatchError {
    /// The system does not tell about its changes.
    #[error("the configuration file cannot be watched for changes: {0}")]
    Watch(#[from] notify::Error),
    /// It can't be read.
    #[error("the configuration file cannot be read: {0}")]
    Read(#[from] std::io::Error),
}

/// Resolves when the file's content is no longer what it was at the call.
///
/// The directory is watched, not the file: a mounted ConfigMap changes by
/// another directory taking the old one's place behind a symbolic link. A file
/// that is gone or can't be read for a moment has not changed.
///
/// # Errors
/// If it can't be read, or not be watched.
pub async fn changed(path: &Path) -> Result<(), WatchError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |event| {
        // Nobody listens any more once this has resolved.
        let _ = sender.send(event);
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    let original = fs::read(path)?;
    while let Some(event) = events.recv().await {
        // Which event it was does not matter, the content decides.
        event?;
        if fs::read(path).is_ok_and(|content| !content.is_empty() && content != original) {
            return Ok(());
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// Starts to follow `file`, changes it once, and waits to be told.
    fn told_of(file: &Path, change: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut changed = std::pin::pin!(changed(file));
            // The first poll sets the watch up.
            assert!(futures::poll!(&mut changed).is_pending());
            change();
            tokio::time::timeout(Duration::from_secs(30), changed).await.unwrap().unwrap();
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
        told_of(&file, || fs::write(&file, "new").unwrap());
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
        told_of(&directory.join("config.conf"), || {
            symlink("2", directory.join("..data_tmp")).unwrap();
            fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        });
        fs::remove_dir_all(directory).unwrap();
    }
}
