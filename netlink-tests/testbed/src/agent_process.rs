//! The agent as a process of its own. Its log is what an operator would see.
//!
//! Every method panics where it can't go on: the test has failed then.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::Signal;
use vmap_proxy_lab::{NetNs, Process};

use crate::PATIENCE;
use crate::manifest_directory::ManifestDirectory;
use crate::manifests::NODE_NAME;

/// A running agent; killed when dropped, which prints its log if a test fails.
#[derive(Debug)]
pub struct AgentProcess {
    process: Process,
    /// The number of log lines that [`wait_for`](Self::wait_for) has read.
    passed: usize,
}

impl AgentProcess {
    /// Starts a command that is the agent, inside a namespace.
    ///
    /// # Panics
    /// If there is no such program.
    #[track_caller]
    pub fn spawn(namespace: &NetNs, command: Command) -> Self {
        let process = Process::spawn(namespace, command, |_| ());
        Self { process: process.unwrap_or_else(|error| panic!("{error}")), passed: 0 }
    }

    /// Starts `vmap-proxy run --manifests` in `namespace` and waits until it has programmed everything once. `program`
    /// is `env!("CARGO_BIN_EXE_agent-under-test")`.
    ///
    /// # Panics
    /// If it does not get that far.
    #[track_caller]
    pub fn start(program: &str, namespace: &NetNs, manifests: &ManifestDirectory, flags: &[&str]) -> Self {
        let mut agent = Self::launch(program, namespace, manifests, flags);
        agent.wait_for(&["programmed "]);
        agent
    }

    /// Starts it and does not wait.
    ///
    /// # Panics
    /// If there is no such program.
    #[track_caller]
    pub fn launch(program: &str, namespace: &NetNs, manifests: &ManifestDirectory, flags: &[&str]) -> Self {
        Self::spawn(namespace, on_manifests(program, manifests, flags))
    }

    /// Starts it without the capability `NET_ADMIN`, as a user who may not change the network.
    ///
    /// # Panics
    /// If there is no such program.
    #[track_caller]
    pub fn launch_without_permission(program: &str, namespace: &NetNs, manifests: &ManifestDirectory) -> Self {
        let mut command = on_manifests(program, manifests, &[]);
        // SAFETY: between fork and exec only this one system call is made. Root's new program has no capability that
        // is not in the bounding set (capabilities(7)).
        unsafe {
            command.pre_exec(|| {
                const CAP_NET_ADMIN: libc::c_ulong = 12;
                match libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            })
        };
        Self::spawn(namespace, command)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Every line so far.
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Waits for a line that contains `text`, from the start or already there, and returns it.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_lines(text, 1)
    }

    /// Waits for a line that contains `text`, or the end of the agent. Returns whether the line came.
    pub fn comes_to(&self, text: &str) -> bool {
        self.process.wait_for_line(0, PATIENCE, |line| line.contains(text)).is_ok()
    }

    /// Waits for the n-th line that contains `text`, and returns it.
    ///
    /// # Panics
    /// If it does not come.
    #[track_caller]
    pub fn wait_for_lines(&self, text: &str, count: usize) -> String {
        self.wait_for_lines_within(PATIENCE, text, count)
    }

    /// Waits for the first line that contains `text`, and returns it; for what takes longer than anything else.
    ///
    /// # Panics
    /// If it does not come within `patience`.
    #[track_caller]
    pub fn wait_for_line_within(&self, patience: Duration, text: &str) -> String {
        self.wait_for_lines_within(patience, text, 1)
    }

    #[track_caller]
    fn wait_for_lines_within(&self, patience: Duration, text: &str, count: usize) -> String {
        let mut seen = 0;
        let found = self.process.wait_for_line(0, patience, |line| {
            let matches = line.contains(text);
            seen += usize::from(matches);
            matches && seen == count
        });
        found.unwrap_or_else(|missing| panic!("no line {count} with {text:?}: {missing}")).1
    }

    /// Waits for the next line of the log that has all these words, and returns it. Lines before it are passed over.
    ///
    /// # Panics
    /// If it does not come, or the agent ends before.
    #[track_caller]
    pub fn wait_for(&mut self, words: &[&str]) -> String {
        self.wait_for_all(&[words]).concat()
    }

    /// Waits for several lines in any order.
    ///
    /// # Panics
    /// As [`Self::wait_for`].
    #[track_caller]
    pub fn wait_for_all(&mut self, lines: &[&[&str]]) -> Vec<String> {
        let mut missing = lines.to_vec();
        let mut found = Vec::new();
        while !missing.is_empty() {
            let has_all = |line: &str, words: &[&str]| words.iter().all(|word| line.contains(word));
            let is_wanted = |line: &str| missing.iter().any(|words| has_all(line, words));
            let next = self.process.wait_for_line(self.passed, PATIENCE, is_wanted);
            let (position, line) = next.unwrap_or_else(|cause| panic!("none of {missing:?}: {cause}"));
            self.passed = position + 1;
            if let Some(position) = missing.iter().position(|words| has_all(&line, words)) {
                missing.remove(position);
            }
            found.push(line);
        }
        found
    }

    /// Waits until everything is programmed for the first time.
    ///
    /// # Panics
    /// If it does not come to that.
    #[track_caller]
    pub fn wait_until_ready(&self) -> String {
        self.wait_for_line(" programmed ")
    }

    /// Returns whether it has a thread of this name.
    pub fn has_thread(&self, name: &str) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).into_iter().flatten().flatten();
        threads
            .map(|thread| fs::read_to_string(thread.path().join("comm")))
            .any(|comm| comm.is_ok_and(|comm| comm.trim() == name))
    }

    /// The most memory that it has had so far (`VmHWM`), in KiB.
    ///
    /// # Panics
    /// If it has ended.
    #[track_caller]
    pub fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no memory of the agent: it has ended"))
    }

    /// Sends SIGTERM, as the kubelet does, and waits for its end.
    ///
    /// # Panics
    /// If it goes on.
    #[track_caller]
    pub fn terminate(self) -> ExitStatus {
        self.process.signal(Signal::SIGTERM).unwrap_or_else(|error| panic!("{error}"));
        self.wait()
    }

    /// The same, and it has to end well.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn stop(self) {
        let status = self.terminate();
        assert!(status.success(), "{status}");
    }

    /// Ends it at once, as the kernel does when memory runs out.
    ///
    /// # Panics
    /// If it can't be waited for.
    #[track_caller]
    pub fn kill(self) -> ExitStatus {
        self.process.signal(Signal::SIGKILL).unwrap_or_else(|error| panic!("{error}"));
        self.wait()
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn wait(self) -> ExitStatus {
        self.end().0
    }

    /// Waits until it ends by itself: its status and its log.
    ///
    /// # Panics
    /// If it does not end.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, Vec<String>) {
        let ended = self.process.wait_for_end(PATIENCE).unwrap_or_else(|late| panic!("{late}"));
        (ended.unwrap_or_else(|error| panic!("{error}")), self.log())
    }
}

impl Drop for AgentProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log().join("\n"));
        }
    }
}

/// The command `vmap-proxy run --manifests`, with a line for each sync.
pub fn on_manifests(program: &str, manifests: &ManifestDirectory, flags: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--node-name", NODE_NAME, "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]);
    // Tests wait for the line of each sync.
    command.arg("-v=2").args(flags).arg("--manifests").arg(manifests.path());
    // The result of a test must not depend on the environment.
    command.env_remove(vmap_proxy_agent::logging::FILTER_VARIABLE);
    command
}
