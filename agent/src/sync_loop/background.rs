//! Decides when the next piece of the [slow comparison](crate::sync::Syncer::compare_piece) is due.

use std::time::Duration;

use tokio::time::Instant;

use crate::sync::PIECE_ELEMENTS;

/// A piece pauses for this number of times its duration at least, however short the period is.
const REST: u32 = 9;

/// About the number of elements of a Service, until the first pass has shown how many pieces there are.
const ELEMENTS_GUESSED: usize = 16;

/// The schedule of the pieces: spread evenly over the period.
#[derive(Debug)]
pub(super) struct Background {
    /// The time for one pass; `None`: never.
    period: Option<Duration>,
    next: Option<Instant>,
    /// The number of pieces in this pass so far.
    pieces: u32,
    /// The number of pieces in the last pass.
    expected: Option<u32>,
}

impl Background {
    /// Zero switches it off.
    pub(super) fn new(period: Duration) -> Self {
        Self { period: Some(period).filter(|period| !period.is_zero()), next: None, pieces: 0, expected: None }
    }

    /// Everything is programmed for the first time: the first piece follows.
    pub(super) fn begin(&mut self, services: usize, now: Instant) {
        if self.next.is_none() {
            let guess = 1 + services * ELEMENTS_GUESSED / PIECE_ELEMENTS;
            self.expected = Some(u32::try_from(guess).unwrap_or(u32::MAX));
            self.put_off(Duration::ZERO, now);
        }
    }

    /// The time of the next piece, if there is to be one.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A piece was compared, or failed.
    pub(super) fn done(&mut self, took: Duration, is_last: bool, now: Instant) {
        self.pieces = self.pieces.saturating_add(1);
        if is_last {
            self.expected = Some(std::mem::take(&mut self.pieces));
        }
        self.put_off(took, now);
    }

    fn put_off(&mut self, took: Duration, now: Instant) {
        let pieces = self.expected.unwrap_or(1).max(1);
        self.next = self.period.map(|period| now + (period / pieces).max(took * REST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_spread_over_the_period_and_never_take_more_than_a_tenth_of_a_processor() {
        let start = Instant::now();
        let mut background = Background::new(Duration::from_secs(900));
        background.begin(10, start);
        assert_eq!(background.next(), Some(start + Duration::from_secs(900)));
        for piece in 1..=10 {
            background.done(Duration::from_millis(5), piece == 10, start);
        }
        background.done(Duration::from_millis(5), false, start);
        assert_eq!(background.next(), Some(start + Duration::from_secs(90)));
        let mut eager = Background::new(Duration::from_millis(10));
        eager.begin(10, start);
        eager.done(Duration::from_millis(5), false, start);
        assert_eq!(eager.next(), Some(start + Duration::from_millis(45)));
    }

    #[test]
    fn zero_switches_it_off() {
        let mut background = Background::new(Duration::ZERO);
        background.begin(10, Instant::now());
        assert_eq!(background.next(), None);
    }
}
