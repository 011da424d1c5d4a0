//! From a kubeconfig file to settings, by client-go's rules (`tools/clientcmd`).
//!
//! The library parses the YAML. This module interprets the fields, because the
//! library's rules differ for untidy real files: empty fields, base64 in lines,
//! no scheme, a token with a newline.

use std::path::Path;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderName, HeaderValue, Uri};
use kube::config::{AuthInfo, Cluster, Kubeconfig, KubeconfigError};
use secrecy::{ExposeSecret, SecretString};
use thiserror::Error;

use super::exec::{Exec, ExecError};
use super::proxy::{Environment, Proxy, ProxyError};
use super::server_url::{ServerUrlError, server_url};
use super::settings::{Credentials, Identity, Pem, Settings, Trust, read_file};
use crate::yaml;

/// An unusable part of a kubeconfig.
#[derive(Debug, Error)]
pub enum KubeconfigProblem {
    /// The file can't be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// Not text.
    #[error("the file is not UTF-8")]
    NotText,
    /// Not a kubeconfig.
    #[error("{0}")]
    Parse(#[source] Box<KubeconfigError>),
    /// No context is chosen.
    #[error("current-context is not set")]
    NoContext,
    /// The chosen context is absent.
    #[error("current-context is {0:?}, but there is no such context")]
    UnknownContext(String),
    /// The context's cluster is absent.
    #[error("context {context:?} refers to cluster {cluster:?}, but there is no such cluster")]
    UnknownCluster {
        /// The context.
        context: String,
        /// The referenced name.
        cluster: String,
    },
    /// The address of the API server is missing or wrong.
    #[error("the server of cluster {cluster:?}: {source}")]
    Server {
        /// The cluster.
        cluster: String,
        /// The defect.
        source: ServerUrlError,
    },
    /// Data that is not base64.
    #[error("{field} is not base64: {source}")]
    Base64 {
        /// The field.
        field: &'static str,
        /// The defect.
        source: base64::DecodeError,
    },
    /// A certificate authority for a connection that checks nothing.
    #[error(
        "cluster {0:?} has both a certificate authority and insecure-skip-tls-verify; remove one, since one of them \
         can't be meant"
    )]
    InsecureWithAuthority(String),
    /// A client certificate without its key.
    #[error("user {0:?} has a client certificate but no client-key or client-key-data")]
    NoKey(String),
    /// A value that can't be sent in a header.
    #[error("{field} of user {user:?} has a control character inside; write it in one line")]
    NoHeader {
        /// The field.
        field: &'static str,
        /// The user.
        user: String,
    },
    /// A method for credentials that client-go no longer has either.
    #[error("user {user:?} has auth-provider {provider:?}, which is not supported; use an exec plugin or a token")]
    AuthProvider {
        /// The user.
        user: String,
        /// The provider.
        provider: String,
    },
    /// A plugin that can't be run.
    #[error("exec of user {user:?}: {source}")]
    Exec {
        /// The user.
        user: String,
        /// The defect.
        source: ExecError,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

type Result<T> = std::result::Result<T, KubeconfigProblem>;

/// Reads a kubeconfig; `master`, if given, replaces the server.
pub(super) fn load(path: &Path, master: Option<&str>, environment: &Environment) -> Result<Settings> {
    let text = String::from_utf8(read_file(path)?).map_err(|_| KubeconfigProblem::NotText)?;
    let file = parse(&text).map_err(|error| KubeconfigProblem::Parse(Box::new(error)))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    Selected::from(file)?.settings(directory, master, environment)
}

/// The first document; client-go reads no other. Not with the library's own
/// parser, which refuses more than 32 lines of comments before a block.
fn parse(text: &str) -> std::result::Result<Kubeconfig, KubeconfigError> {
    let first = yaml::split(text).into_iter().next();
    let text = first.and_then(|document| text.get(document.range)).unwrap_or_default();
    serde_saphyr::from_str_with_options(text, yaml::options()).map_err(|error| KubeconfigError::Parse(Box::new(error)))
}

/// The current context's cluster and user.
struct Selected {
    cluster_name: String,
    cluster: Cluster,
    user_name: String,
    /// A context may have none, or one that does not exist: no credentials.
    user: AuthInfo,
}

impl Selected {
    fn from(file: Kubeconfig) -> Result<Self> {
        let name = non_empty(file.current_context).ok_or(KubeconfigProblem::NoContext)?;
        let context = file.contexts.into_iter().find(|context| context.name == name);
        let context =
            context.and_then(|named| named.context).ok_or_else(|| KubeconfigProblem::UnknownContext(name.clone()))?;
        let cluster = file.clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster.and_then(|named| named.cluster).ok_or_else(|| KubeconfigProblem::UnknownCluster {
            context: name.clone(),
            cluster: context.cluster.clone(),
        })?;
        let user_name = context.user.unwrap_or_default();
        let user = file.auth_infos.into_iter().find(|user| user.name == user_name).and_then(|named| named.auth_info);
        Ok(Self { cluster_name: context.cluster, cluster, user_name, user: user.unwrap_or_default() })
    }

    fn settings(self, directory: &Path, master: Option<&str>, environment: &Environment) -> Result<Settings> {
        let trust = self.trust(directory)?;
        let identity = self.identity(directory)?;
        let has_tls = identity.is_some() || !matches!(trust, Trust::System);
        let server = match master {
            Some(master) => server_url(master, has_tls),
            None => server_url(self.cluster.server.as_deref().unwrap_or_default(), has_tls),
        };
        let server =
            server.map_err(|source| KubeconfigProblem::Server { cluster: self.cluster_name.clone(), source })?;
        let proxy = match non_empty(self.cluster.proxy_url.clone()) {
            // Not subject to NO_PROXY.
            Some(url) => Some(Proxy::parse(&url, "proxy-url")?),
            None => environment.proxy_to(&server)?,
        };
        let server_name = non_empty(self.cluster.tls_server_name.clone());
        // Credentials are never sent in clear text.
        if server.scheme_str() != Some("https") {
            let credentials = Credentials::None;
            return Ok(Settings {
                server,
                proxy,
                trust,
                server_name,
                identity: None,
                credentials,
                headers: Vec::new(),
            });
        }
        let credentials = self.credentials(directory)?;
        let headers = self.impersonation()?;
        Ok(Settings { server, proxy, trust, server_name, identity, credentials, headers })
    }

    fn trust(&self, directory: &Path) -> Result<Trust> {
        let cluster = &self.cluster;
        let authority = pem(
            "certificate-authority-data",
            cluster.certificate_authority_data.as_deref(),
            cluster.certificate_authority.as_deref(),
            directory,
        )?;
        match (authority, cluster.insecure_skip_tls_verify.unwrap_or(false)) {
            (Some(_), true) => Err(KubeconfigProblem::InsecureWithAuthority(self.cluster_name.clone())),
            (Some(authority), false) => Ok(Trust::These(authority)),
            (None, true) => Ok(Trust::Anybody),
            (None, false) => Ok(Trust::System),
        }
    }

    fn identity(&self, directory: &Path) -> Result<Option<Identity>> {
        let user = &self.user;
        let certificate = pem(
            "client-certificate-data",
            user.client_certificate_data.as_deref(),
            user.client_certificate.as_deref(),
            directory,
        )?;
        // A key alone is not used.
        let Some(certificate) = certificate else { return Ok(None) };
        let key_data = user.client_key_data.as_ref().map(ExposeSecret::expose_secret);
        let key = pem("client-key-data", key_data, user.client_key.as_deref(), directory)?;
        let key = key.ok_or_else(|| KubeconfigProblem::NoKey(self.user_name.clone()))?;
        Ok(Some(Identity { certificate, key }))
    }

    fn credentials(&self, directory: &Path) -> Result<Credentials> {
        let user = &self.user;
        let token = self.header("token", user.token.as_ref().map(ExposeSecret::expose_secret))?.map(SecretString::from);
        if let Some(file) = non_empty(user.token_file.clone()) {
            return Ok(Credentials::TokenFile(directory.join(file), token));
        }
        if let Some(token) = token {
            return Ok(Credentials::Token(token));
        }
        if let Some(name) = non_empty(user.username.clone()) {
            let password = user.password.clone().unwrap_or_default();
            return Ok(Credentials::Basic(name, password));
        }
        if let Some(provider) = &user.auth_provider {
            let provider = provider.name.clone();
            return Err(KubeconfigProblem::AuthProvider { user: self.user_name.clone(), provider });
        }
        match &user.exec {
            Some(exec) => Exec::new(exec, &self.cluster, directory)
                .map(|exec| Credentials::Exec(Box::new(exec)))
                .map_err(|source| KubeconfigProblem::Exec { user: self.user_name.clone(), source }),
            None => Ok(Credentials::None),
        }
    }

    fn impersonation(&self) -> Result<Vec<(HeaderName, HeaderValue)>> {
        let user = &self.user;
        let mut headers = Vec::new();
        let mut add = |name: &'static str, field, value: &str| -> Result<()> {
            if let Some(value) = self.header(field, Some(value))? {
                let value = HeaderValue::from_str(&value).map_err(|_| self.no_header(field))?;
                headers.push((HeaderName::from_static(name), value));
            }
            Ok(())
        };
        add("impersonate-user", "as", user.impersonate.as_deref().unwrap_or_default())?;
        add("impersonate-uid", "as-uid", user.impersonate_uid.as_deref().unwrap_or_default())?;
        for group in user.impersonate_groups.iter().flatten() {
            add("impersonate-group", "as-groups", group)?;
        }
        Ok(headers)
    }

    /// Without the white space around it, which files and editors add; `None`
    /// if nothing is left.
    fn header(&self, field: &'static str, text: Option<&str>) -> Result<Option<String>> {
        let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
        if HeaderValue::from_str(text).is_err() {
            return Err(self.no_header(field));
        }
        Ok(Some(text.to_owned()))
    }

    fn no_header(&self, field: &'static str) -> KubeconfigProblem {
        KubeconfigProblem::NoHeader { field, user: self.user_name.clone() }
    }
}

/// Returns the data, else the file (relative to the kubeconfig), else nothing;
/// an empty value counts as absent.
fn pem(field: &'static str, data: Option<&str>, file: Option<&str>, directory: &Path) -> Result<Option<Pem>> {
    let data: String = data.unwrap_or_default().split_ascii_whitespace().collect();
    if !data.is_empty() {
        return Ok(Some(Pem::Inline(decode(field, &data)?)));
    }
    let file = file.filter(|file| !file.is_empty());
    Ok(file.map(|file| Pem::File(directory.join(file))))
}

fn decode(field: &'static str, data: &str) -> Result<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&STANDARD, config).decode(data).map_err(|source| KubeconfigProblem::Base64 { field, source })
}

fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// The address of `--master` alone, without a kubeconfig.
pub(super) fn anonymous(server: Uri, environment: &Environment) -> std::result::Result<Settings, ProxyError> {
    let proxy = environment.proxy_to(&server)?;
    let credentials = Credentials::None;
    Ok(Settings {
        server,
        proxy,
        trust: Trust::System,
        server_name: None,
        identity: None,
        credentials,
        headers: Vec::new(),
    })
}
