//! The address of an API server, as client-go reads it
//! (`rest.DefaultServerURL`).

use http::Uri;
use thiserror::Error;

/// The defect of an API server's address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ServerUrlError {
    /// The address is empty.
    #[error("it is not set; write https://HOST:PORT")]
    Missing,
    /// Not a URL.
    #[error("{0:?} is not a URL; write https://HOST:PORT")]
    Invalid(String),
    /// A scheme other than `https` or `http`.
    #[error("{0:?} has another scheme than https or http")]
    Scheme(String),
}

/// Reads `https://host:port/path`, or `host:port`: then `has_tls` decides,
/// whether anything else was configured for TLS.
pub(super) fn server_url(text: &str, has_tls: bool) -> Result<Uri, ServerUrlError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ServerUrlError::Missing);
    }
    let invalid = || ServerUrlError::Invalid(text.to_owned());
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("{}://{text}", if has_tls { "https" } else { "http" }),
    };
    let url: Uri = full.parse().map_err(|_| invalid())?;
    if !matches!(url.scheme_str(), Some("https" | "http")) {
        return Err(ServerUrlError::Scheme(text.to_owned()));
    }
    let authority = url.authority().filter(|authority| !authority.host().is_empty()).ok_or_else(invalid)?;
    // Port 70000 or "port" parse as a URL, but lead nowhere.
    let behind_brackets = authority.as_str().rsplit(']').next().unwrap_or_default();
    if behind_brackets.contains(':') && authority.port_u16().is_none() {
        return Err(invalid());
    }
    if authority.as_str().contains('@') || url.query().is_some() {
        return Err(invalid());
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_may_be_left_out() {
        for (text, has_tls, expected) in [
            ("https://10.0.0.1:6443", false, "https://10.0.0.1:6443/"),
            (" https://api.example.com/k8s/clusters/c-1\n", true, "https://api.example.com/k8s/clusters/c-1"),
            ("127.0.0.1:6443", true, "https://127.0.0.1:6443/"),
            ("127.0.0.1:8080", false, "http://127.0.0.1:8080/"),
            ("localhost:6443", true, "https://localhost:6443/"),
            ("api.example.com", true, "https://api.example.com/"),
            ("[fd00::1]:6443", true, "https://[fd00::1]:6443/"),
            ("https://[fd00::1]", true, "https://[fd00::1]/"),
            ("HTTPS://10.0.0.1", true, "https://10.0.0.1/"),
        ] {
            assert_eq!(server_url(text, has_tls).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_refused() {
        assert_eq!(server_url(" \n", true), Err(ServerUrlError::Missing));
        assert!(matches!(
            server_url("unix:///run/api", true),
            Err(ServerUrlError::Invalid(_) | ServerUrlError::Scheme(_))
        ));
        assert!(matches!(server_url("ftp://h", true), Err(ServerUrlError::Scheme(_))));
        for text in ["https://[oops", "https://", "h:port", "h:70000", "https://a b", "https://u:p@h", "https://h?a=b"]
        {
            assert!(matches!(server_url(text, true), Err(ServerUrlError::Invalid(_))), "{text}");
        }
    }
}
