//! Log output: `tracing` to standard error, as text or as JSON.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

use crate::config::kube_proxy_configuration::Logging;

/// The environment variable that overrides the verbosity, in
/// `tracing-subscriber`'s filter syntax (`info,agent::netlink=trace`).
pub const FILTER_VARIABLE: &str = "VMAP_PROXY_LOG";

/// Libraries whose chatter is of use only at the highest verbosity.
const QUIET_LIBRARIES: [&str; 6] = ["hyper", "hyper_util", "kube_client", "kube_runtime", "rustls", "tower"];

/// The target of the line for each sync, which kube-proxy has from `-v 2` on.
pub const SYNCS: &str = "agent::follow::syncs";

/// The level for klog's `-v`: up to 3 what an operator should see, 4 and 5
/// what a developer of the cluster asks for, from 6 on everything.
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
    let filter = filter(logging.verbosity, std::env::var(FILTER_VARIABLE).ok().as_deref());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = if logging.format == "json" {
        subscriber.json().flatten_event(true).with_current_span(false).try_init()
    } else {
        subscriber.with_ansi(io::stderr().is_terminal()).try_init()
    };
    if result.is_err() {
        tracing::debug!("logging was set up before");
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
    if verbosity < 8 {
        for library in QUIET_LIBRARIES {
            directives.push_str(&format!(",{library}=warn"));
        }
    }
    EnvFilter::new(directives)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

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

    fn logged(verbosity: u32, variable: Option<&str>) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter(verbosity, variable))
            .with_writer(move || writer.clone())
            .json()
            .flatten_event(true)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("information");
            tracing::debug!("debugging");
            tracing::trace!("tracing");
            tracing::info!(target: "hyper", "library");
            tracing::info!(target: SYNCS, "each sync");
        });
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn verbosity_decides_what_is_logged() {
        let words = |text: String| {
            ["information", "each sync", "debugging", "tracing", "library"].map(|word| text.contains(word))
        };
        assert_eq!(words(logged(0, None)), [true, false, false, false, false]);
        assert_eq!(words(logged(2, None)), [true, true, false, false, false]);
        assert_eq!(words(logged(3, None)), [true, true, false, false, false]);
        assert_eq!(words(logged(4, None)), [true, true, true, false, false]);
        assert_eq!(words(logged(6, None)), [true, true, true, true, false]);
        assert_eq!(words(logged(8, None)), [true, true, true, true, true]);
        assert_eq!(words(logged(0, Some("trace"))), [true, true, true, true, true]);
    }

    #[test]
    fn json_lines_are_json() {
        for line in logged(0, None).lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["message"], "information");
        }
    }
}
