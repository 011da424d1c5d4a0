//! Answers that were given since the last change, by the bytes of the question.
//!
//! Pods ask for few names again and again: the Services that they use, and the
//! same search list of each outside name. Such a question costs a comparison and
//! a copy instead of decoding, looking up and encoding.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};

use crate::metrics::Seen;

/// The most answers that are kept, of each listener, and the most bytes of them
/// and their questions. Further ones replace all of them. The table of this many
/// takes 0.5 MiB.
const MOST_ANSWERS: usize = 14_000;
const MOST_BYTES: usize = 2 << 20;

/// The longest question and answer that are kept, in bytes.
const LONGEST_QUESTION: usize = 256;
const LONGEST_ANSWER: usize = 512;

/// The bytes of the identifier, in which equal questions differ.
const ID: usize = 2;

/// A question without its identifier, and the answer behind it in the same
/// bytes. It is found by the question alone.
#[derive(Debug)]
struct Answer {
    bytes: Box<[u8]>,
    question: u16,
    seen: Seen,
}

impl Answer {
    fn question(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.question)).unwrap_or_default()
    }

    fn answer(&self) -> &[u8] {
        self.bytes.get(usize::from(self.question)..).unwrap_or_default()
    }
}

// The three agree, as `Borrow` demands: all look at the question only.
impl Borrow<[u8]> for Answer {
    fn borrow(&self) -> &[u8] {
        self.question()
    }
}

impl Hash for Answer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.question().hash(state);
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        self.question() == other.question()
    }
}

impl Eq for Answer {}

/// The answers by their questions, without the identifier.
#[derive(Debug, Default)]
pub(crate) struct HotAnswers {
    generation: u64,
    answers: HashSet<Answer>,
    bytes: usize,
}

impl HotAnswers {
    /// Writes the answer to the same question, if it was given in this generation
    /// of the state.
    pub(crate) fn get(&mut self, generation: u64, question: &[u8], out: &mut Vec<u8>) -> Option<Seen> {
        if self.generation != generation {
            self.generation = generation;
            self.clear();
            return None;
        }
        let (id, rest) = question.split_at_checked(ID)?;
        let answer = self.answers.get(rest)?;
        out.clear();
        out.extend_from_slice(answer.answer());
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
        let Ok(length) = u16::try_from(rest.len()) else { return };
        let bytes: Box<[u8]> = [rest, answer].concat().into();
        if self.answers.len() >= MOST_ANSWERS || self.bytes + bytes.len() > MOST_BYTES {
            self.clear();
        }
        self.bytes += bytes.len();
        if let Some(previous) = self.answers.replace(Answer { bytes, question: length, seen }) {
            self.bytes -= previous.bytes.len();
        }
    }

    fn clear(&mut self) {
        self.answers.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;
    use crate::metrics::SEEN_IN_ZONE as SEEN;

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
    fn the_same_question_counts_once() {
        let (mut hot, mut out) = (HotAnswers::default(), Vec::new());
        hot.put(&[1, 1, 7, 8], &answer([1, 1], 1), SEEN);
        let bytes = hot.bytes;
        hot.put(&[3, 3, 7, 8], &answer([3, 3], 0), SEEN);
        assert_eq!((hot.answers.len(), hot.bytes), (1, bytes));
        assert!(hot.get(0, &[2, 2, 7, 8], &mut out).is_some());
        assert_eq!(out, answer([2, 2], 0));
    }

    /// The names of a large cluster stay, and long names asked at random take no more memory.
    #[test]
    fn many_questions_take_bounded_memory() {
        let (mut hot, mut out) = (HotAnswers::default(), Vec::new());
        let question = |number: u32, length: usize| {
            let mut question = [&[1, 1], &number.to_be_bytes()[..]].concat();
            question.resize(length, 0);
            question
        };
        for number in 0..10_000 {
            hot.put(&question(number, 60), &answer([1, 1], 1), SEEN);
        }
        assert!((0..10_000).all(|number| hot.get(0, &question(number, 60), &mut out).is_some()));
        for number in 0..100_000 {
            hot.put(&question(number, 250), &[&answer([1, 1], 1)[..], &[0; 400]].concat(), SEEN);
            assert!(hot.answers.len() <= MOST_ANSWERS && hot.bytes <= MOST_BYTES);
        }
        assert!(hot.get(0, &question(99_999, 250), &mut out).is_some());
    }
}
