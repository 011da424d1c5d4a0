//! Services, EndpointSlices, this Node and the ServiceCIDRs from the
//! Kubernetes API.
//!
//! Every resource has a separate [`reflector`]: list, then watch, for ever.
//! Objects go from the socket's buffer into the slim types of the compiler one
//! by one; neither a list nor a page is ever held. Why this is not kube-runtime's
//! watcher: `docs/decisions/0050-reflector.md`. They come in [`protobuf`], or in
//! [`json`] if the server or the configuration wants it.

mod backoff;
mod bounds;
mod connect;
mod encoding;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod json;
mod notices;
mod pages;
mod protobuf;
mod reflector;
mod resource;
#[cfg(test)]
mod tests;
mod turns;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{join, join_all};
use tokio::sync::oneshot;

pub use self::connect::{
    ConnectError, CredentialError, ExecError, InClusterProblem, KubeconfigProblem, ProxyError, ServerUrlError, TlsError,
};
pub use self::encoding::{Encoding, PROTOBUF};
use self::pages::PagesFromCache;
use self::reflector::Reflector;
use self::resource::Resource;
use super::{Event, EventSender};
use crate::metrics::Metrics;

/// The connection to the API server, and the resources to follow.
#[derive(Debug, Clone)]
pub struct KubernetesOptions {
    /// The kubeconfig file; `None`: the service account of the pod.
    pub kubeconfig: Option<PathBuf>,
    /// The URL of the API server, which overrides the kubeconfig (kube-proxy's
    /// `--master`).
    pub master: Option<String>,
    /// The Node to follow: this one.
    pub node_name: String,
    /// The encoding to ask for. A server that does not have it answers in JSON.
    pub encoding: Encoding,
    /// Waiting times; tests use shorter ones than the default.
    pub timing: Timing,
    /// The counters of requests and answers.
    pub metrics: Metrics,
}

/// Waiting times of the source.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The wait after a first failure; doubled by every further one.
    pub shortest_retry: Duration,
    /// The longest wait between attempts. Up to as much again is added at
    /// random, so that nodes don't come back all at once.
    pub longest_retry: Duration,
    /// Silence on a watch after which the connection is taken for dead. The
    /// server sends a bookmark about every minute.
    pub idle: Duration,
    /// Silence during a list, or before an answer, after which it is started
    /// again. The server's own limit for a request is 60 s.
    pub list_idle: Duration,
    /// A watch that ends sooner is followed by a pause.
    pub short_watch: Duration,
    /// Silence of the connection after which the peer is asked for a sign of
    /// life, by HTTP/2 or the kernel.
    pub ping_interval: Duration,
    /// Longest time to give one; then the connection is given up.
    pub ping_patience: Duration,
    /// Longest time that the first sync waits for this Node. kube-proxy waits
    /// 30 s for its addresses.
    pub node_patience: Duration,
    /// Longest time that the first sync waits for the ServiceCIDRs.
    pub service_cidr_patience: Duration,
}

impl Default for Timing {
    /// Retries as client-go's reflector: 800 ms to 30 s. Pings as its
    /// transport: after 30 s, for 15 s.
    fn default() -> Self {
        Self {
            shortest_retry: Duration::from_millis(800),
            longest_retry: Duration::from_secs(30),
            idle: Duration::from_secs(150),
            list_idle: Duration::from_secs(60),
            short_watch: Duration::from_secs(1),
            ping_interval: Duration::from_secs(30),
            ping_patience: Duration::from_secs(15),
            node_patience: Duration::from_secs(30),
            service_cidr_patience: Duration::from_secs(5),
        }
    }
}

/// A connection to the API server that knows what a proxy needs from it.
pub struct KubernetesSource {
    client: kube::Client,
    options: KubernetesOptions,
    with_names: bool,
    pages_from_cache: Arc<PagesFromCache>,
}

impl KubernetesSource {
    /// Reads the configuration and prepares the client. No request is sent yet:
    /// [`run`](Self::run) connects, and reports failures while it goes on
    /// trying.
    ///
    /// # Errors
    /// The kubeconfig or the service account can't be used; each names the
    /// remedy.
    pub async fn connect(options: KubernetesOptions) -> Result<Self, ConnectError> {
        let client = connect::client(&options).await?;
        Ok(Self { client, options, with_names: false, pages_from_cache: Arc::default() })
    }

    /// Reads the names for DNS as well. Headless Services and their slices are
    /// followed then, which a proxy leaves out.
    #[must_use]
    pub fn with_names(self, with_names: bool) -> Self {
        Self { with_names, ..self }
    }

    /// The client, for other requests.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Follows the API server until nobody listens any more.
    ///
    /// Every kind: [`Event::ListStarted`], its objects, [`Event::ListCompleted`],
    /// then its changes; again from the start when the server can't continue.
    /// [`Event::Synced`] once Services and EndpointSlices are listed, the Node
    /// and the ServiceCIDRs too or given up waiting for. Failures are
    /// [`Event::Degraded`] and tried again.
    pub async fn run(self, events: EventSender) {
        let mut reflectors = Vec::new();
        let mut firsts = Vec::new();
        for resource in Resource::all(&self.options.node_name, self.with_names) {
            let (listed, first) = oneshot::channel();
            firsts.push(wait_for_first(first, resource.patience(&self.options.timing)));
            reflectors.push(Reflector::new(&self, resource, events.clone(), listed).run());
        }
        let synced = async {
            join_all(firsts).await;
            // Fails only when nobody listens: the reflectors notice as well.
            let _ = events.send(Event::Synced).await;
        };
        join(join_all(reflectors), synced).await;
    }
}

async fn wait_for_first(listed: oneshot::Receiver<()>, patience: Option<Duration>) {
    match patience {
        None => drop(listed.await),
        Some(patience) => drop(tokio::time::timeout(patience, listed).await),
    }
}
