//! Submits transactions to the kernel. [`reading`] reads its tables, and
//! [`cleaning`] removes foreign objects from them,
//! and [`ownership`] keeps other programs away from them.

mod cleaning;
mod ownership;
mod reading;

use std::time::{Duration, Instant};

use nlink::netlink::nftables::connection::kernel_has_destroy;
use vmap_proxy_compiler::model::PerFamily;
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_wire::answer::{Answer, Answers};
use vmap_proxy_wire::nf_tables::batch::MessageSpan;
use vmap_proxy_wire::nf_tables::elements::MAX_ELEMENT;
use vmap_proxy_wire::nf_tables::{Batch, OwnTable};

use super::error::{CommitError, NetlinkError, Refusal, SocketError};
use super::lacking::Lacking;
use super::socket::{Socket, StopFlag};

/// Our one connection to the kernel's nf_tables, in the network namespace of
/// the thread that opened it. It is opened once and kept: the kernel lets the
/// close of a socket that has deleted something wait for every other writer.
///
/// Everything here blocks the thread for as long as the kernel works: no code
/// of an event loop may call it that others wait for.
pub struct Kernel {
    socket: Socket,
    batch: Batch,
    destroy: bool,
    /// The number of our batches that the kernel has accepted.
    commits: u32,
    /// Whether new tables get the flags `owner` and `persist`.
    flush_proof: bool,
    refuse: Option<fn(&Operation) -> bool>,
}

/// A moment in the life of the rule set: see [`Kernel::undisturbed_since`].
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    generation: u32,
    commits: u32,
}

/// The duration of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitReport {
    /// Messages in the batch, without the marks around it.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// From the first byte encoded to the kernel's answer.
    pub duration: Duration,
    /// The encoding part of that duration.
    pub encoding: Duration,
    /// Of that, the system call in which the kernel works on the batch. It keeps
    /// other writers of nftables waiting for no longer.
    pub in_kernel: Duration,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Kernel {
    /// Opens the socket in the network namespace of the calling thread, and
    /// checks that nf_tables is available and may be changed.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NoNfTables`] and [`NetlinkError::Permission`], with
    /// their remedies.
    pub fn open() -> Result<Kernel, NetlinkError> {
        let socket = Socket::open_for_batches().map_err(|error| match error {
            SocketError::System { source, .. }
                if matches!(source.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT)) =>
            {
                NetlinkError::NoNfTables(source.to_string())
            }
            other => other.into(),
        })?;
        let destroy = kernel_has_destroy();
        let mut kernel =
            Kernel { socket, batch: Batch::default(), destroy, commits: 0, flush_proof: false, refuse: None };
        // Every later question would fail the same way, but less plainly.
        kernel.generation().map_err(|error| match error {
            // nfnetlink does not know the subsystem.
            NetlinkError::Question { errno: libc::EINVAL, .. } => {
                NetlinkError::NoNfTables("nfnetlink has no nf_tables".to_owned())
            }
            other => other,
        })?;
        Ok(kernel)
    }

    /// Opens another socket, which the flag of this one stops, too. It is for
    /// questions: a table with an owner can be changed by that socket alone.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub(crate) fn open_another(&self) -> Result<Kernel, NetlinkError> {
        let socket = self.socket.open_another()?;
        let (batch, destroy) = (Batch::default(), self.destroy);
        Ok(Kernel { socket, batch, destroy, commits: 0, flush_proof: false, refuse: None })
    }

    /// The most bytes one [`Kernel::commit`] can take. An element takes 40 to
    /// 300. 64 MiB or more with `CAP_NET_ADMIN` in the initial user namespace;
    /// otherwise the kernel bounds it by `net.core.wmem_max`.
    pub fn max_batch_bytes(&self) -> usize {
        self.socket.send_limit()
    }

    /// The most operations on elements that one [`Kernel::commit`] can take,
    /// whatever their keys and comments; at least one.
    pub fn max_operations(&self) -> usize {
        (self.max_batch_bytes() / MAX_ELEMENT).max(1)
    }

    /// Directs all further commits on each family to one of our tables; the main
    /// one is the default. Everything else goes to the table that it names.
    pub fn direct_to(&mut self, tables: PerFamily<OwnTable>) {
        self.batch.direct_to(tables);
    }

    /// The socket's address in netlink: the sender of everything we commit.
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Returns a flag that ends running operations from another thread.
    pub fn stop_flag(&self) -> StopFlag {
        self.socket.stop_flag()
    }

    /// The present moment, for [`Kernel::undisturbed_since`].
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn moment(&mut self) -> Result<Moment, NetlinkError> {
        Ok(Moment { generation: self.generation()?, commits: self.commits })
    }

    /// Returns whether nobody else has committed anything to any table since
    /// then: the generation of the rule set has grown only by our own commits.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn undisturbed_since(&mut self, then: Moment) -> Result<bool, NetlinkError> {
        let ours = self.commits.wrapping_sub(then.commits);
        Ok(self.generation()?.wrapping_sub(then.generation) == ours)
    }

    /// Submits a transaction as one batch: all of it becomes visible together,
    /// or none of it.
    ///
    /// The kernel works on it inside the system call: the calling thread is
    /// blocked for as long, a few milliseconds.
    ///
    /// Elements of the map `affinity` may have expired, so deleting a missing
    /// one is no error. Where the kernel lacks the message for that (before
    /// 6.3) they are deleted afterwards in separate batches.
    ///
    /// # Errors
    ///
    /// [`CommitError::Refused`] names the operations that the kernel did not
    /// take; then nothing is committed. [`SocketError::AnswerLost`]: unknown.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<CommitReport, CommitError> {
        let started = Instant::now();
        let operations = &transaction.operations;
        if self.destroy || !operations.iter().any(deletes_affinity) {
            return self.submit(operations, started);
        }
        let (tolerant, strict): (Vec<usize>, Vec<usize>) =
            (0..operations.len()).partition(|index| deletes_affinity(&operations[*index]));
        let strict_operations: Vec<Operation> = strict.iter().map(|index| operations[*index].clone()).collect();
        let report = self.submit(&strict_operations, started).map_err(|error| renumber(error, &strict))?;
        self.delete_tolerantly(operations, tolerant, started)?;
        Ok(report)
    }

    /// Deletes elements of which some may be gone, leaving out those that the
    /// kernel does not find until it is content.
    fn delete_tolerantly(
        &mut self,
        operations: &[Operation],
        mut indices: Vec<usize>,
        started: Instant,
    ) -> Result<(), CommitError> {
        while !indices.is_empty() {
            let batch: Vec<Operation> = indices.iter().map(|index| operations[*index].clone()).collect();
            match self.submit(&batch, started) {
                Ok(_) => break,
                Err(CommitError::Refused { failures })
                    if failures.iter().all(|failure| failure.errno == libc::ENOENT) =>
                {
                    let gone: Vec<usize> = failures.iter().flat_map(|f| f.operation..f.operation + f.span).collect();
                    let mut position = 0;
                    indices.retain(|_| {
                        position += 1;
                        !gone.contains(&(position - 1))
                    });
                }
                Err(error) => return Err(renumber(error, &indices)),
            }
        }
        Ok(())
    }

    /// Refuses chosen operations instead of the kernel, to test the
    /// consequences. No operation that our types can express is known to be
    /// refused by a real kernel with intact tables.
    #[doc(hidden)]
    pub fn refuse_when(&mut self, refuse: Option<fn(&Operation) -> bool>) {
        self.refuse = refuse;
    }

    fn submit(&mut self, operations: &[Operation], started: Instant) -> Result<CommitReport, CommitError> {
        let refused = self.refuse.and_then(|refuse| operations.iter().position(refuse));
        if let Some(position) = refused {
            let failures = vec![Refusal::new(operations, position, 1, libc::EINVAL, None, None)];
            return Err(CommitError::Refused { failures });
        }
        if operations.is_empty() {
            let (encoding, in_kernel) = (Duration::ZERO, Duration::ZERO);
            return Ok(CommitReport { messages: 0, bytes: 0, duration: started.elapsed(), encoding, in_kernel });
        }
        let begun = Instant::now();
        self.batch.encode(operations, self.destroy, || self.socket.next_sequence());
        let encoding = begun.elapsed();
        let bytes = self.batch.bytes().len();
        let (answers, in_kernel) = self.socket.transact(&self.batch)?;
        if answers.refused.is_empty() {
            self.commits = self.commits.wrapping_add(1);
        }
        self.judge(operations, answers)?;
        let messages = self.batch.messages().len();
        Ok(CommitReport { messages, bytes, duration: started.elapsed(), encoding, in_kernel })
    }

    /// Returns success, or the refused operation. See nlink's `BatchReplies`
    /// for the order of the kernel's answers.
    fn judge(&self, operations: &[Operation], answers: Answers) -> Result<(), CommitError> {
        let (Some(first), Some(last)) = (self.batch.messages().first(), self.batch.messages().last()) else {
            return Ok(());
        };
        if answers.refused.is_empty() {
            let acknowledged = answers.acknowledged.contains(&last.sequence);
            return if acknowledged { Ok(()) } else { Err(SocketError::AnswerLost.into()) };
        }
        let mut failures = Vec::with_capacity(answers.refused.len());
        for (sequence, answer) in answers.refused {
            if sequence == self.batch.begin_sequence() && matches!(answer.errno, libc::EPERM | libc::EOPNOTSUPP) {
                return Err(NetlinkError::of("begin of a batch", SocketError::Refused(answer.errno)).into());
            }
            // An error in the first message's name beside its acknowledgement,
            // or at the begin mark, is the whole batch's.
            let of_message = answers.acknowledged.contains(&first.sequence) && sequence == first.sequence;
            let message = self.batch.messages().iter().find(|message| message.sequence == sequence && !of_message);
            failures.push(self.refusal(operations, message, answer));
        }
        Err(CommitError::Refused { failures })
    }

    fn refusal(&self, operations: &[Operation], message: Option<&MessageSpan>, answer: Answer) -> Refusal {
        let Some(message) = message else {
            return Refusal::new(operations, 0, operations.len(), answer.errno, answer.text, None);
        };
        let exact = answer.offset.and_then(|offset| self.batch.operation_at(message, offset));
        let (operation, span) = match exact {
            Some(operation) => (operation, 1),
            None => (message.operations.start, message.operations.len()),
        };
        let expression = answer.offset.and_then(|offset| self.batch.expression_at(message, offset));
        let refused = operations.get(operation).filter(|_| span == 1);
        let lacking = refused.and_then(|refused| Lacking::of(refused, expression, answer.errno));
        Refusal::new(operations, operation, span, answer.errno, answer.text, lacking)
    }
}

fn deletes_affinity(operation: &Operation) -> bool {
    matches!(&operation.action, Action::DeleteElement(element) if element.map.is_dynamic())
}

/// Turns indices into a part of a transaction into indices of the whole.
fn renumber(error: CommitError, indices: &[usize]) -> CommitError {
    let CommitError::Refused { mut failures } = error else { return error };
    for failure in &mut failures {
        failure.operation = indices.get(failure.operation).copied().unwrap_or_default();
    }
    CommitError::Refused { failures }
}
