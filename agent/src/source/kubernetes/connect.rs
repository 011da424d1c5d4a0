//! From the options to a client.
//!
//! The kubeconfig and the environment have the same meaning as in client-go,
//! which kube-proxy uses: the same file must work for both (decision 32).

mod credentials;
mod dial;
mod exec;
mod in_cluster;
mod kubeconfig;
mod no_proxy;
mod proxy;
mod resolve;
mod server_url;
mod settings;
mod tls;
mod transport;

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use self::credentials::Authorizer;
pub use self::credentials::CredentialError;
use self::dial::{Dialer, Liveness};
pub use self::exec::ExecError;
pub use self::in_cluster::InClusterProblem;
pub use self::kubeconfig::KubeconfigProblem;
use self::proxy::Environment;
pub use self::proxy::ProxyError;
pub use self::server_url::ServerUrlError;
use self::server_url::server_url;
use self::settings::Settings;
use self::tls::Tls;
pub use self::tls::TlsError;
use self::transport::Transport;
use super::KubernetesOptions;

/// The reason why no client for the Kubernetes API can be created; the cause is
/// the configuration of this node.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The kubeconfig is missing or malformed.
    #[error(
        "can't use the kubeconfig {}: {source}; check --kubeconfig (clientConnection.kubeconfig) and the file", path.display()
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Its defect.
        source: Box<KubeconfigProblem>,
    },
    /// No kubeconfig was given and this is not a pod with a service account.
    #[error(
        "no kubeconfig, and no service account of a pod: {0}; give --kubeconfig, or run as a pod with \
         automountServiceAccountToken"
    )]
    InCluster(#[source] Box<InClusterProblem>),
    /// `--master` is not a URL.
    #[error("--master: {0}")]
    Master(#[source] ServerUrlError),
    /// The environment names a proxy that can't be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Certificates or keys can't be used.
    #[error("can't set up the connection to {url}: {source}")]
    Tls {
        /// The API server.
        url: http::Uri,
        /// The defect.
        source: Box<TlsError>,
    },
    /// There is no token.
    #[error("can't set up the connection to {url}: {source}")]
    Credentials {
        /// The API server.
        url: http::Uri,
        /// The defect.
        source: Box<CredentialError>,
    },
}

/// Creates a client without retries: the reflectors retry, and report failures.
pub(super) async fn client(options: &KubernetesOptions) -> Result<kube::Client, ConnectError> {
    let settings = settings(options, &Environment::of_process())?;
    let url = settings.server.clone();
    let tls = Tls::new(settings.trust, settings.identity, settings.server_name);
    let authorizer = Authorizer::new(settings.credentials);
    if url.scheme_str() == Some("https") {
        // Settings that cannot work are reported now, not at each attempt. A
        // plugin may need a network that is not available yet.
        let check = tls.load(None).and_then(|_| tls.server_name(url.host().unwrap_or_default()));
        check.map_err(|source| ConnectError::Tls { url: url.clone(), source: Box::new(source) })?;
        match authorizer.current().await {
            Err(CredentialError::Exec(error)) => tracing::warn!("the credential plugin: {error}; trying again"),
            Err(source) => return Err(ConnectError::Credentials { url, source: Box::new(source) }),
            Ok(_) => {}
        }
    }
    if let Some(proxy) = &settings.proxy {
        tracing::info!("reaching the API server {url} through the proxy {proxy:?}");
    }
    let liveness = Liveness { interval: options.timing.ping_interval, patience: options.timing.ping_patience };
    let dialer = Dialer::new(settings.proxy, tls, liveness);
    let transport = Transport::new(url, settings.headers, authorizer, dialer, liveness, options.metrics.clone());
    let transport = Arc::new(transport);
    Ok(kube::Client::new(tower::service_fn(move |request| transport.clone().send(request)), "default"))
}

fn settings(options: &KubernetesOptions, environment: &Environment) -> Result<Settings, ConnectError> {
    let master = options.master.as_deref();
    if let Some(master) = master {
        server_url(master, true).map_err(ConnectError::Master)?;
    }
    let Some(path) = &options.kubeconfig else { return without_file(master, environment) };
    kubeconfig::load(path, master, environment)
        .map_err(|source| ConnectError::Kubeconfig { path: path.clone(), source: Box::new(source) })
}

fn without_file(master: Option<&str>, environment: &Environment) -> Result<Settings, ConnectError> {
    let error = match in_cluster::load(master, environment) {
        Ok(settings) => return Ok(settings),
        Err(error) => error,
    };
    let Some(master) = master else { return Err(ConnectError::InCluster(Box::new(error))) };
    tracing::warn!(
        "connecting to {master} without credentials, as there is no kubeconfig and no service account: {error}"
    );
    let server = server_url(master, false).map_err(ConnectError::Master)?;
    Ok(kubeconfig::anonymous(server, environment)?)
}
