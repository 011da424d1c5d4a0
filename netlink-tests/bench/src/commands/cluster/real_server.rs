//! A real API server, and the measured objects in it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request};
use serde_json::{Value, json};
use socket2::Socket;
use tokio::runtime::Runtime;
use vmap_proxy_agent::metrics::Metrics;
use vmap_proxy_agent::source::kubernetes::{Encoding, KubernetesOptions, KubernetesSource, Timing};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::api_objects::{NAMESPACE, NODE, node};
use vmap_proxy_testbed::relay::relay;

use super::objects::{service_of, slice_of};
use crate::scale::Failure;

/// The number of requests under way at once while objects are created or deleted.
const CONCURRENCY: usize = 32;

/// The longest wait for the address of a Service that was deleted before, and the pause between attempts.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS_PAUSE: Duration = Duration::from_millis(100);

/// A real API server that has the objects. They are deleted when it is dropped.
pub(super) struct RealServer {
    /// The namespace in which the server can be reached.
    machine: NetNs,
    runtime: Runtime,
    client: kube::Client,
    kubeconfig: PathBuf,
    address: SocketAddr,
    services: usize,
}

impl RealServer {
    /// Connects to it from the namespace `machine`, and creates the objects.
    pub(super) fn fill(machine: NetNs, kubeconfig: &Path, services: usize, endpoints: u8) -> Result<Self, Failure> {
        let address = address_of(kubeconfig)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let options = KubernetesOptions {
            kubeconfig: Some(kubeconfig.to_owned()),
            master: None,
            node_name: NODE.to_owned(),
            encoding: Encoding::Json,
            timing: Timing::default(),
            metrics: Metrics::new(),
        };
        let client = runtime.block_on(KubernetesSource::connect(options))?.client();
        // What another run or a user has there is not ours to delete.
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let created =
            machine.run(|| runtime.block_on(send(&client, Method::POST, "/api/v1/namespaces", &namespace)))?;
        created.map_err(|error| {
            format!("{error}; if an interrupted run left the namespace {NAMESPACE} behind, delete it first")
        })?;
        let server = Self { machine, runtime, client, kubeconfig: kubeconfig.to_owned(), address, services };
        let this_node = node(|_| {});
        server.one(Method::POST, "/api/v1/nodes", &this_node)?;
        server.one(Method::PUT, &format!("/api/v1/nodes/{NODE}/status"), &this_node)?;
        let services = (0..services).map(service_of);
        server.all(Method::POST, services.map(|object| (collection(&object), object)))?;
        let slices = (0..server.services).map(|index| slice_of(index, endpoints, 0));
        server.all(Method::POST, slices.map(|object| (collection(&object), object)))?;
        Ok(server)
    }

    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Replaces an object.
    pub(super) fn replace(&self, object: &Value) -> Result<(), Failure> {
        self.one(Method::PUT, &path(object), object)
    }

    pub(super) fn create(&self, object: &Value) -> Result<(), Failure> {
        self.one(Method::POST, &collection(object), object)
    }

    pub(super) fn delete(&self, object: &Value) -> Result<(), Failure> {
        self.one(Method::DELETE, &path(object), &Value::Null)
    }

    /// Makes it appear in a node's namespace, at its own address, until the process ends. The copying costs the
    /// machine a few hundredths of a second for the lists of 10,000 Services.
    pub(super) fn appear_in(&self, node: &NetNs) -> Result<(), Failure> {
        let address = self.address;
        let listener = node.run(|| TcpListener::bind(address))??;
        self.machine.spawn(move || {
            relay(&listener, || {
                let server = Socket::from(TcpStream::connect(address)?);
                server.set_tcp_nodelay(true)?;
                Ok(server)
            });
        })?;
        Ok(())
    }

    fn one(&self, method: Method, path: &str, object: &Value) -> Result<(), Failure> {
        self.machine.run(|| self.runtime.block_on(send(&self.client, method, path, object)))?
    }

    /// Sends a request for each object, to its path.
    fn all(&self, method: Method, objects: impl Iterator<Item = (String, Value)> + Send) -> Result<(), Failure> {
        let requests = objects.map(|(path, object)| {
            let (client, method) = (self.client.clone(), method.clone());
            async move { send(&client, method, &path, &object).await }
        });
        let sent = stream::iter(requests).buffer_unordered(CONCURRENCY).try_collect::<()>();
        self.machine.run(|| self.runtime.block_on(sent))?
    }

    fn delete_all(&self) -> Result<(), Failure> {
        let objects = (0..self.services).flat_map(|index| [service_of(index), slice_of(index, 1, 0)]);
        self.all(Method::DELETE, objects.map(|object| (path(&object), Value::Null)))?;
        self.one(Method::DELETE, &format!("/api/v1/nodes/{NODE}"), &Value::Null)?;
        let namespace = format!("/api/v1/namespaces/{NAMESPACE}");
        self.one(Method::DELETE, &namespace, &Value::Null)?;
        // The controller manager ends the deletion; a bare API server has none. It is empty.
        let ended = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}, "spec": {"finalizers": []},
        });
        self.one(Method::PUT, &format!("{namespace}/finalize"), &ended)
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        if let Err(error) = self.delete_all() {
            eprintln!("the objects in the namespace {NAMESPACE} were not all deleted: {error}");
        }
    }
}

async fn send(client: &kube::Client, method: Method, path: &str, object: &Value) -> Result<(), Failure> {
    let body = if object.is_null() { Vec::new() } else { object.to_string().into_bytes() };
    let begun = Instant::now();
    loop {
        let request = Request::builder().method(&method).uri(path).header("content-type", "application/json");
        let answer: Result<Value, kube::Error> = client.request(request.body(body.clone())?).await;
        match answer {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if method == Method::DELETE && status.code == 404 => return Ok(()),
            // The server frees the address of a deleted Service a little later.
            Err(kube::Error::Api(status))
                if status.message.contains("already allocated") && begun.elapsed() < ADDRESS_PATIENCE =>
            {
                tokio::time::sleep(ADDRESS_PAUSE).await;
            }
            Err(error) => return Err(format!("{method} {path}: {error}").into()),
        }
    }
}

fn collection(object: &Value) -> String {
    match object["kind"].as_str() {
        Some("Service") => format!("/api/v1/namespaces/{NAMESPACE}/services"),
        _ => format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"),
    }
}

fn path(object: &Value) -> String {
    format!("{}/{}", collection(object), object["metadata"]["name"].as_str().unwrap_or_default())
}

/// The address in a kubeconfig's only cluster.
fn address_of(kubeconfig: &Path) -> Result<SocketAddr, Failure> {
    let text = std::fs::read_to_string(kubeconfig).map_err(|error| format!("{}: {error}", kubeconfig.display()))?;
    let config: Value = serde_saphyr::from_str(&text)?;
    let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap_or_default();
    let address = server.strip_prefix("https://").and_then(|address| address.trim_end_matches('/').parse().ok());
    address.filter(|address: &SocketAddr| address.ip().is_loopback()).ok_or_else(|| {
        format!(
            "the server in {} must be an address of the loopback interface with a port, such as https://127.0.0.1:6443, \
             not {server:?}: a node of the measurement has no connection to the outside",
            kubeconfig.display()
        )
        .into()
    })
}
