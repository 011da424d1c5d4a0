//! The measured programs: `vmap-proxy`, and kube-proxy beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use vmap_proxy_lab::{NetNs, Process};
use vmap_proxy_testbed::api_objects::{NODE, kubeadm_configuration};

use crate::scale::Failure;

/// Longer than any sync of kube-proxy that was seen (four minutes).
pub(super) const PATIENCE: Duration = Duration::from_secs(900);

/// Longer than a sync of kube-proxy at 10,000 Services.
const SETTLED: Duration = Duration::from_secs(10);

/// Whose program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    VmapProxy,
    KubeProxy,
}

/// A program that can be started on a node.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    kind: Kind,
    program: PathBuf,
}

impl Proxy {
    pub(super) fn vmap_proxy(program: PathBuf) -> Self {
        Self { kind: Kind::VmapProxy, program }
    }

    pub(super) fn kube_proxy(program: PathBuf) -> Self {
        Self { kind: Kind::KubeProxy, program }
    }

    /// The words of the line that ends a sync of IPv4 Services: the first one, and each one after it.
    fn end_of_sync(&self) -> [&'static [&'static str]; 2] {
        match self.kind {
            Kind::VmapProxy => [&[" programmed "], &[" synced in "]],
            Kind::KubeProxy => [&["\"SyncProxyRules complete\"", "ipFamily=\"IPv4\""]; 2],
        }
    }

    /// Starts it on a node, with the configuration of kubeadm for this kubeconfig and a line for each sync.
    pub(super) fn start(&self, node: &NetNs, kubeconfig: &Path, directory: &Path) -> Result<Running, Failure> {
        let file = directory.join("config.conf");
        fs::write(&file, kubeadm_configuration(kubeconfig).to_string())?;
        let mut command = Command::new(&self.program);
        command.arg("-v=2").arg(format!("--config={}", file.display())).arg(format!("--hostname-override={NODE}"));
        if self.kind == Kind::VmapProxy {
            // The usual path belongs to all namespaces of this machine.
            command.arg("--query-socket=");
        }
        let process = Process::spawn(node, command, |_| ())?;
        Ok(Running { process, kind: self.kind, ends: self.end_of_sync(), read: 0 })
    }
}

/// A running proxy; killed when dropped.
pub(super) struct Running {
    process: Process,
    kind: Kind,
    ends: [&'static [&'static str]; 2],
    /// The number of lines of its log that were read.
    read: usize,
}

impl Running {
    /// Waits for the end of the first sync, and returns its line of the log.
    pub(super) fn first_sync(&mut self) -> Result<String, Failure> {
        self.wait_for(self.ends[0])
    }

    /// Returns whether elements that nothing wants may be in the kernel after the first sync of a restart: an agent that
    /// lists large maps later has removed none so far.
    pub(super) fn seeks_leftovers(&self) -> bool {
        let has_removed = |line: &String| line.contains(" programmed ") && !line.contains(" 0 removed");
        self.kind == Kind::VmapProxy && !self.process.lines().iter().any(has_removed)
    }

    /// Returns whether it has removed them.
    pub(super) fn has_removed_leftovers(&self) -> bool {
        self.process.lines().iter().any(|line| line.contains(" of an earlier state"))
    }

    /// Passes over every line so far, so that [`Self::next_sync`] waits for a later one.
    pub(super) fn forget_past_syncs(&mut self) {
        self.read = self.process.lines().len();
    }

    /// Waits for the end of a sync.
    pub(super) fn next_sync(&mut self) -> Result<(), Failure> {
        self.wait_for(self.ends[1]).map(drop)
    }

    /// Waits until no sync has ended for a while, so that nothing is left to do.
    pub(super) fn settle(&mut self) {
        let is_end = |line: &str| self.ends[1].iter().all(|word| line.contains(word));
        while self.process.wait_for_line(self.process.lines().len(), SETTLED, is_end).is_ok() {}
    }

    fn wait_for(&mut self, words: &[&str]) -> Result<String, Failure> {
        let (position, line) =
            self.process.wait_for_line(self.read, PATIENCE, |line| words.iter().all(|word| line.contains(word)))?;
        self.read = position + 1;
        Ok(line)
    }

    /// Ends it as the kubelet does, and waits for its end.
    pub(super) fn terminate(mut self) -> Result<(), Failure> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait_for_end(PATIENCE)??;
        Ok(())
    }

    /// Milliseconds that the process has spent in user space and in the kernel:
    /// unlike the time that passed, these hardly depend on what else runs.
    pub(super) fn processor_time(&self) -> Result<(u64, u64), Failure> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // proc(5): the name in parentheses may contain anything; utime and stime
        // are the 12th and 13th behind it, in hundredths of a second.
        let (_, behind) = stat.rsplit_once(") ").ok_or("no name in stat")?;
        let mut times = behind.split_ascii_whitespace().skip(11).map(str::parse::<u64>);
        match (times.next(), times.next()) {
            (Some(user), Some(system)) => Ok((user? * 10, system? * 10)),
            _ => Err("no times in stat".into()),
        }
    }

    /// A field of its `/proc/PID/status`, in MiB.
    pub(super) fn memory(&self, field: &str) -> Result<String, Failure> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let kilobytes: f64 = line.and_then(|line| line.trim().strip_suffix(" kB")).ok_or("no such field")?.parse()?;
        Ok(format!("{:.1} MiB", kilobytes / 1024.0))
    }
}
