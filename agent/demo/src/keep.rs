//! `vmap-proxy demo --keep`: a shell inside the cluster of namespaces.

use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tempfile::TempDir;
use vmap_proxy_lab::Lab;

use crate::DemoError;
use crate::agent::DemoAgent;

/// Where programs such as `nft` are, which an ordinary user's `PATH` lacks.
const SYSTEM_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

/// Files that a kept cluster needs, beside the manifests: the agent's socket, and this program under its name. They
/// go away with it.
pub(crate) struct Kept {
    directory: TempDir,
}

impl Kept {
    /// Makes the directory.
    pub(crate) fn new() -> Result<Self, DemoError> {
        let made = tempfile::Builder::new().prefix("vmap-proxy-kept-").tempdir();
        let directory = made.map_err(crate::agent::in_the_way(&std::env::temp_dir()))?;
        let link = directory.path().join("vmap-proxy");
        let linked = std::env::current_exe().and_then(|program| symlink(program, &link));
        linked.map_err(crate::agent::in_the_way(&link))?;
        Ok(Self { directory })
    }

    /// The agent's query socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent.sock")
    }

    /// Starts a shell in the node's namespace, and returns when it has ended.
    pub(crate) fn explore(&self, lab: &Lab, agent: &DemoAgent) -> Result<(), DemoError> {
        print_commands(&lab.host("client-pod")?.nsenter_hint());
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
        let mut path = self.directory.path().as_os_str().to_owned();
        for more in [std::env::var_os("PATH").unwrap_or_default(), SYSTEM_DIRECTORIES.into()] {
            path.push(":");
            path.push(more);
        }
        let mut command = Command::new(&shell);
        command.env("PATH", path).env("SOCKET", self.socket()).env("MANIFESTS", agent.manifests());
        survive_interrupts().map_err(DemoError::Shell)?;
        let ended = lab.node().run(|| command.status())?;
        // The status is that of the last command in it.
        ended
            .map(drop)
            .map_err(|error| DemoError::Shell(io::Error::new(error.kind(), format!("{}: {error}", shell.display()))))
    }
}

/// Ctrl-C in the shell is for the command that runs there. The handler is not inherited by programs, as an ignored
/// signal would be.
fn survive_interrupts() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing, so it is safe at any point of the program.
    unsafe { sigaction(Signal::SIGINT, &action) }?;
    Ok(())
}

fn print_commands(nsenter: &str) {
    say!("The cluster stays until this shell ends. The shell is on node-1. Commands to try:\n");
    for (command, meaning) in [
        ("vmap-proxy status --socket $SOCKET", "the agent's state and its last syncs"),
        ("vmap-proxy get services --socket $SOCKET", "Services with their endpoints"),
        ("vmap-proxy explain --socket $SOCKET --from outside --to node:30080", "where a packet goes, and why"),
        ("vmap-proxy explain --socket $SOCKET --to svc:default/empty", "why a Service is not served"),
        ("vmap-proxy verify --socket $SOCKET", "the kernel compared with the agent"),
        ("nft list table ip vmap-proxy", "the rules and elements"),
        ("nft delete table ip vmap-proxy", "damage, which the agent repairs at once"),
        ("bash -c 'head -n 1 </dev/tcp/10.96.0.10/80'", "a connection to Service web: a pod answers"),
        ("curl -s localhost:10249/page/services", "the data of the status page"),
        ("curl -s localhost:10249/metrics", "metrics"),
        ("vi $MANIFESTS/web.yaml", "the agent follows the file"),
    ] {
        say!("  {command:<70} {meaning}");
    }
    say!("  {nsenter:<70} a shell in the client's pod");
    say!("\nexit ends the shell, the agent and the namespaces.");
}
