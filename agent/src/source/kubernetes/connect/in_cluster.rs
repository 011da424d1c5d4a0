//! The service account of a pod, as client-go's `rest.InClusterConfig` finds it.

use std::path::PathBuf;

use thiserror::Error;

use super::proxy::{Environment, ProxyError};
use super::server_url::{ServerUrlError, server_url};
use super::settings::{Credentials, Pem, Settings, Trust, read_file};

/// The kubelet's folder for a pod's service account.
const DIRECTORY: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The reason why this is not a pod with a service account.
#[derive(Debug, Error)]
pub enum InClusterProblem {
    /// Not a pod.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")]
    NoVariables,
    /// Variables that make no URL.
    #[error("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT: {0}")]
    Variables(#[from] ServerUrlError),
    /// The token can't be read.
    #[error("can't read {}: {source}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

/// The settings of this pod; `master`, if given, replaces the server.
pub(super) fn load(master: Option<&str>, environment: &Environment) -> Result<Settings, InClusterProblem> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT")) else {
        return Err(InClusterProblem::NoVariables);
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let server = match master {
        Some(master) => server_url(master, true)?,
        None => server_url(&format!("https://{host}:{port}"), true)?,
    };
    let directory = PathBuf::from(DIRECTORY);
    let path = directory.join("token");
    if let Err(source) = read_file(&path) {
        return Err(InClusterProblem::Token { path, source });
    }
    let authority = directory.join("ca.crt");
    // client-go goes on without, by the machine's own authorities.
    let trust = if authority.exists() { Trust::These(Pem::File(authority)) } else { Trust::System };
    let proxy = environment.proxy_to(&server)?;
    let is_https = server.scheme_str() == Some("https");
    let credentials = if is_https { Credentials::TokenFile(path, None) } else { Credentials::None };
    Ok(Settings { server, proxy, trust, server_name: None, identity: None, credentials, headers: Vec::new() })
}
