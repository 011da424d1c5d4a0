//! The conversation with ctnetlink over one socket that stays open.

use std::io;
use std::time::Duration;

use nlink::netlink::{MessageIter, NetlinkSocket, NlMsgHdr, Protocol};

use super::ConntrackError;
use super::message::{self, DumpFilter, Flow};

/// How long the kernel may take for the next piece of an answer. It answers within the system call that asks, so this
/// passes only if an answer was lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Deletions in one system call: as many errors must fit the socket's receive buffer (each takes about 1 KiB of the
/// default 208 KiB).
const DELETIONS_AT_ONCE: usize = 64;

/// What `struct nlmsgerr` begins with.
const ERROR_CODE: usize = 4;

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DumpEnd {
    /// It held everything there was.
    Complete,
    /// The table changed under it: something may be missing.
    Interrupted,
}

/// What became of deletions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Deleted {
    /// Flows that are gone by our hand.
    pub(super) deleted: usize,
    /// Flows that the kernel does not give away, because a flow table forwards them.
    pub(super) offloaded: usize,
}

/// A socket of `NETLINK_NETFILTER`.
pub(super) struct Socket {
    netlink: NetlinkSocket,
    /// A dump whose end was not read yet, since whoever asked for it gave up: until then the kernel starts no other.
    unread: Option<u32>,
}

impl Socket {
    /// Opens one in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Self, ConntrackError> {
        let netlink = NetlinkSocket::new(Protocol::Netfilter).map_err(ConntrackError::Open)?;
        Ok(Self { netlink, unread: None })
    }

    /// Asks for a dump, to be read piece by piece.
    pub(super) async fn dump(&mut self, filter: DumpFilter) -> Result<Dump<'_>, ConntrackError> {
        // The kernel refuses a second dump while one is under way.
        if let Some(seq) = self.unread {
            let mut rest = Dump { socket: self, reader: DumpReader::new(seq) };
            while rest.next(|_| {}).await?.is_none() {}
        }
        let seq = self.netlink.next_seq();
        self.netlink.send(&message::dump(filter, seq)).await.map_err(ConntrackError::Socket)?;
        self.unread = Some(seq);
        Ok(Dump { socket: self, reader: DumpReader::new(seq) })
    }

    /// Deletes flows, each said by [`Flow::deletion`]. One that is gone already counts for nothing.
    pub(super) async fn delete(&mut self, mut deletions: Vec<Vec<u8>>) -> Result<Deleted, ConntrackError> {
        let mut outcome = Deleted::default();
        for some in deletions.chunks_mut(DELETIONS_AT_ONCE) {
            let mut replies = DeletionReader { first: 0, last: 0, failure: None, outcome: Deleted::default() };
            let count = some.len();
            for (position, deletion) in some.iter_mut().enumerate() {
                let seq = self.netlink.next_seq();
                if position == 0 {
                    replies.first = seq;
                }
                replies.last = seq;
                // Errors come for each, the acknowledgement only for the last.
                message::number(deletion, seq, position + 1 == count);
            }
            replies.outcome.deleted = count;
            self.netlink.send(&some.concat()).await.map_err(ConntrackError::Socket)?;
            while !replies.read(&self.receive().await?) {}
            if let Some(source) = replies.failure {
                return Err(ConntrackError::Refused { what: "delete a tracked flow", source });
            }
            outcome.deleted += replies.outcome.deleted;
            outcome.offloaded += replies.outcome.offloaded;
        }
        Ok(outcome)
    }

    async fn receive(&mut self) -> Result<Vec<u8>, ConntrackError> {
        match tokio::time::timeout(PATIENCE, self.netlink.recv_unicast()).await {
            Ok(received) => received.map_err(ConntrackError::Socket),
            Err(_) => {
                // If it was the rest of a dump that was lost, there is nothing to read any more.
                self.unread = None;
                Err(ConntrackError::NoAnswer(PATIENCE))
            }
        }
    }
}

/// A dump under way.
pub(super) struct Dump<'a> {
    socket: &'a mut Socket,
    reader: DumpReader,
}

impl Dump<'_> {
    /// Calls `each` for the flows of the next piece; returns how the dump ended, if it ended there.
    pub(super) async fn next(&mut self, mut each: impl FnMut(&Flow<'_>)) -> Result<Option<DumpEnd>, ConntrackError> {
        let datagram = self.socket.receive().await?;
        let Some(end) = self.reader.read(&datagram, &mut each) else { return Ok(None) };
        self.socket.unread = None;
        end.map(Some).map_err(|source| ConntrackError::Refused { what: "dump the tracked flows", source })
    }
}

/// Takes a dump apart.
struct DumpReader {
    seq: u32,
    interrupted: bool,
}

impl DumpReader {
    fn new(seq: u32) -> Self {
        Self { seq, interrupted: false }
    }

    /// Reads one datagram; returns how the dump ended, if it ended here.
    fn read(&mut self, datagram: &[u8], each: &mut impl FnMut(&Flow<'_>)) -> Option<io::Result<DumpEnd>> {
        // What can't be taken apart ends the iteration; what was behind it would be missing.
        for part in MessageIter::new(datagram) {
            let Ok((header, payload)) = part else {
                self.interrupted = true;
                break;
            };
            if header.nlmsg_seq != self.seq {
                continue;
            }
            // The kernel sets the mark on whatever message comes next, be it the last.
            self.interrupted |= header.is_dump_interrupted();
            if header.nlmsg_type == message::ENTRY {
                if let Some(flow) = Flow::decode(payload) {
                    each(&flow);
                }
            } else if header.is_done() || header.is_error() {
                return Some(self.end(header, payload));
            }
        }
        None
    }

    fn end(&self, header: &NlMsgHdr, payload: &[u8]) -> io::Result<DumpEnd> {
        let code = error_code(payload);
        match code {
            Some(libc::EINTR) => Ok(DumpEnd::Interrupted),
            Some(code) if code != 0 => Err(io::Error::from_raw_os_error(code)),
            None if header.is_error() => Err(io::ErrorKind::InvalidData.into()),
            _ if self.interrupted => Ok(DumpEnd::Interrupted),
            _ => Ok(DumpEnd::Complete),
        }
    }
}

/// Counts the answers to deletions, all of which are taken for done until an error says otherwise.
struct DeletionReader {
    first: u32,
    last: u32,
    failure: Option<io::Error>,
    outcome: Deleted,
}

impl DeletionReader {
    /// Reads one datagram; returns whether the last answer was in it.
    fn read(&mut self, datagram: &[u8]) -> bool {
        let mut finished = false;
        for (header, payload) in MessageIter::new(datagram).map_while(Result::ok) {
            let ours = header.nlmsg_seq.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first);
            if !ours || !header.is_error() {
                continue;
            }
            finished |= header.nlmsg_seq == self.last;
            let code = error_code(payload);
            if code != Some(0) {
                self.outcome.deleted = self.outcome.deleted.saturating_sub(1);
            }
            match code {
                // It expired meanwhile, or another flow has taken its place.
                Some(0 | libc::ENOENT) => {}
                Some(libc::EBUSY) => self.outcome.offloaded += 1,
                Some(code) => self.failure = Some(io::Error::from_raw_os_error(code)),
                None => self.failure = Some(io::ErrorKind::InvalidData.into()),
            }
        }
        finished
    }
}

/// The error number of an error message or of the end of a dump, 0 for none.
fn error_code(payload: &[u8]) -> Option<i32> {
    let code = payload.get(..ERROR_CODE)?.try_into().ok()?;
    Some(i32::from_ne_bytes(code).saturating_neg())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    const NLM_F_DUMP_INTR: u16 = 0x10;

    fn answer(kind: u16, flags: u16, seq: u32, code: i32) -> Vec<u8> {
        let mut message = nlink::netlink::MessageBuilder::new(kind, flags);
        message.set_seq(seq);
        message.append_bytes(&(-code).to_ne_bytes());
        message.finish()
    }

    fn read(reader: &mut DumpReader, datagram: &[u8]) -> Option<Result<DumpEnd, Option<i32>>> {
        reader.read(datagram, &mut |_| {}).map(|end| end.map_err(|error| error.raw_os_error()))
    }

    #[test]
    fn an_interrupted_dump_is_told_wherever_the_mark_is() {
        let done = answer(NLMSG_DONE, 0, 7, 0);
        assert_eq!(read(&mut DumpReader::new(7), &done), Some(Ok(DumpEnd::Complete)));

        let marked = answer(NLMSG_DONE, NLM_F_DUMP_INTR, 7, 0);
        assert_eq!(read(&mut DumpReader::new(7), &marked), Some(Ok(DumpEnd::Interrupted)));

        let mut reader = DumpReader::new(7);
        assert_eq!(read(&mut reader, &answer(message::ENTRY, NLM_F_DUMP_INTR, 7, 0)), None);
        assert_eq!(read(&mut reader, &done), Some(Ok(DumpEnd::Interrupted)));

        let torn = answer(NLMSG_DONE, 0, 7, libc::EINTR);
        assert_eq!(read(&mut DumpReader::new(7), &torn), Some(Ok(DumpEnd::Interrupted)));
    }

    #[test]
    fn a_datagram_that_makes_no_sense_leaves_the_dump_incomplete() {
        let mut reader = DumpReader::new(7);
        assert_eq!(read(&mut reader, &[0; 16]), None);
        assert_eq!(read(&mut reader, &answer(NLMSG_DONE, 0, 7, 0)), Some(Ok(DumpEnd::Interrupted)));
    }

    #[test]
    fn only_its_own_answers_end_a_dump() {
        let mut reader = DumpReader::new(7);
        let foreign = answer(NLMSG_DONE, NLM_F_DUMP_INTR, 6, 0);
        let both = [foreign, answer(NLMSG_DONE, 0, 7, 0)].concat();
        assert_eq!(read(&mut reader, &both), Some(Ok(DumpEnd::Complete)));
    }

    #[test]
    fn a_refused_dump_tells_why() {
        let refused = answer(NLMSG_ERROR, 0, 7, libc::EPERM);
        assert_eq!(read(&mut DumpReader::new(7), &refused), Some(Err(Some(libc::EPERM))));
        let failed = answer(NLMSG_DONE, 0, 7, libc::ENOMEM);
        assert_eq!(read(&mut DumpReader::new(7), &failed), Some(Err(Some(libc::ENOMEM))));
    }

    #[test]
    fn deletions_are_counted_by_what_failed() {
        let outcome = Deleted { deleted: 5, offloaded: 0 };
        let mut reader = DeletionReader { first: u32::MAX - 1, last: 2, failure: None, outcome };
        assert!(!reader.read(&answer(NLMSG_ERROR, 0, u32::MAX, libc::ENOENT)));
        assert!(!reader.read(&answer(NLMSG_ERROR, 0, 0, libc::EBUSY)));
        assert!(!reader.read(&answer(NLMSG_ERROR, 0, 3, libc::EPERM)));
        assert!(reader.failure.is_none());
        assert!(reader.read(&answer(NLMSG_ERROR, 0, 2, 0)));
        assert_eq!(reader.outcome, Deleted { deleted: 3, offloaded: 1 });

        assert!(reader.read(&answer(NLMSG_ERROR, 0, 2, libc::EPERM)));
        assert_eq!(reader.failure.unwrap().raw_os_error(), Some(libc::EPERM));
    }
}
