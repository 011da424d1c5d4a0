//! Cleans up after a commit: deletes the tracked flows that would go on to an endpoint that is gone.
//!
//! New rules only see the first packet of a flow. A flow of UDP has no end: as long as its client sends, the kernel goes
//! on translating it the way it did first, to a pod that may not exist any more.
//!
//! * [`StaleFlows`]: which flows are stale, from what changed, without I/O;
//! * [`Conntrack`]: finds them by dumps that the kernel filters, and deletes them one by one.
//!
//! Never is the whole table flushed, and never a TCP connection touched.

mod message;
mod socket;
mod stale;

use std::io;
use std::time::{Duration, Instant};

pub use stale::StaleFlows;

use message::DumpFilter;
use socket::{DumpEnd, Socket};

/// How often an interrupted dump is repeated at once (kube-proxy: 5 times).
const ATTEMPTS: usize = 10;

/// Deletes stale flows over sockets of its own, which stay open: closing one waits for every writer of nftables rules in
/// the namespace.
pub struct Conntrack {
    /// Reads dumps.
    reader: Socket,
    /// Deletes what a piece of a dump showed before the next is read, so that nothing is collected.
    deleter: Socket,
    /// Whether the kernel understands our filters.
    kernel_filters: bool,
}

/// What a clean-up did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanReport {
    /// Flows that were deleted.
    pub deleted: usize,
    /// Flows that the kernel handed out for us to look at.
    pub examined: usize,
    /// Stale flows that stay, because a flow table (`flow add` in somebody's rules) forwards them.
    pub offloaded: usize,
    /// How long it took.
    pub duration: Duration,
}

/// Why stale flows could not be deleted. What was found by then is deleted; clean again with the same [`StaleFlows`].
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No netlink socket, or no tokio runtime to use it in.
    #[error("can't open a netlink socket for conntrack: {0}")]
    Open(#[source] nlink::netlink::Error),
    /// The socket failed.
    #[error("conntrack netlink socket: {0}")]
    Socket(#[source] nlink::netlink::Error),
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}{}", remedy(source))]
    Refused {
        /// The request.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// An answer of the kernel was lost.
    #[error("the kernel did not answer a conntrack request within {} s", .0.as_secs())]
    NoAnswer(Duration),
    /// The table changed under every attempt to read it.
    #[error("the dump of tracked flows was interrupted {ATTEMPTS} times in a row")]
    Interrupted,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (the capability NET_ADMIN is needed)",
        Some(libc::EINVAL | libc::EOPNOTSUPP) => " (is the kernel module nf_conntrack_netlink there?)",
        _ => "",
    }
}

impl Conntrack {
    /// Opens the sockets in the network namespace of the calling thread. It must be called within a tokio runtime that
    /// has I/O and time enabled.
    ///
    /// # Errors
    ///
    /// [`ConntrackError::Open`].
    pub fn open() -> Result<Self, ConntrackError> {
        Ok(Self { reader: Socket::open()?, deleter: Socket::open()?, kernel_filters: true })
    }

    /// Deletes the stale flows. Call it after the commit, so that a flow that starts anew goes by the new rules.
    ///
    /// A packet that was on its way through the old rules during the commit enters its flow into the table a moment
    /// later, and so may slip through: clean once more after a while where that matters.
    ///
    /// The kernel walks its whole table for each dump, filtered or not: tenths of a second for some 100,000 flows (and
    /// 0.1 s for a table of 262,144 empty buckets). Rather than let the next commit wait for it, run it beside; it may
    /// be cancelled and called again.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the table never stood still. Then some stale flows may be left.
    pub async fn clean(&mut self, stale: &StaleFlows) -> Result<CleanReport, ConntrackError> {
        self.clean_learning(&mut stale.clone(), |_| {}).await
    }

    /// [`Self::clean`] beside a loop that goes on committing. `learn` is called whenever flows are about to be judged,
    /// to pass on what changed meanwhile ([`StaleFlows::learn`]): else flows to an endpoint that came after `stale` was
    /// made would be deleted.
    ///
    /// # Errors
    ///
    /// As [`Self::clean`].
    pub async fn clean_learning(
        &mut self,
        stale: &mut StaleFlows,
        mut learn: impl FnMut(&mut StaleFlows),
    ) -> Result<CleanReport, ConntrackError> {
        let started = Instant::now();
        let mut report = CleanReport::default();
        if self.kernel_filters {
            match self.clean_all(stale.dumps(), stale, &mut learn, &mut report).await {
                Err(ConntrackError::Refused { source, .. }) if is_unknown_request(&source) => {
                    self.kernel_filters = false;
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        if !self.kernel_filters {
            self.clean_all(stale.unfiltered_dumps(), stale, &mut learn, &mut report).await?;
        }
        report.duration = started.elapsed();
        Ok(report)
    }

    async fn clean_all(
        &mut self,
        dumps: Vec<DumpFilter>,
        stale: &mut StaleFlows,
        learn: &mut impl FnMut(&mut StaleFlows),
        report: &mut CleanReport,
    ) -> Result<(), ConntrackError> {
        for filter in dumps {
            self.clean_matching(filter, stale, learn, report).await?;
        }
        Ok(())
    }

    /// Deletes what is stale of a dump, until one was complete.
    async fn clean_matching(
        &mut self,
        filter: DumpFilter,
        stale: &mut StaleFlows,
        learn: &mut impl FnMut(&mut StaleFlows),
        report: &mut CleanReport,
    ) -> Result<(), ConntrackError> {
        for _ in 0..ATTEMPTS {
            let mut offloaded = 0;
            let mut dump = self.reader.dump(filter).await?;
            let end = loop {
                let mut deletions = Vec::new();
                learn(stale);
                let end = dump.next(|flow| {
                    report.examined += 1;
                    if stale.covers(flow) {
                        deletions.push(flow.deletion());
                    }
                });
                let end = end.await?;
                let outcome = self.deleter.delete(deletions).await?;
                report.deleted += outcome.deleted;
                offloaded += outcome.offloaded;
                if let Some(end) = end {
                    break end;
                }
                // The next piece is there already; a table of a million flows must not keep other tasks waiting.
                tokio::task::yield_now().await;
            };
            if end == DumpEnd::Complete {
                report.offloaded += offloaded;
                return Ok(());
            }
        }
        Err(ConntrackError::Interrupted)
    }
}

/// Whether the kernel did not understand what it was asked.
fn is_unknown_request(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ERANGE))
}
