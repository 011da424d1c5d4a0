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

use super::encoding::Encoding;
use super::faults::Fault;
use super::http::{Query, Target};
use super::lists::Lists;
use super::objects::{self, Key, Resource, Selector, Stored, bookmark, error_event};
use super::server::{Shared, Signal, State as Known};

/// A watch without `timeoutSeconds` lasts this long.
const LONGEST_WATCH: Duration = Duration::from_secs(1800);

/// The size of what is sent at once.
const PIECE: usize = 64 * 1024;

/// Answers every request.
pub(super) async fn respond(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let line = format!("{} {}", parts.method, parts.uri);
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let target = Target::of(parts.uri.path());
    shared.with(|state| {
        state.requests.push(line);
        state.headers.push(parts.headers.clone());
    });
    shared.changed.send_modify(|count| *count += 1);
    let resource = match &target {
        Target::Collection(resource) | Target::Object(resource, _) => Some(*resource),
        _ => None,
    };
    let Some(encoding) = Encoding::accepted(&parts.headers, shared.with(|state| state.has_protobuf)) else {
        return failure(Encoding::Json, 406, "NotAcceptable", "only application/json is served");
    };
    if let Some((code, message)) = shared.with(|state| state.refusal(resource)) {
        return failure(encoding, code, "Refused", &message);
    }
    let fault = shared.with(|state| resource.and_then(|resource| state.faults.get(&resource).copied()));
    if let Some(refused) = fault.and_then(|fault| refused(encoding, fault, &query)) {
        return refused;
    }
    match target {
        Target::Collection(resource) => {
            let sent = match fault {
                Some(Fault::JsonAsProtobuf) => Encoding::Json,
                Some(Fault::ProtobufAsJson) => Encoding::Protobuf,
                _ => encoding,
            };
            let is_watch = query.is_true("watch");
            let mut answer = match is_watch {
                true => watch(shared, resource, &query, sent),
                false => list(&shared, resource, &query, sent),
            };
            if sent != encoding {
                announce(&mut answer, encoding, is_watch);
            }
            answer
        }
        Target::Object(resource, (namespace, name)) => {
            match shared.with(|state| state.objects.get(resource, &namespace, &name)) {
                Some(object) => answer(encoding, StatusCode::OK, object.alone(encoding).into()),
                None => failure(encoding, 404, "NotFound", &format!("{resource} {name:?} not found")),
            }
        }
        Target::Events if parts.method == Method::POST || parts.method == Method::PATCH => {
            if let Some((code, message)) = shared.with(|state| state.event_refusal.clone()) {
                return failure(encoding, code, "Refused", &message);
            }
            let body = axum::body::to_bytes(body, 1024 * 1024).await.unwrap_or_default();
            shared.with(|state| state.events.push(serde_json::from_slice(&body).unwrap_or_default()));
            shared.changed.send_modify(|count| *count += 1);
            answer(Encoding::Json, StatusCode::CREATED, body.into())
        }
        Target::Version => {
            if let Some(code) = shared.with(|state| state.version_refusal) {
                return failure(encoding, code, "Refused", "no version for you");
            }
            let minor = shared.with(|state| state.lists).minor_version();
            let version = format!(r#"{{"major":"1","minor":"{minor}","gitVersion":"v1.{minor}.2"}}"#);
            answer(Encoding::Json, StatusCode::OK, version.into())
        }
        Target::Events | Target::Nothing => {
            failure(encoding, 404, "NotFound", "the server could not find the requested resource")
        }
    }
}

fn answer(encoding: Encoding, code: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    announce(&mut response, encoding, false);
    response
}

fn announce(response: &mut Response, encoding: Encoding, is_watch: bool) {
    let content_type = header::HeaderValue::from_static(encoding.content_type(is_watch));
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
}

fn failure(encoding: Encoding, code: u16, reason: &str, message: &str) -> Response {
    let status_code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer(encoding, status_code, objects::status(encoding, code, reason, message, None).into())
}

/// The answer of a server that refuses all, or a selector.
fn refused(encoding: Encoding, fault: Fault, query: &Query) -> Option<Response> {
    match fault {
        Fault::Busy(seconds) => {
            let status = objects::status(encoding, 429, "TooManyRequests", "too many requests", Some(seconds));
            Some(answer(encoding, StatusCode::TOO_MANY_REQUESTS, status.into()))
        }
        Fault::NoFieldSelector => {
            let field = query.get("fieldSelector")?.split('!').next()?;
            let message =
                format!("\"{field}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"");
            Some(failure(encoding, 400, "BadRequest", &message))
        }
        _ => None,
    }
}

fn list(shared: &Arc<Shared>, resource: Resource, query: &Query, encoding: Encoding) -> Response {
    let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(encoding, 400, "BadRequest", &message),
    };
    let limit = query.number("limit").filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok());
    let token = query.get("continue").map(|token| decode_token(token).ok_or(token));
    let answered = shared.with(|state| {
        let (version, after) = match token {
            None => (state.objects.version(), None),
            Some(Ok((version, key))) => (version, Some(key)),
            Some(Err(token)) => return Err((400, "BadRequest", format!("bad continue token {token:?}"))),
        };
        if after.is_some() && (state.objects.is_compacted(version) || state.take_expired_page(resource)) {
            return Err((410, "Expired", "The provided continue parameter is too old".to_owned()));
        }
        let fault = state.faults.get(&resource).copied();
        let (shown, selector) = match fault {
            Some(Fault::OtherKind) => (resource.other(), Selector::default()),
            _ => (resource, selector),
        };
        let (page, last) = state.objects.list(shown, &selector, after.as_ref(), limit.unwrap_or(usize::MAX));
        let token = last.map(|(namespace, name)| format!("{version}:{namespace}:{name}")).unwrap_or_default();
        let number = state.requests.len();
        let token = match fault {
            Some(Fault::EndlessPages) => format!("{version}::{number}"),
            // Behind every name.
            Some(Fault::EmptyPages) => format!("{version}:~~~:{number}"),
            _ => token,
        };
        let mut body = objects::list(encoding, shown, version, &token, &page);
        spoil(&mut body, encoding, fault);
        Ok((body, state.take_break(resource), state.slow))
    });
    let (mut body, breaks_after, slow) = match answered {
        Ok(answer) => answer,
        Err((code, reason, message)) => return failure(encoding, code, reason, &message),
    };
    let (sender, receiver) = chunks(shared);
    if let Some(length) = breaks_after {
        body.truncate(length);
    }
    tokio::spawn(async move {
        let is_sent = send(&sender, body, slow).await;
        if is_sent && breaks_after.is_some() {
            let _ = sender.sender.send(Err(std::io::Error::other("broken on request"))).await;
        }
    });
    answer(encoding, StatusCode::OK, body_of(receiver))
}

/// `version:namespace:name`
fn decode_token(token: &str) -> Option<(u64, Key)> {
    let (version, key) = token.split_once(':')?;
    let (namespace, name) = key.split_once(':')?;
    Some((version.parse().ok()?, (namespace.to_owned(), name.to_owned())))
}

/// Makes an encoded answer as wrong as a fault says.
fn spoil(bytes: &mut Vec<u8>, encoding: Encoding, fault: Option<Fault>) {
    if encoding != Encoding::Protobuf {
        return;
    }
    match fault {
        Some(Fault::WrongMagic) => {
            let magic = bytes.windows(4).position(|found| found == b"k8s\0");
            for byte in magic.and_then(|start| bytes.get_mut(start..start + 4)).unwrap_or_default() {
                *byte = b'x';
            }
        }
        Some(Fault::TruncatedFrame) => bytes.truncate(100),
        _ => {}
    }
}

/// Where a body is written to.
struct Chunks {
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
    shared: Arc<Shared>,
}

fn chunks(shared: &Arc<Shared>) -> (Chunks, mpsc::Receiver<Result<Bytes, std::io::Error>>) {
    let (sender, receiver) = mpsc::channel(4);
    (Chunks { sender, shared: shared.clone() }, receiver)
}

fn body_of(receiver: mpsc::Receiver<Result<Bytes, std::io::Error>>) -> Body {
    Body::from_stream(stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver))))
}

/// Sends bytes, in pieces if slowness was asked for; false if nobody reads.
async fn send(chunks: &Chunks, bytes: Vec<u8>, slow: Option<(usize, Duration)>) -> bool {
    let bytes = Bytes::from(bytes);
    chunks.shared.with(|state| state.bytes_sent += bytes.len());
    let (size, pause) = slow.unwrap_or((PIECE, Duration::ZERO));
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes.len().min(start + size.max(1));
        if chunks.sender.send(Ok(bytes.slice(start..end))).await.is_err() {
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

fn watch(shared: Arc<Shared>, resource: Resource, query: &Query, encoding: Encoding) -> Response {
    let selector = match Selector::parse(query.get("labelSelector"), query.get("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(encoding, 400, "BadRequest", &message),
    };
    let is_streaming = query.is_true("sendInitialEvents");
    if is_streaming && shared.with(|state| state.lists) == Lists::Pages {
        return failure(
            encoding,
            422,
            "Invalid",
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
        );
    }
    if is_streaming && query.get("resourceVersionMatch") != Some("NotOlderThan") {
        return failure(
            encoding,
            422,
            "Invalid",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
    }
    let timeout = query.number("timeoutSeconds").map_or(LONGEST_WATCH, Duration::from_secs);
    let watch = Watch {
        encoding,
        resource,
        selector,
        version: query.number("resourceVersion").filter(|version| *version > 0),
        is_streaming,
        has_bookmarks: query.is_true("allowWatchBookmarks"),
        ends: Instant::now() + timeout,
    };
    let (sender, receiver) = chunks(&shared);
    tokio::spawn(watch.run(shared, sender));
    let mut response = answer(encoding, StatusCode::OK, body_of(receiver));
    announce(&mut response, encoding, true);
    response
}

/// What a watch sends before the changes.
#[derive(Default)]
struct First {
    objects: Vec<Arc<Stored>>,
    bookmark: Option<Vec<u8>>,
}

struct Watch {
    encoding: Encoding,
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
        let fault = shared.with(|state| state.faults.get(&self.resource).copied());
        let first_break = shared.with(|state| state.take_break(self.resource));
        let mut pieces = self.pieces(&first, if first_break.is_some() { usize::MAX } else { PIECE });
        if let Some(length) = first_break {
            let mut all = pieces.next().unwrap_or_default();
            spoil(&mut all, self.encoding, fault);
            all.truncate(length);
            send(&sender, all, slow).await;
            let _ = sender.sender.send(Err(std::io::Error::other("broken on request"))).await;
            return;
        }
        let is_truncated = fault == Some(Fault::TruncatedFrame) && self.encoding == Encoding::Protobuf;
        // As an API server does it: encoded when it is sent.
        for mut piece in pieces {
            spoil(&mut piece, self.encoding, fault);
            if !send(&sender, piece, slow).await {
                return;
            }
            if is_truncated {
                break;
            }
        }
        if is_truncated {
            return;
        }
        if shared.with(|state| state.objects.is_compacted(version)) {
            send(&sender, self.expired(), slow).await;
            return;
        }
        let _open = shared.count_watch(self.resource);
        loop {
            let events;
            (events, slow) = shared.with(|state| {
                let events = state.objects.since(version, self.resource, &self.selector, self.encoding);
                version = state.objects.version();
                (events, state.slow)
            });
            let has_event = !events.is_empty();
            if !send(&sender, events, slow).await {
                return;
            }
            if has_event {
                match shared.with(|state| state.faults.get(&self.resource).copied()) {
                    Some(Fault::EndsAfterEvent) => return,
                    Some(Fault::ExpiresAfterEvent) => {
                        send(&sender, self.expired(), slow).await;
                        return;
                    }
                    _ => {}
                }
            }
            let signal = tokio::select! {
                signal = timeout_at(self.ends, signals.recv()) => signal,
                () = sender.sender.closed() => return,
            };
            let bytes = match signal {
                Ok(Ok(Signal::Changed)) => continue,
                Ok(Ok(Signal::Bookmark)) if self.has_bookmarks => {
                    // Earlier events must be sent before the bookmark.
                    let (mut events, now) = shared.with(|state| {
                        let events = state.objects.since(version, self.resource, &self.selector, self.encoding);
                        (events, state.objects.version())
                    });
                    version = now;
                    events.extend(bookmark(self.encoding, self.resource, now, false));
                    events
                }
                Ok(Ok(Signal::BookmarkAt(resource, version))) if resource == self.resource => {
                    bookmark(self.encoding, self.resource, version, false)
                }
                Ok(Ok(Signal::Object(resource, object))) if resource == self.resource => {
                    object.event(self.encoding, "ADDED")
                }
                Ok(Ok(Signal::Raw(resource, bytes))) if resource == self.resource => bytes,
                Ok(Ok(Signal::Expire(resource))) if resource == self.resource => {
                    send(&sender, self.expired(), slow).await;
                    return;
                }
                Ok(Ok(Signal::Break(resource))) if resource == self.resource => {
                    let _ = sender.sender.send(Err(std::io::Error::other("broken on request"))).await;
                    return;
                }
                Ok(Ok(Signal::End(resource))) if resource == self.resource => return,
                Ok(Ok(_)) => continue,
                // Missed some: the next round sends what they announced.
                Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(_)) | Err(_) => return,
            };
            if !send(&sender, bytes, slow).await {
                return;
            }
        }
    }

    /// What a watch sends before the changes, and where these begin.
    fn start(&self, state: &mut Known) -> (First, u64, Option<(usize, Duration)>) {
        let now = state.objects.version();
        let version = match self.version {
            Some(version) if !self.is_streaming => return (First::default(), version, state.slow),
            _ => now,
        };
        let (resource, selector) = match state.faults.get(&self.resource) {
            Some(Fault::OtherKind) => (self.resource.other(), Selector::default()),
            _ => (self.resource, self.selector.clone()),
        };
        let (objects, _) = state.objects.list(resource, &selector, None, usize::MAX);
        let has_bookmark = self.is_streaming && !state.forgets_bookmark;
        let bookmark = has_bookmark.then(|| bookmark(self.encoding, resource, now, true));
        (First { objects, bookmark }, version, state.slow)
    }

    /// The events about these objects, in pieces of about `size` bytes.
    fn pieces(&self, first: &First, size: usize) -> impl Iterator<Item = Vec<u8>> {
        let First { objects, bookmark } = first;
        let events = objects.iter().map(|object| object.event(self.encoding, "ADDED")).chain(bookmark.clone());
        let mut events = events.peekable();
        std::iter::from_fn(move || {
            events.peek()?;
            let mut piece = Vec::new();
            while piece.len() < size
                && let Some(event) = events.next()
            {
                piece.extend(event);
            }
            Some(piece)
        })
    }

    /// The answer to a watch that is too old.
    fn expired(&self) -> Vec<u8> {
        error_event(self.encoding, 410, "Expired", "too old resource version")
    }
}

impl Shared {
    /// Looks at the state, or changes it.
    pub(super) fn with<T>(&self, action: impl FnOnce(&mut Known) -> T) -> T {
        action(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
