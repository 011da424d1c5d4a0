//! Answers that were given since the last change, by the bytes of the question.
//!
//! Pods ask for few names again and again: the Services that they use, and the
//! same search list of each outside name. Such a question costs a comparison and
//! a copy instead of decoding, looking up and encoding.

use std::collections::HashMap;

use crate::metrics::Seen;

/// The most answers that are kept, of each listener. Further ones replace all of
/// them.
const SIZE: usize = 2048;

/// The longest question and answer that are kept, in bytes. All of them together
/// take 1.7 MiB at most, and usually a fifth of that.
const LONGEST_QUESTION: usize = 256;
const LONGEST_ANSWER: usize = 512;

/// The bytes of the identifier, in which equal questions differ.
const ID: usize = 2;

#[derive(Debug)]
struct Answer {
    bytes: Box<[u8]>,
    seen: Seen,
}

/// The answers by their questions, without the identifier.
#[derive(Debug, Default)]
pub(crate) struct HotAnswers {
    generation: u64,
    answers: HashMap<Box<[u8]>, Answer>,
}

impl HotAnswers {
    /// Writes the answer to the same question, if it was given in this generation
    /// of the state.
    pub(crate) fn get(&mut self, generation: u64, question: &[u8], out: &mut Vec<u8>) -> Option<Seen> {
        if self.generation != generation {
            self.generation = generation;
            self.answers.clear();
            return None;
        }
        let (id, rest) = question.split_at_checked(ID)?;
        let answer = self.answers.get(rest)?;
        out.clear();
        out.extend_from_slice(&answer.bytes);
        out.get_mut(..ID)?.copy_from_slice(id);
        Some(answer.seen)
    }

    /// Keeps an answer that is the same each time: without records, or with one,
    /// which has no order.
    pub(crate) fn put(&mut self, question: &[u8], answer: &[u8], seen: Seen) {
        let Some([_, _, _, _, _, _, count_high, count_low, ..]) = answer.first_chunk::<12>() else { return };
        let is_same = *count_high == 0 && *count_low <= 1;
        if !is_same || question.len() > LONGEST_QUESTION || answer.len() > LONGEST_ANSWER {
            return;
        }
        let Some((_, rest)) = question.split_at_checked(ID) else { return };
        if self.answers.len() >= SIZE {
            self.answers.clear();
        }
        self.answers.insert(rest.into(), Answer { bytes: answer.into(), seen });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use hickory_proto::op::ResponseCode;
    use hickory_proto::rr::RecordType;

    use super::*;
    use crate::metrics::{Plugin, ZoneLabel};

    const SEEN: Seen = Seen {
        record_type: RecordType::A,
        zone: ZoneLabel::Cluster,
        code: ResponseCode::NoError,
        plugin: Plugin::Kubernetes,
    };

    fn answer(id: [u8; 2], records: u8) -> Vec<u8> {
        [&id[..], &[0x80, 0, 0, 1, 0, records, 0, 0, 0, 0, 1, 2, 3]].concat()
    }

    #[test]
    fn an_answer_is_given_again_until_something_changes() {
        let (mut hot, mut out) = (HotAnswers::default(), Vec::new());
        hot.put(&[1, 1, 7, 8], &answer([1, 1], 1), SEEN);
        assert!(hot.get(0, &[2, 2, 7, 8], &mut out).is_some());
        assert_eq!(out, answer([2, 2], 1));
        assert!(hot.get(0, &[2, 2, 7, 9], &mut out).is_none());
        assert!(hot.get(1, &[2, 2, 7, 8], &mut out).is_none());
        // Nor later.
        assert!(hot.get(1, &[2, 2, 7, 8], &mut out).is_none());
    }

    #[test]
    fn an_answer_whose_order_is_random_is_not_kept() {
        let (mut hot, mut out) = (HotAnswers::default(), Vec::new());
        hot.put(&[1, 1, 7, 8], &answer([1, 1], 2), SEEN);
        hot.put(&[1, 1, 7], &[0; 600], SEEN);
        hot.put(&[1], &answer([1, 1], 1), SEEN);
        for question in [&[1, 1, 7, 8][..], &[1, 1, 7], &[1]] {
            assert!(hot.get(0, question, &mut out).is_none(), "{question:?}");
        }
    }

    #[test]
    fn many_questions_take_bounded_memory() {
        let (mut hot, mut out) = (HotAnswers::default(), Vec::new());
        for number in 0..10_000_u32 {
            hot.put(&[&[1, 1], &number.to_be_bytes()[..]].concat(), &answer([1, 1], 1), SEEN);
        }
        assert!(hot.answers.len() <= SIZE);
        assert!(hot.get(0, &[&[1, 1], &9_999_u32.to_be_bytes()[..]].concat(), &mut out).is_some());
    }
}
