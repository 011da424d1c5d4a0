//! The agent as a process of its own.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vmap_proxy_agent::lab::NetNs;

use super::PATIENCE;

/// What to start as the agent.
#[derive(Debug, Clone)]
pub struct Program {
    /// The file.
    pub path: PathBuf,
    /// Arguments before the agent's own.
    pub first: Vec<OsString>,
}

impl Program {
    /// The binary `vmap-proxy` itself.
    pub fn vmap_proxy(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), first: Vec::new() }
    }

    /// The binary `netlink-tests`, which is the agent when asked to be: cargo
    /// builds it for the tests of this crate, and `vmap-proxy` it does not.
    pub fn netlink_tests(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), first: vec!["agent".into(), "--".into()] }
    }
}

/// A running agent, killed when dropped.
pub struct AgentProcess {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
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

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, from: impl io::Read) {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            self.lock().lines.push(line);
            self.grown.notify_all();
        }
        self.lock().has_ended = true;
        self.grown.notify_all();
    }
}

impl AgentProcess {
    /// Starts it inside a namespace; each sync has its line (`-v=2`), unless
    /// `arguments` ask for another verbosity.
    ///
    /// # Errors
    /// No such program, or no process.
    pub fn start(namespace: &NetNs, program: &Program, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(&program.path);
        command.args(&program.first).arg("-v=2").args(arguments);
        Self::spawn(namespace, command)
    }

    /// Starts a command that is the agent, inside a namespace.
    ///
    /// # Errors
    /// No such program, or no process.
    pub fn spawn(namespace: &NetNs, mut command: Command) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = namespace.run(|| command.spawn()).map_err(io::Error::other)??;
        let log = Arc::new(Log::default());
        let errors = child.stderr.take();
        let writer = log.clone();
        let reader = std::thread::Builder::new().name("agent-log".to_owned()).spawn(move || {
            if let Some(errors) = errors {
                writer.read(errors);
            }
        })?;
        Ok(Self { child, log, reader: Some(reader) })
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn lines(&self) -> Vec<String> {
        self.log.lock().lines.clone()
    }

    /// Waits for a line that contains `text`, from the start or already there,
    /// and returns it.
    ///
    /// # Panics
    /// If none comes.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_lines(text, 1)
    }

    /// Waits for the n-th line that contains `text`, and returns it.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for_lines(&self, text: &str, count: usize) -> String {
        self.wait_for_lines_within(PATIENCE, text, count)
    }

    /// Waits for the first line that contains `text`, and returns it; for what
    /// takes longer than anything else.
    ///
    /// # Panics
    /// If it does not come within `patience`.
    pub fn wait_for_line_within(&self, patience: Duration, text: &str) -> String {
        self.wait_for_lines_within(patience, text, 1)
    }

    fn wait_for_lines_within(&self, patience: Duration, text: &str, count: usize) -> String {
        let deadline = Instant::now() + patience;
        let mut state = self.log.lock();
        loop {
            let mut matching = state.lines.iter().filter(|line| line.contains(text));
            if let Some(line) = count.checked_sub(1).and_then(|before| matching.nth(before)) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !state.has_ended && !left.is_zero(),
                "no line {count} with {text:?} in:\n{}",
                state.lines.join("\n")
            );
            (state, _) = self.log.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for a line behind the first `passed` ones that `is_wanted`; its
    /// position and itself.
    ///
    /// # Panics
    /// If it does not come.
    #[track_caller]
    pub fn wait_for_line_behind(&self, passed: usize, is_wanted: impl Fn(&str) -> bool) -> (usize, String) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.log.lock();
        loop {
            let mut fresh = state.lines.iter().enumerate().skip(passed);
            if let Some((position, line)) = fresh.find(|(_, line)| is_wanted(line)) {
                return (position, line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!state.has_ended && !left.is_zero(), "the line that is waited for does not come");
            (state, _) = self.log.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until everything is programmed for the first time.
    ///
    /// # Panics
    /// If it does not come to that.
    pub fn wait_until_ready(&self) -> String {
        self.wait_for_line(" programmed ")
    }

    /// Tells it to end, as the kubelet does, and waits until it has.
    ///
    /// # Errors
    /// The process can't be signalled.
    pub fn terminate(self) -> io::Result<ExitStatus> {
        kill(self.pid()?, Signal::SIGTERM)?;
        self.wait()
    }

    /// Ends it at once, as the kernel does when memory runs out.
    ///
    /// # Errors
    /// The process can't be signalled.
    pub fn kill(mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// The process can't be waited for.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.wait_until_silent(PATIENCE);
        self.child.wait()
    }

    /// The same, and what it logged.
    ///
    /// # Errors
    /// The process can't be waited for.
    ///
    /// # Panics
    /// If it does not end.
    pub fn wait_with_log(mut self) -> io::Result<(ExitStatus, Vec<String>)> {
        self.wait_until_silent(PATIENCE);
        let status = self.child.wait()?;
        Ok((status, self.lines()))
    }

    /// Standard error is closed only by the end of the process.
    fn wait_until_silent(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.log.lock();
        while !state.has_ended {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the agent goes on:\n{}", state.lines.join("\n"));
            (state, _) = self.log.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn pid(&self) -> io::Result<Pid> {
        i32::try_from(self.child.id()).map(Pid::from_raw).map_err(io::Error::other)
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.lines().join("\n"));
        }
    }
}
