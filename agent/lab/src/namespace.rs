//! Anonymous network namespaces, and the user namespace that lets an ordinary user make them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{getgid, getuid};

use crate::LabError;

/// First source port a probe uses: above the default NodePort range (30000-32767), so that a probe's own socket
/// never sits on a port under test.
const FIRST_PROBE_PORT: u16 = 33_000;

/// Moves the whole process into separate mount and network namespaces, and into a separate user namespace if
/// it lacks the privilege otherwise.
///
/// Call it at the very start of `main`: a user namespace can be entered only while the process has a single
/// thread, and threads started before would stay in the old network namespace.
///
/// # Errors
///
/// [`LabError::NotPermitted`] when the kernel forbids it (or the process already has threads, which it reports
/// as an invalid argument).
pub fn enter_user_namespace() -> Result<(), LabError> {
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
    match unshare(own) {
        Ok(()) => return make_mounts_private(),
        Err(Errno::EPERM) => {}
        Err(errno) => {
            return Err(LabError::errno("unshare mount and network namespaces")(errno));
        }
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|errno| LabError::NotPermitted { source: errno.into() })?;
    // The kernel takes a group map from an unprivileged process only after setgroups is given up
    // (user_namespaces(7)).
    write_proc("/proc/self/setgroups", "deny")?;
    write_proc("/proc/self/uid_map", &format!("0 {uid} 1"))?;
    write_proc("/proc/self/gid_map", &format!("0 {gid} 1"))?;
    make_mounts_private()
}

/// Keeps later mounts of this process out of everybody else's view.
fn make_mounts_private() -> Result<(), LabError> {
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(LabError::errno("make mounts private"))
}

fn write_proc(path: &str, value: &str) -> Result<(), LabError> {
    fs::write(path, value).map_err(LabError::syscall(format!("write \"{value}\" to {path}")))
}

/// A network namespace without a name in the file system. It lives as long as this handle, or a socket or
/// thread in it, does.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    fd: OwnedFd,
    probe_ports: Arc<AtomicU16>,
}

impl NetNs {
    /// Creates a namespace with nothing in it but a loopback interface that is down.
    /// `name` serves messages only.
    ///
    /// # Errors
    ///
    /// [`LabError::NotPermitted`] without the privilege to do so.
    pub fn new(name: impl Into<String>) -> Result<Self, LabError> {
        Self::with_probe_ports(name.into(), Arc::new(AtomicU16::new(FIRST_PROBE_PORT)))
    }

    /// A handle on a namespace that exists already, by the path of its file (`/proc/PID/ns/net`,
    /// `/run/netns/NAME`).
    ///
    /// # Errors
    ///
    /// The file can't be opened.
    pub fn open(name: impl Into<String>, path: impl AsRef<Path>) -> Result<Self, LabError> {
        let path = path.as_ref();
        let fd = File::open(path).map_err(LabError::syscall(format!("open {}", path.display())))?;
        Ok(Self { name: name.into(), fd: fd.into(), probe_ports: Arc::new(AtomicU16::new(FIRST_PROBE_PORT)) })
    }

    /// Creates a namespace whose probes share their source ports with this one's. Where both send through one
    /// masquerading node, two connections then never compete for one port of it; the kernel drops a packet
    /// when it notices such a clash too late.
    ///
    /// # Errors
    ///
    /// As [`NetNs::new`].
    pub fn new_beside(&self, name: impl Into<String>) -> Result<Self, LabError> {
        Self::with_probe_ports(name.into(), Arc::clone(&self.probe_ports))
    }

    fn with_probe_ports(name: String, probe_ports: Arc<AtomicU16>) -> Result<Self, LabError> {
        // A network namespace belongs to a thread, so a separate thread creates it, and the caller stays
        // where it was.
        let made = thread::scope(|scope| scope.spawn(make_namespace).join());
        let fd = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Self { name, fd: fd.into(), probe_ports })
    }

    /// Another handle on the same namespace.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn try_clone(&self) -> Result<Self, LabError> {
        let fd = self.fd.try_clone().map_err(LabError::syscall("duplicate a namespace descriptor"))?;
        Ok(Self { name: self.name.clone(), fd, probe_ports: Arc::clone(&self.probe_ports) })
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The open namespace, as `setns(2)` and `IFLA_NET_NS_FD` take it.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `job` on a thread inside the namespace and waits for it. Sockets made by it stay in the namespace
    /// wherever they are used afterwards. A panic of `job` goes on in the caller.
    ///
    /// # Errors
    ///
    /// The namespace can't be entered, or no thread can be started.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let fd = self.fd();
        let outcome = thread::scope(|scope| {
            thread::Builder::new()
                .name(format!("ns-{}", self.name))
                .spawn_scoped(scope, move || {
                    enter(fd)?;
                    Ok(job())
                })
                .map(|thread| thread.join())
        });
        match outcome.map_err(LabError::syscall("start a thread"))? {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a thread inside the namespace that outlives this call, and this handle if need be.
    ///
    /// # Errors
    ///
    /// The descriptor can't be duplicated, or no thread can be started. If the thread can't enter the
    /// namespace, it ends at once with that error.
    pub fn spawn<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<Result<T, LabError>>, LabError> {
        let fd = self.fd.try_clone().map_err(LabError::syscall("duplicate a namespace descriptor"))?;
        thread::Builder::new()
            .name(format!("ns-{}", self.name))
            .spawn(move || {
                enter(fd.as_fd())?;
                Ok(job())
            })
            .map_err(LabError::syscall("start a thread"))
    }

    /// Sets kernel parameters of this namespace, each a dotted name below `net` (such as
    /// `net.ipv4.ip_forward`) and its value.
    ///
    /// # Errors
    ///
    /// The first parameter that is absent or not writable (a container may mount `/proc/sys` read-only).
    pub fn set_sysctls(&self, values: &[(&str, &str)]) -> Result<(), LabError> {
        self.run(|| {
            for (name, value) in values {
                write_proc(&format!("/proc/sys/{}", name.replace('.', "/")), value)?;
            }
            Ok(())
        })?
    }

    /// The command that opens a shell in this namespace while the process lives, for debugging.
    pub fn nsenter_hint(&self) -> String {
        let (pid, fd) = (std::process::id(), self.fd.as_raw_fd());
        format!("nsenter --net=/proc/{pid}/fd/{fd}")
    }

    /// A source port no earlier probe used, in this namespace and those made beside it, until the range wraps
    /// after 32,000 probes: so no probe meets the connection tracking entry of another.
    pub(crate) fn fresh_port(&self) -> u16 {
        let port = self.probe_ports.fetch_add(1, Ordering::Relaxed);
        if port == u16::MAX {
            self.probe_ports.store(FIRST_PROBE_PORT, Ordering::Relaxed);
        }
        port.max(FIRST_PROBE_PORT)
    }
}

/// Leaves the calling thread in a new network namespace and opens that.
fn make_namespace() -> Result<File, LabError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EPERM => LabError::NotPermitted { source: io::Error::from(errno) },
        other => LabError::errno("unshare the network namespace")(other),
    })?;
    let path = "/proc/thread-self/ns/net";
    File::open(path).map_err(LabError::syscall(format!("open {path}")))
}

/// Moves the calling thread into a network namespace.
fn enter(fd: BorrowedFd<'_>) -> Result<(), LabError> {
    setns(fd, CloneFlags::CLONE_NEWNET).map_err(LabError::errno("enter a network namespace"))
}
