//! Connections all the while.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use vmap_proxy_lab::{Flow, Lab, Probe, ProbeResult, Transport};

/// Opens one connection after the other, and keeps one open, until stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<String>>>,
}

/// A lost packet would show as silence: the first retransmission comes after a
/// second.
const TIMEOUT: Duration = Duration::from_millis(900);

impl Traffic {
    /// Starts. Whatever does not end in an answer is remembered.
    pub(crate) fn start(lab: &Arc<Lab>, source: &str, target: SocketAddr) -> Self {
        let source: IpAddr = source.parse().unwrap_or_else(|error| panic!("{source}: {error}"));
        let probe = Probe { source, target, transport: Transport::Tcp, timeout: TIMEOUT };
        let stop = Arc::new(AtomicBool::new(false));
        let (lab, stopped) = (lab.clone(), stop.clone());
        let thread = std::thread::spawn(move || run(&lab, &probe, &stopped));
        Self { stop, thread: Some(thread) }
    }

    /// Stops.
    ///
    /// # Panics
    /// If a single connection was not answered, or the one that was kept open
    /// broke or went over to another pod.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.thread.take().map(JoinHandle::join);
        match failures {
            Some(Ok(failures)) => assert!(failures.is_empty(), "{} failures: {failures:?}", failures.len()),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => {}
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn run(lab: &Lab, probe: &Probe, stopped: &AtomicBool) -> Vec<String> {
    let mut failures = Vec::new();
    let mut kept = lab.open_flow(probe).unwrap_or_else(|error| panic!("{error}"));
    let first = kept.opened();
    let mut count = 0;
    while !stopped.load(Ordering::Relaxed) || count == 0 {
        count += 1;
        match lab.probe(probe) {
            Ok(ProbeResult::Answered { .. }) => {}
            other => failures.push(format!("new connection {count} to {}: {other:?}", probe.target)),
        }
        check(&mut kept, first, &mut failures);
    }
    failures
}

fn check(kept: &mut Flow, first: ProbeResult, failures: &mut Vec<String>) {
    match kept.ask(1) {
        Ok(result) if result == first && matches!(result, ProbeResult::Answered { .. }) => {}
        other => failures.push(format!("the open connection, at first {first}: {other:?}")),
    }
}
