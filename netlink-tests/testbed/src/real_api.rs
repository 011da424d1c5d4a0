//! A real API server, by `kubectl`, through a socket in the file system: the
//! namespaces of a test can't see the machine's own network.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;
use socket2::Socket;
use vmap_proxy_lab::NetNs;

use crate::api::ApiError;
use crate::apiserver::Resource;
use crate::relay::relay;

/// The address of the API server in every node namespace.
const ADDRESS: &str = "127.0.0.1:16443";

/// A connection to a real API server. What was applied is deleted when it is
/// dropped.
pub struct RealApi {
    node: NetNs,
    kubeconfig: PathBuf,
    applied: Mutex<Vec<Value>>,
}

impl RealApi {
    /// Makes the server behind the socket `path` appear in the node's
    /// namespace, where the kubeconfig in `KUBECONFIG` must look for it.
    pub(crate) fn connect(node: &NetNs, path: PathBuf) -> Result<Self, ApiError> {
        let kubeconfig = std::env::var_os("KUBECONFIG").ok_or(ApiError::NoKubeconfig)?.into();
        appear_in(node, path)?;
        Ok(Self { node: node.try_clone()?, kubeconfig, applied: Mutex::default() })
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    pub(crate) fn apply(&self, object: &Value) -> Result<(), ApiError> {
        let arguments = ["apply", "--server-side", "--force-conflicts", "--field-manager=vmap-proxy-test", "-f", "-"];
        self.kubectl(&arguments, object)?;
        if !object["status"].is_null() {
            let mut status = arguments.to_vec();
            status.insert(1, "--subresource=status");
            self.kubectl(&status, object)?;
        }
        self.applied.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(object.clone());
        Ok(())
    }

    pub(crate) fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
        let namespace = format!("--namespace={namespace}");
        self.kubectl(&["delete", resource.kind(), name, &namespace, "--ignore-not-found"], &Value::Null)
    }

    fn kubectl(&self, arguments: &[&str], input: &Value) -> Result<(), ApiError> {
        let run = || -> io::Result<_> {
            let mut command = Command::new("kubectl");
            command.arg(prefixed("--kubeconfig=", self.kubeconfig.as_os_str())).args(arguments);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input.to_string().as_bytes())?;
            }
            child.wait_with_output()
        };
        let output = self.node.run(run)??;
        if output.status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ApiError::Kubectl { arguments: arguments.join(" "), complaint })
    }
}

impl Drop for RealApi {
    fn drop(&mut self) {
        let applied = std::mem::take(self.applied.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
        for object in applied.iter().rev() {
            if let Err(error) = self.kubectl(&["delete", "--ignore-not-found", "-f", "-"], object) {
                eprintln!("{error}");
            }
        }
    }
}

fn prefixed(prefix: &str, rest: &OsStr) -> std::ffi::OsString {
    let mut whole = std::ffi::OsString::from(prefix);
    whole.push(rest);
    whole
}

/// Makes the server behind a socket in the file system appear in the namespace.
fn appear_in(node: &NetNs, path: PathBuf) -> Result<(), ApiError> {
    let listener = node.run(|| TcpListener::bind(ADDRESS))??;
    std::thread::Builder::new().name("api-relay".to_owned()).spawn(move || {
        relay(&listener, || UnixStream::connect(&path).map(|server| Socket::from(OwnedFd::from(server))));
    })?;
    Ok(())
}
