//! Questions and orders to the kernel over one netlink socket. Unlike
//! [`crate::netlink`] it waits in place: this runs once, on a thread of its own.

use std::io::{self, ErrorKind, Read};
use std::time::Duration;

use nlink::netlink::nftables::{NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES};
use socket2::{Domain, Protocol, Type};

use crate::netlink::wire::{
    Answer, Message, Messages, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, Writer,
};

/// How long the kernel may take for an answer: the removal of the table of
/// tens of thousands of Services takes it many seconds.
const PATIENCE: Duration = Duration::from_secs(300);
/// The kernel fills dump messages up to 32 KiB.
const RECEIVE_BYTES: usize = 64 << 10;
/// Room for the answers to one batch.
const SOCKET_BUFFER: libc::c_int = 4 << 20;
/// How often a listing is tried again that changed meanwhile.
const DUMP_ATTEMPTS: u32 = 20;

/// One message: its type, the protocol family in its header, and what writes
/// its body.
pub(super) struct Request<'a> {
    pub(super) kind: u16,
    pub(super) family: u8,
    pub(super) body: &'a dyn Fn(&mut Writer),
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(super) struct Socket {
    socket: socket2::Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens one; `protocol` is `NETLINK_NETFILTER` or another of its kind.
    pub(super) fn open(protocol: libc::c_int) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Without CAP_NET_ADMIN in the first user namespace the limits of the system count.
        let _ =
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(SOCKET_BUFFER as usize));
        let _ =
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::SndBufForce, &(SOCKET_BUFFER as usize));
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Lists what a request asks for, until the listing is one that nothing
    /// changed under. `read` picks what matters from each message.
    pub(super) fn dump<T>(
        &mut self,
        request: &Request<'_>,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(listed) = self.dump_once(request, &read)? {
                return Ok(listed);
            }
        }
        Err(io::Error::other(format!("it changed {DUMP_ATTEMPTS} times while it was listed")))
    }

    fn dump_once<T>(
        &mut self,
        request: &Request<'_>,
        read: &impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        let mut writer = Writer::default();
        let sequence = self.write(&mut writer, request, NLM_F_DUMP);
        self.socket.send(writer.bytes())?;
        let (mut listed, mut interrupted) = (Vec::new(), false);
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                if !matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                    listed.extend(read(&message));
                    continue;
                }
                return match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                    libc::EINTR | libc::EAGAIN => Ok(None),
                    0 if interrupted => Ok(None),
                    0 => Ok(Some(listed)),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                };
            }
        }
    }

    /// Sends one order and waits for the answer.
    pub(super) fn order(&mut self, request: &Request<'_>) -> io::Result<()> {
        let mut writer = Writer::default();
        let sequence = self.write(&mut writer, request, NLM_F_ACK);
        self.socket.send(writer.bytes())?;
        self.acknowledged(sequence..=sequence)
    }

    /// Asks for one thing. `read` picks what matters from the answer.
    pub(super) fn ask<T>(
        &mut self,
        request: &Request<'_>,
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut writer = Writer::default();
        let sequence = self.write(&mut writer, request, NLM_F_ACK);
        self.socket.send(writer.bytes())?;
        let mut found = None;
        loop {
            let length = self.receive()?;
            for message in Messages(&self.buffer[..length]).filter(|message| message.sequence == sequence) {
                if message.kind != NLMSG_ERROR {
                    found = found.or_else(|| read(&message));
                    continue;
                }
                return match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                    0 => Ok(found),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                };
            }
        }
    }

    /// Sends orders to nf_tables as one transaction: all of them, or none.
    pub(super) fn transaction(&mut self, requests: &[Request<'_>]) -> io::Result<()> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let mut writer = Writer::default();
        let first = self.mark(&mut writer, NFNL_MSG_BATCH_BEGIN);
        let mut awaited = first;
        for (position, request) in requests.iter().enumerate() {
            awaited = self.write(&mut writer, request, if position == last { NLM_F_ACK } else { 0 });
        }
        self.mark(&mut writer, NFNL_MSG_BATCH_END);
        self.socket.send(writer.bytes())?;
        self.acknowledged(first..=awaited)
    }

    /// Waits for the last order's answer; the first refusal in the range counts.
    fn acknowledged(&mut self, sequences: std::ops::RangeInclusive<u32>) -> io::Result<()> {
        let mut refused = None;
        loop {
            let length = match self.receive() {
                // After a refusal no more needs to come.
                Err(error) if error.kind() == ErrorKind::TimedOut && refused.is_some() => break,
                other => other?,
            };
            let mut finished = false;
            for message in Messages(&self.buffer[..length]) {
                if message.kind != NLMSG_ERROR || !sequences.contains(&message.sequence) {
                    continue;
                }
                finished |= message.sequence == *sequences.end();
                match Answer::parse(&message).map_or(0, |answer| answer.errno) {
                    0 => {}
                    errno => refused = refused.or(Some(errno)),
                }
            }
            if refused.is_some() {
                // nfnetlink has queued all answers when it queued one.
                self.socket.set_nonblocking(true)?;
            } else if finished {
                break;
            }
        }
        self.socket.set_nonblocking(false)?;
        refused.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }

    fn write(&mut self, writer: &mut Writer, request: &Request<'_>, flags: u16) -> u32 {
        self.sequence += 1;
        let open = writer.begin_message(request.kind, flags, self.sequence, request.family, 0);
        (request.body)(writer);
        writer.end_message(open);
        self.sequence
    }

    fn mark(&mut self, writer: &mut Writer, kind: u16) -> u32 {
        self.sequence += 1;
        let open = writer.begin_message(kind, 0, self.sequence, 0, NFNL_SUBSYS_NFTABLES);
        writer.end_message(open);
        self.sequence
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            match (&self.socket).read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::new(ErrorKind::TimedOut, "the kernel did not answer"));
                }
                other => return other,
            }
        }
    }
}
