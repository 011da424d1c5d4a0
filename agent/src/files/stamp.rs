//! Detects whether a file has changed since it was read, without reading it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

/// A file this young may change again without a new timestamp: kernel
/// timestamps advance by ticks of up to 10 ms, some file systems by 2 s.
const TIMESTAMP_GRANULARITY: Duration = Duration::from_secs(2);

/// The attributes that change with a file's content: its identity, size and
/// times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Returns `None` if the timestamps prove nothing: the file is so young
    /// that a further change might not alter them.
    pub fn of(metadata: &Metadata) -> Option<Self> {
        let changed =
            u64::try_from(metadata.ctime()).ok().map(|secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs))?;
        if SystemTime::now().duration_since(changed).ok()? < TIMESTAMP_GRANULARITY {
            return None;
        }
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}
