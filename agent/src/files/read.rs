//! Reads files of unknown kind, size and file system. A FIFO, a device,
//! `/proc/kmsg` or an endless file causes an error, and nothing more.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use thiserror::Error;

/// The largest file that is read, in bytes.
pub const LARGEST: u64 = 256 << 20;

/// The reason why a file cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system's reason.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is not a regular file.
    #[error("is {0}, and only regular files are read")]
    NotRegular(&'static str),
    /// It is endless or too large.
    #[error("is larger than {} MiB", LARGEST >> 20)]
    TooLarge,
    /// Its end cannot be reached without waiting.
    #[error("does not end: its reader has to wait for more")]
    Endless,
    /// It is not text.
    #[error("not UTF-8 text: {0}")]
    NotText(#[from] std::str::Utf8Error),
    /// It is a link to a missing file.
    #[error("is a link to a file that does not exist")]
    Dangling,
    /// Its file system does not answer.
    #[error("its file system has not answered within {0:?}")]
    Hangs(Duration),
}

impl ReadError {
    /// Returns whether the error may pass without a change to the file: no
    /// descriptor or memory is available, an I/O error, a stale network handle.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io(error) => is_transient(error),
            Self::Hangs(_) => true,
            Self::NotRegular(_) | Self::TooLarge | Self::Endless | Self::NotText(_) | Self::Dangling => false,
        }
    }

    /// Returns whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Returns whether a file's error may pass without a change to the file. An
/// error that follows from the file's name, kind or mode does not.
pub fn is_transient(error: &io::Error) -> bool {
    let lasting =
        [libc::ENOENT, libc::EACCES, libc::EPERM, libc::ELOOP, libc::ENAMETOOLONG, libc::ENOTDIR, libc::EISDIR];
    error.raw_os_error().is_some_and(|errno| !lasting.contains(&errno))
}

/// Repeats an operation that fails for lack of a descriptor or memory, or
/// because of a signal: four more times, within a third of a second. It blocks,
/// and is meant for the start.
///
/// # Errors
/// The last one.
pub fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::EAGAIN];
    for wait in [20, 40, 80, 160] {
        match attempt() {
            Err(error) if error.raw_os_error().is_some_and(|errno| passing.contains(&errno)) => {
                std::thread::sleep(Duration::from_millis(wait));
            }
            outcome => return outcome,
        }
    }
    attempt()
}

/// Reads a regular file that is no larger than [`LARGEST`]. The file is checked
/// before it is opened, because opening a device may have side effects.
///
/// # Errors
/// If it cannot be read, or is no text file.
pub fn read(path: &Path) -> Result<(Metadata, String), ReadError> {
    check(&std::fs::metadata(path)?)?;
    // Do not wait for the other end of a FIFO that has replaced the file meanwhile.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    check(&metadata)?;
    let bytes = read_up_to(&mut file, &metadata)?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((metadata, text)),
        Err(error) => Err(error.utf8_error().into()),
    }
}

fn check(metadata: &Metadata) -> Result<(), ReadError> {
    if !metadata.is_file() {
        return Err(ReadError::NotRegular(kind(metadata.file_type())));
    }
    if metadata.len() > LARGEST { Err(ReadError::TooLarge) } else { Ok(()) }
}

/// The size is only a hint: a file of `/proc` has none, and others grow.
fn read_up_to(file: &mut File, metadata: &Metadata) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    match file.take(LARGEST + 1).read_to_end(&mut bytes) {
        Ok(_) if bytes.len() as u64 > LARGEST => Err(ReadError::TooLarge),
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(ReadError::Endless),
        Err(error) => Err(error.into()),
    }
}

fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        "a directory"
    } else if of.is_fifo() {
        "a FIFO"
    } else if of.is_socket() {
        "a socket"
    } else if of.is_char_device() || of.is_block_device() {
        "a device"
    } else {
        "no file"
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_called_by_its_kind() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let fifo = directory.join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
        let socket = directory.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, kind) in [
            (fifo.as_path(), "a FIFO"),
            (&socket, "a socket"),
            (directory, "a directory"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            let error = read(path).unwrap_err();
            assert!(error.to_string().contains(kind), "{}: {error}", path.display());
            assert!(!error.is_transient());
        }
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let sparse = directory.join("sparse.yaml");
        File::create(&sparse).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(matches!(read(&sparse), Err(ReadError::TooLarge)));
    }

    #[test]
    fn a_link_to_itself_and_bytes_that_are_no_text_are_lasting_errors() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path();
        let (link, binary) = (directory.join("loop"), directory.join("binary"));
        std::os::unix::fs::symlink(&link, &link).unwrap();
        fs::write(&binary, [0xff, 0xfe]).unwrap();
        for path in [&link, &binary] {
            assert!(!read(path).unwrap_err().is_transient());
        }
    }

    #[test]
    fn what_fails_for_the_moment_is_tried_again() {
        let mut failures = 2;
        let outcome = patiently(|| {
            failures -= 1;
            if failures >= 0 { Err(io::Error::from_raw_os_error(libc::EMFILE)) } else { Ok(7) }
        });
        assert_eq!(outcome.unwrap(), 7);
        let mut attempts = 0;
        let outcome: io::Result<()> = patiently(|| {
            attempts += 1;
            Err(io::Error::from_raw_os_error(libc::EACCES))
        });
        assert!(outcome.is_err() && attempts == 1);
    }

    #[test]
    fn what_may_be_over_by_itself_is_transient() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::EIO, libc::ESTALE, libc::ENOMEM, libc::EINTR, libc::ENOSPC] {
            assert!(ReadError::from(io::Error::from_raw_os_error(errno)).is_transient(), "{errno}");
        }
        for errno in [libc::ENOENT, libc::EACCES, libc::ELOOP] {
            assert!(!ReadError::from(io::Error::from_raw_os_error(errno)).is_transient(), "{errno}");
        }
    }
}
