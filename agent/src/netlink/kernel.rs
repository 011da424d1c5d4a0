//! Submits transactions to the kernel; [`reading`]: reads its tables.

mod reading;

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use compiler::diff::{Action, Operation, Transaction};
use compiler::ruleset::maps::Map;
use compiler::ruleset::{Family, TABLE};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, setsockopt, sockopt};
use nlink::netlink::nftables::connection::kernel_has_destroy;
use nlink::netlink::nftables::*;
use nlink::netlink::{NetlinkSocket, Protocol};
use tracing::debug;

use super::batch::{Batch, MessageSpan};
use super::elements::{ForeignElement, write_foreign};
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
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("port", &self.socket.pid()).field("send_limit", &self.send_limit).finish()
    }
}

/// What the kernel said to a batch.
#[derive(Debug, Default)]
struct BatchAnswers {
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

    fn submit(&mut self, operations: &[Operation], started: Instant) -> Result<CommitReport, CommitError> {
        if operations.is_empty() {
            let encoding = Duration::ZERO;
            return Ok(CommitReport { messages: 0, bytes: 0, duration: started.elapsed(), encoding });
        }
        let begun = Instant::now();
        self.batch.encode(operations, self.destroy, || self.socket.next_seq());
        let encoding = begun.elapsed();
        let bytes = self.batch.writer.bytes().len();
        let answers = self.exchange()?;
        self.judge(operations, answers)?;
        let messages = self.batch.messages.len();
        Ok(CommitReport { messages, bytes, duration: started.elapsed(), encoding })
    }

    /// Sends the batch and collects the answers. nfnetlink has queued them all
    /// when `sendmsg` returns.
    fn exchange(&mut self) -> Result<BatchAnswers, NetlinkError> {
        let bytes = self.batch.writer.bytes();
        if bytes.len() > self.send_limit {
            return Err(NetlinkError::BatchTooLarge { bytes: bytes.len(), limit: self.send_limit });
        }
        self.drain()?;
        self.send_now(self.batch.writer.bytes())?;
        let sequences = self.batch.begin_sequence..=self.batch.messages.last().map_or(0, |message| message.sequence);
        let mut answers = BatchAnswers::default();
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

    /// Removes our table of a family with all it holds. `false`: it was not
    /// there.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`].
    pub fn delete_table(&mut self, family: Family) -> Result<bool, NetlinkError> {
        let answer = self.batch_of_one(NFT_MSG_DELTABLE, family, |w| w.string(NFTA_TABLE_NAME, TABLE))?;
        match answer {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            errno => Err(NetlinkError::from_errno(format!("delete table {} {TABLE}", family.keyword()), errno)),
        }
    }

    /// Removes elements that somebody else put into one of our maps.
    ///
    /// # Errors
    ///
    /// Any [`NetlinkError`]; `ENOENT` if one is gone meanwhile.
    pub fn delete_foreign(
        &mut self,
        family: Family,
        map: Map,
        elements: &[ForeignElement],
    ) -> Result<(), NetlinkError> {
        // 100 elements of at most 200 bytes fit one attribute.
        for some in elements.chunks(100) {
            let answer = self.batch_of_one(NFT_MSG_DELSETELEM, family, |w| {
                w.string(NFTA_SET_ELEM_LIST_TABLE, TABLE);
                w.string(NFTA_SET_ELEM_LIST_SET, map.name());
                w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| some.iter().for_each(|one| write_foreign(w, one)));
            })?;
            if answer != 0 {
                return Err(NetlinkError::from_errno(format!("delete foreign elements of {map}"), answer));
            }
        }
        Ok(())
    }

    /// Submits a single message; the kernel's errno, or 0.
    fn batch_of_one(
        &mut self,
        kind: u8,
        family: Family,
        content: impl FnOnce(&mut Writer),
    ) -> Result<i32, NetlinkError> {
        self.batch.encode_one(kind, family, content, || self.socket.next_seq());
        let answers = self.exchange()?;
        match answers.refused.first() {
            Some((_, answer)) => Ok(answer.errno),
            None if answers.acknowledged.is_empty() => Err(NetlinkError::AnswerLost),
            None => Ok(0),
        }
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
