//! A program in a namespace, and its log.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{LabError, NetNs};

/// A running program whose standard error is its log. Killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

/// The reason why a line of the log, or the end of the program, did not come.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; its log:\n{}", .log.join("\n"))]
pub struct NoLine {
    /// The event that happened instead.
    pub cause: &'static str,
    /// Every line so far.
    pub log: Vec<String>,
}

#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    grown: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    has_ended: bool,
}

impl Process {
    /// Starts a command inside a namespace, without standard input and output. `each_line` sees every line of its log,
    /// on a separate thread.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered, the program does not exist, or no process or thread can be created.
    pub fn spawn(
        namespace: &NetNs,
        mut command: Command,
        mut each_line: impl FnMut(&str) + Send + 'static,
    ) -> Result<Self, LabError> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let what = format!("start {} in namespace {}", command.get_program().display(), namespace.name());
        let mut child = namespace.run(|| command.spawn())?.map_err(LabError::syscall(what))?;
        let log = Arc::new(Log::default());
        let errors = child.stderr.take();
        let mut process = Self { child, log: log.clone(), reader: None };
        let reader = std::thread::Builder::new().name("process-log".to_owned()).spawn(move || {
            if let Some(errors) = errors {
                log.read(errors, &mut each_line);
            }
        });
        process.reader = Some(reader.map_err(LabError::syscall("start a thread that reads a log"))?);
        Ok(process)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Every line of the log so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Waits for a line behind the first `passed` ones that `is_wanted`; returns its position and the line itself.
    ///
    /// # Errors
    ///
    /// The program ends without it, or it does not come within `patience`.
    pub fn wait_for_line(
        &self,
        mut passed: usize,
        patience: Duration,
        mut is_wanted: impl FnMut(&str) -> bool,
    ) -> Result<(usize, String), NoLine> {
        let deadline = Instant::now() + patience;
        let mut state = self.log.lock();
        loop {
            while let Some(line) = state.lines.get(passed) {
                if is_wanted(line) {
                    return Ok((passed, line.clone()));
                }
                passed += 1;
            }
            if state.has_ended {
                return Err(state.instead("the program has ended without the line that was awaited"));
            }
            state = self.log.wait(state, deadline).map_err(|state| state.instead("the awaited line does not come"))?;
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    ///
    /// It goes on for longer than `patience`.
    pub fn wait_for_end(&mut self, patience: Duration) -> Result<io::Result<ExitStatus>, NoLine> {
        let deadline = Instant::now() + patience;
        let mut state = self.log.lock();
        // Standard error is closed only by the end of the process.
        while !state.has_ended {
            state = self.log.wait(state, deadline).map_err(|state| state.instead("the program goes on"))?;
        }
        drop(state);
        Ok(self.child.wait())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// It has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).map(Pid::from_raw).map_err(io::Error::other)?;
        Ok(kill(pid, signal)?)
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Process").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl LogState {
    fn instead(&self, cause: &'static str) -> NoLine {
        NoLine { cause, log: self.lines.clone() }
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, from: impl io::Read, each_line: &mut dyn FnMut(&str)) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            each_line(&line);
            self.lock().lines.push(line);
            self.grown.notify_all();
        }
        self.lock().has_ended = true;
        self.grown.notify_all();
    }

    /// Waits for more; gives the state back as an error once the deadline has passed.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, LogState>,
        deadline: Instant,
    ) -> Result<MutexGuard<'a, LogState>, MutexGuard<'a, LogState>> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(state);
        }
        Ok(self.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }
}
