//! `/statusz` and `/flagz`, the pages that every component of Kubernetes has
//! (`staging/src/k8s.io/component-base/zpages`), in their text form.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;

use crate::version::GIT_VERSION;

/// The component that is stood in for.
const COMPONENT: &str = "kube-proxy";

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// Paths beside these two on the same server.
const PATHS: &str = "/configz /flagz /healthz /metrics /proxyMode";

struct Pages {
    started: Timestamp,
    since: Instant,
    flags: String,
}

/// The routes `/statusz` and `/flagz`; `flags` by name, with their values.
pub fn router(flags: &BTreeMap<String, String>) -> Router {
    let lines: String = flags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    let pages = Pages {
        started: Timestamp::now(),
        since: Instant::now(),
        flags: format!("\n{COMPONENT} flagz\n{WARNING}\n\n{lines}"),
    };
    Router::new().route("/statusz", any(statusz)).route("/flagz", any(flagz)).with_state(Arc::new(pages))
}

async fn statusz(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    let up = pages.since.elapsed().as_secs();
    let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
    // Go's time.UnixDate.
    let started = pages.started.strftime("%a %b %e %H:%M:%S UTC %Y");
    let body = format!(
        "\n{COMPONENT} statusz\n{WARNING}\n\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\n\
         Go version: none\nBinary version: {GIT_VERSION}\nPaths: {PATHS}\n"
    );
    text(&headers, body)
}

async fn flagz(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    text(&headers, pages.flags.clone())
}

fn text(headers: &HeaderMap, body: String) -> Response {
    let content_type = [(CONTENT_TYPE, "text/plain; charset=utf-8")];
    if accepts_text(headers) {
        (StatusCode::OK, content_type, body).into_response()
    } else {
        (StatusCode::NOT_ACCEPTABLE, content_type, "only text/plain is served\n").into_response()
    }
}

/// Without an `Accept` header everything is taken.
fn accepts_text(headers: &HeaderMap) -> bool {
    let Some(accept) = headers.get(ACCEPT) else { return true };
    let accept = accept.to_str().unwrap_or_default();
    let media_type = |part: &str| part.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    accept.split(',').map(media_type).any(|part| ["", "*/*", "text/*", "text/plain"].contains(&part.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::listen::Listen;
    use crate::health::test_client::{get, request, run};

    #[test]
    fn status_and_flags_are_shown() {
        run(async {
            let flags = BTreeMap::from([("v".to_owned(), "2".to_owned()), ("config".to_owned(), "/c".to_owned())]);
            let listen = Listen::new("metrics", "metricsBindAddress", "127.0.0.1:0".parse().unwrap(), true);
            let mut listening = listen.listening.subscribe();
            tokio::spawn(listen.serve(router(&flags)));
            let address = listening.wait_for(Option::is_some).await.unwrap().unwrap();
            let reply = get(address, "/flagz").await;
            assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; charset=utf-8")));
            assert!(reply.body.starts_with("\nkube-proxy flagz\nWarning: "), "{}", reply.body);
            assert!(reply.body.ends_with("\n\nconfig=/c\nv=2\n"), "{}", reply.body);
            let reply = request(address, "GET", "/statusz", "accept: text/html, text/*;q=0.5\r\n").await;
            assert_eq!(reply.status, 200);
            for part in ["\nkube-proxy statusz\n", "\nStarted: ", "\nUp: 0 hr 00 min ", "\nBinary version: v1.36.0+"] {
                assert!(reply.body.contains(part), "{part} is not in {}", reply.body);
            }
            assert_eq!(request(address, "GET", "/statusz", "accept: application/yaml\r\n").await.status, 406);
        });
    }
}
