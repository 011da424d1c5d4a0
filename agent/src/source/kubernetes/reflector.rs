//! List, then watch, for ever: one resource.

use std::time::Duration;

use compiler::model::objects::Change;
use futures::{AsyncBufRead, AsyncBufReadExt, FutureExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::backoff::{Backoff, random_up_to};
use super::failure::Failure;
use super::resource::Resource;
use super::split::{Items, Lines};
use super::wire::{self, Frame, Unreadable};
use super::{Event, EventSender, Timing};

/// How many changes are handed on at a time, at most.
const BATCH: usize = 512;
/// How long a watch lasts, at least, and at most twice that: as client-go's.
const WATCH: Duration = Duration::from_secs(300);
/// A resource that the cluster lacks is asked for again after this time.
const NOT_SERVED: Duration = Duration::from_secs(600);
/// After so many refusals in a row a version may be one that the server never
/// had (it was restored from a backup): list anew.
const REFUSALS: u32 = 4;

/// Follows one resource.
pub(super) struct Reflector {
    client: kube::Client,
    resource: Resource,
    events: EventSender,
    timing: Timing,
    /// Told once, when the first list is complete or can't be had.
    listed: Option<oneshot::Sender<()>>,
    backoff: Backoff,
    /// Lists that a 410 made necessary, with no event in between.
    relists: Backoff,
    /// Whether the server may have streaming lists.
    is_streaming: bool,
    /// Where to watch on from; `None`: a list is needed.
    version: Option<String>,
    /// Changes not handed on yet.
    batch: Vec<Change>,
    /// The failure that was reported last.
    degraded: Option<String>,
}

impl Reflector {
    /// Does nothing until [`run`](Self::run).
    pub(super) fn new(
        client: kube::Client,
        resource: Resource,
        events: EventSender,
        timing: Timing,
        listed: oneshot::Sender<()>,
    ) -> Self {
        Self {
            client,
            resource,
            events,
            backoff: Backoff::new(timing.shortest_retry, timing.longest_retry),
            relists: Backoff::new(timing.shortest_retry, timing.longest_retry),
            timing,
            listed: Some(listed),
            is_streaming: true,
            version: None,
            batch: Vec::new(),
            degraded: None,
        }
    }

    /// Returns when nobody listens any more.
    pub(super) async fn run(mut self) {
        loop {
            let result = match self.version.clone() {
                Some(version) => self.watch(&version).await,
                None if self.is_streaming => self.streaming_list().await,
                None => self.paged_list().await,
            };
            self.batch.clear();
            let Err(failure) = result else { continue };
            let wait = match failure {
                Failure::Closed => return,
                other => self.handle(other).await,
            };
            // Nothing else would notice while nothing happens.
            tokio::select! {
                () = sleep(wait) => {}
                () = self.events.closed() => return,
            }
        }
    }

    /// Decides how to go on, and after which time.
    async fn handle(&mut self, failure: Failure) -> Duration {
        let kind = self.resource.kind;
        match failure {
            Failure::Closed => Duration::ZERO,
            Failure::NoStreamingLists => {
                debug!(%kind, "no streaming lists, using paged ones");
                self.is_streaming = false;
                Duration::ZERO
            }
            Failure::Gone => {
                info!(%kind, "the watch is too far behind, listing again");
                self.version = None;
                // The first time at once; a server that keeps saying so is not hurried.
                let wait = self.relists.next();
                if self.relists.failures() == 1 { Duration::ZERO } else { wait }
            }
            Failure::NotServed => {
                info!(%kind, "not served by this cluster, going on without");
                let _ = self.events.send(Event::ListStarted(kind)).await;
                self.version = None;
                let _ = self.complete_list().await;
                NOT_SERVED
            }
            Failure::Refused { code, message, retry_after, is_denied } => {
                self.report(&message).await;
                if is_denied && self.resource.patience(&self.timing).is_some() {
                    self.listed = None;
                }
                let wait = self.backoff.next().max(retry_after);
                if matches!(code, 400 | 422 | 504) && self.backoff.failures() >= REFUSALS {
                    self.version = None;
                }
                wait
            }
            Failure::Broken(message) => {
                self.report(&message).await;
                self.backoff.next()
            }
            Failure::Silent(time) => {
                self.report(&format!("nothing received for {} s; trying again", time.as_secs())).await;
                self.backoff.next()
            }
        }
    }

    /// Tells a failure once, not at every attempt.
    async fn report(&mut self, message: &str) {
        let line = format!("can't follow {}s: {message}", self.resource.kind);
        debug!("{line}");
        if self.degraded.as_ref() != Some(&line) {
            self.degraded = Some(line.clone());
            let _ = self.events.send(Event::Degraded(line)).await;
        }
    }

    /// Something was received.
    fn succeed(&mut self) {
        self.backoff.reset();
        if self.degraded.take().is_some() {
            info!(kind = %self.resource.kind, "followed again");
        }
    }

    async fn paged_list(&mut self) -> Result<(), Failure> {
        let mut token = None;
        loop {
            let mut body = self.request(self.resource.page(token.as_deref())).await?;
            if token.is_none() {
                self.send(Event::ListStarted(self.resource.kind)).await?;
            }
            let mut items = Items::default();
            while let Some(chunk) = self.next_chunk(&mut body, self.timing.list_idle).await? {
                let mut rest = chunk;
                while let Some(item) = items.next(&mut rest).map_err(|_| too_long())? {
                    match wire::item(self.resource.kind, item) {
                        Ok(object) => self.push(Change::Apply(object)).await?,
                        Err(unreadable) => self.skip(unreadable).await?,
                    }
                }
                let length = chunk.len();
                body.consume_unpin(length);
            }
            let meta = wire::list_meta(items.rest())
                .map_err(|error| Failure::Broken(format!("the list is incomplete ({error}); trying again")))?;
            self.succeed();
            if meta.token.is_empty() {
                self.complete_list().await?;
                self.version = Some(meta.resource_version);
                return Ok(());
            }
            token = Some(meta.token);
        }
    }

    async fn streaming_list(&mut self) -> Result<(), Failure> {
        let body = match self.request(self.resource.streaming_list(watch_time())).await {
            // 422 from a server that has them switched off or never heard of
            // them, 400 from some that imitate one.
            Err(Failure::Refused { code: 400 | 422, .. }) => return Err(Failure::NoStreamingLists),
            other => other?,
        };
        self.send(Event::ListStarted(self.resource.kind)).await?;
        self.follow(body, true).await
    }

    async fn watch(&mut self, version: &str) -> Result<(), Failure> {
        let body = self.request(self.resource.watch(version, watch_time())).await?;
        let started = Instant::now();
        let version = self.version.clone();
        self.follow(body, false).await?;
        // A server that ends every watch at once must not be asked in a loop.
        if started.elapsed() < self.timing.shortest_retry && self.version == version {
            return Err(Failure::Broken("watches end at once; trying again".to_owned()));
        }
        Ok(())
    }

    /// Reads a watch to its end. As a list, if `is_list`, up to the bookmark
    /// that says so.
    async fn follow(&mut self, mut body: impl AsyncBufRead + Unpin, mut is_list: bool) -> Result<(), Failure> {
        let mut lines = Lines::default();
        loop {
            let idle = if is_list { self.timing.list_idle } else { self.timing.idle };
            let chunk = match self.next_chunk(&mut body, idle).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) if is_list => return Err(Failure::Broken("the list ended early; trying again".to_owned())),
                Ok(None) => return Ok(()),
                // What the connection breaks off in the middle of a watch, a
                // new one continues: only if that fails there is something to tell.
                Err(Failure::Broken(message)) if !is_list && self.backoff.failures() == 0 => {
                    debug!(kind = %self.resource.kind, "watch ended: {message}");
                    return Ok(());
                }
                // A connection that has died unseen: the next request tells.
                Err(Failure::Silent(_)) if !is_list => return Ok(()),
                // The server ignored what it does not know, and never sends the bookmark.
                Err(Failure::Silent(_)) => return Err(Failure::NoStreamingLists),
                Err(failure) => return Err(failure),
            };
            let mut rest = chunk;
            while let Some(line) = lines.next(&mut rest).map_err(|_| too_long())? {
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                is_list &= !self.take(wire::frame(self.resource.kind, line), is_list).await?;
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
                self.push(Change::Apply(object)).await?;
                (Some(version), false)
            }
            Ok(Frame::Delete { object, version }) => {
                self.push(Change::Delete(object)).await?;
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
        if !is_list {
            self.relists.reset();
        }
        let completes = is_list && ends_list;
        if completes {
            self.complete_list().await?;
        }
        // Events of a list come in any order: only its end says where to go on.
        if (completes || !is_list) && version.as_ref().is_some_and(|version| !version.is_empty()) {
            self.version = version;
        }
        Ok(completes)
    }

    /// What can't be read costs nothing but the change: the object stays as it
    /// is known.
    async fn skip(&mut self, unreadable: Unreadable) -> Result<(), Failure> {
        let what = unreadable.what;
        let Some(object) = unreadable.object else {
            warn!("skipped a {} without a readable name: {what}", self.resource.kind);
            return Ok(());
        };
        warn!("skipped {object}, which can't be read: {what}; its earlier state stays until it changes");
        self.push(Change::Keep(object)).await
    }

    /// The next bytes of a response, `None` at its end. While none are there,
    /// what was received is handed on: whatever arrives together stays
    /// together, and nothing waits for company.
    async fn next_chunk<'a>(
        &mut self,
        body: &'a mut (impl AsyncBufRead + Unpin),
        idle: Duration,
    ) -> Result<Option<&'a [u8]>, Failure> {
        let is_ready = body.fill_buf().now_or_never().is_some();
        if !is_ready {
            self.flush().await?;
        }
        let chunk = tokio::select! {
            chunk = timeout(idle, body.fill_buf()) => chunk,
            () = self.events.closed() => return Err(Failure::Closed),
        };
        match chunk {
            Ok(Ok([])) => {
                self.flush().await?;
                Ok(None)
            }
            Ok(Ok(chunk)) => Ok(Some(chunk)),
            Ok(Err(error)) => {
                self.flush().await?;
                Err(Failure::of_read(&error))
            }
            Err(_) => Err(Failure::Silent(idle)),
        }
    }

    async fn request(&self, path: String) -> Result<impl AsyncBufRead + Unpin + use<>, Failure> {
        let request = http::Request::get(path)
            .header(http::header::ACCEPT, "application/json")
            .body(Vec::new())
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let response = timeout(self.timing.list_idle, self.client.request_stream(request)).await;
        match response {
            Ok(Ok(body)) => Ok(Box::pin(body)),
            Ok(Err(error)) => Err(Failure::of_request(&error, &self.resource)),
            Err(_) => Err(Failure::Silent(self.timing.list_idle)),
        }
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

    async fn push(&mut self, change: Change) -> Result<(), Failure> {
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

fn too_long() -> Failure {
    Failure::Broken("an object is larger than any API server stores; check that the URL is the API server's".to_owned())
}
