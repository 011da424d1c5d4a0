//! Answers.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use futures::stream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use super::faults::Fault;
use super::http::{Query, Target};
use super::objects::{Key, Resource, Selector, bookmark, event, status};
use super::server::{Shared, Signal, State as Known};

/// A watch without `timeoutSeconds` lasts this long.
const LONGEST_WATCH: Duration = Duration::from_secs(1800);

/// Answers every request.
pub(super) async fn respond(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let target = Target::of(parts.uri.path());
    shared.with(|state| {
        state.requests.push(line);
        state.headers.push(parts.headers);
    });
    shared.changed.send_modify(|count| *count += 1);
    let resource = match &target {
        Target::Collection(resource) | Target::Object(resource, _) => Some(*resource),
        _ => None,
    };
    if let Some((code, message)) = shared.with(|state| state.refusal(resource)) {
        return failure(code, "Refused", &message);
    }
    let fault = shared.with(|state| resource.and_then(|resource| state.faults.get(&resource).copied()));
    if let Some(refused) = fault.and_then(|fault| refused(fault, &query)) {
        return refused;
    }
    match target {
        Target::Collection(resource) if query.is_true("watch") => watch(shared, resource, &query),
        Target::Collection(resource) => list(&shared, resource, &query),
        Target::Object(resource, (namespace, name)) => {
            match shared.with(|state| state.objects.get(resource, &namespace, &name)) {
                Some(object) => json(StatusCode::OK, object.text.clone().into()),
                None => failure(404, "NotFound", &format!("{resource} {name:?} not found")),
            }
        }
        Target::Events if parts.method == Method::POST || parts.method == Method::PATCH => {
            if let Some((code, message)) = shared.with(|state| state.event_refusal.clone()) {
                return failure(code, "Refused", &message);
            }
            let body = axum::body::to_bytes(body, 1024 * 1024).await.unwrap_or_default();
            shared.with(|state| state.events.push(serde_json::from_slice(&body).unwrap_or_default()));
            shared.changed.send_modify(|count| *count += 1);
            json(StatusCode::CREATED, body.into())
        }
        Target::Version => json(StatusCode::OK, r#"{"major":"1","minor":"36","gitVersion":"v1.36.2"}"#.into()),
        Target::Events | Target::Nothing => {
            failure(404, "NotFound", "the server could not find the requested resource")
        }
    }
}

fn json(code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

fn failure(code: u16, reason: &str, message: &str) -> Response {
    let status_code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status_code, status(code, reason, message).into())
}

/// The answer of a server that refuses all, or a selector.
fn refused(fault: Fault, query: &Query) -> Option<Response> {
    match fault {
        Fault::Busy(seconds) => {
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too many requests", "reason": "TooManyRequests", "code": 429,
                "details": {"retryAfterSeconds": seconds},
            });
            Some(json(StatusCode::TOO_MANY_REQUESTS, status.to_string().into()))
        }
        Fault::NoFieldSelector => {
            let field = query.get("fieldSelector")?.split('!').next()?;
            let message =
                format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
            Some(failure(400, "BadRequest", &message))
        }
        _ => None,
    }
}

fn list(shared: &Shared, resource: Resource, query: &Query) -> Response {
    let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(400, "BadRequest", &message),
    };
    let limit = query.number("limit").filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok());
    let token = query.get("continue").map(|token| decode_token(token).ok_or(token));
    let (mut body, breaks_after, slow) = match shared.with(|state| {
        let (version, after) = match token {
            None => (state.objects.version(), None),
            Some(Ok((version, key))) => (version, Some(key)),
            Some(Err(token)) => return Err((400, "BadRequest", format!("bad continue token {token:?}"))),
        };
        if after.is_some() && (state.objects.is_compacted(version) || state.take_expired_page(resource)) {
            return Err((410, "Expired", "The provided continue parameter is too old".to_owned()));
        }
        let (page, last) = state.objects.list(resource, &selector, after.as_ref(), limit.unwrap_or(usize::MAX));
        let token = last.map(|(namespace, name)| format!("{version}:{namespace}:{name}")).unwrap_or_default();
        let number = state.requests.len();
        let token = match state.faults.get(&resource) {
            Some(Fault::EndlessPages) => format!("{version}::{number}"),
            // Behind every name.
            Some(Fault::EmptyPages) => format!("{version}:~~~:{number}"),
            _ => token,
        };
        let mut body = format!(
            "{{\"kind\":\"{resource}List\",\"apiVersion\":\"{}\",\"metadata\":{{\"resourceVersion\":\"{version}\",\"continue\":\"{token}\"}},\"items\":[",
            resource.api_version(),
        );
        for (index, object) in page.iter().enumerate() {
            if index > 0 {
                body.push(',');
            }
            body.push_str(&object.text);
        }
        body.push_str("]}\n");
        Ok((body, state.take_break(resource), state.slow))
    }) {
        Ok(answer) => answer,
        Err((code, reason, message)) => return failure(code, reason, &message),
    };
    let (sender, receiver) = mpsc::channel(4);
    if let Some(length) = breaks_after {
        body.truncate(length);
    }
    tokio::spawn(async move {
        let is_sent = send(&sender, body, slow).await;
        if is_sent && breaks_after.is_some() {
            let _ = sender.send(Err(std::io::Error::other("broken on request"))).await;
        }
    });
    json(StatusCode::OK, body_of(receiver))
}

/// `version:namespace:name`
fn decode_token(token: &str) -> Option<(u64, Key)> {
    let (version, key) = token.split_once(':')?;
    let (namespace, name) = key.split_once(':')?;
    Some((version.parse().ok()?, (namespace.to_owned(), name.to_owned())))
}

type Chunks = mpsc::Sender<Result<Bytes, std::io::Error>>;

fn body_of(receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>) -> Body {
    Body::from_stream(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))))
}

/// Sends text, in pieces if slowness was asked for; false if nobody reads.
async fn send(sender: &Chunks, text: String, slow: Option<(usize, Duration)>) -> bool {
    let bytes = Bytes::from(text);
    let (size, pause) = slow.unwrap_or((64 * 1024, Duration::ZERO));
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes.len().min(start + size.max(1));
        if sender.send(Ok(bytes.slice(start..end))).await.is_err() {
            return false;
        }
        start = end;
        // The slowness that the test has asked for.
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
    true
}

fn watch(shared: Arc<Shared>, resource: Resource, query: &Query) -> Response {
    let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(400, "BadRequest", &message),
    };
    let is_streaming = query.is_true("sendInitialEvents");
    if is_streaming && !shared.with(|state| state.has_streaming_lists) {
        return failure(
            422,
            "Invalid",
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    if is_streaming && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return failure(422, "Invalid", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    let timeout = query.number("timeoutSeconds").map_or(LONGEST_WATCH, Duration::from_secs);
    let watch = Watch {
        resource,
        selector,
        version: query.number("resourceVersion").filter(|version| *version > 0),
        is_streaming,
        has_bookmarks: query.is_true("allowWatchBookmarks"),
        ends: Instant::now() + timeout,
    };
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(watch.run(shared, sender));
    json(StatusCode::OK, body_of(receiver))
}

struct Watch {
    resource: Resource,
    selector: Selector,
    version: Option<u64>,
    is_streaming: bool,
    has_bookmarks: bool,
    ends: Instant,
}

impl Watch {
    async fn run(self, shared: Arc<Shared>, sender: Chunks) {
        let mut signals = shared.signals.subscribe();
        let (first, mut version, mut slow) = shared.with(|state| self.start(state));
        let first_break = shared.with(|state| state.take_break(self.resource));
        if let Some(length) = first_break {
            let mut text = first;
            text.truncate(length);
            send(&sender, text, slow).await;
            let _ = sender.send(Err(std::io::Error::other("broken on request"))).await;
            return;
        }
        if !send(&sender, first, slow).await {
            return;
        }
        if shared.with(|state| state.objects.is_compacted(version)) {
            send(&sender, expired(), slow).await;
            return;
        }
        let _open = shared.count_watch(self.resource);
        loop {
            let lines;
            (lines, slow) = shared.with(|state| {
                let lines = state.objects.since(version, self.resource, &self.selector);
                version = state.objects.version();
                (lines, state.slow)
            });
            let has_event = !lines.is_empty();
            if !send(&sender, lines, slow).await {
                return;
            }
            if has_event {
                match shared.with(|state| state.faults.get(&self.resource).copied()) {
                    Some(Fault::EndsAfterEvent) => return,
                    Some(Fault::ExpiresAfterEvent) => {
                        send(&sender, expired(), slow).await;
                        return;
                    }
                    _ => {}
                }
            }
            let signal = tokio::select! {
                signal = timeout_at(self.ends, signals.recv()) => signal,
                () = sender.closed() => return,
            };
            let text = match signal {
                Ok(Ok(Signal::Changed)) => continue,
                Ok(Ok(Signal::Bookmark)) if self.has_bookmarks => {
                    // Earlier events must be sent before the bookmark.
                    let (lines, now) = shared.with(|state| {
                        (state.objects.since(version, self.resource, &self.selector), state.objects.version())
                    });
                    version = now;
                    lines + &bookmark(self.resource, now, false)
                }
                Ok(Ok(Signal::Raw(resource, text))) if resource == self.resource => text,
                Ok(Ok(Signal::Expire(resource))) if resource == self.resource => {
                    send(&sender, expired(), slow).await;
                    return;
                }
                Ok(Ok(Signal::Break(resource))) if resource == self.resource => {
                    let _ = sender.send(Err(std::io::Error::other("broken on request"))).await;
                    return;
                }
                Ok(Ok(Signal::End(resource))) if resource == self.resource => return,
                Ok(Ok(_)) => continue,
                // Missed some: the next round sends what they announced.
                Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(_)) | Err(_) => return,
            };
            if !send(&sender, text, slow).await {
                return;
            }
        }
    }

    /// The events that a watch sends before the changes, and where these begin.
    fn start(&self, state: &mut Known) -> (String, u64, Option<(usize, Duration)>) {
        let now = state.objects.version();
        let version = match self.version {
            Some(version) if !self.is_streaming => return (String::new(), version, state.slow),
            _ => now,
        };
        let (objects, _) = state.objects.list(self.resource, &self.selector, None, usize::MAX);
        let mut text = String::new();
        for object in objects {
            text += &event("ADDED", &object.text);
        }
        if self.is_streaming && !state.forgets_bookmark {
            text += &bookmark(self.resource, now, true);
        }
        (text, version, state.slow)
    }
}

/// The answer to a watch that is too old.
fn expired() -> String {
    event("ERROR", &status(410, "Expired", "too old resource version"))
}

impl Shared {
    /// Looks at the state, or changes it.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut Known) -> T) -> T {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
