//! How long the health server's answers take while the proxy is busy.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::http::get_blocking;

use crate::scale::Failure;

/// The health server of kubeadm's configuration.
const LIVEZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// The pause between two questions to it.
const PROBE_GAP: Duration = Duration::from_millis(2);

/// The answers of a server, one after the other.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) count: usize,
    slowest: Duration,
}

impl Answers {
    pub(super) fn slowest_ms(&self) -> f64 {
        self.slowest.as_secs_f64() * 1000.0
    }

    /// Asks once, and waits for the answer.
    fn ask(&mut self, server: SocketAddr) {
        let begun = Instant::now();
        // The proxy does not listen yet at the beginning.
        if get_blocking(server, "/livez").is_ok() {
            self.count += 1;
            self.slowest = self.slowest.max(begun.elapsed());
        }
    }
}

/// The answers of the proxy's health server, and those of a thread that waits
/// for nothing but connections: so late is every server on this machine, while
/// the proxy and the API server keep it busy.
#[derive(Debug, Default)]
pub(super) struct Probed {
    pub(super) proxy: Answers,
    pub(super) idle_server: Answers,
}

/// Asks both servers in a node's namespace all the time until `awaited` returns.
pub(super) fn probe_until<T>(node: &NetNs, awaited: impl FnOnce() -> T) -> Result<(T, Probed), Failure> {
    let node = node.try_clone()?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probing = scope.spawn(|| node.run(|| probe(&is_over)));
        let result = awaited();
        is_over.store(true, Ordering::Relaxed);
        let answers = probing.join().map_err(|_| "the probe panicked")???;
        Ok((result, answers))
    })
}

fn probe(is_ended: &AtomicBool) -> io::Result<Probed> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let idle_server = listener.local_addr()?;
    let mut probed = Probed::default();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| answer_all(&listener, &is_over));
        while !is_ended.load(Ordering::Relaxed) {
            probed.proxy.ask(LIVEZ);
            probed.idle_server.ask(idle_server);
            std::thread::sleep(PROBE_GAP);
        }
        is_over.store(true, Ordering::Relaxed);
        // The server's thread waits for a connection.
        Answers::default().ask(idle_server);
    });
    Ok(probed)
}

/// Answers one connection after the other, and one more when it is over.
fn answer_all(listener: &TcpListener, is_over: &AtomicBool) {
    for connection in listener.incoming().flatten() {
        let mut connection = BufReader::new(connection);
        let mut line = String::new();
        while connection.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        // Who has hung up misses nothing.
        let _ = connection.get_mut().write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok");
        if is_over.load(Ordering::Relaxed) {
            return;
        }
    }
}
