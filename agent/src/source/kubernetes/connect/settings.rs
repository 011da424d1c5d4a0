//! The settings for reaching an API server, from any source.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue, Uri};
use secrecy::SecretString;

use super::exec::Exec;
use super::proxy::Proxy;

/// The connection to the API server.
#[derive(Debug)]
pub(super) struct Settings {
    /// Scheme, host, port, and a path in front of every request's.
    pub(super) server: Uri,
    pub(super) proxy: Option<Proxy>,
    pub(super) trust: Trust,
    /// The name that the server's certificate must have, instead of the host.
    pub(super) server_name: Option<String>,
    pub(super) identity: Option<Identity>,
    pub(super) credentials: Credentials,
    /// `Impersonate-…`
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

/// PEM text.
#[derive(Debug, Clone)]
pub(super) enum Pem {
    /// Read again for every connection, because files are rotated.
    File(PathBuf),
    Inline(Vec<u8>),
}

/// The trust anchors for a server's certificate.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// The certificate authorities of the machine.
    System,
    These(Pem),
    /// `insecure-skip-tls-verify`
    Anybody,
}

/// A client certificate and its key.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) certificate: Pem,
    pub(super) key: Pem,
}

/// The `Authorization` header of a request.
#[derive(Debug)]
pub(super) enum Credentials {
    None,
    Basic(String, SecretString),
    Token(SecretString),
    /// Read again every minute; the token beside it is used while the file
    /// can't be read.
    TokenFile(PathBuf, Option<SecretString>),
    Exec(Box<Exec>),
}

/// No certificate, key or token is larger.
const LARGEST: u64 = 4 * 1024 * 1024;

impl Pem {
    /// The text.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::File(path) => read_file(path),
            Self::Inline(text) => Ok(text.clone()),
        }
    }

    /// Its place, for messages.
    pub(super) fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Inline(_) => "the kubeconfig".to_owned(),
        }
    }
}

/// Reads a small plain file. A FIFO would wait for ever, a device never end.
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let kind = std::fs::metadata(path)?;
    if !kind.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file"));
    }
    let mut content = Vec::new();
    File::open(path)?.take(LARGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB"));
    }
    Ok(content)
}
