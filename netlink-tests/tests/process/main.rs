//! The agent as a process among others: what it does at rest, and what it makes of a log that can't be written, of few
//! descriptors and threads, of odd files and of clients that misbehave. Seen from outside, by `/proc` and its sockets.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod bad_input;
mod connections;
mod demo;
mod descriptors;
mod doctor;
mod explain;
mod faults;
mod files;
mod flow_table;
mod hostile;
mod idle;
mod journal;
mod lab_crash;
mod leftovers;
mod localhost_node_ports;
mod log;
mod migration;
mod name_take_over;
mod names;
mod ownership;
mod plan;
mod questions;
mod resets;
mod scripts;
mod servers;
mod threads;
mod trace;
mod without_ipv6;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::PATIENCE;
use vmap_proxy_testbed::cluster::{Cluster, NODE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{NODE_NAME, service};
use vmap_proxy_testbed::nft::nft_in;

vmap_proxy_testbed::in_own_namespaces!();

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

const HEALTH: u16 = 10256;
const METRICS: u16 = 10249;

/// `vmap-proxy` with these arguments.
fn vmap_proxy(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments);
    command.env_remove(vmap_proxy_agent::logging::FILTER_VARIABLE);
    command
}

/// `vmap-proxy run --manifests`, with flags.
fn run_manifests(manifests: &ManifestDirectory, flags: &[&str]) -> Command {
    let mut command = vmap_proxy(&["run", "--node-name", NODE_NAME, "--metrics-bind-address", "0.0.0.0:10249"]);
    command.args(flags).arg("--manifests").arg(manifests.path());
    command
}

/// A Service without endpoints: its cluster IP is in the table.
fn web(number: u8) -> Value {
    service(&format!("shop/web-{number}")).cluster_ip(&format!("10.96.0.{number}")).port(Tcp, 80).build()
}

fn manifests() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    manifests.write_objects("web.json", &[node_object(), web(1)]);
    manifests
}

/// Waits until it is so.
#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        // There is no event of the other process to wait for.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks a server; `None` while it does not answer.
fn get_from(namespace: &NetNs, address: SocketAddr, path: &str) -> Option<String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    namespace.run(ask).unwrap().ok().filter(|text| !text.is_empty())
}

/// A process that is killed when dropped.
struct Agent {
    child: Child,
    namespace: NetNs,
}

impl Agent {
    /// Starts it in a namespace; its standard streams are as the command has them.
    fn start(namespace: &NetNs, mut command: Command) -> Self {
        let child = namespace.run(|| command.spawn()).unwrap().unwrap();
        Self { child, namespace: namespace.try_clone().unwrap() }
    }

    /// Starts it with a log that goes to a file.
    fn with_log(namespace: &NetNs, mut command: Command, log: &std::path::Path) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(log).unwrap());
        Self::start(namespace, command)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default()
    }

    /// Asks one of its servers; `None` while it does not answer.
    fn get(&self, port: u16, path: &str) -> Option<String> {
        get_from(&self.namespace, SocketAddr::new(NODE[0].parse().unwrap(), port), path)
    }

    fn is_healthy(&self) -> bool {
        self.get(HEALTH, "/healthz").is_some_and(|reply| reply.contains(" 200 "))
    }

    #[track_caller]
    fn wait_until_healthy(&mut self) {
        eventually("/healthz answers 200", || {
            assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
            self.is_healthy()
        });
    }

    /// Returns whether this address is in the table.
    fn serves(&self, address: &str) -> bool {
        // There is no such map before the first sync.
        let listed = nft_in(&self.namespace, &["list", "map", "ip", "vmap-proxy", "no-endpoint-services"], "");
        listed.is_ok_and(|listing| listing.contains(&format!("{address} ")))
    }

    #[track_caller]
    fn wait_until_served(&self, address: &str) {
        eventually(&format!("{address} is programmed"), || self.serves(address));
    }

    /// Ends it as the kubelet does.
    #[track_caller]
    fn stop(mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let mut status = None;
        eventually("it ends at SIGTERM", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that goes with the test, and the directory that it is in.
struct Scratch(std::path::PathBuf, #[expect(dead_code, reason = "removed when dropped")] TempDir);

impl Scratch {
    fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("vmap-proxy-process-").tempdir().unwrap();
        Self(directory.path().join(name), directory)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.0).unwrap_or_default()).into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let text = self.text();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("{}:\n{}", self.0.display(), lines[lines.len().saturating_sub(50)..].join("\n"));
        }
    }
}

fn cluster() -> Cluster {
    Cluster::new()
}
