//! The process itself: how many descriptors it may have, its event loop, and
//! signals that must not end it.

use std::future::Future;
use std::io;
use std::thread;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Longest idle time of a thread of the event loop, so long that it is kept.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Maximum number of threads for blocking work: reading manifests, resolving
/// names, listing counters. A sync needs none of them.
const BLOCKING_THREADS: usize = 8;

/// Raises the limit of open files to the hard limit. The usual 1,024 are fewer
/// than a node may need, with a health check port for each load balancer; the
/// low default is for programs that use `select`.
pub fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
            tracing::debug!("the limit of open files is {hard} now, was {soft}");
        }
        Ok(())
    });
    if let Err(error) = raised {
        tracing::warn!("the limit of open files could not be raised: {error}; it stays as it is");
    }
}

/// The maximum number of open files of the process.
pub fn descriptor_limit() -> u64 {
    // The usual limit at the start of a process.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// Creates an event loop on the calling thread, and one thread for blocking
/// work. tokio panics if it cannot create the first such thread (a limit of
/// processes, no memory); it can do without further ones. The first is
/// therefore created here, where a failure is an error, and kept.
///
/// # Errors
/// If no descriptors or no thread are available.
pub fn event_loop() -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOREVER)
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let first = thread::Builder::new().spawn(|| ())?;
    // A thread that does nothing does not panic.
    let _ = first.join();
    runtime.block_on(runtime.spawn_blocking(|| ())).map_err(io::Error::other)?;
    Ok(runtime)
}

/// Runs the agent's future to its end. A thread that still blocks then, for
/// example on a file system that does not answer, is abandoned.
pub fn run_to_end<T>(runtime: Runtime, future: impl Future<Output = T>) -> T {
    let output = runtime.block_on(future);
    runtime.shutdown_background();
    output
}

/// Ignores SIGHUP, for ever: the terminal it was started from is closed, or the
/// sender expects the configuration to be read again, which happens by itself.
///
/// # Errors
/// No handler can be set up.
pub fn ignore_hangups() -> io::Result<impl Future<Output = ()>> {
    let mut hangups = signal(SignalKind::hangup())?;
    Ok(async move {
        while hangups.recv().await.is_some() {
            tracing::info!("SIGHUP: ignored; configuration and manifests are followed without it");
        }
        std::future::pending().await
    })
}
