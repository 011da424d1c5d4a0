//! Cleans up after a commit: deletes the tracked flows that would go on to an endpoint that is gone.
//!
//! New rules only see the first packet of a flow. A UDP flow has no end: as long as its client sends, the kernel goes
//! on translating it as at first, to a pod that may no longer exist.
//!
//! * [`StaleFlows`]: the stale flows, derived from changes without I/O;
//! * [`Conntrack`]: finds them by dumps that the kernel filters, and deletes them one by one;
//! * [`resets`]: ends TCP connections to endpoints that are gone, if the configuration wants it.
//!
//! The table is never flushed as a whole, and otherwise TCP connections are never
//! touched.

pub mod resets;
mod stale;

use std::io;
use std::time::{Duration, Instant};

pub use stale::StaleFlows;

use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_wire::conntrack::{Connection, DumpFilter, Flow, dump};
use vmap_proxy_wire::message::{Message, Request};

use crate::netlink::SocketError;
use crate::netlink::socket::{Protocol, Socket, is_complete, until_undisturbed};

/// Deletions in one system call: as many refusals must fit the socket's receive buffer (each takes about 1 KiB of the
/// default 208 KiB).
const DELETIONS_AT_ONCE: usize = 64;

/// Deletes stale flows over separate sockets, which stay open: closing one waits for every writer of nftables rules in
/// the namespace.
pub struct Conntrack {
    /// Reads dumps.
    reader: Socket,
    /// Deletes the stale flows in a part of a dump before the next part is read, so that nothing accumulates.
    deleter: Socket,
    /// Whether the kernel understands our filters.
    kernel_filters: bool,
}

/// The result of a clean-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CleanReport {
    /// Flows that were deleted.
    pub deleted: usize,
    /// Flows that the kernel listed for checking.
    pub examined: usize,
    /// Stale flows that stay, because a flow table (`flow add` in foreign rules) forwards them.
    pub offloaded: usize,
    /// Its duration.
    pub duration: Duration,
}

/// The reason why stale flows could not be deleted. Flows found until then are deleted; clean again with the same
/// [`StaleFlows`].
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No netlink socket.
    #[error("can't open a netlink socket for conntrack: {0}")]
    Open(#[source] SocketError),
    /// The socket failed, or the table changed under every attempt to read it.
    #[error("conntrack: {0}")]
    Socket(#[from] SocketError),
    /// The kernel refused a request.
    #[error("the kernel refused to {what}: {source}{}", remedy(source))]
    Refused {
        /// The request.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

impl ConntrackError {
    /// A request failed, because the kernel refused it or otherwise.
    fn of(what: &'static str, error: SocketError) -> Self {
        match error {
            SocketError::Refused(errno) => Self::Refused { what, source: io::Error::from_raw_os_error(errno) },
            other => Self::Socket(other),
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (the capability NET_ADMIN is needed)",
        Some(libc::EINVAL | libc::EOPNOTSUPP) => {
            " (load the module nf_conntrack_netlink, or boot a kernel with CONFIG_NF_CT_NETLINK)"
        }
        _ => "",
    }
}

impl Conntrack {
    /// Opens the sockets in the network namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// [`ConntrackError::Open`].
    pub fn open() -> Result<Self, ConntrackError> {
        let open = || Socket::open(Protocol::Netfilter).map_err(ConntrackError::Open);
        Ok(Self { reader: open()?, deleter: open()?, kernel_filters: true })
    }

    /// Returns the parts that `read` picks from all connections of a family. The kernel walks its whole table.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the table never stood still.
    pub fn list<T>(
        &mut self,
        family: Family,
        read: impl FnMut(&Connection<'_>) -> Option<T>,
    ) -> Result<Vec<T>, ConntrackError> {
        self.list_matching(DumpFilter { family, protocol: None, port: None, address: None }, read)
    }

    /// [`Self::list`] of the connections that match. A kernel that can't filter lists the others, too.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn list_matching<T>(
        &mut self,
        filter: DumpFilter,
        mut read: impl FnMut(&Connection<'_>) -> Option<T>,
    ) -> Result<Vec<T>, ConntrackError> {
        let is_wanted = |one: &Connection<'_>| filter.protocol.is_none_or(|protocol| one.protocol == protocol);
        let mut pick = |entry: &Message<'_>| Connection::decode(entry).filter(is_wanted).and_then(|one| read(&one));
        let failed = |error| ConntrackError::of("dump the tracked connections", error);
        if self.kernel_filters {
            match self.reader.list(&dump(filter), &mut pick).map_err(failed) {
                Err(ConntrackError::Refused { source, .. }) if is_unknown_request(&source) => {
                    self.kernel_filters = false;
                }
                listed => return listed,
            }
        }
        let unfiltered = DumpFilter { protocol: None, port: None, address: None, ..filter };
        self.reader.list(&dump(unfiltered), &mut pick).map_err(failed)
    }

    /// Deletes entries that were [listed](Self::list). One that is gone already is no error.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub fn delete(&mut self, deletions: &[Request]) -> Result<(), ConntrackError> {
        delete(&mut self.deleter, deletions).map(drop)
    }

    /// Deletes the stale flows. Call it after the commit, so that a new flow follows the new rules.
    ///
    /// A packet that was on its way through the old rules during the commit enters its flow into the table a moment
    /// later, and so may slip through: clean once more after a while where that matters.
    ///
    /// The kernel walks its whole table for each dump, filtered or not: tenths of a second for some 100,000 flows (and
    /// 0.1 s for a table of 262,144 empty buckets), and blocks the thread meanwhile. Rather than let the next commit wait
    /// for it, run it on another.
    ///
    /// # Errors
    ///
    /// The kernel refused, or the table never stood still. Then some stale flows may be left.
    pub fn clean(&mut self, stale: &StaleFlows) -> Result<CleanReport, ConntrackError> {
        self.clean_learning(&mut stale.clone(), |_| {})
    }

    /// [`Self::clean`] beside a loop that goes on committing. `learn` is called before each check of flows, to pass on
    /// changes since then ([`StaleFlows::learn`]). Otherwise flows to an endpoint that came after `stale` was computed
    /// would be deleted.
    ///
    /// # Errors
    ///
    /// As [`Self::clean`].
    pub fn clean_learning(
        &mut self,
        stale: &mut StaleFlows,
        mut learn: impl FnMut(&mut StaleFlows),
    ) -> Result<CleanReport, ConntrackError> {
        let started = Instant::now();
        let mut report = CleanReport::default();
        if self.kernel_filters {
            match self.clean_all(stale.dumps(), stale, &mut learn, &mut report) {
                Err(ConntrackError::Refused { source, .. }) if is_unknown_request(&source) => {
                    self.kernel_filters = false;
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        if !self.kernel_filters {
            self.clean_all(stale.unfiltered_dumps(), stale, &mut learn, &mut report)?;
        }
        report.duration = started.elapsed();
        Ok(report)
    }

    fn clean_all(
        &mut self,
        dumps: Vec<DumpFilter>,
        stale: &mut StaleFlows,
        learn: &mut impl FnMut(&mut StaleFlows),
        report: &mut CleanReport,
    ) -> Result<(), ConntrackError> {
        for filter in dumps {
            self.clean_matching(filter, stale, learn, report)?;
        }
        Ok(())
    }

    /// Deletes the stale flows of dumps, until one was complete.
    fn clean_matching(
        &mut self,
        filter: DumpFilter,
        stale: &mut StaleFlows,
        learn: &mut impl FnMut(&mut StaleFlows),
        report: &mut CleanReport,
    ) -> Result<(), ConntrackError> {
        let Self { reader, deleter, .. } = self;
        let offloaded = until_undisturbed(|| {
            let mut offloaded = 0;
            let mut outcome = Ok(());
            // Stale flows in a part of the dump are deleted before the next part is read, so that nothing accumulates.
            let end = reader.dump(&dump(filter), &mut |entries| {
                learn(stale);
                let flows = entries.filter_map(|entry| Flow::decode(&entry)).inspect(|_| report.examined += 1);
                let deletions: Vec<Request> =
                    flows.filter(|flow| stale.covers(flow)).map(|flow| flow.deletion()).collect();
                if outcome.is_ok() {
                    outcome = delete(deleter, &deletions).map(|done| {
                        report.deleted += done.deleted;
                        offloaded += done.offloaded;
                    });
                }
            });
            let end = end.and_then(is_complete).map_err(|error| ConntrackError::of("dump the tracked flows", error))?;
            outcome?;
            Ok::<_, ConntrackError>(end.then_some(offloaded))
        })?;
        report.offloaded += offloaded;
        Ok(())
    }
}

/// The results of deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Deleted {
    /// Flows that are gone by our hand.
    deleted: usize,
    /// Flows that the kernel does not give away, because a flow table forwards them.
    offloaded: usize,
}

/// Deletes flows. One that is gone already counts for nothing.
fn delete(socket: &mut Socket, deletions: &[Request]) -> Result<Deleted, ConntrackError> {
    let what = "delete a tracked flow";
    let mut outcome = Deleted::default();
    for some in deletions.chunks(DELETIONS_AT_ONCE) {
        let refused = socket.order(some).map_err(|error| ConntrackError::of(what, error))?;
        let done =
            judge(some.len(), &refused).map_err(|errno| ConntrackError::of(what, SocketError::Refused(errno)))?;
        outcome.deleted += done.deleted;
        outcome.offloaded += done.offloaded;
    }
    Ok(outcome)
}

/// Returns the results of some deletions, from the refused ones.
fn judge(deletions: usize, refused: &[(usize, i32)]) -> Result<Deleted, i32> {
    let mut outcome = Deleted { deleted: deletions.saturating_sub(refused.len()), offloaded: 0 };
    for (_, errno) in refused {
        match *errno {
            // It expired meanwhile, or another flow has taken its place.
            libc::ENOENT => {}
            libc::EBUSY => outcome.offloaded += 1,
            errno => return Err(errno),
        }
    }
    Ok(outcome)
}

/// Returns whether the kernel did not understand the request.
fn is_unknown_request(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ERANGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_counted_by_what_failed() {
        let refused = [(1, libc::ENOENT), (2, libc::EBUSY)];
        assert_eq!(judge(5, &refused), Ok(Deleted { deleted: 3, offloaded: 1 }));
        assert_eq!(judge(5, &[(4, libc::EPERM)]), Err(libc::EPERM));
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |errno| ConntrackError::of("dump the tracked flows", SocketError::Refused(errno)).to_string();
        assert!(refused(libc::EPERM).contains("the capability NET_ADMIN is needed"));
        assert!(refused(libc::EOPNOTSUPP).contains("load the module nf_conntrack_netlink"));
    }
}
