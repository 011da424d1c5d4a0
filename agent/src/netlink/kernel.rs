//! Submits transactions to the kernel; [`reading`]: reads its tables;
//! [`cleaning`]: takes out of them what is not ours.

mod cleaning;
mod reading;

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, setsockopt, sockopt};
use nlink::netlink::nftables::connection::kernel_has_destroy;
use nlink::netlink::nftables::*;
use nlink::netlink::{NetlinkSocket, Protocol};
use tracing::debug;
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};

use super::batch::{Batch, MessageSpan};
use super::error::{CommitError, NetlinkError, Refusal};
use super::wire::{Answer, HEADER, Messages, NLM_F_ACK, NLMSG_ERROR, Writer, nft_type};

/// A batch is one `sendmsg`, and the send buffer must hold it. This is about a
/// million elements.
const SEND_BUFFER: usize = 128 << 20;
/// What a failed batch answers: one small message per refused operation, each
/// of which counts as nearly a kilobyte.
const RECEIVE_BUFFER: usize = 16 << 20;
/// The kernel fills dump messages up to what the last receive offered, and to
/// 32 KiB at most.
const RECEIVE_BYTES: usize = 64 << 10;
/// Our one connection to the kernel's nf_tables, in the network namespace of
/// the thread that opened it. It is opened once and kept: the kernel lets the
/// close of a socket that has deleted something wait for every other writer.
pub struct Kernel {
    socket: NetlinkSocket,
    batch: Batch,
    received: Vec<u8>,
    send_limit: usize,
    destroy: bool,
    /// How many batches of ours the kernel has taken.
    commits: u32,
    stop: StopFlag,
    refuse: Option<fn(&Operation) -> bool>,
}

/// Ends what a [`Kernel`] does, from any thread: a listing at its next message,
/// a list of commits at the next one. What is committed by then stays.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From now on every question and every commit fails with
    /// [`NetlinkError::Stopped`].
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), NetlinkError> {
        if self.0.load(Ordering::Relaxed) { Err(NetlinkError::Stopped) } else { Ok(()) }
    }
}

/// A moment in the life of the rule set: see [`Kernel::undisturbed_since`].
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    generation: u32,
    commits: u32,
}

/// What a commit took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitReport {
    /// Messages in the batch, without the marks around it.
    pub messages: usize,
    /// Bytes sent.
    pub bytes: usize,
    /// From the first byte encoded to the kernel's answer.
    pub duration: Duration,
    /// Of that, what encoding took.
    pub encoding: Duration,
    /// Of that, the system call in which the kernel works on the batch. It keeps
    /// other writers of nftables waiting for no longer.
    pub in_kernel: Duration,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("port", &self.socket.pid()).field("send_limit", &self.send_limit).finish()
    }
}

/// What the kernel said to a batch.
#[derive(Debug, Default)]
struct BatchAnswers {
    /// How long the system call took in which the kernel works on the batch.
    in_kernel: Duration,
    /// Sequence number and answer of what was refused, in the order received.
    refused: Vec<(u32, Answer)>,
    /// Sequence numbers of what was acknowledged.
    acknowledged: Vec<u32>,
}

impl Kernel {
    /// Opens the socket in the network namespace of the calling thread, inside
    /// a tokio runtime, and makes sure that nf_tables is there and ours to
    /// change.
    ///
    /// # Errors
    ///
    /// [`NetlinkError::NoNfTables`] and [`NetlinkError::Permission`], with what
    /// to do about them.
    pub fn open() -> Result<Kernel, NetlinkError> {
        let socket = NetlinkSocket::new(Protocol::Netfilter).map_err(|error| match error.errno() {
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => NetlinkError::NoNfTables(error.to_string()),
            _ => NetlinkError::Socket(error),
        })?;
        socket.set_rcvbuf(RECEIVE_BUFFER)?;
        let send_limit = enlarge_send_buffer(&socket)?;
        let mut kernel = Kernel {
            socket,
            batch: Batch::default(),
            received: vec![0; RECEIVE_BYTES],
            send_limit,
            destroy: kernel_has_destroy(),
            commits: 0,
            stop: StopFlag::default(),
            refuse: None,
        };
        kernel.check()?;
        Ok(kernel)
    }

    /// The most bytes one [`Kernel::commit`] can take. An element takes 40 to
    /// 300. 64 MiB or more with `CAP_NET_ADMIN` in the initial user namespace;
    /// otherwise the kernel bounds it by `net.core.wmem_max`.
    pub fn max_batch_bytes(&self) -> usize {
        self.send_limit
    }

    /// The socket's address in netlink: the sender of everything we commit.
    pub fn port(&self) -> u32 {
        self.socket.pid()
    }

    /// Ends what this does from another thread.
    pub fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// The present moment, for [`Kernel::undisturbed_since`].
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub async fn moment(&mut self) -> Result<Moment, NetlinkError> {
        Ok(Moment { generation: self.generation().await?, commits: self.commits })
    }

    /// Whether nobody else has committed anything to any table since then: the
    /// generation of the rule set has grown by our own commits alone.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub async fn undisturbed_since(&mut self, then: Moment) -> Result<bool, NetlinkError> {
        let ours = self.commits.wrapping_sub(then.commits);
        Ok(self.generation().await?.wrapping_sub(then.generation) == ours)
    }

    /// Asks for the generation of the rule set: every later question would
    /// fail the same way, but less plainly.
    fn check(&mut self) -> Result<(), NetlinkError> {
        let mut writer = Writer::default();
        let sequence = self.socket.next_seq();
        let open = writer.begin_message(nft_type(NFT_MSG_GETGEN), NLM_F_ACK, sequence, 0, 0);
        writer.end_message(open);
        self.send_now(writer.bytes())?;
        loop {
            let Some(length) = self.receive_now()? else {
                return Err(NetlinkError::NoNfTables("no answer".to_owned()));
            };
            for message in Messages(&self.received[..length]) {
                if message.sequence != sequence || message.kind != NLMSG_ERROR {
                    continue;
                }
                return match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                    0 => Ok(()),
                    // nfnetlink does not know the subsystem.
                    libc::EINVAL => Err(NetlinkError::NoNfTables("nfnetlink has no nf_tables".to_owned())),
                    errno => Err(NetlinkError::from_errno("generation of the rule set", errno)),
                };
            }
        }
    }

    /// Submits a transaction as one batch: all of it becomes visible together,
    /// or none of it.
    ///
    /// The kernel works on it inside the system call: the calling thread is
    /// blocked for as long, a few milliseconds.
    ///
    /// Elements of the map `affinity` may have expired by themselves: deleting
    /// one that is gone is no error. Where the kernel lacks the message for
    /// that (before 6.3) they are deleted in batches of their own, behind.
    ///
    /// # Errors
    ///
    /// [`CommitError::Refused`] names the operations that the kernel did not
    /// take; then nothing is committed. [`NetlinkError::AnswerLost`]: unknown.
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

    /// Refuses what this chooses, in the kernel's stead: for tests of what
    /// follows. Nothing that our types can say is known to be refused by a real
    /// kernel while its tables are intact.
    #[doc(hidden)]
    pub fn refuse_when(&mut self, refuse: Option<fn(&Operation) -> bool>) {
        self.refuse = refuse;
    }

    fn submit(&mut self, operations: &[Operation], started: Instant) -> Result<CommitReport, CommitError> {
        let refused = self.refuse.and_then(|refuse| operations.iter().position(refuse));
        if let Some(position) = refused {
            let failures = vec![Refusal::new(operations, position, 1, libc::EINVAL, None)];
            return Err(CommitError::Refused { failures });
        }
        if operations.is_empty() {
            let (encoding, in_kernel) = (Duration::ZERO, Duration::ZERO);
            return Ok(CommitReport { messages: 0, bytes: 0, duration: started.elapsed(), encoding, in_kernel });
        }
        let begun = Instant::now();
        self.batch.encode(operations, self.destroy, || self.socket.next_seq());
        let encoding = begun.elapsed();
        let bytes = self.batch.writer.bytes().len();
        let answers = self.exchange()?;
        let in_kernel = answers.in_kernel;
        self.judge(operations, answers)?;
        let messages = self.batch.messages.len();
        Ok(CommitReport { messages, bytes, duration: started.elapsed(), encoding, in_kernel })
    }

    /// Sends the batch and collects the answers. nfnetlink has queued them all
    /// when `sendmsg` returns.
    fn exchange(&mut self) -> Result<BatchAnswers, NetlinkError> {
        let bytes = self.batch.writer.bytes();
        if bytes.len() > self.send_limit {
            return Err(NetlinkError::BatchTooLarge { bytes: bytes.len(), limit: self.send_limit });
        }
        self.stop.check()?;
        self.drain()?;
        let begun = Instant::now();
        self.send_now(self.batch.writer.bytes())?;
        let mut answers = BatchAnswers { in_kernel: begun.elapsed(), ..BatchAnswers::default() };
        let sequences = self.batch.begin_sequence..=self.batch.messages.last().map_or(0, |message| message.sequence);
        while let Some(length) = self.receive_now()? {
            for message in Messages(&self.received[..length]) {
                if message.kind != NLMSG_ERROR || !sequences.contains(&message.sequence) {
                    continue;
                }
                match Answer::parse(&message) {
                    Some(answer) if answer.errno == 0 => answers.acknowledged.push(message.sequence),
                    Some(answer) => answers.refused.push((message.sequence, answer)),
                    None => {}
                }
            }
        }
        if answers.refused.is_empty() {
            self.commits = self.commits.wrapping_add(1);
        }
        Ok(answers)
    }

    /// Throws away what an abandoned question may have left.
    fn drain(&mut self) -> Result<(), NetlinkError> {
        loop {
            match self.receive_now() {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(NetlinkError::AnswerLost) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Committed, or who is to blame. See nlink's `BatchReplies` for the order
    /// of the kernel's answers.
    fn judge(&self, operations: &[Operation], answers: BatchAnswers) -> Result<(), CommitError> {
        let (Some(first), Some(last)) = (self.batch.messages.first(), self.batch.messages.last()) else {
            return Ok(());
        };
        if answers.refused.is_empty() {
            let acknowledged = answers.acknowledged.contains(&last.sequence);
            return if acknowledged { Ok(()) } else { Err(NetlinkError::AnswerLost.into()) };
        }
        let mut failures = Vec::with_capacity(answers.refused.len());
        for (sequence, answer) in answers.refused {
            if sequence == self.batch.begin_sequence && matches!(answer.errno, libc::EPERM | libc::EOPNOTSUPP) {
                return Err(NetlinkError::from_errno("begin of a batch", answer.errno).into());
            }
            // An error in the first message's name beside its acknowledgement,
            // or at the begin mark, is the whole batch's.
            let of_message = answers.acknowledged.contains(&first.sequence) && sequence == first.sequence;
            let message = self.batch.messages.iter().find(|message| message.sequence == sequence && !of_message);
            failures.push(self.refusal(operations, message, answer));
        }
        Err(CommitError::Refused { failures })
    }

    fn refusal(&self, operations: &[Operation], message: Option<&MessageSpan>, answer: Answer) -> Refusal {
        let Some(message) = message else {
            return Refusal::new(operations, 0, operations.len(), answer.errno, answer.text);
        };
        let exact = answer.offset.and_then(|offset| self.batch.operation_at(message, offset));
        let (operation, span) = match exact {
            Some(operation) => (operation, 1),
            None => (message.operations.start, message.operations.len()),
        };
        Refusal::new(operations, operation, span, answer.errno, answer.text)
    }

    /// Sends, and returns when the kernel is done: nfnetlink works inside
    /// `sendmsg`, and has queued its answers when that returns. There is
    /// nothing that an event loop could wait for in between.
    fn send_now(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        send(self.socket.as_fd().as_raw_fd(), bytes, MsgFlags::empty()).map_err(|errno| system("send", errno))?;
        Ok(())
    }

    /// The next datagram, waiting for it if need be. Its length.
    async fn receive(&mut self) -> Result<usize, NetlinkError> {
        self.stop.check()?;
        if let Some(length) = self.receive_now()? {
            return Ok(length);
        }
        let datagram = self.socket.recv_msg().await?;
        if datagram.len() > self.received.len() {
            self.received.resize(datagram.len(), 0);
        }
        self.received[..datagram.len()].copy_from_slice(&datagram);
        Ok(datagram.len())
    }

    /// The next datagram that is there. Its length. Straight into our buffer:
    /// nlink's receive allocates and copies, which a listing of a million
    /// elements feels.
    fn receive_now(&mut self) -> Result<Option<usize>, NetlinkError> {
        let descriptor = self.socket.as_fd().as_raw_fd();
        match recv(descriptor, &mut self.received, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
            Ok(length) if length > self.received.len() => {
                // Cut off. The kernel does not send such to readers who offer
                // this much; be ready if it ever does.
                self.received.resize(length, 0);
                Err(NetlinkError::AnswerLost)
            }
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(Errno::ENOBUFS) => Err(NetlinkError::AnswerLost),
            Err(errno) => Err(system("recv", errno)),
        }
    }
}

fn system(call: &'static str, errno: Errno) -> NetlinkError {
    NetlinkError::System { call, source: errno.into() }
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

/// Makes the send buffer as large as we may. What it then takes at once, in
/// bytes.
fn enlarge_send_buffer(socket: &NetlinkSocket) -> Result<usize, NetlinkError> {
    let descriptor = socket.as_fd();
    if setsockopt(&descriptor, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        debug!("no CAP_NET_ADMIN in the initial user namespace: net.core.wmem_max bounds a batch");
        setsockopt(&descriptor, sockopt::SndBuf, &SEND_BUFFER).map_err(|errno| system("setsockopt", errno))?;
    }
    let granted = getsockopt(&descriptor, sockopt::SndBuf).map_err(|errno| system("getsockopt", errno))?;
    // `netlink_sendmsg` keeps 32 bytes for itself.
    Ok(granted.saturating_sub(32 + HEADER))
}
