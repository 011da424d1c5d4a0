//! The socket to the kernel for requests: tables, tracked flows and others.
//!
//! It blocks the thread. The kernel processes a request inside `sendmsg` and has queued its answer when that returns,
//! and it prepares the next part of a listing inside `recvmsg`. An event loop would have nothing to wait for in
//! between. Code that must not block does this on another thread. Only those who wait for news of others
//! ([`super::Monitor`], [`super::AddressWatcher`]) need an event loop, and have sockets of `nlink`'s.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, recv, send, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use vmap_proxy_wire::answer::{Answers, DumpEnd, DumpReader, Entries, Sequences};
use vmap_proxy_wire::message::{HEADER, Message, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, Request, Writer};
use vmap_proxy_wire::nf_tables::Batch;

use super::error::SocketError;

/// Maximum number of attempts for a listing that changes meanwhile.
const ATTEMPTS: u32 = 20;

/// Longest wait for the next part of a listing. It is available at once, unless it was lost.
const PATIENCE_SECONDS: i64 = 5;

/// A batch is one `sendmsg`, and the send buffer must hold it. This is about a
/// million elements.
const SEND_BUFFER: usize = 128 << 20;
/// The size of the answers to a failed batch: one small message per refused
/// operation, each of which counts as nearly a kilobyte.
const RECEIVE_BUFFER: usize = 16 << 20;
/// The kernel fills dump messages up to what the last receive offered, and to
/// 32 KiB at most.
const RECEIVE_BYTES: usize = 64 << 10;

/// A part of the kernel that is spoken to over netlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// nf_tables, conntrack, ipset.
    Netfilter,
    /// Devices.
    Route,
    /// IPVS, among others.
    Generic,
}

impl Protocol {
    fn number(self) -> isize {
        use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER, NETLINK_ROUTE};
        match self {
            Self::Netfilter => NETLINK_NETFILTER,
            Self::Route => NETLINK_ROUTE,
            Self::Generic => NETLINK_GENERIC,
        }
    }
}

/// Ends the operation of a socket from any thread: a listing at its next part,
/// a list of commits at the next one. Completed commits stay.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// From now on every question and every commit fails with
    /// [`SocketError::Stopped`].
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> Result<(), SocketError> {
        if self.0.load(Ordering::Relaxed) { Err(SocketError::Stopped) } else { Ok(()) }
    }
}

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: netlink_sys::Socket,
    port: u32,
    sequence: u32,
    received: Vec<u8>,
    send_limit: usize,
    stop: StopFlag,
}

impl Socket {
    /// Opens a socket with the system's default buffers.
    pub(crate) fn open(protocol: Protocol) -> Result<Self, SocketError> {
        let failed = |call| move |source| SocketError::System { call, source };
        let mut socket = netlink_sys::Socket::new(protocol.number()).map_err(failed("socket"))?;
        let port = socket.bind_auto().map_err(failed("bind"))?.port_number();
        // The kernel's words for a refusal, and not the whole request with them. A kernel that can't still answers.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let patience = TimeVal::seconds(PATIENCE_SECONDS);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(|errno| system("setsockopt", errno))?;
        let send_limit = send_limit(&socket)?;
        let received = vec![0; RECEIVE_BYTES];
        Ok(Self { socket, port, sequence: 0, received, send_limit, stop: StopFlag::default() })
    }

    /// Opens a socket with buffers as large as we may have, for large batches
    /// to nf_tables.
    pub(crate) fn open_for_batches() -> Result<Self, SocketError> {
        let mut socket = Self::open(Protocol::Netfilter)?;
        let descriptor = &socket.socket;
        let failed = |errno| system("setsockopt", errno);
        if setsockopt(descriptor, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(descriptor, sockopt::RcvBuf, &RECEIVE_BUFFER).map_err(failed)?;
        }
        if setsockopt(descriptor, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
            tracing::debug!("no CAP_NET_ADMIN in the initial user namespace: net.core.wmem_max bounds a batch");
            setsockopt(descriptor, sockopt::SndBuf, &SEND_BUFFER).map_err(failed)?;
        }
        socket.send_limit = send_limit(descriptor)?;
        Ok(socket)
    }

    /// Opens another socket for batches, which the flag of this one stops, too.
    pub(crate) fn open_another(&self) -> Result<Self, SocketError> {
        Ok(Self { stop: self.stop.clone(), ..Self::open_for_batches()? })
    }

    /// The address in netlink: the sender of everything that is sent here.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// The most bytes that can be sent at once.
    pub(crate) fn send_limit(&self) -> usize {
        self.send_limit
    }

    /// Returns a flag that ends running operations from another thread.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        self.stop.clone()
    }

    /// A number for the next message.
    pub(crate) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// One listing: `each` gets the objects of a piece at a time, as they come.
    /// They are handed out also if the listing is interrupted: repeat it with
    /// [`until_undisturbed`] where that matters.
    ///
    /// # Errors
    ///
    /// [`SocketError`]; a refusal of the kernel is [`DumpEnd::Refused`]
    /// instead.
    pub(crate) fn dump(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(Entries<'_>),
    ) -> Result<DumpEnd, SocketError> {
        let mut all = |entries: Entries<'_>| {
            each(entries);
            true
        };
        // It ends by itself if nobody gives it up.
        Ok(self.dump_while(request, &mut all)?.unwrap_or(DumpEnd::Interrupted))
    }

    /// The same, until `each` answers `false`; the result is `None` then. The kernel has more to say on this socket,
    /// which is of no further use.
    ///
    /// # Errors
    ///
    /// Those of [`Self::dump`].
    pub(crate) fn dump_while(
        &mut self,
        request: &Request,
        each: &mut dyn FnMut(Entries<'_>) -> bool,
    ) -> Result<Option<DumpEnd>, SocketError> {
        self.stop.check()?;
        self.drain()?;
        let sequence = self.next_sequence();
        self.send(written(request, NLM_F_DUMP, sequence).bytes())?;
        let mut reader = DumpReader::new(sequence);
        loop {
            self.stop.check()?;
            let length = self.receive(MsgFlags::empty())?.ok_or(SocketError::AnswerLost)?;
            let mut goes_on = true;
            let end = reader.read(&self.received[..length], &mut |entries| goes_on = each(entries));
            if !goes_on {
                return Ok(None);
            }
            if end.is_some() {
                return Ok(end);
            }
        }
    }

    /// Returns the parts that `read` picks from the objects of an undisturbed
    /// listing.
    ///
    /// # Errors
    ///
    /// [`SocketError::Interrupted`] if things do not hold still.
    pub(crate) fn list<T>(
        &mut self,
        request: &Request,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, SocketError> {
        until_undisturbed(|| {
            let mut listed = Vec::new();
            let end = self.dump(request, &mut |entries| listed.extend(entries.filter_map(|entry| read(&entry))))?;
            Ok(is_complete(end)?.then_some(listed))
        })
    }

    /// Sends one request. `each` gets the kernel's answers, before the
    /// acknowledgement.
    ///
    /// # Errors
    ///
    /// [`SocketError::Refused`], and whatever else fails.
    pub(crate) fn ask(&mut self, request: &Request, each: &mut dyn FnMut(&Message<'_>)) -> Result<(), SocketError> {
        let sequence = self.next_sequence();
        let writer = written(request, NLM_F_ACK, sequence);
        let (answers, _) = self.exchange(writer.bytes(), Sequences::one(sequence), each)?;
        must_be_done(&answers)
    }

    /// Orders that have nothing to do with each other, sent at once. Returns
    /// which of them were refused, and why.
    ///
    /// # Errors
    ///
    /// [`SocketError::AnswerLost`] if their results are unknown.
    pub(crate) fn order(&mut self, requests: &[Request]) -> Result<Vec<(usize, i32)>, SocketError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(Vec::new()) };
        let mut writer = Writer::default();
        let mut sequences = Sequences::default();
        for (position, request) in requests.iter().enumerate() {
            sequences.last = self.next_sequence();
            if position == 0 {
                sequences.first = sequences.last;
            }
            // Refusals come for each, the acknowledgement only for the last.
            request.write(&mut writer, if position == last { NLM_F_ACK } else { 0 }, sequences.last);
        }
        let (answers, _) = self.exchange(writer.bytes(), sequences, &mut |_| {})?;
        let refused = answers.refused.iter();
        let refused: Vec<(usize, i32)> =
            refused.filter_map(|(number, answer)| Some((sequences.position(*number)?, answer.errno))).collect();
        let is_answered = !answers.acknowledged.is_empty() || refused.iter().any(|(position, _)| *position == last);
        if is_answered { Ok(refused) } else { Err(SocketError::AnswerLost) }
    }

    /// Submits a batch to nf_tables: all of it is carried out, or nothing.
    /// Returns the kernel's answers, and the duration of the system call in
    /// which it processes the batch.
    ///
    /// # Errors
    ///
    /// [`SocketError::TooLarge`], and whatever else fails.
    pub(crate) fn transact(&mut self, batch: &Batch) -> Result<(Answers, Duration), SocketError> {
        self.exchange(batch.bytes(), batch.sequences(), &mut |_| {})
    }

    /// [`Self::transact`] with messages that are made for it.
    ///
    /// # Errors
    ///
    /// [`SocketError::Refused`] with the first refusal; then nothing was done.
    pub(crate) fn transaction(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        self.transaction_with(requests, 0)
    }

    /// [`Self::transaction`] with messages that make objects, or append them.
    ///
    /// # Errors
    ///
    /// As there.
    pub(crate) fn creation(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        self.transaction_with(requests, NLM_F_CREATE | NLM_F_APPEND)
    }

    fn transaction_with(&mut self, requests: &[Request], flags: u16) -> Result<(), SocketError> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.encode_requests(requests, flags, || self.next_sequence());
        must_be_done(&self.transact(&batch)?.0)
    }

    /// Has messages for a [`Self::transaction`] checked by the kernel; nothing
    /// is carried out.
    ///
    /// # Errors
    ///
    /// [`SocketError::Refused`] with the first refusal.
    pub(crate) fn check(&mut self, requests: &[Request]) -> Result<(), SocketError> {
        let mut batch = Batch::default();
        batch.encode_check(requests, || self.next_sequence());
        must_be_done(&self.transact(&batch)?.0)
    }

    /// Sends, and collects everything that is queued when that returns.
    fn exchange(
        &mut self,
        bytes: &[u8],
        sequences: Sequences,
        other: &mut dyn FnMut(&Message<'_>),
    ) -> Result<(Answers, Duration), SocketError> {
        if bytes.len() > self.send_limit {
            return Err(SocketError::TooLarge { bytes: bytes.len(), limit: self.send_limit });
        }
        self.stop.check()?;
        self.drain()?;
        let begun = Instant::now();
        self.send(bytes)?;
        let in_kernel = begun.elapsed();
        let mut answers = Answers::default();
        while let Some(length) = self.receive(MsgFlags::MSG_DONTWAIT)? {
            answers.read(&self.received[..length], sequences, other);
        }
        Ok((answers, in_kernel))
    }

    /// Discards the rest of an abandoned request. Until a listing is read to
    /// its end the kernel begins no other.
    fn drain(&mut self) -> Result<(), SocketError> {
        loop {
            match self.receive(MsgFlags::MSG_DONTWAIT) {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(SocketError::AnswerLost) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), SocketError> {
        send(self.socket.as_fd().as_raw_fd(), bytes, MsgFlags::empty()).map_err(|errno| system("send", errno))?;
        Ok(())
    }

    /// The length of the next datagram; `None` if none came.
    fn receive(&mut self, wait: MsgFlags) -> Result<Option<usize>, SocketError> {
        let descriptor = self.socket.as_fd().as_raw_fd();
        loop {
            return match recv(descriptor, &mut self.received, wait | MsgFlags::MSG_TRUNC) {
                Ok(length) if length > self.received.len() => {
                    // The message was cut off. The kernel does not do this to
                    // readers with this buffer size; the check guards against it
                    // all the same.
                    self.received.resize(length, 0);
                    Err(SocketError::AnswerLost)
                }
                Ok(length) => Ok(Some(length)),
                Err(Errno::EAGAIN) => Ok(None),
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => Err(SocketError::AnswerLost),
                Err(errno) => Err(system("recv", errno)),
            };
        }
    }
}

/// Repeats an operation until it is undisturbed: `attempt` returns nothing if
/// something changed meanwhile.
///
/// # Errors
///
/// [`SocketError::Interrupted`] after the last attempt, and whatever an attempt
/// fails with.
pub(crate) fn until_undisturbed<T, E: From<SocketError>>(
    mut attempt: impl FnMut() -> Result<Option<T>, E>,
) -> Result<T, E> {
    for _ in 0..ATTEMPTS {
        if let Some(outcome) = attempt()? {
            return Ok(outcome);
        }
    }
    Err(SocketError::Interrupted { attempts: ATTEMPTS }.into())
}

/// Returns whether nothing changed under a listing.
///
/// # Errors
///
/// [`SocketError::Refused`]
pub(crate) fn is_complete(end: DumpEnd) -> Result<bool, SocketError> {
    match end {
        DumpEnd::Complete => Ok(true),
        DumpEnd::Interrupted => Ok(false),
        DumpEnd::Refused(errno) => Err(SocketError::Refused(errno)),
    }
}

fn must_be_done(answers: &Answers) -> Result<(), SocketError> {
    match answers.refused.first() {
        Some((_, answer)) => Err(SocketError::Refused(answer.errno)),
        None if answers.acknowledged.is_empty() => Err(SocketError::AnswerLost),
        None => Ok(()),
    }
}

fn written(request: &Request, flags: u16, sequence: u32) -> Writer {
    let mut writer = Writer::default();
    request.write(&mut writer, flags, sequence);
    writer
}

fn send_limit(socket: &netlink_sys::Socket) -> Result<usize, SocketError> {
    let granted = getsockopt(socket, sockopt::SndBuf).map_err(|errno| system("getsockopt", errno))?;
    // `netlink_sendmsg` keeps 32 bytes for itself.
    Ok(granted.saturating_sub(32 + HEADER))
}

fn system(call: &'static str, errno: Errno) -> SocketError {
    SocketError::System { call, source: errno.into() }
}
