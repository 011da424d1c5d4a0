//! Names as a pod looks them up: by the C library, with a `resolv.conf` of its own.

use std::fs;
use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::process::{Child, Command, Output};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::{LabError, NetNs};

/// The sources of names, so that the machine's own settings do not matter.
const NSSWITCH: &str = "hosts: files dns\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";

/// The reason why a name has no address here.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The lab could not ask.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The resolver found nothing.
    #[error("{name}: {source}")]
    NotFound {
        /// The name.
        name: String,
        /// The reason of the C library.
        source: io::Error,
    },
}

/// A directory `/etc` as the kubelet makes it for a pod with `dnsPolicy: ClusterFirst`.
#[derive(Debug)]
pub struct PodResolver {
    etc: TempDir,
}

impl PodResolver {
    /// Writes the files for pods of a namespace of Kubernetes: the search list of `domain`, and `ndots:5`.
    ///
    /// # Errors
    ///
    /// There is no directory for temporary files.
    pub fn new(servers: &[IpAddr], namespace: &str, domain: &str) -> Result<Self, LabError> {
        let etc = tempfile::Builder::new().prefix("vmap-proxy-etc-").tempdir();
        let etc = etc.map_err(LabError::syscall("make a directory for resolv.conf"))?;
        let servers: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let search = format!("search {namespace}.svc.{domain} svc.{domain} {domain}\noptions ndots:5\n");
        for (name, text) in
            [("resolv.conf", servers + &search), ("nsswitch.conf", NSSWITCH.to_owned()), ("hosts", HOSTS.to_owned())]
        {
            let path = etc.path().join(name);
            fs::write(&path, text).map_err(LabError::syscall(format!("write {}", path.display())))?;
        }
        Ok(Self { etc })
    }

    /// Looks a name up from inside of a namespace, and returns its addresses, each once.
    ///
    /// # Errors
    ///
    /// [`ResolveError::NotFound`] if the name has none.
    pub fn lookup(&self, namespace: &NetNs, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let found = self.inside(namespace, || {
            (name, 0).to_socket_addrs().map(|addresses| addresses.map(|address| address.ip()).collect())
        })?;
        let mut addresses: Vec<IpAddr> =
            found.map_err(|source| ResolveError::NotFound { name: name.to_owned(), source })?;
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// Runs a program inside of a namespace, with these files.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the files cannot be put over `/etc`. The result of the program is the inner one.
    pub fn output(&self, namespace: &NetNs, command: &mut Command) -> Result<io::Result<Output>, LabError> {
        self.inside(namespace, || command.output())
    }

    /// Starts a program inside of a namespace, with these files.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the files cannot be put over `/etc`. The result of the program is the inner one.
    pub fn spawn(&self, namespace: &NetNs, command: &mut Command) -> Result<io::Result<Child>, LabError> {
        self.inside(namespace, || command.spawn())
    }

    /// Runs `job` on a thread inside of a namespace, with these files. Threads and programs that it starts have them,
    /// too.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the files cannot be put over `/etc`.
    pub fn inside<T: Send>(&self, namespace: &NetNs, job: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        namespace.run(|| {
            self.mount()?;
            Ok(job())
        })?
    }

    /// Replaces the servers, as a network manager does: by another file of that name.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn replace_servers(&self, servers: &[IpAddr]) -> io::Result<()> {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        let fresh = self.etc.path().join("resolv.conf.new");
        fs::write(&fresh, text)?;
        fs::rename(fresh, self.etc.path().join("resolv.conf"))
    }

    /// Puts the directory over `/etc`, for the calling thread alone.
    fn mount(&self) -> Result<(), LabError> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(LabError::errno("unshare the mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(LabError::errno("make mounts private"))?;
        let what = format!("mount {} over /etc", self.etc.path().display());
        mount(Some(self.etc.path()), "/etc", None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(LabError::errno(what))
    }
}
