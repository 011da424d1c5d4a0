//! `vmap-proxy status`: the state of the agent on one screen.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use super::asked::{AskError, Asked};
use super::paint::{Paint, columns, print, rendered};
use crate::cli::StatusOptions;
use crate::query::protocol::{StatusAnswer, SyncLine};

/// Not everything is programmed.
const NOT_IN_STEP: u8 = 3;

/// Time between two questions while it waits.
const PAUSE: Duration = Duration::from_millis(200);

/// The reason why there is no status.
#[derive(Debug, Error)]
pub enum Error {
    /// Nobody answers.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The status could not be printed.
    #[error("the status could not be printed: {0}")]
    Print(#[from] io::Error),
    /// The status could not be written as JSON.
    #[error("the status could not be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Prints the status; waits before that until everything is programmed, if asked
/// to.
///
/// # Errors
/// If no agent answers.
pub fn status(options: &StatusOptions) -> Result<ExitCode, Error> {
    let deadline = options.wait.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = loop {
        let answer = Asked::agent(&options.socket).and_then(|mut asked| asked.status());
        let is_over = deadline.is_none_or(|deadline| Instant::now() >= deadline);
        match answer {
            Ok(status) if is_over || is_in_step(&status) => break status,
            Err(error) if is_over => return Err(error.into()),
            // There is no event of another process to wait for.
            _ => sleep(PAUSE),
        }
    };
    print(&rendered(options.output, &status, text)?)?;
    Ok(if is_in_step(&status) { ExitCode::SUCCESS } else { ExitCode::from(NOT_IN_STEP) })
}

fn is_in_step(status: &StatusAnswer) -> bool {
    let failed = status.syncs.first().is_some_and(|sync| sync.failure.is_some());
    status.ready && !status.pending && !failed
}

fn text(status: &StatusAnswer, paint: Paint) -> String {
    let state = match (status.ready, status.pending) {
        (false, _) => paint.bad("waits for the first complete list"),
        (true, true) => paint.warning("a change waits to be programmed"),
        (true, false) => paint.good("everything is programmed"),
    };
    let mut text = String::new();
    let _ = writeln!(text, "{}", paint.heading(&format!("vmap-proxy {} on node {}", status.program, status.node)));
    let _ = writeln!(text, "State      {state}");
    let _ = writeln!(text, "Services   {}, endpoints {}", status.services, status.endpoints);
    if status.too_large > 0 {
        let _ =
            writeln!(text, "Too large  {}", paint.bad(&format!("{} Services are not programmed", status.too_large)));
    }
    if !status.quarantined.is_empty() {
        let _ = writeln!(text, "Refused    {}", paint.bad(&status.quarantined.join(", ")));
    }
    if !status.syncs.is_empty() {
        let _ = writeln!(text, "\nLast syncs");
        text.push_str(&columns("  ", &status.syncs.iter().map(sync).collect::<Vec<_>>()));
    }
    text
}

fn sync(sync: &SyncLine) -> Vec<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = now.saturating_sub(Duration::from_millis(sync.ended));
    let kind = if sync.repaired { "compared with the kernel" } else { "changes" };
    let result = match &sync.failure {
        Some(failure) => format!("failed: {failure}"),
        None => sync.changed.join(", "),
    };
    vec![
        format!("{} s ago", age.as_secs()),
        format!("{:.1} ms", Duration::from_micros(sync.microseconds).as_secs_f64() * 1000.0),
        format!("+{} -{} elements", sync.added, sync.removed),
        kind.to_owned(),
        result,
    ]
}
