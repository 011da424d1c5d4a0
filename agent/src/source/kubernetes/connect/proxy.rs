//! Selects the proxy to the API server: `proxy-url` of the kubeconfig, else the
//! environment, as for client-go.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use thiserror::Error;

use super::no_proxy::NoProxy;

/// The reason why a proxy cannot be used. The address is not repeated, because
/// it may contain a password.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// No host in it, or characters that a URL does not have.
    #[error("{origin} is no URL of a proxy; write it as http://HOST:PORT")]
    Invalid {
        /// The variable or field.
        origin: &'static str,
    },
    /// Another protocol.
    #[error("{origin} has the scheme {scheme:?}; a proxy is reached by http, https, socks5 or socks5h")]
    Scheme {
        /// The variable or field.
        origin: &'static str,
        /// The configured value.
        scheme: String,
    },
    /// The environment of a CGI program: `HTTP_PROXY` may come from a client.
    #[error("HTTP_PROXY is not used while REQUEST_METHOD is set; unset one of them")]
    Cgi,
}

/// The protocol of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Https,
    Socks5,
}

/// A proxy that connections to the API server go through.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) protocol: Protocol,
    /// `SCHEME://HOST:PORT/`, without credentials.
    pub(super) url: Uri,
    /// User and password, decoded.
    pub(super) credentials: Option<(String, String)>,
    /// The place of its configuration.
    pub(super) origin: &'static str,
}

impl fmt::Debug for Proxy {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.url, self.origin)
    }
}

/// The variables that matter, as they are set.
#[derive(Debug, Default, Clone)]
pub(super) struct Environment {
    pub(super) https_proxy: Option<(&'static str, String)>,
    pub(super) http_proxy: Option<(&'static str, String)>,
    pub(super) no_proxy: String,
    pub(super) is_cgi: bool,
}

impl Environment {
    /// Those of this process.
    pub(super) fn of_process() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }

    /// The upper-case name first; an empty variable counts as absent.
    fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: [&'static str; 2]| {
            let set = names.into_iter().filter_map(|name| Some((name, variable(name)?)));
            set.into_iter().find(|(_, value)| !value.is_empty())
        };
        Self {
            https_proxy: first(["HTTPS_PROXY", "https_proxy"]),
            http_proxy: first(["HTTP_PROXY", "http_proxy"]),
            no_proxy: first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default(),
            is_cgi: variable("REQUEST_METHOD").is_some_and(|method| !method.is_empty()),
        }
    }

    /// The proxy to `server`, if there is one.
    pub(super) fn proxy_to(&self, server: &Uri) -> Result<Option<Proxy>, ProxyError> {
        let is_https = server.scheme_str() == Some("https");
        let Some((name, value)) = (if is_https { &self.https_proxy } else { &self.http_proxy }) else {
            return Ok(None);
        };
        let port = server.port_u16().unwrap_or(if is_https { 443 } else { 80 });
        if NoProxy::parse(&self.no_proxy).includes(server.host().unwrap_or_default(), port) {
            return Ok(None);
        }
        if self.is_cgi && *name == "HTTP_PROXY" {
            return Err(ProxyError::Cgi);
        }
        // A scheme may be left out in the environment.
        let has_scheme = value.contains("://");
        Proxy::parse(&if has_scheme { value.clone() } else { format!("http://{value}") }, name).map(Some)
    }
}

impl Proxy {
    /// Reads the URL of a proxy; `origin` is where it is configured.
    pub(super) fn parse(url: &str, origin: &'static str) -> Result<Self, ProxyError> {
        let invalid = || ProxyError::Invalid { origin };
        let uri: Uri = url.trim().parse().map_err(|_| invalid())?;
        let scheme = uri.scheme_str().ok_or_else(invalid)?;
        let (protocol, scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, "http", 80),
            "https" => (Protocol::Https, "https", 443),
            // Both let the proxy resolve the server's name, as Go does.
            "socks5" | "socks5h" => (Protocol::Socks5, "socks5", 1080),
            other => return Err(ProxyError::Scheme { origin, scheme: other.to_owned() }),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        let url = format!("{scheme}://{host}:{}/", uri.port_u16().unwrap_or(default_port));
        let authority = uri.authority().ok_or_else(invalid)?.as_str();
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let credentials = authority.rsplit_once('@').map(|(userinfo, _)| {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            (decode(user), decode(password))
        });
        Ok(Self { protocol, url: url.parse().map_err(|_| invalid())?, credentials, origin })
    }

    /// The value of `Proxy-Authorization`.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let (user, password) = self.credentials.as_ref()?;
        basic(user, password)
    }
}

/// The value of a header for basic authentication.
pub(super) fn basic(user: &str, password: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(server: &'static str, variables: &[(&str, &str)]) -> Result<Option<Proxy>, ProxyError> {
        let environment = Environment::new(|name| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        });
        environment.proxy_to(&Uri::from_static(server))
    }

    #[test]
    fn the_environment_decides_by_scheme_and_no_proxy() {
        const SERVER: &str = "https://10.0.0.1:6443";
        for (server, variables, expected) in [
            (SERVER, &[("HTTPS_PROXY", "http://p:3128")][..], Some("http://p:3128/")),
            (SERVER, &[("https_proxy", "p:3128")], Some("http://p:3128/")),
            (SERVER, &[("https_proxy", "p")], Some("http://p:80/")),
            (SERVER, &[("HTTPS_PROXY", ""), ("https_proxy", "https://p")], Some("https://p:443/")),
            (SERVER, &[("HTTPS_PROXY", "socks5://p")], Some("socks5://p:1080/")),
            (SERVER, &[("HTTPS_PROXY", "socks5h://[fd00::1]:1")], Some("socks5://[fd00::1]:1/")),
            // curl's variables, which Go ignores, and those of the other scheme.
            (SERVER, &[("ALL_PROXY", "http://p:3128")], None),
            (SERVER, &[("HTTP_PROXY", "http://p:3128")], None),
            ("http://10.0.0.1", &[("HTTP_PROXY", "http://p:3128")], Some("http://p:3128/")),
            ("http://10.0.0.1", &[("HTTPS_PROXY", "http://p:3128")], None),
            (SERVER, &[("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", "10.0.0.0/24")], None),
            (SERVER, &[("HTTPS_PROXY", "http://p:3128"), ("no_proxy", "10.0.0.1:6443")], None),
            (SERVER, &[("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", "10.0.0.1:80")], Some("http://p:3128/")),
            ("https://127.0.0.1:6443", &[("HTTPS_PROXY", "http://p:3128")], None),
            // Whatever the variable holds does not matter to an excluded server.
            (SERVER, &[("HTTPS_PROXY", "ftp://p"), ("NO_PROXY", "*")], None),
            // A CGI program's client can set HTTP_PROXY, but no other variable.
            (SERVER, &[("HTTPS_PROXY", "http://p:3128"), ("REQUEST_METHOD", "GET")], Some("http://p:3128/")),
        ] {
            let url = to(server, variables).unwrap().map(|proxy| proxy.url.to_string());
            assert_eq!(url.as_deref(), expected, "{server} with {variables:?}");
        }
    }

    #[test]
    fn what_is_no_proxy_names_the_variable() {
        let error = |variables: &[(&str, &str)]| to("https://10.0.0.1", variables).unwrap_err().to_string();
        assert!(error(&[("HTTPS_PROXY", "ftp://secret@p")]).starts_with("HTTPS_PROXY has the scheme \"ftp\""));
        for value in ["http://", "http://secret@", "http://a b", "://", "\u{1}"] {
            let message = error(&[("https_proxy", value)]);
            assert!(message.starts_with("https_proxy") && !message.contains("secret"), "{value:?}: {message}");
        }
        let cgi = to("http://10.0.0.1", &[("HTTP_PROXY", "http://p"), ("REQUEST_METHOD", "GET")]);
        assert!(matches!(cgi, Err(ProxyError::Cgi)));
    }

    #[test]
    fn credentials_are_decoded_and_never_shown() {
        let proxy = Proxy::parse("http://us%40er:p%3Aw@p:1", "proxy-url").unwrap();
        assert_eq!(proxy.credentials, Some(("us@er".to_owned(), "p:w".to_owned())));
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNAZXI6cDp3");
        assert_eq!(format!("{proxy:?}"), "http://p:1/ (proxy-url)");
        assert_eq!(Proxy::parse("http://user@p", "proxy-url").unwrap().credentials, Some(("user".into(), "".into())));
    }
}
