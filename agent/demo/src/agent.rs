//! The real agent, in the demo's node: this program once more, as `vmap-proxy run --manifests`.

use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;
use vmap_proxy_lab::{Lab, NetNs, Process, patient};

use crate::keep::Kept;
use crate::{DemoError, Options, PODS};

/// The project's examples, as files of a directory. `manifests` is a link to them, so that the published crate has them too.
const EXAMPLES: [(&str, &str); 5] = [
    ("local.yaml", include_str!("../manifests/local.yaml")),
    ("my-service.yaml", include_str!("../manifests/my-service.yaml")),
    ("node.yaml", include_str!("../manifests/node.yaml")),
    ("sticky.yaml", include_str!("../manifests/sticky.yaml")),
    (WEB_FILE, WEB),
];
const WEB_FILE: &str = "web.yaml";
const WEB: &str = include_str!("../manifests/web.yaml");

/// The agent's arguments everywhere. Settings of the machine, as opposed to the namespace, stay unchanged.
const ARGUMENTS: [&str; 5] =
    ["run", "--node-name=node-1", "--conntrack-max-per-core=0", "--conntrack-min=0", "--oom-score-adj=0"];

/// Those in the cluster.
const CLUSTER_ARGUMENTS: [&str; 3] = [
    "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
    "--nodeport-addresses=primary",
    "--dns-bind-address=169.254.20.10",
];

/// Parts of the log lines of the first sync and of later ones.
const FIRST_SYNC: &str = "programmed ";
const LATER_SYNC: &str = " synced in ";

/// The verbosity from which on the agent has a line for each sync, as kube-proxy.
const SYNCS_ARE_LOGGED: u32 = 2;

/// The variable that would overrule the verbosity: `vmap_proxy_agent::logging::FILTER_VARIABLE`.
const FILTER_VARIABLE: &str = "VMAP_PROXY_LOG";

/// Longest wait on an ordinary machine before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The same for an agent with many Services, also in an emulated machine.
pub(crate) const LONG_PATIENCE: Duration = Duration::from_secs(300);

/// A running agent and the manifests it follows.
pub(crate) struct DemoAgent {
    directory: TempDir,
    process: Process,
    patience: Duration,
}

impl DemoAgent {
    /// Starts the agent in the node's namespace, with the project's examples.
    pub(crate) fn in_cluster(lab: &Lab, options: &Options, kept: Option<&Kept>) -> Result<Self, DemoError> {
        let examples = EXAMPLES.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let mut arguments = CLUSTER_ARGUMENTS.map(str::to_owned).to_vec();
        arguments.extend(kept.map(|kept| format!("--query-socket={}", kept.socket().display())));
        Self::start(lab.node(), options, examples, &arguments, PATIENCE)
    }

    /// Writes the manifests, and starts the agent in a namespace. Its log goes to standard error.
    pub(crate) fn start(
        namespace: &NetNs,
        options: &Options,
        manifests: impl IntoIterator<Item = (String, String)>,
        arguments: &[String],
        patience: Duration,
    ) -> Result<Self, DemoError> {
        let made = tempfile::Builder::new().prefix("vmap-proxy-demo-").tempdir();
        let directory = made.map_err(in_the_way(&std::env::temp_dir()))?;
        for (name, text) in manifests {
            let path = directory.path().join(name);
            fs::write(&path, text).map_err(in_the_way(&path))?;
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0("vmap-proxy").args(ARGUMENTS).args(arguments).arg("--manifests").arg(directory.path());
        command.arg(format!("-v={}", options.verbosity.max(SYNCS_ARE_LOGGED)));
        command.args(options.log_format.iter().map(|format| format!("--logging-format={format}")));
        command.env_remove(FILTER_VARIABLE);
        let process = Process::spawn(namespace, command, |line| {
            // A failed send is harmless: nobody reads the log then.
            let _ = writeln!(io::stderr(), "{line}");
        })?;
        Ok(Self { directory, process, patience })
    }

    /// The directory that the agent follows.
    pub(crate) fn manifests(&self) -> &Path {
        self.directory.path()
    }

    /// The agent's process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the first sync, and returns its summary: `4 services, 12 endpoints in 3.1 ms (90 elements added, …)`.
    pub(crate) fn wait_until_ready(&self) -> Result<String, DemoError> {
        let line = self.wait_for(0, FIRST_SYNC)?;
        Ok(line.split_once(FIRST_SYNC).map_or("", |(_, summary)| summary).to_owned())
    }

    /// Takes a pod out of the slices of Service `web`, and waits until that is programmed.
    pub(crate) fn remove_pod(&self, pod: &str) -> Result<(), DemoError> {
        self.replace(WEB_FILE, &web_without(pod)).map(drop)
    }

    /// Puts all pods back into the slices of Service `web`.
    pub(crate) fn restore_pods(&self) -> Result<(), DemoError> {
        self.replace(WEB_FILE, WEB).map(drop)
    }

    /// Replaces a manifest, and waits until the change is programmed. Returns the log line of that sync.
    pub(crate) fn replace(&self, file: &str, text: &str) -> Result<String, DemoError> {
        let passed = self.process.lines().len();
        let path = self.directory.path().join(file);
        // Replaced at one stroke, as editors and kubelets do.
        let fresh = self.directory.path().join(format!(".{file}"));
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(in_the_way(&path))?;
        self.wait_for(passed, LATER_SYNC)
    }

    /// Stops the agent as the kubelet does.
    pub(crate) fn stop(mut self) -> Result<(), DemoError> {
        self.process.signal(Signal::SIGTERM).map_err(|error| DemoError::Agent(error.to_string()))?;
        let ended =
            self.process.wait_for_end(patient(self.patience)).map_err(|late| DemoError::Agent(late.to_string()))?;
        match ended {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(DemoError::Agent(status.to_string())),
            Err(error) => Err(DemoError::Agent(error.to_string())),
        }
    }

    fn wait_for(&self, passed: usize, text: &str) -> Result<String, DemoError> {
        let found = self.process.wait_for_line(passed, patient(self.patience), |line| line.contains(text));
        found.map(|(_, line)| line).map_err(|missing| DemoError::Agent(missing.to_string()))
    }
}

/// The manifest of Service `web`, without the endpoints of a pod.
fn web_without(pod: &str) -> String {
    let addresses: Vec<&str> =
        PODS.iter().filter(|(name, _, _)| *name == pod).flat_map(|(_, v4, v6)| [*v4, *v6]).collect();
    let is_named = |line: &str| {
        addresses.iter().any(|address| line.contains(&format!("{address}]")) || line.contains(&format!("{address}\"]")))
    };
    WEB.lines().filter(|line| !is_named(line)).flat_map(|line| [line, "\n"]).collect()
}

pub(crate) fn in_the_way(path: &Path) -> impl FnOnce(io::Error) -> DemoError + use<> {
    let path = path.to_owned();
    move |source| DemoError::Manifests { path, source }
}
