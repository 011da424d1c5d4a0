//! The real agent, in the demo's node.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use vmap_proxy_compiler::model::config::{DetectLocal, NodePortAddresses};
use vmap_proxy_compiler::model::{NodeInfo, ProxyConfig};
use vmap_proxy_compiler::ruleset::Family;

use super::DemoError;
use crate::after_sync::NoObserver;
use crate::lab::{Lab, LabError, patient};
use crate::netlink::Kernel;
use crate::source::manifests::ManifestSource;
use crate::sync::Syncer;
use crate::sync_loop::{MIN_GAP, Status, SyncLoopOptions, run_sync_loop};

/// The project's examples, as files of a directory.
const EXAMPLES: [(&str, &str); 5] = [
    ("local.yaml", include_str!("../../../examples/local.yaml")),
    ("my-service.yaml", include_str!("../../../examples/my-service.yaml")),
    ("node.yaml", include_str!("../../../examples/node.yaml")),
    ("sticky.yaml", include_str!("../../../examples/sticky.yaml")),
    ("web.yaml", include_str!("../../../examples/web.yaml")),
];

/// How long anything may take on an ordinary machine before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running agent and the manifests it follows.
pub(super) struct DemoAgent {
    directory: PathBuf,
    status: watch::Receiver<Status>,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Result<Result<(), String>, LabError>>,
}

impl DemoAgent {
    /// Writes the manifests, and starts the agent in the node's namespace.
    pub(super) fn start(lab: &Lab) -> Result<Self, DemoError> {
        let directory = std::env::temp_dir().join(format!("vmap-proxy-demo-{}", std::process::id()));
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| DemoError::Manifests { path, source }
        };
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
        for (name, text) in EXAMPLES {
            let path = directory.join(name);
            fs::write(&path, text).map_err(failed(&path))?;
        }
        let (status_sender, status) = watch::channel(Status::default());
        let (stop, stopped) = oneshot::channel();
        let manifests = directory.clone();
        let thread = lab.node().spawn(move || run_agent(manifests, &status_sender, stopped))?;
        Ok(Self { directory, status, stop, thread })
    }

    /// Waits for the first sync; returns a line that says what it did.
    pub(super) fn wait_until_ready(&self) -> Result<String, DemoError> {
        let status = self.wait_for(|status| status.ready)?;
        Ok(format!("The agent programmed {} services and {} endpoints.", status.services, status.endpoints))
    }

    /// Takes a pod out of the slices of Service `web`, and waits until that is
    /// programmed.
    pub(super) fn remove_pod(&self, pod: &str) -> Result<(), DemoError> {
        let before = self.status.borrow().syncs;
        let path = self.directory.join("web.yaml");
        let addresses: Vec<&str> =
            super::PODS.iter().filter(|(name, _, _)| *name == pod).flat_map(|(_, v4, v6)| [*v4, *v6]).collect();
        let named = |line: &&str| {
            addresses
                .iter()
                .any(|address| line.contains(&format!("{address}]")) || line.contains(&format!("{address}\"]")))
        };
        let lines = include_str!("../../../examples/web.yaml").lines().filter(|line| !named(line));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        // Replaced at one stroke, as editors and kubelets do.
        let fresh = self.directory.join(".web.yaml");
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|source| DemoError::Manifests { path, source })?;
        self.wait_for(|status| status.syncs > before).map(|_| ())
    }

    /// Stops the agent as SIGTERM would.
    pub(super) fn stop(self) -> Result<(), DemoError> {
        let _ = self.stop.send(());
        let ended = self.thread.join().map_err(|_| DemoError::Agent("it panicked".to_owned()))??;
        let _ = fs::remove_dir_all(&self.directory);
        ended.map_err(DemoError::Agent)
    }

    fn wait_for(&self, wanted: impl Fn(&Status) -> bool) -> Result<Status, DemoError> {
        let mut status = self.status.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.map_err(|error| DemoError::Agent(error.to_string()))?;
        runtime.block_on(async {
            let patience = patient(PATIENCE);
            match tokio::time::timeout(patience, status.wait_for(|status| wanted(status))).await {
                Ok(Ok(status)) => Ok(status.clone()),
                Ok(Err(_)) => Err(DemoError::Agent("it ended too early".to_owned())),
                Err(_) => Err(DemoError::Agent(format!("it was not done within {patience:?}"))),
            }
        })
    }
}

fn run_agent(directory: PathBuf, status: &watch::Sender<Status>, stopped: oneshot::Receiver<()>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let kernel = Kernel::open().map_err(|error| error.to_string())?;
        let mut syncer = Syncer::new(config(), kernel, &Family::ALL);
        syncer.set_interface_addresses(node().interface_addresses);
        let (events, received) = mpsc::channel(64);
        let source = tokio::spawn(ManifestSource::new(vec![directory], "node-1").run(events));
        let (_node_events, node_received) = mpsc::channel(1);
        let options = SyncLoopOptions { retry: Duration::from_secs(1), min_gap: MIN_GAP };
        let shutdown = async {
            let _ = stopped.await;
        };
        let ended =
            run_sync_loop(&mut syncer, received, node_received, status, &mut NoObserver, &options, shutdown).await;
        source.abort();
        ended.map_err(|error| error.to_string())
    })
}

fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "node-1".to_owned(),
        detect_local: DetectLocal::ClusterCidr(
            ["10.244.0.0/16", "fd00:10:244::/56"].iter().filter_map(|range| range.parse().ok()).collect(),
        ),
        node_port_addresses: NodePortAddresses::Primary,
        ..ProxyConfig::default()
    }
}

fn node() -> NodeInfo {
    NodeInfo {
        interface_addresses: super::addresses(&["127.0.0.1", "::1", "192.0.2.11", "2001:db8:1::11"]),
        ..NodeInfo::default()
    }
}
