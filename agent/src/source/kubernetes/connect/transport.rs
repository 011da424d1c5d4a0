//! Requests to the API server: address, credentials and connection, and
//! client-go's metrics about them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use tokio::time::Instant;

use super::credentials::Authorizer;
use super::dial::{BoxError, Dialer, Liveness};
use crate::metrics::Metrics;

/// Lifetime of an idle connection, as in Go.
const IDLE: Duration = Duration::from_secs(90);

/// Interval between checks of the files of a client certificate.
const ROTATION: Duration = Duration::from_secs(60);

/// The description of a failure is never longer.
const LONGEST_FAILURE: usize = 1024 * 1024;

type HttpClient = Client<Dialer, Body>;

/// Files of the client certificate, as they were read.
type Files = Option<(Vec<u8>, Vec<u8>)>;

/// Sends requests.
pub(super) struct Transport {
    server: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    authorizer: Authorizer,
    dialer: Dialer,
    liveness: Liveness,
    connections: Mutex<Connections>,
    metrics: Metrics,
}

struct Connections {
    client: HttpClient,
    files: Files,
    looked: Instant,
}

/// A response; the body of a failure has a limit.
pub(super) type Answer = Response<Either<Incoming, Limited<Incoming>>>;

impl Transport {
    /// Connects at the first request.
    pub(super) fn new(
        server: Uri,
        headers: Vec<(HeaderName, HeaderValue)>,
        authorizer: Authorizer,
        dialer: Dialer,
        liveness: Liveness,
        metrics: Metrics,
    ) -> Self {
        let connections = Connections {
            client: client(&dialer, liveness),
            files: dialer.tls().identity_files(),
            looked: Instant::now(),
        };
        let connections = Mutex::new(connections);
        Self { server, headers, authorizer, dialer, liveness, connections, metrics }
    }

    /// Sends one request.
    pub(super) async fn send(self: Arc<Self>, mut request: Request<Body>) -> Result<Answer, BoxError> {
        let authorization = self.authorizer.current().await?;
        self.dialer.set_identity(authorization.identity);
        *request.uri_mut() = self.url(request.uri())?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(user_agent()));
        if let Some(value) = authorization.header {
            headers.insert(AUTHORIZATION, value);
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if request.uri().scheme_str() == Some("http")
            && let Some(value) = self.dialer.proxy().and_then(super::proxy::Proxy::authorization)
        {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value);
        }
        let (verb, started) = (request.method().clone(), Instant::now());
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let result = self.client().request(request).await;
        let code = result.as_ref().map(Response::status).ok();
        let took = (!is_watch).then(|| started.elapsed());
        self.metrics.api_answered(verb.as_str(), self.host(), code.map(|code| code.as_u16()), took);
        if code == Some(StatusCode::UNAUTHORIZED) {
            self.authorizer.refused().await;
            // The certificate of a kept connection may have expired.
            self.renew(self.dialer.tls().identity_files());
        }
        let is_failure = |code: StatusCode| code.is_client_error() || code.is_server_error();
        Ok(result?.map(|body| match code.is_some_and(is_failure) {
            true => Either::Right(Limited::new(body, LONGEST_FAILURE)),
            false => Either::Left(body),
        }))
    }

    fn host(&self) -> &str {
        self.server.authority().map_or("", http::uri::Authority::as_str)
    }

    /// The whole URL of a request for a path.
    fn url(&self, path: &Uri) -> Result<Uri, http::Error> {
        let path = path.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut parts = self.server.clone().into_parts();
        let full = format!("{}{path}", self.server.path().trim_end_matches('/'));
        parts.path_and_query = Some(full.parse()?);
        Ok(Uri::from_parts(parts)?)
    }

    /// The client, with connections made by the current certificate.
    fn client(&self) -> HttpClient {
        let due = {
            let mut connections = self.lock();
            let is_due = connections.files.is_some() && connections.looked.elapsed() >= ROTATION;
            if is_due {
                connections.looked = Instant::now();
            }
            is_due
        };
        if due {
            let files = self.dialer.tls().identity_files();
            if files.is_some() && files != self.lock().files {
                tracing::info!("the client certificate for the API server was replaced; connecting again");
                self.renew(files);
            }
        }
        self.lock().client.clone()
    }

    /// Gives up the kept connections; running requests finish.
    fn renew(&self, files: Files) {
        let mut connections = self.lock();
        connections.client = client(&self.dialer, self.liveness);
        connections.files = files.or(connections.files.take());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection for all requests where the server speaks HTTP/2, with the
/// pings that client-go sends.
fn client(dialer: &Dialer, liveness: Liveness) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(8)
        .http2_keep_alive_interval(liveness.interval)
        .http2_keep_alive_timeout(liveness.patience)
        .http2_keep_alive_while_idle(true)
        .build(dialer.clone())
}

/// In the form of Kubernetes' own clients: program, version, platform.
fn user_agent() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        concat!("vmap-proxy/v", env!("CARGO_PKG_VERSION"), " (linux/arm64) kubernetes/unknown")
    } else {
        concat!("vmap-proxy/v", env!("CARGO_PKG_VERSION"), " (linux/amd64) kubernetes/unknown")
    }
}
