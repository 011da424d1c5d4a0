//! The kernel's answers: acknowledgements, errors, and the end of a listing.

use crate::message::{
    Attributes, HEADER, Message, Messages, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR,
    align,
};

/// `NLMSGERR_ATTR_MSG`: the kernel's words for an error.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: where in the request the offending attribute stands.
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// The numbers of messages that belong together, in the order in which they
/// were given out. They may wrap around.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequences {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl Sequences {
    /// A single one.
    pub fn one(number: u32) -> Self {
        Self { first: number, last: number }
    }

    /// Returns the position of a number among these, from 0.
    pub fn position(&self, number: u32) -> Option<usize> {
        let position = number.wrapping_sub(self.first);
        (position <= self.last.wrapping_sub(self.first)).then_some(position as usize)
    }
}

/// The content of an [`NLMSG_ERROR`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// 0 for an acknowledgement, else a positive errno.
    pub errno: i32,
    /// The kernel's words.
    pub text: Option<String>,
    /// The offset of the offending attribute in the request.
    pub offset: Option<usize>,
}

impl Answer {
    /// `int error; struct nlmsghdr request;`, the request's payload unless
    /// capped, then attributes.
    pub fn parse(message: &Message<'_>) -> Option<Answer> {
        // The kernel has no error that can't be negated, but bytes have.
        let errno = i32::from_ne_bytes(message.payload.get(..4)?.try_into().ok()?).saturating_neg();
        let mut answer = Answer { errno, text: None, offset: None };
        if message.flags & NLM_F_ACK_TLVS == 0 {
            return Some(answer);
        }
        let echoed = if message.flags & NLM_F_CAPPED != 0 {
            HEADER
        } else {
            align(u32::from_ne_bytes(message.payload.get(4..8)?.try_into().ok()?) as usize)
        };
        for attribute in Attributes::new(message.payload.get(4 + echoed..).unwrap_or_default()) {
            match attribute.kind {
                NLMSGERR_ATTR_MSG => answer.text = attribute.string().map(str::to_owned),
                // In host byte order, as the rest of netlink itself.
                NLMSGERR_ATTR_OFFS => {
                    answer.offset = attribute.payload.try_into().ok().map(|bytes| u32::from_ne_bytes(bytes) as usize);
                }
                _ => {}
            }
        }
        Some(answer)
    }
}

/// The kernel's answers to requests that were sent together.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answers {
    /// Number and answer of refused requests, in the order received.
    pub refused: Vec<(u32, Answer)>,
    /// Numbers of acknowledged requests.
    pub acknowledged: Vec<u32>,
}

impl Answers {
    /// Reads a datagram; `other` gets messages that are neither, in answer to
    /// one of these requests. A malformed answer is ignored.
    pub fn read(&mut self, datagram: &[u8], sequences: Sequences, other: &mut dyn FnMut(&Message<'_>)) {
        for message in Messages::new(datagram) {
            if sequences.position(message.sequence).is_none() {
                continue;
            }
            if message.kind != NLMSG_ERROR {
                other(&message);
                continue;
            }
            match Answer::parse(&message) {
                Some(answer) if answer.errno == 0 => self.acknowledged.push(message.sequence),
                Some(answer) => self.refused.push((message.sequence, answer)),
                None => {}
            }
        }
    }
}

/// How a listing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpEnd {
    /// It held everything there was.
    Complete,
    /// Something changed under it: objects may be missing, or there twice.
    Interrupted,
    /// The kernel refused it, with this errno.
    Refused(i32),
}

/// Parses a listing, datagram by datagram.
#[derive(Debug)]
pub struct DumpReader {
    sequence: u32,
    interrupted: bool,
}

impl DumpReader {
    /// Creates a reader for the listing of the request with this number.
    pub fn new(sequence: u32) -> Self {
        Self { sequence, interrupted: false }
    }

    /// Reads a datagram: `each` gets all objects in it at once. Returns how the
    /// listing ended, if it ended there.
    ///
    /// Objects of a listing that was interrupted are handed out as well.
    pub fn read(&mut self, datagram: &[u8], each: &mut dyn FnMut(Entries<'_>)) -> Option<DumpEnd> {
        each(Entries { messages: Messages::new(datagram), sequence: self.sequence });
        let mut messages = Messages::new(datagram);
        for message in messages.by_ref().filter(|message| message.sequence == self.sequence) {
            // The kernel sets the mark on whichever message comes next, be it the last.
            self.interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
            if matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                return Some(self.end(&message));
            }
        }
        // The messages behind a malformed one are missing.
        self.interrupted |= !messages.rest().is_empty();
        None
    }

    /// Both kinds of end begin with the errno; `EINTR` means the same as the mark.
    fn end(&self, message: &Message<'_>) -> DumpEnd {
        match Answer::parse(message).map(|answer| answer.errno) {
            Some(libc::EINTR | libc::EAGAIN) => DumpEnd::Interrupted,
            Some(errno) if errno != 0 => DumpEnd::Refused(errno),
            None if message.kind == NLMSG_ERROR => DumpEnd::Refused(libc::EBADMSG),
            _ if self.interrupted => DumpEnd::Interrupted,
            _ => DumpEnd::Complete,
        }
    }
}

/// The objects in one datagram of a listing.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    messages: Messages<'a>,
    sequence: u32,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let sequence = self.sequence;
        self.messages.find(|message| message.sequence == sequence && !matches!(message.kind, NLMSG_DONE | NLMSG_ERROR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with a sequence number and the errno of an answer.
    fn answer(kind: u16, flags: u16, sequence: u32, errno: i32) -> Vec<u8> {
        let mut message = vec![];
        message.extend_from_slice(&36u32.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&errno.wrapping_neg().to_ne_bytes());
        message.extend_from_slice(&[0; 16]);
        message
    }

    fn read(reader: &mut DumpReader, datagram: &[u8]) -> Option<DumpEnd> {
        reader.read(datagram, &mut |_| {})
    }

    #[test]
    fn a_dump_is_interrupted_if_any_part_of_it_says_so() {
        let done = answer(NLMSG_DONE, 0, 7, 0);
        assert_eq!(read(&mut DumpReader::new(7), &done), Some(DumpEnd::Complete));
        let torn = answer(NLMSG_DONE, NLM_F_DUMP_INTR, 7, 0);
        assert_eq!(read(&mut DumpReader::new(7), &torn), Some(DumpEnd::Interrupted));
        let mut reader = DumpReader::new(7);
        assert_eq!(read(&mut reader, &answer(0x0100, NLM_F_DUMP_INTR, 7, 0)), None);
        assert_eq!(read(&mut reader, &done), Some(DumpEnd::Interrupted));
        for errno in [libc::EINTR, libc::EAGAIN] {
            let torn = answer(NLMSG_ERROR, 0, 7, errno);
            assert_eq!(read(&mut DumpReader::new(7), &torn), Some(DumpEnd::Interrupted));
        }
    }

    #[test]
    fn a_datagram_that_makes_no_sense_leaves_the_dump_incomplete() {
        let mut reader = DumpReader::new(7);
        assert_eq!(read(&mut reader, &[0; 16]), None);
        assert_eq!(read(&mut reader, &answer(NLMSG_DONE, 0, 7, 0)), Some(DumpEnd::Interrupted));
    }

    #[test]
    fn only_its_own_answers_end_a_dump() {
        let mut reader = DumpReader::new(7);
        let foreign = answer(NLMSG_DONE, NLM_F_DUMP_INTR, 6, 0);
        let both = [foreign, answer(NLMSG_DONE, 0, 7, 0)].concat();
        assert_eq!(read(&mut reader, &both), Some(DumpEnd::Complete));
    }

    #[test]
    fn a_refused_dump_tells_why() {
        let refused = answer(NLMSG_ERROR, 0, 7, libc::EPERM);
        assert_eq!(read(&mut DumpReader::new(7), &refused), Some(DumpEnd::Refused(libc::EPERM)));
        let failed = answer(NLMSG_DONE, 0, 7, libc::ENOMEM);
        assert_eq!(read(&mut DumpReader::new(7), &failed), Some(DumpEnd::Refused(libc::ENOMEM)));
        // No kernel sends the error that can't be negated. Found by the fuzzer.
        for kind in [NLMSG_ERROR, NLMSG_DONE] {
            let absurd = answer(kind, 0, 7, i32::MIN);
            assert_eq!(read(&mut DumpReader::new(7), &absurd), Some(DumpEnd::Refused(i32::MAX)));
        }
    }

    #[test]
    fn only_objects_are_handed_out() {
        let mut kinds = Vec::new();
        let datagram = [answer(5, 0, 6, 0), answer(6, 0, 7, 0), answer(7, 0, 7, 0), answer(NLMSG_DONE, 0, 7, 0)];
        DumpReader::new(7).read(&datagram.concat(), &mut |entries| kinds.extend(entries.map(|entry| entry.kind)));
        assert_eq!(kinds, [6, 7]);
    }

    #[test]
    fn answers_are_told_by_their_numbers_which_may_wrap_around() {
        let sequences = Sequences { first: u32::MAX - 1, last: 2 };
        let mut answers = Answers::default();
        let numbers = [(u32::MAX, libc::ENOENT), (0, libc::EBUSY), (3, libc::EPERM), (2, 0)];
        for (number, errno) in numbers {
            answers.read(&answer(NLMSG_ERROR, 0, number, errno), sequences, &mut |_| panic!("an answer is no object"));
        }
        let refused: Vec<_> = answers.refused.iter().map(|(number, answer)| (*number, answer.errno)).collect();
        assert_eq!(refused, [(u32::MAX, libc::ENOENT), (0, libc::EBUSY)]);
        assert_eq!(answers.acknowledged, [2]);
        assert_eq!(sequences.position(2), Some(4));
    }
}
