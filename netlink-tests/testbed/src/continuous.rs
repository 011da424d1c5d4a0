//! New connections without a pause while something changes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmap_proxy_lab::{Probe, Transport};

use crate::cluster::{Cluster, answerer, ip};

/// The wait of one connection: below a second, so that a lost SYN is noticed.
const TIMEOUT: Duration = Duration::from_millis(950);

/// A client's address, and the address and port that it connects to.
pub type Way<'a> = (&'a str, SocketAddr, Transport);

/// Sets a flag when it goes, also by a failed assertion: the client must not go on for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Connects over and over, all ways at once, while `change` runs; all must be answered. Returns how many there were.
///
/// # Panics
///
/// If one is refused, or not answered.
pub fn none_fails_while(cluster: &Cluster, ways: &[Way<'_>], change: impl FnOnce()) -> usize {
    let probe = |(source, target, transport): &Way<'_>| {
        [Probe { source: ip(source), target: *target, transport: *transport, timeout: TIMEOUT }; 2]
    };
    let probes: Vec<Probe> = ways.iter().flat_map(probe).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut connections = 0;
            while !done.load(Ordering::Acquire) {
                let results = cluster.lab().probe_all(&probes).unwrap_or_else(|error| panic!("{error}"));
                for (probe, result) in probes.iter().zip(results) {
                    let what = format!("connection {connections}, {probe:?}");
                    answerer(result, &what);
                    connections += 1;
                }
            }
            connections
        });
        let end = SetAtEnd(&done);
        change();
        drop(end);
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
