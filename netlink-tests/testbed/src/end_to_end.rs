//! A cluster end to end: the namespaces of a [`Cluster`], an API server, and the real agent on the node as a process of
//! its own.

use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent_process::AgentProcess;
use crate::api::{Api, ApiError};
use crate::api_objects as objects;
use crate::cluster::{self, Cluster};

/// The node's own address, its `InternalIP` unless a test changes it.
pub const NODE_IP: &str = cluster::NODE[0];
/// A client outside of the cluster.
pub const CLIENT: &str = cluster::CLIENT[0];
/// A pod of this node that is nobody's endpoint.
pub const CLIENT_POD: &str = cluster::POD[0];

/// The address of the n-th pod on this node, from 1 to 8.
pub fn local_pod(number: u8) -> String {
    format!("10.244.1.{}", 10 + number)
}

/// The address of the n-th pod on another node, from 1 to 8.
pub fn remote_pod(number: u8) -> String {
    format!("10.244.2.{}", 10 + number)
}

/// A result that a test cannot go on without.
#[derive(Debug, thiserror::Error)]
pub enum EndToEndError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Files.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running cluster of one node with an API server. Everything goes when it is dropped.
pub struct EndToEnd {
    /// The API server.
    pub api: Api,
    cluster: Cluster,
    program: PathBuf,
    directory: TempDir,
}

impl Deref for EndToEnd {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl EndToEnd {
    /// Builds it, with this node and no other object; the agent does not run yet. `program` is what is started as
    /// `vmap-proxy`.
    ///
    /// # Errors
    /// The API server or a directory can't be had.
    ///
    /// # Panics
    /// If the namespaces can't be had.
    pub fn start(program: impl Into<PathBuf>) -> Result<Self, EndToEndError> {
        let cluster = Cluster::new();
        let api = Api::start(cluster.node())?;
        let directory = tempfile::Builder::new().prefix("vmap-proxy-cluster-").tempdir()?;
        api.apply(&objects::node(|_| {}))?;
        Ok(Self { api, cluster, program: program.into(), directory })
    }

    /// The configuration as kubeadm writes it, with `mode: nftables`, and
    /// these fields changed (JSON pointers). As in kind, where nodes are
    /// containers too, the size of the connection table is left alone: a
    /// namespace can't change it.
    ///
    /// # Panics
    /// If kubeadm writes no such field.
    pub fn configuration(&self, changes: &[(&str, Value)]) -> Value {
        let mut configuration = objects::kubeadm_configuration(&self.api.kubeconfig());
        for (pointer, value) in changes {
            match configuration.pointer_mut(pointer) {
                Some(field) => *field = value.clone(),
                None => panic!("kubeadm writes no {pointer}"),
            }
        }
        configuration
    }

    /// Where [`agent_with`](Self::agent_with) writes the configuration.
    pub fn configuration_file(&self) -> PathBuf {
        self.directory.path().join("config.conf")
    }

    /// Starts the agent on the node, with the configuration of kubeadm.
    ///
    /// # Panics
    /// No process, or no file.
    #[track_caller]
    pub fn agent(&self) -> AgentProcess {
        self.agent_with(&self.configuration(&[]))
    }

    /// Starts the agent on the node, as a kubeadm cluster's DaemonSet does.
    ///
    /// # Panics
    /// No process, or no file.
    #[track_caller]
    pub fn agent_with(&self, configuration: &Value) -> AgentProcess {
        let file = self.configuration_file();
        let text = serde_saphyr::to_string(configuration).unwrap_or_else(|error| panic!("{error}"));
        fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let config = format!("--config={}", file.display());
        self.agent_by(&[&config, &format!("--hostname-override={}", objects::NODE)])
    }

    /// Starts the agent on the node with these arguments; each sync has its line (`-v=2`), unless they ask for another
    /// verbosity.
    ///
    /// # Panics
    /// No process.
    #[track_caller]
    pub fn agent_by(&self, arguments: &[&str]) -> AgentProcess {
        let mut command = Command::new(&self.program);
        // The usual path belongs to all namespaces of this machine.
        command.arg("-v=2").arg("--query-socket=").args(arguments);
        AgentProcess::spawn(self.node(), command)
    }

    /// Starts the agent on the node with these arguments, and these variables beside those of the test.
    ///
    /// # Panics
    /// No process.
    #[track_caller]
    pub fn agent_in_environment(&self, arguments: &[String], variables: &[(&str, &str)]) -> AgentProcess {
        let mut command = Command::new(&self.program);
        command.arg("--query-socket=").args(arguments).envs(variables.iter().copied());
        AgentProcess::spawn(self.node(), command)
    }

    /// A directory that goes with the cluster.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}
