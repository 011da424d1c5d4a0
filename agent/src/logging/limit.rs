//! Bounds the lines that one cause can write into the log.
//!
//! A cause is a place in the code that logs (a callsite of `tracing`), in this
//! program or a library. Each may write a burst of lines, and then a few a
//! minute. Further lines are counted, and one line reports the count:
//!
//! ```text
//! WARN vmap_proxy_agent::source::manifests: bad.yaml:7: document 3: ...; correct it ...
//! WARN vmap_proxy_agent::logging::limit: and 99900 more like this in 1 s: "bad.yaml:301: ..." (vmap_proxy_agent::source::manifests)
//! ```
//!
//! Callers need no special care: log each event, one line for each object, and
//! this module limits the number of lines. If two causes share one macro and
//! must not crowd each other out, give each a separate macro. With `-v 4` or
//! more, or a filter in the environment, nothing is left out.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Delay of the first line about omitted lines.
const FIRST_REPORT: Duration = Duration::from_secs(1);

/// Shortest time between further such lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Length of the excerpt of the first omitted line, in bytes.
const EXAMPLE: usize = 200;

/// The number of lines that a cause may write.
#[derive(Debug, Clone, Copy)]
struct Rate {
    at_once: f64,
    a_minute: f64,
}

/// Warnings and errors: the names of a hundred bad objects, and ten lines a
/// minute of a lasting problem.
const TROUBLE: Rate = Rate { at_once: 100.0, a_minute: 10.0 };

/// Information: a line for each sync.
const INFORMATION: Rate = Rate { at_once: 300.0, a_minute: 60.0 };

static LIMITER: Mutex<Option<Limiter>> = Mutex::new(None);
static LEFT_OUT: Notify = Notify::const_new();

/// The layer that lets lines within the limits through.
#[derive(Debug, Clone, Copy)]
pub(super) struct WithinLimits {
    pub(super) is_limited: bool,
}

impl<S: Subscriber> Layer<S> for WithinLimits {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        !self.is_limited || admit(event)
    }
}

fn admit(event: &Event<'_>) -> bool {
    let metadata = event.metadata();
    // The lines of this module are bounded by their period.
    if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
        return true;
    }
    let rate = if *metadata.level() == Level::INFO { INFORMATION } else { TROUBLE };
    let callsite = metadata.callsite();
    let admitted = lock().get_or_insert_default().admit(callsite.clone(), rate, Instant::now());
    if admitted == Admitted::FirstLeftOut {
        // Not while the lock is held, because formatting may log.
        let mut example = Example::default();
        event.record(&mut example);
        let left_out = LeftOut { level: *metadata.level(), target: metadata.target().to_owned(), example: example.0 };
        lock().get_or_insert_default().describe(&callsite, left_out);
        LEFT_OUT.notify_one();
    }
    admitted == Admitted::Yes
}

fn lock() -> MutexGuard<'static, Option<Limiter>> {
    LIMITER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports omitted lines, for ever. Sleeps while there are none.
pub async fn report() {
    loop {
        LEFT_OUT.notified().await;
        tokio::time::sleep(FIRST_REPORT).await;
        flush();
        tokio::time::sleep(PERIOD).await;
        flush();
    }
}

/// Reports the lines omitted until now. Called before the process ends.
pub fn flush() {
    let summaries = lock().as_mut().map(|limiter| limiter.take_summaries(Instant::now())).unwrap_or_default();
    for (level, summary) in summaries {
        if level == Level::INFO {
            tracing::info!("{summary}");
        } else {
            tracing::warn!("{summary}");
        }
    }
}

#[derive(Debug, Default)]
struct Limiter {
    causes: HashMap<Identifier, Cause>,
}

#[derive(Debug)]
struct Cause {
    /// Lines that may be written now.
    left: f64,
    counted: Instant,
    left_out: u64,
    /// The time of the first of them.
    since: Instant,
    what: Option<LeftOut>,
}

#[derive(Debug)]
struct LeftOut {
    level: Level,
    target: String,
    example: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Admitted {
    Yes,
    No,
    FirstLeftOut,
}

impl Limiter {
    fn admit(&mut self, callsite: Identifier, rate: Rate, now: Instant) -> Admitted {
        let fresh = || Cause { left: rate.at_once, counted: now, left_out: 0, since: now, what: None };
        let cause = self.causes.entry(callsite).or_insert_with(fresh);
        let minutes = now.saturating_duration_since(cause.counted).as_secs_f64() / 60.0;
        cause.left = (cause.left + minutes * rate.a_minute).min(rate.at_once);
        cause.counted = now;
        if cause.left >= 1.0 {
            cause.left -= 1.0;
            return Admitted::Yes;
        }
        cause.left_out += 1;
        if cause.left_out > 1 {
            return Admitted::No;
        }
        cause.since = now;
        Admitted::FirstLeftOut
    }

    fn describe(&mut self, callsite: &Identifier, what: LeftOut) {
        if let Some(cause) = self.causes.get_mut(callsite) {
            cause.what = Some(what);
        }
    }

    fn take_summaries(&mut self, now: Instant) -> Vec<(Level, String)> {
        let mut summaries = Vec::new();
        for cause in self.causes.values_mut().filter(|cause| cause.left_out > 0) {
            let Some(LeftOut { level, target, example }) = cause.what.take() else { continue };
            let count = std::mem::take(&mut cause.left_out);
            let seconds = now.saturating_duration_since(cause.since).as_secs().max(1);
            summaries.push((level, format!("and {count} more like this in {seconds} s: \"{example}\" ({target})")));
        }
        summaries
    }
}

/// The beginning of an event's message.
#[derive(Default)]
struct Example(String);

impl Visit for Example {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // It stops when it is full.
            let _ = write!(Bounded(&mut self.0), "{value:?}");
        }
    }
}

struct Bounded<'a>(&'a mut String);

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.len() >= EXAMPLE {
                self.0.push_str("...");
                return Err(fmt::Error);
            }
            self.0.push(character);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite;

    use super::*;

    struct Place(());

    static PLACE: Place = Place(());

    impl Callsite for Place {
        fn set_interest(&self, _: tracing::subscriber::Interest) {
            let Self(()) = self;
        }

        fn metadata(&self) -> &tracing::Metadata<'_> {
            unreachable!("nobody asks")
        }
    }

    #[test]
    fn a_burst_is_cut_short_and_counted_and_a_trickle_passes() {
        let mut limiter = Limiter::default();
        let start = Instant::now();
        let place = || Identifier(&PLACE);
        let rate = Rate { at_once: 3.0, a_minute: 60.0 };
        let admitted: Vec<_> = (0..5).map(|_| limiter.admit(place(), rate, start)).collect();
        assert_eq!(admitted, [Admitted::Yes, Admitted::Yes, Admitted::Yes, Admitted::FirstLeftOut, Admitted::No]);
        let what = LeftOut { level: Level::WARN, target: "here".to_owned(), example: "bad".to_owned() };
        limiter.describe(&place(), what);
        let summaries = limiter.take_summaries(start + Duration::from_secs(2));
        assert_eq!(summaries, [(Level::WARN, "and 2 more like this in 2 s: \"bad\" (here)".to_owned())]);
        assert!(limiter.take_summaries(start).is_empty());
        for second in 1..100 {
            let now = start + Duration::from_secs(second);
            assert_eq!(limiter.admit(place(), rate, now), Admitted::Yes);
        }
    }

    #[test]
    fn an_example_is_short() {
        let mut text = String::new();
        assert!(write!(Bounded(&mut text), "{}", "x".repeat(100_000)).is_err());
        assert_eq!(text.len(), EXAMPLE + 3);
    }
}
