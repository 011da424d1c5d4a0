//! The status page: the state of this agent in a browser, at `/` of the metrics
//! server.
//!
//! * [`guard`](mod@guard): who may see it, and the headers of every reply;
//! * [`views`]: the answers to the page's questions, as JSON;
//! * `files/`: the page itself. It is plain HTML, CSS and JavaScript, as it can
//!   be read here, and it loads nothing from elsewhere.
//!
//! The answers come from the query layer, like those of `vmap-proxy status`,
//! `get` and `explain`: the sync thread answers one question between two syncs,
//! and each is bounded. The page reads, and can change nothing (decision 84).

mod guard;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::commands::asked::Asked;
use crate::metrics::Format;
use crate::query::server;
use views::{Fields, ViewError};

/// Answers that are made at a time; others wait. A search through all Services
/// takes several questions, and each of these holds a thread.
const AT_A_TIME: usize = 4;

/// Longest wait for an answer: a first sync of a large cluster takes seconds, and
/// questions wait for it. The server closes a new connection that gets no reply
/// within 30 s, so this is less.
const PATIENCE: Duration = Duration::from_secs(20);

/// The source of the answers.
struct Page {
    questions: mpsc::Sender<server::Asked>,
    facts: Arc<server::Facts>,
    places: Arc<Semaphore>,
}

/// The routes `/` and `/page/…`. They answer clients on this node alone, and only
/// under a name that no other web site can have ([`guard`](mod@guard)). Serve them
/// with the address of the client ([`Peer`](crate::health::Peer)).
pub fn router(questions: mpsc::Sender<server::Asked>, facts: server::Facts) -> Router {
    let page = Page { questions, facts: Arc::new(facts), places: Arc::new(Semaphore::new(AT_A_TIME)) };
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("files/index.html")))
        .route("/page/style.css", file("text/css; charset=utf-8", include_str!("files/style.css")))
        .route("/page/script.js", file("text/javascript; charset=utf-8", include_str!("files/script.js")))
        .route("/page/status", view(views::status))
        .route("/page/services", view(views::services))
        .route("/page/service", view(views::service))
        .route("/page/explain", view(views::explain))
        .route("/page/counters", get(counters))
        .with_state(Arc::new(page))
        .layer(axum::middleware::from_fn(guard::guard))
}

fn file(content_type: &'static str, text: &'static str) -> MethodRouter<Arc<Page>> {
    get(move || async move { ([(CONTENT_TYPE, content_type)], text) })
}

/// The route of a view: its answer as JSON, or its error.
fn view<T: Serialize + 'static>(view: fn(&mut Asked, &Fields) -> Result<T, ViewError>) -> MethodRouter<Arc<Page>> {
    get(move |State(page): State<Arc<Page>>, RawQuery(query): RawQuery| async move {
        let fields = Fields::parse(query.as_deref().unwrap_or_default());
        page.answer(move |asked| view(asked, &fields).and_then(|answer| Ok(serde_json::to_string(&answer)?))).await
    })
}

impl Page {
    /// Makes an answer on another thread, which waits for the sync thread.
    async fn answer(&self, make: impl FnOnce(&mut Asked) -> Result<String, ViewError> + Send + 'static) -> Response {
        let made = async {
            let place = self.places.clone().acquire_owned().await;
            let mut asked = Asked::Own(self.questions.clone(), self.facts.clone());
            let made = spawn_blocking(move || {
                let made = make(&mut asked);
                drop(place);
                made
            });
            made.await.unwrap_or(Err(ViewError::Busy))
        };
        match timeout(PATIENCE, made).await.unwrap_or(Err(ViewError::Busy)) {
            Ok(text) => ([(CONTENT_TYPE, "application/json")], text).into_response(),
            Err(error) => {
                let text = serde_json::json!({ "error": error.to_string() }).to_string();
                (error.status(), [(CONTENT_TYPE, "application/json")], text).into_response()
            }
        }
    }
}

/// The metrics without those of single Services: their number would grow with the
/// cluster.
async fn counters(State(page): State<Arc<Page>>) -> Response {
    let metrics = page.facts.metrics.clone();
    match spawn_blocking(move || metrics.encode(Format::Prometheus, &[])).await {
        Ok(text) => ([(CONTENT_TYPE, Format::Prometheus.content_type())], text).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
