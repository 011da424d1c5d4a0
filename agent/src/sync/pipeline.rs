//! A comparison with the kernel on two threads, at the start or in a repair:
//! one plans, one commits.

use std::sync::mpsc::sync_channel;
use std::thread;

use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::{Resync, Transaction};

use super::commit;
use super::replace::Carry;
use super::report::SyncReport;
use crate::netlink::{CommitError, Kernel};

/// Number of Services that are planned before the committer gets the ready
/// transactions.
const SERVICES_AT_ONCE: usize = 64;

/// Maximum number of transactions that wait for the committer. They are in
/// memory, and planning is faster than committing.
const WAITING: usize = 1;

/// A transaction that was not committed, and why.
pub(super) type Failed = (Transaction, CommitError);

/// Plans and commits everything, up to a transaction that is refused.
///
/// The kernel takes three times as long for a transaction as planning does, and
/// blocks its thread meanwhile. So another thread commits, and the time of
/// planning disappears behind it. If no thread can be created, one thread does
/// both.
///
/// All memory is allocated on the calling thread: a second allocating thread
/// would have a separate heap.
pub(super) fn run(
    resync: &mut Resync<'_>,
    kernel: &mut Kernel,
    writable: PerFamily<bool>,
    carry: &mut Carry,
    report: &mut SyncReport,
) -> Result<(), Failed> {
    let (sender, receiver) = sync_channel(WAITING);
    let outcome = thread::scope(|scope| {
        let work = || commit_all(receiver, kernel, writable, carry, report);
        let committer = thread::Builder::new().name("commit".to_owned()).spawn_scoped(scope, work).ok()?;
        let mut wanted = true;
        while wanted && !resync.is_finished() {
            let ready = resync.next_chunk(SERVICES_AT_ONCE);
            // It hangs up when the kernel has refused something.
            wanted = ready.into_iter().all(|transaction| sender.send(transaction).is_ok());
        }
        drop(sender);
        Some(committer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    if let Some(outcome) = outcome {
        return outcome;
    }
    tracing::warn!("no thread could be created for commits: planning and committing alternate, which takes longer");
    commit_all(resync, kernel, writable, carry, report)
}

/// Commits these on the calling thread, up to one that is refused.
pub(super) fn commit_all(
    transactions: impl IntoIterator<Item = Transaction>,
    kernel: &mut Kernel,
    writable: PerFamily<bool>,
    carry: &mut Carry,
    report: &mut SyncReport,
) -> Result<(), Failed> {
    for mut transaction in transactions {
        let copied = carry.before(&transaction, kernel).map_err(CommitError::from);
        let committed = copied.and_then(|()| commit(kernel, writable, &mut transaction, report));
        committed.map_err(|error| (transaction, error))?;
    }
    Ok(())
}
