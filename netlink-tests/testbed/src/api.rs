//! The API server of a cluster: the double, or a real one by `KUBECONFIG`.

use std::io;
use std::path::PathBuf;

use serde_json::Value;
use vmap_proxy_lab::{LabError, NetNs};

use crate::PATIENCE;
use crate::apiserver::{ApiServer, Resource};
use crate::real_api::RealApi;
use crate::skip::skipped;

/// Set this, and `KUBECONFIG`, and tests that only use API calls run against a
/// real API server: see `docs/real-cluster.md`.
pub const REAL_API: &str = "VMAP_PROXY_TEST_API_SOCKET";

/// The reason why the API server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Namespaces.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Sockets, threads, files, or a program that can't be started.
    #[error("the API server: {0}")]
    Io(#[from] io::Error),
    /// `kubectl` complains.
    #[error("kubectl {arguments}: {complaint}")]
    Kubectl {
        /// The request.
        arguments: String,
        /// The answer.
        complaint: String,
    },
    /// A variable is missing.
    #[error("{REAL_API} is set, so KUBECONFIG must be, too: see docs/real-cluster.md")]
    NoKubeconfig,
}

/// An API server that the agent on the node can reach.
pub enum Api {
    /// The double, in the node's namespace.
    Double(Double),
    /// A real one.
    Real(RealApi),
}

impl Api {
    /// The real one if the environment names it, else a double without objects.
    ///
    /// # Errors
    /// The real one does not answer, or the double can't be started.
    pub fn start(node: &NetNs) -> Result<Self, ApiError> {
        match std::env::var_os(REAL_API) {
            Some(path) => Ok(Self::Real(RealApi::connect(node, path.into())?)),
            None => Ok(Self::Double(Double::start(node)?)),
        }
    }

    /// How the agent reaches it.
    pub fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Double(double) => double.server.kubeconfig(),
            Self::Real(real) => real.kubeconfig(),
        }
    }

    /// Creates or replaces an object, its status, too.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn apply(&self, object: &Value) -> Result<(), ApiError> {
        match self {
            Self::Double(double) => {
                double.server.apply(object.clone());
                Ok(())
            }
            Self::Real(real) => real.apply(object),
        }
    }

    /// Deletes an object, if it is there.
    ///
    /// # Errors
    /// The server refuses.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
        match self {
            Self::Double(double) => {
                double.server.delete(resource, namespace, name);
                Ok(())
            }
            Self::Real(real) => real.delete(resource, namespace, name),
        }
    }

    /// The double, for trouble that no API call makes; `None` with a real
    /// server: the test is then none for it, and says so.
    pub fn double(&mut self) -> Option<&mut Double> {
        match self {
            Self::Double(double) => Some(double),
            Self::Real(_) => {
                skipped("against a real API server: this test makes trouble that only the double can");
                None
            }
        }
    }
}

/// The double and where it lives.
pub struct Double {
    /// The double itself.
    pub server: ApiServer,
    node: NetNs,
}

impl Double {
    fn start(node: &NetNs) -> Result<Self, ApiError> {
        let server = node.run(|| block_on(ApiServer::start()))??;
        Ok(Self { server: server?, node: node.try_clone()? })
    }

    /// Goes away: connections end, new ones are refused.
    pub fn pause(&mut self) {
        self.server.pause();
    }

    /// Comes back.
    ///
    /// # Errors
    /// Its port is taken.
    pub fn resume(&mut self) -> Result<(), ApiError> {
        let server = &mut self.server;
        self.node.run(|| block_on(server.resume()))???;
        Ok(())
    }

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`].
    pub fn wait_until(&self, condition: impl Fn(&ApiServer) -> bool) {
        let waited =
            block_on(async { tokio::time::timeout(PATIENCE, self.server.wait_until(condition)).await.is_ok() });
        assert!(waited.is_ok_and(|ok| ok), "it does not come to that; the requests: {:#?}", self.server.requests());
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}
