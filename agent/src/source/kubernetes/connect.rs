//! From the options to a client.

use std::path::PathBuf;

use kube::config::{Config, InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;
use tracing::warn;

use super::KubernetesOptions;

/// Why no client for the Kubernetes API can be made; caused by the
/// configuration of this node.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig, or a certificate it names, is missing or malformed.
    #[error(
        "can't use the kubeconfig {}: {source}; check --kubeconfig (clientConnection.kubeconfig) and that the file and the \
         certificates it names are readable", path.display()
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// No kubeconfig was given and this is not a pod with a service account.
    #[error(
        "no kubeconfig, and no service account of a pod: {0}; give --kubeconfig, or run as a pod with \
         automountServiceAccountToken"
    )]
    InCluster(#[source] Box<InClusterError>),
    /// `--master` is not a URL.
    #[error("--master {url:?} is not a URL ({source}); write it as https://HOST:PORT")]
    Master {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: http::uri::InvalidUri,
    },
    /// Certificates, keys or tokens can't be used.
    #[error(
        "can't set up the connection to {url}: {source}; check the certificate authority, client certificate, key and token"
    )]
    Client {
        /// The API server.
        url: http::Uri,
        /// What is wrong.
        source: Box<kube::Error>,
    },
}

/// A client that retries nothing by itself: the reflectors do, and tell.
pub(super) async fn client(options: &KubernetesOptions) -> Result<kube::Client, ConnectError> {
    let mut config = match (&options.kubeconfig, &options.master) {
        (Some(path), _) => from_file(path).await?,
        (None, Some(master)) => Config::incluster().or_else(|error| {
            warn!(
                "connecting to {master} without credentials, as there is no kubeconfig and no service account: {error}"
            );
            Ok(Config::new(url(master)?))
        })?,
        (None, None) => Config::incluster().map_err(|error| ConnectError::InCluster(Box::new(error)))?,
    };
    if let Some(master) = &options.master {
        config.cluster_url = url(master)?;
    }
    config.default_retry = false;
    let url = config.cluster_url.clone();
    kube::Client::try_from(config).map_err(|source| ConnectError::Client { url, source: Box::new(source) })
}

async fn from_file(path: &PathBuf) -> Result<Config, ConnectError> {
    let read =
        async { Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await };
    read.await.map_err(|source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) })
}

/// `--master` may leave the scheme out, as for kube-proxy.
fn url(master: &str) -> Result<http::Uri, ConnectError> {
    let url = if master.contains("://") { master.to_owned() } else { format!("http://{master}") };
    url.parse().map_err(|source| ConnectError::Master { url: master.to_owned(), source })
}
