//! The reasons why a list or watch ended, with their remedies.

use std::error::Error;
use std::io;
use std::time::Duration;

use http::StatusCode;

use super::resource::Resource;
use super::wire::{Malformed, Status};

/// The reason why a list or a watch ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// The sync loop has ended.
    Closed,
    /// 410: the version is too old, only a list helps.
    Gone,
    /// The server does not have streaming lists.
    NoStreamingLists,
    /// The server does not have this resource.
    NotServed,
    /// All else, as a line for the operator.
    Refused {
        code: u16,
        message: String,
        /// The server's wish (`Retry-After`).
        retry_after: Duration,
        /// Waiting does not help; somebody has to act.
        is_denied: bool,
    },
    /// The connection broke.
    Broken(String),
    /// The response is not in the encoding that it announces.
    NotEncoded(String),
    /// A list that does not come to an end.
    Endless(String),
    /// Nothing was received for so long that the connection may be dead.
    Silent(Duration),
}

impl Failure {
    /// Converts the client's error about a request.
    pub(super) fn of_request(error: &kube::Error) -> Self {
        Self::of_connection(error)
    }

    /// Converts a failed response. `retry_after` are the seconds of its header.
    pub(super) fn of_response(status: &Status, retry_after: u32, resource: &Resource) -> Self {
        let retry_after = retry_after.max(status.retry_after_seconds());
        Self::of_status(status.code, &status.message, retry_after, resource)
    }

    /// Converts an ERROR event.
    pub(super) fn of_event(status: &Status, resource: &Resource) -> Self {
        if status.reason == "Expired" || status.reason == "Gone" {
            return Self::Gone;
        }
        Self::of_status(status.code, &status.message, status.retry_after_seconds(), resource)
    }

    fn of_status(code: u16, message: &str, retry_after: u32, resource: &Resource) -> Self {
        let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (is_denied, remedy) = match status {
            StatusCode::GONE => return Self::Gone,
            StatusCode::NOT_FOUND if resource.is_optional() => return Self::NotServed,
            StatusCode::UNAUTHORIZED => {
                (true, "the token has expired or the credentials are not this cluster's: check the service account or kubeconfig".to_owned())
            }
            StatusCode::FORBIDDEN => {
                (true, format!("add this rule to the proxy's ClusterRole: {}", resource.rbac_rule()))
            }
            StatusCode::NOT_FOUND => (true, "check that the URL is the API server's".to_owned()),
            _ => (false, "trying again".to_owned()),
        };
        let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Refused {
            code,
            message: format!("the API server answers {status}: {message}; {remedy}"),
            retry_after: Duration::from_secs(retry_after.into()),
            is_denied,
        }
    }

    /// Converts an error of reading a response.
    pub(super) fn of_read(error: &io::Error) -> Self {
        Self::of_connection(error)
    }

    /// Converts a response that can't be taken apart.
    pub(super) fn of_malformed(malformed: &Malformed) -> Self {
        match malformed {
            Malformed::TooLong | Malformed::OtherKind(_) => Self::Broken(malformed.to_string()),
            Malformed::NotEncoded { .. } => Self::NotEncoded(malformed.to_string()),
        }
    }

    fn of_connection(error: &(dyn Error + 'static)) -> Self {
        let line = with_causes(error);
        let remedy = remedy(&line);
        Self::Broken(line + remedy)
    }
}

/// Prints the whole chain on one line, because the outermost message alone is
/// often only "client error (Connect)".
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        cause = inner.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// rustls names the failed check, but no remedy.
fn remedy(line: &str) -> &'static str {
    if line.contains("invalid peer certificate") {
        "; check that certificate-authority in the kubeconfig is the one of this API server"
    } else {
        "; trying again"
    }
}
