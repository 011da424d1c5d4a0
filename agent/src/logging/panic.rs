//! The reaction to a panic: a line in the log, in the log's format, and the end of
//! the process.
//!
//! The rules stay in place, and a new process begins with a known state. The DNS
//! server is the exception: a panic there costs names, and the proxy goes on
//! (decision 67).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;
use std::thread;

use super::output;

/// Logs every panic, and ends the process unless it is one of the DNS server.
///
/// The line is written without `tracing`, which may be the cause of the panic,
/// and without a lock. A panic in this code would end the process at once, with
/// the standard library's line.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let ends_process = thread.name() != Some(vmap_proxy_dns::THREAD);
        output::record("ERROR", "vmap_proxy_agent", &describe(panic, thread.name(), ends_process));
        if ends_process {
            std::process::abort();
        }
    }));
}

fn describe(panic: &PanicHookInfo<'_>, thread: Option<&str>, ends_process: bool) -> String {
    let payload = panic.payload();
    let what = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let end = if ends_process {
        "the process ends, the rules stay in place"
    } else {
        "the question is not answered, or names are not served until the next start; rules are"
    };
    let mut text = format!(
        "panic at {place} in thread {}: {}; {end}. This is a defect of vmap-proxy, please report it",
        thread.unwrap_or("without a name"),
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
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output, Stdio};

    use super::*;

    /// Set in the process that panics, to the name of the thread that does.
    const PANIC: &str = "VMAP_PROXY_TEST_PANIC";

    fn again(test: &str, thread: &str, errors: Stdio) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", &format!("logging::panic::tests::{test}")]);
        command.env(PANIC, thread).stderr(errors).stdout(Stdio::null());
        command.spawn().unwrap().wait_with_output().unwrap()
    }

    /// In the process that panics: does so on a thread with the requested name, and outlives that thread or not.
    fn panicked() -> bool {
        let Ok(name) = std::env::var(PANIC) else { return false };
        install();
        let thread = thread::Builder::new().name(name).spawn(|| panic!("broken\nby a test")).unwrap();
        assert!(thread.join().is_err());
        true
    }

    #[test]
    fn a_panic_is_one_line_and_ends_the_process() {
        if panicked() {
            return;
        }
        let again = |errors| again("a_panic_is_one_line_and_ends_the_process", "sync", errors);
        let output = again(Stdio::piped());
        assert_eq!(output.status.signal(), Some(libc::SIGABRT));
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(
            log.lines()
                .any(|line| line.contains("ERROR vmap_proxy_agent: panic at") && line.contains(r"broken\nby a test")),
            "{log}"
        );
        // Nobody has to read it.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(again(full.into()).status.signal(), Some(libc::SIGABRT));
    }

    #[test]
    fn a_panic_of_the_dns_server_costs_names_only() {
        if panicked() {
            return;
        }
        let output = again("a_panic_of_the_dns_server_costs_names_only", vmap_proxy_dns::THREAD, Stdio::piped());
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{log}");
        assert!(log.contains("ERROR vmap_proxy_agent: panic at") && log.contains("rules are"), "{log}");
    }
}
