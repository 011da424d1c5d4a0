//! Decides when to sync next: at once if possible, later after a failure, and
//! never so often that a fight over our tables overloads the node.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest time between the beginnings of two syncs: a burst of changes
/// becomes few commits, and a single change waits for nothing.
pub const MIN_GAP: Duration = Duration::from_millis(50);

/// The longest pause after a sync that succeeded, however long it took.
const LONGEST_REST: Duration = Duration::from_millis(200);

/// The first pause after a sync that failed, and before the second repair in a
/// series of foreign changes. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause while others are to blame: when they stop, everything is
/// right again within a second.
const LONGEST_FIGHT_PAUSE: Duration = Duration::from_millis(400);

/// Foreign changes that follow a repair within this time belong to one fight.
const TRUCE: Duration = Duration::from_secs(2);

/// After this number of repairs in a row the changes count as a fight.
const FIGHT: u32 = 3;

/// The cause of a failed sync, as far as the next one depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// Other programs, which may stop at any moment without a notice.
    Others,
    /// Anything else.
    Us,
}

/// The state that determines the time of the next sync.
#[derive(Debug)]
pub(super) struct Pace {
    /// The longest pause after failures that are our own.
    longest: Duration,
    /// The shortest time between the beginnings of two syncs.
    min_gap: Duration,
    /// The time when the last sync began.
    begun: Option<Instant>,
    /// The time when it ended, and its duration.
    ended: Option<(Instant, Duration)>,
    /// The number of failed syncs in a row, and the last cause.
    failures: u32,
    blame: Blame,
    /// The number of repairs in a row that were followed by further foreign
    /// changes, or that such changes made fail.
    fights: u32,
    /// Whether a foreign change has to be repaired.
    disputed: bool,
    /// The time of the last repair of that kind.
    repaired: Option<Instant>,
}

impl Pace {
    pub(super) fn new(longest: Duration, min_gap: Duration) -> Self {
        Self {
            longest,
            min_gap,
            begun: None,
            ended: None,
            failures: 0,
            blame: Blame::Us,
            fights: 0,
            disputed: false,
            repaired: None,
        }
    }

    /// Somebody else changed our tables.
    pub(super) fn foreign_change(&mut self, now: Instant) {
        if !self.disputed {
            let is_fight = self.repaired.is_some_and(|last| now.saturating_duration_since(last) < TRUCE);
            self.fights = if is_fight { self.fights.saturating_add(1) } else { 0 };
        }
        self.disputed = true;
    }

    pub(super) fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    pub(super) fn succeeded(&mut self, now: Instant) {
        self.end(now);
        self.failures = 0;
        if std::mem::take(&mut self.disputed) {
            self.repaired = Some(now);
        }
    }

    pub(super) fn failed(&mut self, now: Instant, blame: Blame) {
        self.end(now);
        self.failures = self.failures.saturating_add(1);
        self.blame = blame;
        // Otherwise a fight in which most repairs fail would be over with each one that succeeds.
        if self.disputed && blame == Blame::Others {
            self.fights = self.fights.saturating_add(1);
        }
    }

    fn end(&mut self, now: Instant) {
        let begun = self.begun.unwrap_or(now);
        self.ended = Some((now, now.saturating_duration_since(begun)));
    }

    /// The earliest time of a sync, if there is anything to do. `news`: whether
    /// anything came from the sources since the last one.
    pub(super) fn next(&self, now: Instant, news: bool) -> Instant {
        let Some((ended, took)) = self.ended else { return now };
        // Foreign changes are undone soon, and failed syncs are tried again, however large the configured gap between
        // changes.
        let is_repair = self.disputed || self.failures > 0;
        let gap = if is_repair { self.min_gap.min(MIN_GAP) } else { self.min_gap };
        let after_begin = self.begun.map_or(now, |begun| begun + gap);
        let mut next = after_begin;
        if self.failures > 0 && !news {
            let longest = match self.blame {
                Blame::Others => LONGEST_FIGHT_PAUSE.min(self.longest),
                Blame::Us => self.longest,
            };
            next = next.max(ended + doubled(self.failures - 1).min(longest));
        }
        // No more than half of a processor, however long it takes; and whatever comes in that time goes into one sync.
        // Without it a long sync would be followed at once by one of the few events that the queue holds, and very many
        // changes would be as many syncs. But a change waits for no longer than this after a long sync that succeeded,
        // and a sync that failed after a long wait for the kernel used no processor: the longest pause holds for it, too.
        let longest_rest = match (self.failures, self.fights) {
            (0, 0) => LONGEST_REST,
            (0, _) => Duration::MAX,
            _ => self.longest,
        };
        next = next.max(ended + took.min(longest_rest));
        if self.disputed && self.fights > 0 {
            next = next.max(ended + doubled(self.fights - 1).min(LONGEST_FIGHT_PAUSE));
        }
        next.max(now)
    }

    /// Returns whether another program repeatedly undoes our repairs.
    pub(super) fn is_fight(&self) -> bool {
        self.fights >= FIGHT
    }

    /// Returns the time at which a fight counts as over, if nothing happens
    /// until then.
    pub(super) fn truce(&self) -> Option<Instant> {
        self.repaired.filter(|_| self.is_fight() && !self.disputed).map(|last| last + TRUCE)
    }

    /// Nothing has happened for a while.
    pub(super) fn make_truce(&mut self) {
        self.fights = 0;
    }
}

fn doubled(times: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(times.min(16)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A sync from `at`, which takes 5 ms.
    fn sync(pace: &mut Pace, at: Instant, outcome: Result<(), Blame>) -> Instant {
        pace.begin(at);
        let end = at + ms(5);
        match outcome {
            Ok(()) => pace.succeeded(end),
            Err(blame) => pace.failed(end, blame),
        }
        end
    }

    #[test]
    fn a_change_waits_for_nothing_but_the_gap() {
        let start = Instant::now();
        let mut pace = Pace::new(ms(30_000), MIN_GAP);
        assert_eq!(pace.next(start, true), start);
        let end = sync(&mut pace, start, Ok(()));
        assert_eq!(pace.next(end, true), start + MIN_GAP);
        assert_eq!(pace.next(start + ms(70), true), start + ms(70));
    }

    #[test]
    fn after_a_long_sync_changes_are_collected_for_a_while() {
        let start = Instant::now();
        for (took, rest) in [(ms(20), ms(30)), (ms(80), ms(80)), (ms(7_000), LONGEST_REST)] {
            let mut pace = Pace::new(ms(30_000), MIN_GAP);
            pace.begin(start);
            pace.succeeded(start + took);
            assert_eq!(pace.next(start + took, true), start + took + rest, "{took:?}");
        }
    }

    #[test]
    fn a_sync_that_failed_after_a_long_wait_is_tried_again_after_the_longest_pause() {
        let start = Instant::now();
        for (took, rest) in [(ms(800), ms(800)), (ms(96_000), ms(1_000))] {
            let mut pace = Pace::new(ms(1_000), MIN_GAP);
            pace.begin(start);
            pace.failed(start + took, Blame::Us);
            assert_eq!(pace.next(start + took, false), start + took + rest, "{took:?}");
        }
    }

    #[test]
    fn a_longer_gap_holds_changes_back_and_repairs_not() {
        let start = Instant::now();
        let mut pace = Pace::new(ms(30_000), ms(10_000));
        let end = sync(&mut pace, start, Ok(()));
        assert_eq!(pace.next(end, true), start + ms(10_000));
        pace.foreign_change(end);
        assert_eq!(pace.next(end, true), start + MIN_GAP);
    }

    #[test]
    fn failures_are_tried_again_after_pauses_of_their_own_and_news_at_once() {
        let mut at = Instant::now();
        let mut pace = Pace::new(ms(1_000), MIN_GAP);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let end = sync(&mut pace, at, Err(Blame::Us));
            at = pace.next(end, false);
            pauses.push((at - end).as_millis());
            assert!(pace.next(end, true) <= end + MIN_GAP);
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1_000, 1_000]);
        let end = sync(&mut pace, at, Ok(()));
        sync(&mut pace, end + ms(60), Err(Blame::Us));
        assert_eq!(pace.next(end + ms(65), false), end + ms(65) + ms(50), "a success starts over");
    }

    #[test]
    fn a_failure_of_others_never_waits_long() {
        let mut at = Instant::now();
        let mut pace = Pace::new(ms(30_000), MIN_GAP);
        for _ in 0..20 {
            let end = sync(&mut pace, at, Err(Blame::Others));
            at = pace.next(end, false);
            assert!(at - end <= LONGEST_FIGHT_PAUSE);
        }
        assert_eq!(at - pace.ended.map_or(at, |(ended, _)| ended), LONGEST_FIGHT_PAUSE);
    }

    #[test]
    fn the_first_foreign_change_is_repaired_at_once_and_a_fight_slows_down() {
        let mut now = Instant::now();
        let mut pace = Pace::new(ms(30_000), MIN_GAP);
        now = sync(&mut pace, now, Ok(())) + ms(10_000);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            pace.foreign_change(now);
            let next = pace.next(now, false);
            pauses.push((next - now).as_millis());
            now = sync(&mut pace, next, Ok(()));
        }
        assert_eq!(pauses, [0, 50, 100, 200, 400, 400, 400]);
        assert!(pace.is_fight());
        let truce = pace.truce();
        assert!(truce.is_some_and(|truce| truce > now && truce <= now + TRUCE));
        pace.make_truce();
        assert!(!pace.is_fight() && pace.truce().is_none());
        pace.foreign_change(now + ms(5_000));
        assert_eq!(pace.next(now + ms(5_000), false), now + ms(5_000));
    }

    #[test]
    fn repairs_that_others_make_fail_are_a_fight() {
        let mut now = Instant::now();
        let mut pace = Pace::new(ms(30_000), MIN_GAP);
        pace.foreign_change(now);
        for _ in 0..FIGHT {
            now = sync(&mut pace, now, Err(Blame::Others));
            pace.foreign_change(now);
        }
        now = sync(&mut pace, now, Ok(()));
        assert!(pace.is_fight() && pace.truce() == Some(now + TRUCE));
        pace.make_truce();
        sync(&mut pace, now, Err(Blame::Others));
        assert!(!pace.is_fight());
    }

    #[test]
    fn long_repairs_take_half_a_processor_at_most() {
        let mut now = Instant::now();
        let mut pace = Pace::new(ms(30_000), MIN_GAP);
        pace.foreign_change(now);
        for _ in 0..3 {
            pace.begin(now);
            now += ms(3_000);
            pace.succeeded(now);
            // Seen during the repair.
            pace.foreign_change(now);
            assert_eq!(pace.next(now, true), now + ms(3_000));
            now += ms(3_000);
        }
    }
}
