//! Whether a list is asked for in pages although the server has streaming lists.
//!
//! Since 1.34 the API server answers every page of a list from its cache (`ListFromCacheSnapshot`; the first page since
//! 1.31). Such a list costs it less than half of the processor time of a streaming list and no more memory, and arrives
//! sooner: `docs/decisions/0095-pages-from-the-cache.md`. Older servers take the pages after the first from etcd: there a
//! streaming list is better.

use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// The number of objects in a page from the cache. Larger ones are hardly faster, and the server needs more memory.
pub(super) const CACHED_PAGE: u32 = 1000;

/// The number of objects in a page of an older server's list, as in client-go.
pub(super) const PAGE: u32 = 500;

/// The first minor version whose pages all come from the cache. Source: `ListFromCacheSnapshot` in
/// `apiserver/pkg/features/kube_features.go`.
const FIRST_MINOR: u32 = 34;

/// The time for an answer. Without one the list is a streaming list.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most bytes that are read of it; a real one has about 400.
const LONGEST: usize = 64 * 1024;

/// What is known about the server, for all its lists.
#[derive(Debug, Default)]
pub(super) struct PagesFromCache(OnceCell<bool>);

/// The used parts of `version.Info`, the answer to `GET /version`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    major: String,
    /// Some providers add a plus sign.
    minor: String,
    /// The version whose features it has, if that is an older one (`--emulated-version`).
    #[serde(default)]
    emulation_minor: String,
}

impl PagesFromCache {
    /// Returns whether the server has them. The first caller asks the server, others wait for the answer. If there is
    /// none, this is `false`, and the next caller asks again.
    pub(super) async fn are_served(&self, client: &kube::Client) -> bool {
        let asked = self.0.get_or_try_init(|| async { timeout(PATIENCE, ask(client)).await.unwrap_or(None).ok_or(()) });
        asked.await.copied().unwrap_or(false)
    }
}

/// Asks for the version. `None` if that has to be tried again: the server can't be reached, or is busy.
async fn ask(client: &kube::Client) -> Option<bool> {
    let request = http::Request::get("/version")
        .header(http::header::ACCEPT, "application/json")
        .body(kube::client::Body::from(Vec::new()))
        .ok()?;
    let (head, body) = client.send(request).await.ok()?.into_parts();
    if head.status.is_server_error() || head.status == http::StatusCode::TOO_MANY_REQUESTS {
        return None;
    }
    // A server that forbids it has an unknown version.
    let body = Limited::new(body, LONGEST).collect().await.ok()?.to_bytes();
    let has_them = serde_json::from_slice(&body).is_ok_and(|version| has_pages_from_cache(&version));
    tracing::debug!(has_them, "whether the API server serves every page of a list from its cache");
    Some(has_them)
}

fn has_pages_from_cache(version: &Version) -> bool {
    let number = |text: &str| text.trim_end_matches(|end: char| !end.is_ascii_digit()).parse::<u32>().ok();
    let minor = number(&version.emulation_minor).or_else(|| number(&version.minor));
    match (number(&version.major), minor) {
        (Some(1), Some(minor)) => minor >= FIRST_MINOR,
        (Some(major), _) => major > 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_servers_give_them() {
        let has = |text: &str| serde_json::from_str(text).is_ok_and(|version| has_pages_from_cache(&version));
        let of = |major: &str, minor: &str| {
            has(&format!("{{\"major\":\"{major}\",\"minor\":\"{minor}\",\"gitVersion\":\"\"}}"))
        };
        assert!(of("1", "34") && of("1", "36+") && of("2", "0"));
        assert!(!of("1", "33") && !of("1", "33+") && !of("1", "9"));
        // As a server of 1.36 answers that has the features of 1.33.
        assert!(!has(r#"{"major":"1","minor":"36","emulationMajor":"1","emulationMinor":"33"}"#));
        assert!(has(r#"{"major":"1","minor":"36","emulationMajor":"1","emulationMinor":"36"}"#));
        // A build without version, an answer without one, and one of a gateway.
        assert!(!of("", "") && !of("0", "0") && !has("{\"kind\":\"Status\"}") && !has("<html>"));
    }
}
