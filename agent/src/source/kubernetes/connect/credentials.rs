//! The credentials of requests, renewed as they expire.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use secrecy::ExposeSecret;
use thiserror::Error;
use tokio::time::Instant;

use super::exec::ExecError;
use super::proxy::basic;
use super::settings::{Credentials, Identity, read_file};

/// Maximum age of a token from a file. The kubelet renews it at 80 % of its
/// hour.
const TOKEN_AGE: Duration = Duration::from_secs(60);

/// The reason why a request has no credentials.
#[derive(Debug, Error)]
pub enum CredentialError {
    /// The token file can't be read.
    #[error("can't read the token in {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The token file holds no token.
    #[error("{} holds no token", .0.display())]
    NoToken(PathBuf),
    /// User or password can't be sent.
    #[error("user name or password can't be sent in a header")]
    Basic,
    /// The plugin.
    #[error("the credential plugin: {0}")]
    Exec(#[from] ExecError),
}

/// Knows the current credentials.
#[derive(Debug)]
pub(super) struct Authorizer {
    credentials: Credentials,
    /// The token of the file, and when it was read.
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

/// The header to send, and the client certificate.
#[derive(Debug, Default)]
pub(super) struct Authorization {
    pub(super) header: Option<HeaderValue>,
    pub(super) identity: Option<Identity>,
}

impl Authorizer {
    /// Reads nothing yet.
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, token: Mutex::new(None) }
    }

    /// The current credentials.
    pub(super) async fn current(&self) -> Result<Authorization, CredentialError> {
        let header = match &self.credentials {
            Credentials::None => None,
            Credentials::Basic(user, password) => {
                Some(basic(user, password.expose_secret()).ok_or(CredentialError::Basic)?)
            }
            // Checked when the kubeconfig was read.
            Credentials::Token(token) => bearer(token.expose_secret()),
            Credentials::TokenFile(path, fallback) => {
                let fallback = fallback.as_ref().and_then(|token| bearer(token.expose_secret()));
                Some(self.file_token(path, fallback)?)
            }
            Credentials::Exec(exec) => {
                let credential = exec.credential().await?;
                return Ok(Authorization { header: credential.token, identity: credential.identity });
            }
        };
        Ok(Authorization { header, identity: None })
    }

    /// The server has answered 401: the known credentials are too old.
    pub(super) async fn refused(&self) {
        if let Credentials::Exec(exec) = &self.credentials {
            exec.forget().await;
        }
        if let Some((_, read_at)) = self.lock().as_mut() {
            *read_at = Instant::now().checked_sub(TOKEN_AGE).unwrap_or(*read_at);
        }
    }

    fn file_token(&self, path: &Path, fallback: Option<HeaderValue>) -> Result<HeaderValue, CredentialError> {
        let mut known = self.lock();
        if let Some((token, read_at)) = known.as_ref()
            && read_at.elapsed() < TOKEN_AGE
        {
            return Ok(token.clone());
        }
        match read_token(path) {
            Ok(token) => {
                *known = Some((token.clone(), Instant::now()));
                Ok(token)
            }
            // Some remove the file once it was read.
            Err(error) => known.as_ref().map(|(token, _)| token.clone()).or(fallback).ok_or(error),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(HeaderValue, Instant)>> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read_token(path: &Path) -> Result<HeaderValue, CredentialError> {
    let text = read_file(path).map_err(|source| CredentialError::Token { path: path.to_owned(), source })?;
    let token = String::from_utf8(text).ok().and_then(|text| bearer(&text));
    token.ok_or_else(|| CredentialError::NoToken(path.to_owned()))
}

/// The header for a token, without the white space around it; `None` if there
/// is none, or it cannot be sent.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    if token.is_empty() {
        return None;
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
