//! One request for a resource, up to the head of its answer.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, TryStreamExt};
use http::HeaderMap;
use http::header::{ACCEPT, RETRY_AFTER};
use http_body_util::BodyExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::encoding::Encoding;
use super::failure::Failure;
use super::resource::Resource;
use super::wire::Status;

/// A response that is no failure.
pub(super) struct Response {
    pub(super) encoding: Encoding,
    pub(super) body: Pin<Box<dyn AsyncBufRead + Send>>,
}

/// What a request needs beside its path.
#[derive(Clone)]
pub(super) struct Requester {
    pub(super) client: kube::Client,
    pub(super) resource: Resource,
    /// The encoding to ask for.
    pub(super) encoding: Encoding,
    /// The longest wait for the answer to begin.
    pub(super) patience: Duration,
}

impl Requester {
    /// Sends it. The body arrives as it is read.
    pub(super) async fn get(self, path: String) -> Result<Response, Failure> {
        let request = http::Request::get(path)
            .header(ACCEPT, self.encoding.accept())
            .body(kube::client::Body::from(Vec::new()))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let silent = |_| Failure::Silent(self.patience);
        let answer = timeout(self.patience, self.client.send(request)).await.map_err(silent)?;
        let (head, body) = answer.map_err(|error| Failure::of_request(&error))?.into_parts();
        if head.status.is_client_error() || head.status.is_server_error() {
            let body = timeout(self.patience, body.collect()).await.map_err(silent)?;
            let body = body.map_err(|error| Failure::of_request(&error))?.to_bytes();
            let status = Status::of_failure(head.status.as_u16(), &body);
            return Err(Failure::of_response(&status, retry_after(&head.headers), &self.resource));
        }
        let encoding = Encoding::of_response(&head.headers);
        let body = Box::pin(body.into_data_stream().map_err(io::Error::other).into_async_read());
        Ok(Response { encoding, body })
    }
}

/// A page of a list that is asked for while the page before it is read. The request ends when this is dropped.
pub(super) struct Ahead {
    token: String,
    answer: JoinSet<Result<Response, Failure>>,
}

impl Ahead {
    /// Asks for the page behind `token`.
    pub(super) fn ask(requester: Requester, path: String, token: String) -> Self {
        let mut answer = JoinSet::new();
        answer.spawn(requester.get(path));
        Self { token, answer }
    }

    /// Waits for it. `None` if it is not the page behind `token`.
    pub(super) async fn page(mut self, token: &str) -> Option<Result<Response, Failure>> {
        if self.token != token {
            return None;
        }
        self.answer.join_next().await?.ok()
    }
}

/// The seconds of the header `Retry-After`; 0 without one. The API server sends
/// no dates.
fn retry_after(headers: &HeaderMap) -> u32 {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    value.and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}
