//! Writes a panic as a line in the log, in the log's format.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::thread;

use super::output;

/// Logs every panic before the build's own reaction (a release build aborts).
///
/// The line is written without `tracing`, which may be the cause of the panic,
/// and without a lock. A panic in this code would end the process at once, with
/// the standard library's line.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| output::record("ERROR", "vmap_proxy_agent", &describe(panic))));
}

fn describe(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = thread::current();
    let end = if cfg!(panic = "abort") { "the process ends, the rules stay in place" } else { "this task ends" };
    let mut text = format!(
        "panic at {place} in thread {}: {}; {end}. This is a defect of vmap-proxy, please report it",
        thread.name().unwrap_or("without a name"),
        what.unwrap_or("no message"),
    );
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        text.push_str(&format!(": {backtrace}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::process::{Command, Stdio};

    use super::*;

    /// Set in the process that panics.
    const PANIC: &str = "VMAP_PROXY_TEST_PANIC";

    #[test]
    fn a_panic_is_one_line_and_needs_nobody_who_reads_it() {
        if std::env::var_os(PANIC).is_some() {
            install();
            panic!("broken\nby a test");
        }
        let again = |errors: Stdio| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args([
                "--exact",
                "--nocapture",
                "logging::panic::tests::a_panic_is_one_line_and_needs_nobody_who_reads_it",
            ]);
            command.env(PANIC, "1").stderr(errors).stdout(Stdio::null());
            command.spawn().unwrap().wait_with_output().unwrap()
        };
        let output = again(Stdio::piped());
        // The exit status of a failed test: it did not abort.
        assert_eq!(output.status.code(), Some(101));
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(
            log.lines()
                .any(|line| line.contains("ERROR vmap_proxy_agent: panic at") && line.contains(r"broken\nby a test")),
            "{log}"
        );
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(again(full.into()).status.code(), Some(101));
    }
}
