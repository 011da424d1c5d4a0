//! List, then watch, for ever: one resource.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{AsyncBufRead, AsyncBufReadExt, FutureExt, TryStreamExt};
use http::HeaderMap;
use http::header::{ACCEPT, RETRY_AFTER};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use vmap_proxy_compiler::model::objects::{Change, Object};
use vmap_proxy_compiler::words::count;

use super::backoff::{Backoff, random_up_to};
use super::bounds::{Budget, Pages};
use super::encoding::Encoding;
use super::failure::Failure;
use super::notices::{Cause, Lines, Notices};
use super::pages::{CACHED_PAGE, PAGE, PagesFromCache};
use super::resource::Resource;
use super::turns::Turns;
use super::wire::{self, Frame, ListReader, Status, Unreadable, WatchReader};
use super::{KubernetesOptions, KubernetesSource, Timing};
use crate::metrics::Metrics;
use crate::source::{Event, EventSender, ObjectChange, Origin};

/// Maximum number of changes in one event.
const BATCH: usize = 512;
/// Shortest duration of a watch; the longest is twice that, as in client-go.
const WATCH: Duration = Duration::from_secs(300);
/// A missing resource is requested again after this time.
const NOT_SERVED: Duration = Duration::from_secs(600);
/// A pause between watches that end at once is never longer than this fraction
/// of the longest retry, because their events are valid.
const SHORT_WATCHES: u32 = 6;
/// After this number of refusals in a row the version may be unknown to the
/// server (it was restored from a backup): list again.
const REFUSALS: u32 = 4;

/// A response that is no failure.
struct Response {
    encoding: Encoding,
    body: Pin<Box<dyn AsyncBufRead + Send>>,
}

/// Follows one resource.
pub(super) struct Reflector {
    client: kube::Client,
    resource: Resource,
    events: EventSender,
    timing: Timing,
    /// Notified once, when the first list is complete or unavailable.
    listed: Option<oneshot::Sender<()>>,
    backoff: Backoff,
    /// Lists that a 410 made necessary, with no watch in between that lasted.
    relists: Backoff,
    /// Watches that ended at once.
    short_watches: Backoff,
    /// Since when the current watch has been caught up.
    watching_since: Option<Instant>,
    /// The encoding to ask for. It changes when a response is not in the
    /// encoding that it announces.
    encoding: Encoding,
    /// Whether the other encoding may be asked for as well.
    may_change_encoding: bool,
    /// Whether the server may have streaming lists.
    is_streaming: bool,
    /// Whether pages are better.
    pages_from_cache: Arc<PagesFromCache>,
    /// The version to continue the watch from; `None` if a list is needed.
    version: Option<String>,
    /// The wait for the last bytes.
    waited: Duration,
    turns: Turns,
    /// Changes not handed on yet.
    batch: Vec<ObjectChange>,
    /// The node that objects are checked for.
    node_name: String,
    /// Whether the names of objects are read as well.
    with_names: bool,
    /// The failure that was reported last, if nothing was received since.
    degraded: Option<String>,
    notices: Notices,
    lines: Lines,
    metrics: Metrics,
}

impl Reflector {
    /// Does nothing until [`run`](Self::run).
    pub(super) fn new(
        source: &KubernetesSource,
        resource: Resource,
        events: EventSender,
        listed: oneshot::Sender<()>,
    ) -> Self {
        let KubernetesOptions { encoding, timing, metrics, node_name, .. } = source.options.clone();
        Self {
            client: source.client(),
            node_name,
            with_names: source.with_names,
            resource,
            events,
            backoff: Backoff::new(timing.shortest_retry, timing.longest_retry),
            relists: Backoff::new(timing.shortest_retry, timing.longest_retry),
            short_watches: Backoff::new(timing.shortest_retry, timing.longest_retry / SHORT_WATCHES),
            watching_since: None,
            timing,
            listed: Some(listed),
            encoding,
            may_change_encoding: encoding == Encoding::Protobuf,
            is_streaming: true,
            pages_from_cache: source.pages_from_cache.clone(),
            version: None,
            waited: Duration::ZERO,
            turns: Turns::default(),
            batch: Vec::new(),
            degraded: None,
            notices: Notices::default(),
            lines: Lines::default(),
            metrics,
        }
    }

    /// Returns when the receiver is gone.
    pub(super) async fn run(mut self) {
        loop {
            let result = match self.version.clone() {
                Some(version) => self.watch(&version).await,
                None => self.list().await,
            };
            self.batch.clear();
            let watched = self.watching_since.take().map(|since| since.elapsed());
            let wait = match result {
                Ok(()) => self.after_watch(watched).await,
                Err(Failure::Closed) => return,
                Err(failure) => {
                    if watched.is_some_and(|watched| watched >= self.timing.longest_retry) {
                        self.relists.reset();
                    }
                    self.handle(failure).await
                }
            };
            // Nothing else would notice while nothing happens.
            tokio::select! {
                () = sleep(wait) => {}
                () = self.events.closed() => return,
            }
        }
    }

    /// Returns the wait after a watch that came to its end: none, unless it
    /// ended at once. `None` if it was a list.
    async fn after_watch(&mut self, watched: Option<Duration>) -> Duration {
        let Some(watched) = watched else { return Duration::ZERO };
        if watched >= self.timing.short_watch {
            self.short_watches.reset();
            return Duration::ZERO;
        }
        let wait = self.short_watches.next();
        // A server that stops does the first.
        if self.short_watches.failures() > 1 {
            self.report(Cause::ShortWatch, "watches end at once; pausing before each").await;
        }
        wait
    }

    /// Decides how to go on, and after which time.
    async fn handle(&mut self, failure: Failure) -> Duration {
        let kind = self.resource.kind;
        match failure {
            Failure::Closed => Duration::ZERO,
            Failure::NoStreamingLists => {
                tracing::debug!(%kind, "no streaming lists, using paged ones");
                self.is_streaming = false;
                Duration::ZERO
            }
            Failure::Gone => {
                if self.notices.due(Cause::Gone).is_some() {
                    tracing::info!(%kind, "the watch is too far behind, listing again");
                }
                self.version = None;
                // The first time at once; a server that keeps saying so is not hurried.
                let wait = self.relists.next();
                if self.relists.failures() == 1 { Duration::ZERO } else { wait }
            }
            Failure::NotServed => {
                tracing::info!(%kind, "not served by this cluster, going on without");
                let _ = self.events.send(Event::ListStarted(kind)).await;
                self.version = None;
                let _ = self.complete_list().await;
                NOT_SERVED
            }
            Failure::Refused { code, message, retry_after, is_denied } => {
                self.report(Cause::Refused(code), &message).await;
                if is_denied && self.resource.patience(&self.timing).is_some() {
                    self.listed = None;
                }
                // A server may request a delay, but not of years.
                let wait = self.backoff.next().max(retry_after.min(self.timing.longest_retry * 2));
                if matches!(code, 400 | 422 | 504) && self.backoff.failures() >= REFUSALS {
                    self.version = None;
                }
                wait
            }
            Failure::Broken(message) => {
                self.report(Cause::broken(&message), &message).await;
                self.backoff.next()
            }
            Failure::NotEncoded(message) => {
                if self.may_change_encoding {
                    self.encoding = self.encoding.other();
                }
                let message = format!("{message}; trying again with {}", self.encoding.name());
                self.report(Cause::NotEncoded, &message).await;
                self.backoff.next()
            }
            Failure::Silent(time) => {
                self.report(Cause::Silent, &format!("nothing received for {} s; trying again", time.as_secs())).await;
                self.backoff.next()
            }
            Failure::Endless(message) => {
                self.report(Cause::EndlessList, &message).await;
                self.backoff.next()
            }
        }
    }

    /// Reports a failure once, not at every attempt; if it comes and goes, once
    /// a minute.
    async fn report(&mut self, cause: Cause, message: &str) {
        let line = format!("can't follow {}s: {message}", self.resource.kind);
        tracing::debug!("{line}");
        if self.degraded.as_ref() == Some(&line) {
            return;
        }
        let Some(kept_back) = self.notices.due(cause) else { return };
        let again = if kept_back > 0 {
            format!(" ({} in the last minute)", count(kept_back, "more time"))
        } else {
            String::new()
        };
        self.degraded = Some(line.clone());
        let _ = self.events.send(Event::Degraded(line + &again)).await;
    }

    /// Something was received.
    fn succeed(&mut self) {
        self.backoff.reset();
        if self.degraded.take().is_some() {
            tracing::info!(kind = %self.resource.kind, "followed again");
        }
    }

    /// Lists in the way that suits the server.
    async fn list(&mut self) -> Result<(), Failure> {
        if self.resource.is_numerous() && self.pages_from_cache.are_served(&self.client).await {
            return self.paged_list(CACHED_PAGE).await;
        }
        if self.is_streaming { self.streaming_list().await } else { self.paged_list(PAGE).await }
    }

    async fn paged_list(&mut self, size: u32) -> Result<(), Failure> {
        let mut token: Option<String> = None;
        let mut pages = Pages::default();
        loop {
            let Response { encoding, mut body } =
                self.list_request(|resource| resource.page(size, token.as_deref())).await?;
            if token.is_none() {
                self.send(Event::ListStarted(self.resource.kind)).await?;
            }
            let mut reader = ListReader::new(encoding, self.resource.kind);
            let mut first = None;
            let mut budget = Budget::new(self.timing.list_idle);
            while let Some(chunk) = self.next_of_list(&mut body, &mut budget).await? {
                let mut rest = chunk;
                let mut left = rest.len();
                while let Some(item) = reader.next(&mut rest).map_err(|error| Failure::of_malformed(&error))? {
                    match item {
                        Ok(object) => {
                            first.get_or_insert_with(|| object.reference());
                            self.apply(object).await?;
                        }
                        Err(unreadable) => self.skip(unreadable).await?,
                    }
                    self.turns.decoded(left - rest.len()).await;
                    left = rest.len();
                }
                let length = chunk.len();
                body.consume_unpin(length);
            }
            let meta = reader
                .finish()
                .map_err(|error| Failure::Broken(format!("the list can't be used ({error}); trying again")))?;
            self.succeed();
            if meta.token.is_empty() {
                self.complete_list().await?;
                self.version = Some(meta.resource_version);
                return Ok(());
            }
            if let Some(why) = pages.next(&meta.token, first) {
                return Err(Failure::Endless(format!("the list does not end: {why}; trying again")));
            }
            token = Some(meta.token);
        }
    }

    async fn streaming_list(&mut self) -> Result<(), Failure> {
        let time = watch_time();
        let response = match self.list_request(|resource| resource.streaming_list(time)).await {
            // 422 from a server that has them switched off or never heard of
            // them, 400 from some that imitate one.
            Err(Failure::Refused { code: 400 | 422, .. }) => return Err(Failure::NoStreamingLists),
            other => other?,
        };
        self.send(Event::ListStarted(self.resource.kind)).await?;
        self.follow(response, true).await
    }

    async fn watch(&mut self, version: &str) -> Result<(), Failure> {
        let response = self.request(self.resource.watch(version, watch_time())).await?;
        self.watching_since = Some(Instant::now());
        self.follow(response, false).await
    }

    /// Reads a watch to its end, or, if `is_list`, as a list up to the bookmark
    /// that ends it.
    async fn follow(&mut self, response: Response, mut is_list: bool) -> Result<(), Failure> {
        let Response { encoding, mut body } = response;
        let mut reader = WatchReader::new(encoding, self.resource.kind);
        let mut budget = Budget::new(self.timing.list_idle);
        // A trickle that never ends an event is silence, too.
        let mut silence = Duration::ZERO;
        loop {
            let chunk = if is_list {
                self.next_of_list(&mut body, &mut budget).await
            } else {
                // Changes that arrive together stay together, and none waits for more.
                if body.fill_buf().now_or_never().is_none() {
                    self.flush().await?;
                }
                let chunk = self.next_chunk(&mut body, self.timing.idle.saturating_sub(silence)).await;
                silence += self.waited;
                chunk
            };
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) if is_list => return Err(Failure::Broken("the list ended early; trying again".to_owned())),
                Ok(None) if reader.is_inside_event() => {
                    return Err(Failure::Broken("the watch ended inside an event; trying again".to_owned()));
                }
                Ok(None) => return Ok(()),
                // If the connection drops mid-watch, reconnect silently; report
                // only if reconnecting fails.
                Err(Failure::Broken(message)) if !is_list && self.backoff.failures() == 0 => {
                    tracing::debug!(kind = %self.resource.kind, "watch ended: {message}");
                    return Ok(());
                }
                // The connection has died unnoticed: the next request will show
                // it.
                Err(Failure::Silent(_)) if !is_list => return Ok(()),
                // The server ignored the unknown parameter, and never sends the bookmark.
                Err(Failure::Silent(_) | Failure::Endless(_)) if is_list => return Err(Failure::NoStreamingLists),
                Err(failure) => return Err(failure),
            };
            let mut rest = chunk;
            let mut left = rest.len();
            while let Some(event) = reader.next(&mut rest).map_err(|error| Failure::of_malformed(&error))? {
                silence = Duration::ZERO;
                is_list &= !self.take(event, is_list).await?;
                self.turns.decoded(left - rest.len()).await;
                left = rest.len();
            }
            let length = chunk.len();
            body.consume_unpin(length);
        }
    }

    /// Takes one event of a watch; true if it completes a list.
    async fn take(&mut self, frame: Result<Frame, Unreadable>, is_list: bool) -> Result<bool, Failure> {
        let (version, ends_list) = match frame {
            Ok(Frame::Apply(object)) => {
                let version = wire::version_of(&object).to_owned();
                self.apply(object).await?;
                (Some(version), false)
            }
            Ok(Frame::Delete { object, version }) => {
                self.push(&Change::Delete(object)).await?;
                (Some(version), false)
            }
            Ok(Frame::Bookmark { version, ends_list }) => (Some(version), ends_list),
            Ok(Frame::Error(status)) => {
                self.flush().await?;
                return Err(Failure::of_event(&status, &self.resource));
            }
            Ok(Frame::Unknown) => (None, false),
            Err(unreadable) => {
                let version = unreadable.version.clone();
                self.skip(unreadable).await?;
                (version, false)
            }
        };
        self.succeed();
        let completes = is_list && ends_list;
        if completes {
            self.complete_list().await?;
            self.watching_since = Some(Instant::now());
        }
        // Events of a list come in any order: only its end gives the version to
        // continue from.
        if (completes || !is_list) && version.as_ref().is_some_and(|version| !version.is_empty()) {
            self.version = version;
        }
        Ok(completes)
    }

    /// An unreadable object costs only the change: the object keeps its known
    /// state.
    async fn skip(&mut self, unreadable: Unreadable) -> Result<(), Failure> {
        let what = unreadable.what;
        let Some(object) = unreadable.object else {
            self.warn(&format!("skipped a {} without a readable name: {what}", self.resource.kind));
            return Ok(());
        };
        self.warn(&format!("skipped {object}, which can't be read: {what}; its earlier state stays until it changes"));
        self.push(&Change::Keep(object)).await
    }

    /// Writes a line about an object, but not the same line again in a minute: a server that sends an object again and
    /// again does not fill the log.
    fn warn(&mut self, line: &str) {
        if self.lines.is_new(line) {
            tracing::warn!("{line}");
        }
    }

    /// Returns the next bytes of a response, `None` at its end.
    async fn next_chunk<'a>(
        &mut self,
        body: &'a mut (impl AsyncBufRead + Unpin),
        idle: Duration,
    ) -> Result<Option<&'a [u8]>, Failure> {
        // Time spent waiting for the sync loop is not the server's fault.
        let waiting = Instant::now();
        let chunk = tokio::select! {
            chunk = timeout(idle, body.fill_buf()) => chunk,
            () = self.events.closed() => return Err(Failure::Closed),
        };
        self.waited = waiting.elapsed();
        match chunk {
            Ok(Ok([])) => {
                self.flush().await?;
                Ok(None)
            }
            Ok(Ok(chunk)) => {
                self.metrics.api_received(self.resource.kind, SystemTime::now());
                Ok(Some(chunk))
            }
            Ok(Err(error)) => {
                self.flush().await?;
                Err(Failure::of_read(&error))
            }
            Err(_) => Err(Failure::Silent(idle)),
        }
    }

    /// Returns the next bytes of a list, within its remaining budget. Received objects wait for a whole batch or the end
    /// of the list: an API server sends each object of a streaming list by itself.
    async fn next_of_list<'a>(
        &mut self,
        body: &'a mut (impl AsyncBufRead + Unpin),
        budget: &mut Budget,
    ) -> Result<Option<&'a [u8]>, Failure> {
        let wait = budget.left().min(self.timing.list_idle);
        let chunk = match self.next_chunk(body, wait).await {
            Err(Failure::Silent(_)) if wait < self.timing.list_idle => {
                return Err(Failure::Endless(format!("the list is too slow: {}; trying again", budget.describe())));
            }
            other => other?,
        };
        budget.take(chunk.map_or(0, <[u8]>::len), self.waited);
        Ok(chunk)
    }

    /// Requests a list. If the server does not know the selector (Services have
    /// it since 1.31), the request is repeated without it.
    async fn list_request(&mut self, path: impl Fn(&Resource) -> String) -> Result<Response, Failure> {
        match self.request(path(&self.resource)).await {
            Err(Failure::Refused { code: 400, message, .. }) if self.resource.drop_field_selector(&message) => {
                tracing::info!(kind = %self.resource.kind, "the API server does not select by this field; Services without cluster IP are left out here");
                self.request(path(&self.resource)).await
            }
            other => other,
        }
    }

    async fn request(&self, path: String) -> Result<Response, Failure> {
        let request = http::Request::get(path)
            .header(ACCEPT, self.encoding.accept())
            .body(kube::client::Body::from(Vec::new()))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let silent = |_| Failure::Silent(self.timing.list_idle);
        let answer = timeout(self.timing.list_idle, self.client.send(request)).await.map_err(silent)?;
        let (head, body) = answer.map_err(|error| Failure::of_request(&error))?.into_parts();
        if head.status.is_client_error() || head.status.is_server_error() {
            let body = timeout(self.timing.list_idle, body.collect()).await.map_err(silent)?;
            let body = body.map_err(|error| Failure::of_request(&error))?.to_bytes();
            let status = Status::of_failure(head.status.as_u16(), &body);
            return Err(Failure::of_response(&status, retry_after(&head.headers), &self.resource));
        }
        let encoding = Encoding::of_response(&head.headers);
        let body = Box::pin(body.into_data_stream().map_err(io::Error::other).into_async_read());
        Ok(Response { encoding, body })
    }

    async fn complete_list(&mut self) -> Result<(), Failure> {
        self.flush().await?;
        self.send(Event::ListCompleted(self.resource.kind)).await?;
        if let Some(listed) = self.listed.take() {
            // The receiver may have lost its patience.
            let _ = listed.send(());
        }
        Ok(())
    }

    /// An object exists; one that the selector should have left out does not
    /// count.
    async fn apply(&mut self, object: Object) -> Result<(), Failure> {
        let change = match self.resource.leaves_out(&object) {
            true => Change::Delete(object.reference()),
            false => Change::Apply(object),
        };
        self.push(&change).await
    }

    async fn push(&mut self, change: &Change) -> Result<(), Failure> {
        let read = if self.with_names { ObjectChange::read_with_names } else { ObjectChange::read };
        let (change, problems) = read(change, &self.node_name, Origin::ApiServer);
        for problem in problems {
            self.warn(&problem.to_string());
        }
        self.batch.push(change);
        if self.batch.len() >= BATCH { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.batch);
        self.send(Event::Changes(changes)).await
    }

    async fn send(&self, event: Event) -> Result<(), Failure> {
        self.events.send(event).await.map_err(|_| Failure::Closed)
    }
}

fn watch_time() -> Duration {
    WATCH + random_up_to(WATCH)
}

/// The seconds of the header `Retry-After`; 0 without one. The API server sends
/// no dates.
fn retry_after(headers: &HeaderMap) -> u32 {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    value.and_then(|seconds| seconds.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
