//! Credential plugins: a program prints the token or client certificate to use
//! (`client.authentication.k8s.io`).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, SystemTime};

use http::HeaderValue;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::config::{Cluster, ExecConfig, ExecInteractiveMode};
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;

use super::credentials::bearer;
use super::settings::{Identity, Pem};

/// Longest run time of a plugin, which may call a cloud's API.
const PATIENCE: Duration = Duration::from_secs(60);

/// Credentials are renewed so long before they expire.
const MARGIN: Duration = Duration::from_secs(10);

/// The defect of a credential plugin.
#[derive(Debug, Error)]
pub enum ExecError {
    /// No program.
    #[error("command is not set")]
    NoCommand,
    /// A version of the protocol that is not spoken.
    #[error("apiVersion {0:?} is neither client.authentication.k8s.io/v1 nor …/v1beta1")]
    Version(String),
    /// It requires interaction with a person.
    #[error("interactiveMode is Always, but the agent cannot ask anybody")]
    Interactive,
    /// The program can't be run.
    #[error("can't run {command}: {source}{hint}")]
    Start {
        /// The program.
        command: String,
        /// The cause.
        source: std::io::Error,
        /// `installHint`
        hint: String,
    },
    /// The program failed.
    #[error("{command} failed ({status}): {complaint}")]
    Failed {
        /// The program.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of its standard error.
        complaint: String,
    },
    /// The program did not end.
    #[error("{0} did not end within 60 s")]
    Slow(String),
    /// It printed something else.
    #[error("{command} printed no ExecCredential: {what}")]
    Output {
        /// The program.
        command: String,
        /// The defect.
        what: String,
    },
}

/// A plugin, and its last output.
#[derive(Debug)]
pub(super) struct Exec {
    command: OsString,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    version: String,
    hint: String,
    current: Mutex<Option<Credential>>,
}

/// The output of a plugin.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    pub(super) token: Option<HeaderValue>,
    pub(super) identity: Option<Identity>,
    expires: Option<SystemTime>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Printed {
    api_version: String,
    kind: String,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<Time>,
}

impl Exec {
    /// Checks the configuration; runs nothing yet.
    pub(super) fn new(config: &ExecConfig, cluster: &Cluster, directory: &Path) -> Result<Self, ExecError> {
        let command = config.command.clone().filter(|command| !command.is_empty()).ok_or(ExecError::NoCommand)?;
        let version = config.api_version.clone().unwrap_or_default();
        if !matches!(version.as_str(), "client.authentication.k8s.io/v1" | "client.authentication.k8s.io/v1beta1") {
            return Err(ExecError::Version(version));
        }
        if config.interactive_mode == Some(ExecInteractiveMode::Always) {
            return Err(ExecError::Interactive);
        }
        let mut spec = json!({"interactive": false});
        if config.provide_cluster_info {
            spec["cluster"] = json!({
                "server": cluster.server,
                "tls-server-name": cluster.tls_server_name,
                "insecure-skip-tls-verify": cluster.insecure_skip_tls_verify,
                "certificate-authority-data": cluster.certificate_authority_data,
                "proxy-url": cluster.proxy_url,
            });
        }
        let info = json!({"apiVersion": version, "kind": "ExecCredential", "spec": spec});
        let mut environment: Vec<_> = config
            .env
            .iter()
            .flatten()
            .filter_map(|pair| Some((pair.get("name")?.clone(), pair.get("value").cloned().unwrap_or_default())))
            .collect();
        environment.push(("KUBERNETES_EXEC_INFO".to_owned(), info.to_string()));
        // A bare name is searched for in PATH.
        let is_path = command.contains('/');
        let path = if is_path { directory.join(&command).into_os_string() } else { PathBuf::from(command).into() };
        Ok(Self {
            command: path,
            arguments: config.args.clone().unwrap_or_default(),
            environment,
            version,
            hint: config.install_hint.as_ref().map(|hint| format!("; {}", hint.trim())).unwrap_or_default(),
            current: Mutex::new(None),
        })
    }

    /// Returns the last output of the plugin if it is still valid, else runs it
    /// again.
    pub(super) async fn credential(&self) -> Result<Credential, ExecError> {
        let mut current = self.current.lock().await;
        if let Some(credential) = current.as_ref().filter(|credential| !credential.is_expired()) {
            return Ok(credential.clone());
        }
        let fresh = self.run().await?;
        *current = Some(fresh.clone());
        Ok(fresh)
    }

    /// The server has refused it: run the plugin again.
    pub(super) async fn forget(&self) {
        *self.current.lock().await = None;
    }

    async fn run(&self) -> Result<Credential, ExecError> {
        let name = || self.command.to_string_lossy().into_owned();
        let mut command = Command::new(&self.command);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = match tokio::time::timeout(PATIENCE, output(command)).await {
            Err(_) => return Err(ExecError::Slow(name())),
            Ok(Err(source)) => return Err(ExecError::Start { command: name(), source, hint: self.hint.clone() }),
            Ok(Ok(output)) => output,
        };
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            let words: Vec<_> = complaint.split_whitespace().collect();
            let complaint = words[words.len().saturating_sub(50)..].join(" ");
            return Err(ExecError::Failed { command: name(), status: output.status, complaint });
        }
        self.read(&output.stdout).map_err(|what| ExecError::Output { command: name(), what })
    }

    fn read(&self, output: &[u8]) -> Result<Credential, String> {
        let printed: Printed = serde_json::from_slice(output).map_err(|error| error.to_string())?;
        if printed.kind != "ExecCredential" || printed.api_version != self.version {
            return Err(format!("it is a {} of {}, not of {}", printed.kind, printed.api_version, self.version));
        }
        let status = printed.status.ok_or("it has no status")?;
        let token = match status.token.filter(|token| !token.is_empty()) {
            Some(token) => Some(bearer(&token).ok_or("its token has control characters")?),
            None => None,
        };
        let inline = |text: String| Pem::Inline(text.into_bytes());
        let identity = match (status.client_certificate_data, status.client_key_data) {
            (Some(certificate), Some(key)) => Some(Identity { certificate: inline(certificate), key: inline(key) }),
            (None, None) => None,
            _ => return Err("it has one of clientCertificateData and clientKeyData without the other".to_owned()),
        };
        if token.is_none() && identity.is_none() {
            return Err("it has neither a token nor a client certificate".to_owned());
        }
        Ok(Credential { token, identity, expires: status.expiration_timestamp.map(|time| SystemTime::from(time.0)) })
    }
}

/// A process that is killed and reaped when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program and reads its output on this thread, because no other thread
/// may be available.
async fn output(mut command: Command) -> io::Result<Output> {
    let (out, mut stdout) = pipe::pipe()?;
    let (err, mut stderr) = pipe::pipe()?;
    command.stdin(Stdio::null()).stdout(out.into_blocking_fd()?).stderr(err.into_blocking_fd()?);
    let mut child = Killed(command.spawn()?);
    // It holds the other ends of the pipes.
    drop(command);
    let mut output = Output { status: ExitStatus::default(), stdout: Vec::new(), stderr: Vec::new() };
    tokio::try_join!(stdout.read_to_end(&mut output.stdout), stderr.read_to_end(&mut output.stderr))?;
    loop {
        if let Some(status) = child.0.try_wait()? {
            output.status = status;
            return Ok(output);
        }
        // A program that has closed both pipes ends at once.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Credential {
    fn is_expired(&self) -> bool {
        self.expires.is_some_and(|expires| SystemTime::now() + MARGIN >= expires)
    }
}
