//! The status page of a node with 100,000 Services: its answers over HTTP, and the
//! page itself in a browser (headless Chromium, driven by chromedriver).
//!
//! Slow: to compile the cluster takes half a minute in a debug build.
//!
//! Where there is no browser the tests of the page are skipped, loudly. With the
//! variable `BROWSER_TESTS=required` that is a failure.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod browser;
mod cluster;
mod page;

use serde_json::{Value, json};
use vmap_proxy_lab::http::{self, Reply};

use cluster::{SERVICES, server};

fn request(method: &str, path: &str, headers: &str) -> Reply {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(http::request(server(), method, path, headers)).unwrap()
}

fn get(path: &str) -> Value {
    let reply = request("GET", path, "");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")), "{path}: {reply:?}");
    // The list of a hundred thousand Services would have tens of megabytes.
    assert!(reply.body.len() < 64 * 1024, "{path}: {} bytes", reply.body.len());
    serde_json::from_str(&reply.body).unwrap()
}

fn error(path: &str) -> (u16, String) {
    let reply = request("GET", path, "");
    let answer: Value = serde_json::from_str(&reply.body).unwrap();
    (reply.status, answer["error"].as_str().unwrap().to_owned())
}

fn names(page: &Value) -> Vec<&str> {
    page["services"].as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect()
}

#[test]
fn services_are_sent_in_pages() {
    assert_eq!(get("/page/status")["services"], SERVICES);
    let first = get("/page/services");
    assert_eq!(names(&first).len(), 50);
    let next = first["next"].as_str().unwrap();
    let second = get(&format!("/page/services?after={next}"));
    assert_eq!(names(&second).len(), 50);
    assert!(names(&first).last() < names(&second).first());
    // The last Services, and nothing after them.
    let last = get("/page/services?after=team-099/backend-098999");
    assert_eq!(names(&last).len(), 10);
    assert!(last.get("next").is_none());
}

#[test]
fn the_state_names_the_source_and_the_start() {
    let state = get("/page/status");
    assert_eq!(state["source"], "objects of a test");
    assert!(state["started"].as_u64().unwrap() > 1_700_000_000_000, "{state}");
}

#[test]
fn a_search_finds_names_and_addresses_among_all_services() {
    let found = get("/page/services?search=backend-07654");
    assert_eq!(names(&found).len(), 10);
    assert_eq!(names(&found)[0], "team-040/backend-076540");
    assert!(found.get("next").is_none());
    let found = get("/page/services?search=10.1.0.7");
    assert_eq!(names(&found), ["team-007/backend-000007"]);
    assert_eq!(found["services"][0]["frontends"], json!(["10.1.0.7:80/TCP"]));
    assert!(names(&get("/page/services?search=nothing-of-this-name")).is_empty());
    assert!(names(&get("/page/services?search=192.0.2.200")).is_empty());
    // More hits than a page has, in order and without a gap.
    let mut after = String::new();
    let mut seen = 0;
    loop {
        let page = get(&format!("/page/services?search=team-013/&after={after}"));
        seen += names(&page).len();
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(seen, SERVICES / 100);
}

#[test]
fn a_service_and_a_packet_are_explained() {
    let answer = get("/page/service?name=team-007/backend-000007");
    assert_eq!(answer["service"]["programmed"], true);
    assert_eq!(answer["service"]["ports"][0]["endpoints"][0]["address"], "10.130.0.7");
    let answer = get("/page/explain?from=outside&to=svc:team-007/backend-000007");
    assert_eq!(answer["packet"]["verdict"], "dnat");
    let answer = get("/page/explain?to=svc:team-007/backend-000007");
    assert_eq!(answer["service"]["name"], "backend-000007");
    let (status, text) = error("/page/explain?from=outside&to=nonsense");
    assert!(status == 400 && text.contains("ADDRESS:PORT"), "{status} {text}");
    assert_eq!(error("/page/explain?from=outside"), (400, "to is missing".to_owned()));
    assert_eq!(error("/page/service"), (400, "name is missing".to_owned()));
    let (status, _) = error(&format!("/page/services?search={}", "x".repeat(1000)));
    assert_eq!(status, 400);
}

#[test]
fn every_reply_forbids_what_the_page_does_not_need() {
    for path in ["/", "/page/style.css", "/page/script.js", "/page/status", "/page/counters"] {
        let reply = request("GET", path, "");
        assert_eq!(reply.status, 200, "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; ") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("cross-origin-resource-policy"), Some("same-origin"));
        assert_eq!(reply.header("cache-control"), Some("no-store"));
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(request(method, path, "").status, 405, "{method} {path}");
        }
        // A second Host, as a web site would have it.
        let refused = request("GET", path, "host: evil.example\r\n");
        assert_eq!(refused.status, 403, "{path}");
        assert!(refused.header("content-security-policy").is_some());
    }
    let counters = request("GET", "/page/counters", "").body;
    assert!(counters.contains("kubeproxy_sync_proxy_rules_") && !counters.contains("service_connections"));
}

/// The page is one that can be read, and it loads nothing from elsewhere.
#[test]
fn the_page_is_self_contained() {
    for path in ["/", "/page/style.css", "/page/script.js"] {
        let text = request("GET", path, "").body;
        let elsewhere = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!elsewhere.contains("http") && !elsewhere.contains("url(") && !elsewhere.contains("@import"), "{path}");
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", " onclick=", "style="]
        {
            assert!(!text.contains(forbidden), "{path} has {forbidden}");
        }
        assert!(text.lines().all(|line| line.len() <= 200), "{path} has long lines");
    }
}
