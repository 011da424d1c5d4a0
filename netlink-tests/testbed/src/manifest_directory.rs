//! A directory of manifests that goes with the test.
//!
//! Every method panics where it can't go on: the test has failed then.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

/// The directory, removed when dropped.
#[derive(Debug)]
pub struct ManifestDirectory(TempDir);

impl Default for ManifestDirectory {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestDirectory {
    /// An empty one.
    ///
    /// # Panics
    ///
    /// If it can't be made.
    pub fn new() -> Self {
        let made = tempfile::Builder::new().prefix("vmap-proxy-manifests-").tempdir();
        Self(made.unwrap_or_else(|error| panic!("{error}")))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file at one stroke, as editors do.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    pub fn write(&self, name: &str, text: &str) {
        let (fresh, path) = (self.path().join(format!(".{name}")), self.path().join(name));
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Writes objects as one file of JSON documents.
    ///
    /// # Panics
    ///
    /// If it can't be written.
    pub fn write_objects(&self, name: &str, objects: &[Value]) {
        self.write(name, &objects.iter().map(|object| format!("{object}\n")).collect::<String>());
    }

    /// Deletes a file.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub fn remove(&self, name: &str) {
        let path = self.path().join(name);
        fs::remove_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
