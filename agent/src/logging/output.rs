//! Standard error, which may fail at any time: a full disk, a closed pipe, a
//! reader that has stopped. Then lines are lost and counted, and nothing else
//! happens. No lock is taken, so that a panic can always be written.

use std::borrow::Cow;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vmap_proxy_compiler::words::count;

/// Number of bytes that a ready pipe takes without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// Longest time that a line waits for its reader, in milliseconds. Once it was
/// exceeded, no line waits until the reader goes on.
const PATIENCE: u16 = 1000;

/// The longest line, in bytes.
const LONGEST: usize = 32 << 10;

/// The longest text in a JSON line that is too long as a whole.
const LONGEST_TEXT: usize = 8 << 10;

static IS_JSON: AtomicBool = AtomicBool::new(false);
static IS_STALLED: AtomicBool = AtomicBool::new(false);
/// Whether the last line was cut off in its middle.
static IS_CUT: AtomicBool = AtomicBool::new(false);
static LOST: AtomicU64 = AtomicU64::new(0);

/// Writes lines to standard error, each with one call, and never fails.
#[derive(Debug, Clone, Copy, Default)]
pub struct StandardError;

impl Write for StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        put(&shortened(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The format of [`record`].
pub(super) fn set_json(is_json: bool) {
    IS_JSON.store(is_json, Ordering::Relaxed);
}

/// Writes a log line without `tracing`, for example from a panic.
pub(super) fn record(level: &str, target: &str, message: &str) {
    put(line(level, target, message).as_bytes());
}

fn line(level: &str, target: &str, message: &str) -> String {
    let now = Timestamp::now();
    if IS_JSON.load(Ordering::Relaxed) {
        let now = now.to_string();
        return serde_json::json!({ "timestamp": now, "level": level, "message": message, "target": target })
            .to_string()
            + "\n";
    }
    format!("{now} {level:>5} {target}: {}\n", super::escape::escaped(message))
}

fn put(line: &[u8]) {
    let lost = LOST.swap(0, Ordering::Relaxed);
    let written = if lost > 0 { write(lost_lines(lost).as_bytes()) } else { Ok(()) };
    if written.and_then(|()| write(line)).is_err() {
        LOST.fetch_add(lost + 1, Ordering::Relaxed);
    }
}

fn lost_lines(lost: u64) -> String {
    let message = format!("{} could not be written, lost", count(lost, "log line"));
    line("WARN", "vmap_proxy_agent::logging", &message)
}

fn write(line: &[u8]) -> Result<(), Errno> {
    let error_output = io::stderr();
    let error_output = error_output.as_fd();
    let mut rest = line;
    if IS_CUT.swap(false, Ordering::Relaxed) {
        write_all(error_output, &mut b"\n".as_slice())?;
    }
    let written = write_all(error_output, &mut rest);
    if written.is_err() && rest.len() < line.len() {
        IS_CUT.store(true, Ordering::Relaxed);
    }
    written
}

fn write_all(output: impl AsFd + Copy, rest: &mut &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        wait(output)?;
        match nix::unistd::write(output, &rest[..rest.len().min(CHUNK)]) {
            Ok(written) => *rest = &rest[written..],
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Waits until standard error can be written, unless an earlier wait failed.
fn wait(output: impl AsFd) -> Result<(), Errno> {
    let patience = if IS_STALLED.load(Ordering::Relaxed) { 0 } else { PATIENCE };
    let mut wanted = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
    loop {
        match poll(&mut wanted, PollTimeout::from(patience)) {
            Ok(0) => {
                IS_STALLED.store(true, Ordering::Relaxed);
                return Err(Errno::ETIMEDOUT);
            }
            Ok(_) => {
                IS_STALLED.store(false, Ordering::Relaxed);
                return Ok(());
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Shortens a line to [`LONGEST`]; JSON stays valid JSON.
fn shortened(line: &[u8]) -> Cow<'_, [u8]> {
    if line.len() <= LONGEST {
        return Cow::Borrowed(line);
    }
    if let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_slice(line) {
        for value in fields.values_mut() {
            if let serde_json::Value::String(text) = value {
                *text = cut(text, LONGEST_TEXT).into_owned();
            }
        }
        return Cow::Owned((serde_json::Value::Object(fields).to_string() + "\n").into_bytes());
    }
    let text = String::from_utf8_lossy(line);
    Cow::Owned((cut(text.trim_end(), LONGEST).into_owned() + "\n").into_bytes())
}

fn cut(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let end = (0..=longest).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    Cow::Owned(format!("{} ... ({} more bytes)", &text[..end], text.len() - end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_any_length_becomes_one_that_can_be_kept() {
        let long = "\u{20ac}".repeat(LONGEST);
        let text = String::from_utf8(shortened(format!("{long}\n").as_bytes()).into_owned()).unwrap();
        assert!(text.len() < LONGEST + 100 && text.ends_with(" more bytes)\n"), "{}", text.len());
        let json = serde_json::json!({ "message": long, "level": "WARN" }).to_string() + "\n";
        let json: serde_json::Value = serde_json::from_slice(&shortened(json.as_bytes())).unwrap();
        assert_eq!(json["level"], "WARN");
        assert!(json["message"].as_str().unwrap().len() < LONGEST_TEXT + 100);
    }
}
