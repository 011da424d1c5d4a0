//! Kernel settings beside rules: the sysctls of connection tracking that
//! kube-proxy sets in nftables mode, and the process's own OOM score.
//!
//! Nothing else is set: no `route_localnet`, no `ip_forward`, no
//! `bridge-nf-call-iptables` (`cmd/kube-proxy/app/server_linux.go`,
//! `setupConntrack`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::GoDuration;
use crate::config::kube_proxy_configuration::Conntrack;
use crate::files::read::patiently;

/// The largest `nf_conntrack_max` that follows from the number of CPUs alone.
const MAX_BY_CPUS: i64 = 1_048_576;

/// The folder of conntrack's sysctls.
const NETFILTER: &str = "proc/sys/net/netfilter";

/// The size of conntrack's hash table; writable in the host's network
/// namespace only.
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";

/// A list of ranges, such as `0-3,6`.
const ONLINE_CPUS: &str = "sys/devices/system/cpu/online";

const OOM_SCORE_ADJ: &str = "proc/self/oom_score_adj";

/// A kernel setting can't be read or written.
#[derive(Debug, Error)]
pub enum SysctlError {
    /// It can't be read, or holds no number.
    #[error("cannot read {}: {source}; {}", path.display(), remedy(source))]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It can't be written.
    #[error("cannot set {} to {value}: {source}; {}", path.display(), remedy_of(path, source))]
    Write {
        /// The file.
        path: PathBuf,
        /// The value meant for it.
        value: i64,
        /// The system's reason.
        source: io::Error,
    },
}

fn remedy_of(path: &Path, error: &io::Error) -> &'static str {
    if path.ends_with("oom_score_adj") {
        return "the score stays as it is (lowering it takes the capability SYS_RESOURCE; in a pod the kubelet sets it)";
    }
    remedy(error)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EROFS) => {
            "mount it writable (in a pod: securityContext.privileged), or set the values under `conntrack` to 0, \
             which leaves the kernel's alone"
        }
        Some(libc::EACCES | libc::EPERM) => {
            "run as root in the host's network and user namespace, or set the values under `conntrack` to 0, which \
             leaves the kernel's alone"
        }
        Some(libc::ENOENT) => "load the kernel module nf_conntrack (modprobe nf_conntrack)",
        _ => "change the values under `conntrack` in the configuration; 0 keeps the kernel's value",
    }
}

/// A setting that had another value before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// Its value before.
    pub from: i64,
    /// Its value now.
    pub to: i64,
}

/// The result of setting all of them.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Settings that were changed, in order.
    pub changes: Vec<Change>,
    /// Failures that kube-proxy ends on.
    pub errors: Vec<SysctlError>,
    /// Failures that kube-proxy goes on after: the hash table's size, where
    /// `/sys` is read-only.
    pub warnings: Vec<SysctlError>,
}

/// The kernel's settings, below a root directory.
#[derive(Debug, Clone)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Self::new("/".into())
    }
}

impl Sysctls {
    /// Settings below `root`, which is `/` but in tests.
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Sets the configured values, in kube-proxy's order, and only those that
    /// differ. Goes on after a failure.
    pub fn apply(&self, conntrack: &Conntrack) -> Outcome {
        let mut outcome = Outcome::default();
        if let Some(max) = conntrack_max(conntrack, self.cpus()) {
            self.set(&format!("{NETFILTER}/nf_conntrack_max"), max, &mut outcome);
            self.grow_hash_table(max / 4, &mut outcome);
        }
        let seconds = |timeout: GoDuration| Some(timeout.whole_seconds()).filter(|&seconds| seconds > 0);
        for (name, value) in [
            ("nf_conntrack_tcp_timeout_established", seconds(conntrack.tcp_established_timeout)),
            ("nf_conntrack_tcp_timeout_close_wait", seconds(conntrack.tcp_close_wait_timeout)),
            // Never set back to 0, because another program may have set it.
            ("nf_conntrack_tcp_be_liberal", conntrack.tcp_be_liberal.then_some(1)),
            ("nf_conntrack_udp_timeout", seconds(conntrack.udp_timeout)),
            ("nf_conntrack_udp_timeout_stream", seconds(conntrack.udp_stream_timeout)),
        ] {
            if let Some(value) = value {
                self.set(&format!("{NETFILTER}/{name}"), value, &mut outcome);
            }
        }
        outcome
    }

    /// Sets the sysctls and logs the changes. Failures are returned if they are
    /// `fatal`, as in kube-proxy, and logged otherwise.
    ///
    /// # Errors
    /// The first failure of [`Outcome::errors`], if they are fatal.
    pub fn set_up(&self, conntrack: &Conntrack, fatal: bool) -> Result<(), SysctlError> {
        let outcome = self.apply(conntrack);
        for Change { path, from, to } in &outcome.changes {
            tracing::info!("set {} to {to}, was {from}", path.display());
        }
        for warning in &outcome.warnings {
            tracing::warn!("{warning}");
        }
        let mut errors = outcome.errors.into_iter();
        if fatal && let Some(error) = errors.next() {
            return Err(error);
        }
        for error in errors {
            tracing::warn!("{error}");
        }
        Ok(())
    }

    /// Makes the kernel spare this process, or take it first, when memory runs
    /// out: -1000 to 1000. kube-proxy only logs a failure.
    ///
    /// # Errors
    /// If it can't be written; lowering it needs `CAP_SYS_RESOURCE`.
    pub fn set_oom_score_adj(&self, score: i32) -> Result<(), SysctlError> {
        self.write(&self.root.join(OOM_SCORE_ADJ), i64::from(score))
    }

    fn set(&self, name: &str, value: i64, outcome: &mut Outcome) {
        if let Err(error) = self.change(name, |_| Some(value), outcome) {
            outcome.errors.push(error);
        }
    }

    /// A quarter of the connections, as the kernel itself has it; never fewer
    /// than there are.
    fn grow_hash_table(&self, buckets: i64, outcome: &mut Outcome) {
        match self.change(HASHSIZE, |current| Some(buckets).filter(|&buckets| buckets > current), outcome) {
            Ok(()) => {}
            Err(SysctlError::Write { path, value, source }) if source.raw_os_error() == Some(libc::EROFS) => {
                outcome.warnings.push(SysctlError::Write { path, value, source });
            }
            Err(error) => outcome.errors.push(error),
        }
    }

    fn change(
        &self,
        name: &str,
        wanted: impl FnOnce(i64) -> Option<i64>,
        outcome: &mut Outcome,
    ) -> Result<(), SysctlError> {
        let path = self.root.join(name);
        let from = read(&path)?;
        let Some(to) = wanted(from).filter(|&to| to != from) else {
            return Ok(());
        };
        self.write(&path, to)?;
        outcome.changes.push(Change { path, from, to });
        Ok(())
    }

    fn write(&self, path: &Path, value: i64) -> Result<(), SysctlError> {
        // Not `fs::write`, which would create a file that the kernel does not
        // have.
        patiently(|| fs::OpenOptions::new().write(true).truncate(true).open(path))
            .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()))
            .map_err(|source| SysctlError::Write { path: path.to_owned(), value, source })
    }

    /// CPUs of the machine, not those that a cgroup leaves to this process.
    fn cpus(&self) -> i64 {
        let online = patiently(|| fs::read_to_string(self.root.join(ONLINE_CPUS))).ok();
        online.and_then(|list| count_cpus(&list)).unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |cpus| i64::try_from(cpus.get()).unwrap_or(1))
        })
    }
}

fn read(path: &Path) -> Result<i64, SysctlError> {
    patiently(|| fs::read_to_string(path))
        .and_then(|text| text.trim().parse().map_err(io::Error::other))
        .map_err(|source| SysctlError::Read { path: path.to_owned(), source })
}

/// The CPUs in a list of ranges; `None` if it is no such list, or empty.
fn count_cpus(list: &str) -> Option<i64> {
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (i64, i64) = (first.parse().ok()?, last.parse().ok()?);
        Some(last - first + 1).filter(|&count| count > 0)
    };
    list.trim().split(',').map(count).sum()
}

/// `nf_conntrack_max`: per CPU but at most [`MAX_BY_CPUS`], and at least `min`
/// unless that limit was met. `None` keeps the kernel's value.
fn conntrack_max(conntrack: &Conntrack, cpus: i64) -> Option<i64> {
    if conntrack.max_per_core <= 0 {
        return None;
    }
    let scaled = i64::from(conntrack.max_per_core).saturating_mul(cpus);
    Some(if scaled > MAX_BY_CPUS { MAX_BY_CPUS } else { scaled.max(i64::from(conntrack.min)) })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A directory that resembles a machine's; removed when dropped.
    struct Machine {
        root: PathBuf,
        sysctls: Sysctls,
    }

    impl Machine {
        fn new() -> Self {
            static COUNTER: AtomicUsize = AtomicUsize::new(0);
            let name = format!("vmap-proxy-sysctl-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
            let root = std::env::temp_dir().join(name);
            let machine = Self { sysctls: Sysctls::new(root.clone()), root };
            for (name, value) in [
                ("nf_conntrack_max", "65536\n"),
                ("nf_conntrack_tcp_timeout_established", "432000\n"),
                ("nf_conntrack_tcp_timeout_close_wait", "3600\n"),
                ("nf_conntrack_tcp_be_liberal", "0\n"),
                ("nf_conntrack_udp_timeout", "30\n"),
                ("nf_conntrack_udp_timeout_stream", "120\n"),
            ] {
                machine.put(&format!("{NETFILTER}/{name}"), value);
            }
            machine.put(HASHSIZE, "16384\n");
            machine.put(ONLINE_CPUS, "0-7\n");
            machine.put(OOM_SCORE_ADJ, "0\n");
            machine
        }

        fn put(&self, name: &str, value: &str) {
            let path = self.root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }

        /// Applies, and returns the changes as (file name, value).
        fn changes(&self, conntrack: &Conntrack) -> Vec<(String, i64)> {
            let outcome = self.sysctls.apply(conntrack);
            assert!(outcome.errors.is_empty() && outcome.warnings.is_empty(), "{outcome:?}");
            outcome
                .changes
                .into_iter()
                .map(|change| {
                    assert_eq!(read(&change.path).unwrap(), change.to);
                    (change.path.file_name().unwrap().to_str().unwrap().to_owned(), change.to)
                })
                .collect()
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    fn owned(changes: &[(&str, i64)]) -> Vec<(String, i64)> {
        changes.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
    }

    #[test]
    fn the_defaults_change_what_differs_and_nothing_twice() {
        let machine = Machine::new();
        let expected =
            [("nf_conntrack_max", 262_144), ("hashsize", 65_536), ("nf_conntrack_tcp_timeout_established", 86_400)];
        assert_eq!(machine.changes(&Conntrack::default()), owned(&expected));
        assert_eq!(machine.changes(&Conntrack::default()), []);
    }

    #[test]
    fn every_option_has_its_sysctl() {
        let machine = Machine::new();
        let conntrack = Conntrack {
            max_per_core: 0,
            min: 5_000_000,
            tcp_established_timeout: GoDuration::ZERO,
            tcp_close_wait_timeout: GoDuration::from_seconds(60),
            tcp_be_liberal: true,
            udp_timeout: GoDuration::from_seconds(10),
            udp_stream_timeout: "90.9s".parse().unwrap(),
        };
        let expected = [
            ("nf_conntrack_tcp_timeout_close_wait", 60),
            ("nf_conntrack_tcp_be_liberal", 1),
            ("nf_conntrack_udp_timeout", 10),
            ("nf_conntrack_udp_timeout_stream", 90),
        ];
        assert_eq!(machine.changes(&conntrack), owned(&expected));
    }

    #[test]
    fn the_limit_scales_with_the_cpus() {
        let max = |max_per_core, min, cpus| conntrack_max(&Conntrack { max_per_core, min, ..Default::default() }, cpus);
        assert_eq!(max(32_768, 131_072, 2), Some(131_072));
        assert_eq!(max(32_768, 131_072, 8), Some(262_144));
        assert_eq!(max(32_768, 131_072, 64), Some(1_048_576));
        assert_eq!(max(32_768, 2_000_000, 8), Some(2_000_000), "min counts below the limit");
        assert_eq!(max(32_768, 2_000_000, 64), Some(1_048_576), "and not above it");
        assert_eq!(max(0, 131_072, 8), None);
    }

    #[test]
    fn a_larger_hash_table_is_kept() {
        let machine = Machine::new();
        machine.put(HASHSIZE, "1000000");
        assert!(machine.changes(&Conntrack::default()).iter().all(|(name, _)| name != "hashsize"));
    }

    #[test]
    fn a_missing_sysctl_is_an_error_with_its_remedy_and_the_others_are_set() {
        let machine = Machine::new();
        fs::remove_file(machine.root.join(NETFILTER).join("nf_conntrack_max")).unwrap();
        let outcome = machine.sysctls.apply(&Conntrack::default());
        let [error] = outcome.errors.as_slice() else { panic!("{outcome:?}") };
        assert!(error.to_string().contains("modprobe nf_conntrack"), "{error}");
        assert!(outcome.changes.iter().any(|change| change.path.ends_with("nf_conntrack_tcp_timeout_established")));
    }

    #[test]
    fn failures_end_the_process_only_where_they_are_fatal() {
        let machine = Machine::new();
        fs::remove_file(machine.root.join(NETFILTER).join("nf_conntrack_max")).unwrap();
        assert!(machine.sysctls.set_up(&Conntrack::default(), false).is_ok());
        assert!(machine.sysctls.set_up(&Conntrack::default(), true).is_err());
    }

    #[test]
    fn a_value_that_is_no_number_is_an_error() {
        let machine = Machine::new();
        machine.put(&format!("{NETFILTER}/nf_conntrack_max"), "many");
        assert!(matches!(machine.sysctls.apply(&Conntrack::default()).errors[..], [SysctlError::Read { .. }]));
    }

    #[test]
    fn a_read_only_mount_is_told_with_its_remedy() {
        let source = io::Error::from_raw_os_error(libc::EROFS);
        let error = SysctlError::Write { path: "/proc/sys/x".into(), value: 1, source };
        assert!(error.to_string().contains("privileged"), "{error}");
    }

    #[test]
    fn cpus_are_counted_from_their_list() {
        assert_eq!(count_cpus("0\n"), Some(1));
        assert_eq!(count_cpus("0-3,6,8-9"), Some(7));
        assert_eq!(count_cpus(""), None);
        assert_eq!(count_cpus("3-1"), None);
    }

    #[test]
    fn the_oom_score_is_written() {
        let machine = Machine::new();
        machine.sysctls.set_oom_score_adj(-999).unwrap();
        assert_eq!(read(&machine.root.join(OOM_SCORE_ADJ)).unwrap(), -999);
        assert!(Sysctls::new("/nonexistent".into()).set_oom_score_adj(0).is_err());
    }
}
