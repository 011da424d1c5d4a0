//! Log output: `tracing` to standard error, as text or as JSON. It is bounded
//! for each cause ([`limit`]), has one line for each event whatever its text
//! ([`escape`]), and never makes the agent fail ([`output`]).

pub mod escape;
pub mod limit;
pub mod output;
pub mod panic;

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::DefaultFields;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::kube_proxy_configuration::Logging;
use escape::Escaped;
use limit::WithinLimits;
use output::StandardError;

/// The environment variable that overrides the verbosity, in
/// `tracing-subscriber`'s filter syntax (`info,vmap_proxy_agent::netlink=trace`).
pub const FILTER_VARIABLE: &str = "VMAP_PROXY_LOG";

/// Libraries whose lines are useful only at the highest verbosity.
const QUIET_LIBRARIES: [&str; 10] = [
    "h2",
    "hickory_net",
    "hickory_proto",
    "hickory_resolver",
    "hyper",
    "hyper_util",
    "kube_client",
    "kube_runtime",
    "rustls",
    "tower",
];

/// The target of the line for each sync, which kube-proxy has from `-v 2` on.
pub const SYNCS: &str = "vmap_proxy_agent::sync_loop::syncs";

/// The target of the line with the objects and Services behind each sync, from
/// `-v 3` on.
pub const SYNC_DETAILS: &str = "vmap_proxy_agent::sync_loop::details";

/// Returns the level for klog's `-v`: up to 3 for operators, 4 and 5 for
/// cluster developers, from 6 on everything.
pub fn level(verbosity: u32) -> LevelFilter {
    match verbosity {
        0..=3 => LevelFilter::INFO,
        4..=5 => LevelFilter::DEBUG,
        6.. => LevelFilter::TRACE,
    }
}

/// Sets up logging for the whole process. Called once, before the first event;
/// a second call changes nothing.
pub fn init(logging: &Logging) {
    let variable = std::env::var(FILTER_VARIABLE).ok();
    let is_limited = logging.verbosity < 4 && variable.is_none();
    let filter = filter(logging.verbosity, variable.as_deref());
    let is_json = logging.format == "json";
    output::set_json(is_json);
    let lines = lines(is_json, io::stderr().is_terminal(), || StandardError);
    let subscriber = tracing_subscriber::registry().with(filter).with(WithinLimits { is_limited }).with(lines);
    if subscriber.try_init().is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// Formats an event as a line.
fn lines<S, W>(is_json: bool, is_terminal: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'any> LookupSpan<'any>,
    W: for<'any> MakeWriter<'any> + Send + Sync + 'static,
{
    // The library would write an error to standard error with a macro that
    // panics.
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    if is_json {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        lines.with_ansi(is_terminal).fmt_fields(Escaped(DefaultFields::new())).boxed()
    }
}

fn filter(verbosity: u32, variable: Option<&str>) -> EnvFilter {
    if let Some(filter) = variable.and_then(|text| EnvFilter::try_new(text).ok()) {
        return filter;
    }
    let level = level(verbosity);
    let mut directives = level.to_string();
    if verbosity < 2 {
        directives.push_str(&format!(",{SYNCS}=warn"));
    }
    if verbosity < 3 {
        directives.push_str(&format!(",{SYNC_DETAILS}=warn"));
    }
    if verbosity < 8 {
        for library in QUIET_LIBRARIES {
            directives.push_str(&format!(",{library}=warn"));
        }
    }
    EnvFilter::new(directives)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged_as(is_json: bool, verbosity: u32, variable: Option<&str>, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let lines = lines(is_json, false, move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(filter(verbosity, variable)).with(lines);
        tracing::subscriber::with_default(subscriber, log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn logged(verbosity: u32, variable: Option<&str>) -> String {
        logged_as(true, verbosity, variable, || {
            tracing::info!("information");
            tracing::debug!("debugging");
            tracing::trace!("tracing");
            tracing::info!(target: "hyper", "library");
            tracing::info!(target: SYNCS, "each sync");
            tracing::info!(target: SYNC_DETAILS, "details");
        })
    }

    #[test]
    fn an_objects_name_cannot_forge_a_line() {
        let name = "cart\n2026-01-01T00:00:00Z ERROR vmap_proxy_agent: forged\u{1b}[2J";
        let log = || tracing::warn!(service = %name, "Service {name} is bad");
        let text = logged_as(false, 0, None, log);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains('\u{1b}') && text.contains(r"Service cart\n2026"), "{text}");
        let json = logged_as(true, 0, None, log);
        assert_eq!(json.lines().count(), 1, "{json}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["service"], name);
    }

    #[test]
    fn verbosity_decides_what_is_logged() {
        let words = |text: String| {
            ["information", "each sync", "details", "debugging", "tracing", "library"].map(|word| text.contains(word))
        };
        assert_eq!(words(logged(0, None)), [true, false, false, false, false, false]);
        assert_eq!(words(logged(2, None)), [true, true, false, false, false, false]);
        assert_eq!(words(logged(3, None)), [true, true, true, false, false, false]);
        assert_eq!(words(logged(4, None)), [true, true, true, true, false, false]);
        assert_eq!(words(logged(6, None)), [true, true, true, true, true, false]);
        assert_eq!(words(logged(8, None)), [true, true, true, true, true, true]);
        assert_eq!(words(logged(0, Some("trace"))), [true, true, true, true, true, true]);
    }

    #[test]
    fn json_lines_are_json() {
        for line in logged(0, None).lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["message"], "information");
        }
    }
}
