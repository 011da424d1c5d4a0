//! Who may see the page, and the headers of every reply.
//!
//! The metrics server may be bound to every address, for Prometheus. The page is
//! for clients on this node alone: a person reaches it through `kubectl
//! port-forward` or `ssh -L`, which connect from the node itself.
//!
//! A browser on this machine is such a client, and so is every web site that it
//! shows, once the site's own name leads to 127.0.0.1 (DNS rebinding). The name
//! that the client used is in `Host`. It has to be one that no site can have: an
//! IP address or `localhost`.

use std::net::IpAddr;

use axum::extract::{ConnectInfo, Request};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, HOST, HeaderName, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::health::Peer;

/// Nothing but the page's own files and answers. No text becomes HTML or a
/// script: browsers that know trusted types refuse that, whatever the script does.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

/// The headers of every reply.
const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Lets a request through or refuses it, and sets the headers of the reply.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(Peer(address))| address.ip());
    let mut response = match refusal(peer, request.headers()) {
        Some(why) => (StatusCode::FORBIDDEN, why).into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Why a client may not see the page.
fn refusal(peer: Option<IpAddr>, headers: &HeaderMap) -> Option<&'static str> {
    // A socket for both families shows IPv4 clients as ::ffff:127.0.0.1.
    if !peer.is_some_and(|peer| peer.to_canonical().is_loopback()) {
        return Some(
            "the status page is for clients on this node: use `kubectl port-forward` to the agent's pod, or `ssh -L`\n",
        );
    }
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) if is_no_foreign_name(host) => None,
        _ => Some("the status page is served under an IP address or as localhost, not under another name\n"),
    }
}

/// Returns whether a `Host` is an IP address or `localhost`, with a port or without.
fn is_no_foreign_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    !host.contains('@') && (name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    fn refused(peer: &str, hosts: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, HeaderValue::from_str(host).unwrap());
        }
        refusal(Some(peer.parse().unwrap()), &headers).is_some()
    }

    #[test]
    fn only_clients_on_this_node_are_served() {
        for peer in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            assert!(!refused(peer, &["localhost:10249"]), "{peer}");
        }
        for peer in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "0.0.0.0"] {
            assert!(refused(peer, &["localhost:10249"]), "{peer}");
        }
        assert!(refusal(None, &HeaderMap::new()).is_some());
    }

    #[test]
    fn a_name_that_a_web_site_may_have_is_refused() {
        for host in ["127.0.0.1:10249", "127.0.0.1", "[::1]:10249", "LocalHost:8080", "192.0.2.11:10249"] {
            assert!(!refused("127.0.0.1", &[host]), "{host}");
        }
        for host in ["evil.example:10249", "localhost.evil.example", "127.0.0.1.evil.example", "x@localhost", ""] {
            assert!(refused("127.0.0.1", &[host]), "{host}");
        }
        assert!(refused("127.0.0.1", &[]));
        assert!(refused("127.0.0.1", &["localhost", "evil.example"]));
    }
}
