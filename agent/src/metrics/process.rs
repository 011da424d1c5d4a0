//! The standard `process_*` metrics, read from `/proc` on request.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Clock ticks a second in `/proc/PID/stat`: `USER_HZ`, which is 100 on every
/// architecture that Kubernetes runs on.
const USER_HZ: f64 = 100.0;

/// Reads the figures of this process.
#[derive(Debug)]
pub(super) struct Process {
    proc: PathBuf,
}

impl Process {
    pub(super) fn new(proc: PathBuf) -> Self {
        Self { proc }
    }

    fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.proc.join(name)).ok()
    }

    /// A field of `/proc/self/stat` by its number in proc_pid_stat(5).
    fn stat(&self, field: usize) -> Option<f64> {
        let stat = self.read("self/stat")?;
        // The second field is the program's name in parentheses and may hold spaces.
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.split_whitespace().nth(field - 3)?.parse().ok()
    }

    fn cpu_seconds(&self) -> Option<f64> {
        Some((self.stat(14)? + self.stat(15)?) / USER_HZ)
    }

    fn start_time(&self) -> Option<f64> {
        let stat = self.read("stat")?;
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        Some(boot.trim().parse::<f64>().ok()? + self.stat(22)? / USER_HZ)
    }

    /// A line of `/proc/self/status` in kB, as bytes.
    fn status_bytes(&self, name: &str) -> Option<f64> {
        let status = self.read("self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? * 1024.0)
    }

    fn open_files(&self) -> Option<f64> {
        Some(fs::read_dir(self.proc.join("self/fd")).ok()?.count() as f64)
    }

    fn max_files(&self) -> Option<f64> {
        let limits = self.read("self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some(seconds) = self.cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let help = "Total user and system CPU time spent in seconds.";
            counter.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory size in bytes.", self.status_bytes("VmRSS")),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes.", self.status_bytes("VmSize")),
            ("process_open_fds", "Number of open file descriptors.", self.open_files()),
            ("process_max_fds", "Maximum number of open file descriptors.", self.max_files()),
            ("process_start_time_seconds", "Start time of the process since unix epoch in seconds.", self.start_time()),
        ] {
            if let Some(value) = value {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn the_figures_of_this_process_are_plausible() {
        let process = Process::new("/proc".into());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 24.0 * 3600.0..now + 2.0).contains(&process.start_time().unwrap()));
        assert!(process.status_bytes("VmRSS").unwrap() > 100_000.0);
        assert!(process.status_bytes("VmSize").unwrap() >= process.status_bytes("VmRSS").unwrap());
        assert!(process.open_files().unwrap() >= 3.0);
        assert!(process.max_files().unwrap() >= process.open_files().unwrap());
        assert!(process.cpu_seconds().unwrap() >= 0.0);
    }

    #[test]
    fn names_are_the_standard_ones() {
        let text = Metrics::new().encode(Format::Prometheus, &[]);
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_start_time_seconds"] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} is not in\n{text}");
        }
    }

    #[test]
    fn without_proc_there_are_none() {
        let text = Metrics::with_proc("/nonexistent".into()).encode(Format::Prometheus, &[]);
        assert!(!text.contains("process_"));
    }
}
