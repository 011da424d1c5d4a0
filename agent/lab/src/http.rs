//! The smallest HTTP client that tests can do with.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait of [`get_blocking`] for a reply.
const PATIENCE: Duration = Duration::from_secs(5);

/// The reply of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The headers as sent, one a line.
    pub headers: String,
    /// The body, as sent.
    pub body: String,
}

impl Reply {
    /// The value of a header; its name in lower case, as this project's servers send it.
    pub fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers.lines().find_map(|line| line.strip_prefix(&prefix))
    }
}

/// Asks for a page.
///
/// # Errors
///
/// If there is no answer, or it is not HTTP.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<Reply> {
    request(address, "GET", path, "").await
}

/// Sends a request without a body. `headers` are as they go over the wire, each ended by `\r\n`.
///
/// # Errors
///
/// If there is no answer, or it is not HTTP.
pub async fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP reply: {text:?}")))
}

/// Asks for a page from the calling thread's namespace, and waits for a few seconds at most.
///
/// # Errors
///
/// If there is no answer in time, or it is not HTTP.
pub fn get_blocking(address: SocketAddr, path: &str) -> io::Result<Reply> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(PATIENCE, get(address, path)).await })?
}

fn parse(text: &str) -> Option<Reply> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let (status, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let status = status.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Reply { status, headers: headers.to_owned(), body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_headers_and_body_are_told_apart() {
        let reply = parse("HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain\r\n\r\nnot yet");
        let expected =
            Reply { status: 503, headers: "content-type: text/plain".to_owned(), body: "not yet".to_owned() };
        assert_eq!(reply.as_ref(), Some(&expected));
        assert_eq!(expected.header("content-type"), Some("text/plain"));
        assert_eq!(parse("220 mail.example.com ESMTP\r\n"), None);
    }
}
