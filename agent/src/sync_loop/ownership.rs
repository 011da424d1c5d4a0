//! Tables of ours that another process owns: when to look whether they are free
//! again, and when to log that they are not.

use std::time::Duration;

use tokio::time::Instant;

/// Time between two looks: the kernel does not report that a table is free.
const LOOK: Duration = Duration::from_millis(400);

/// Time between two log lines.
const LINES: Duration = Duration::from_secs(60);

/// The state of our ownership.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    /// The time of the next look, if another process owns a table.
    next: Option<Instant>,
    /// The time of the last line.
    last_line: Option<Instant>,
}

impl Ownership {
    /// Notes the result of a comparison: the tables that another process owns,
    /// in words, or nothing. Returns the line to log, if any.
    pub(super) fn note(&mut self, owned: &str, now: Instant) -> Option<String> {
        if owned.is_empty() {
            *self = Self::default();
            return None;
        }
        self.next = Some(now + LOOK);
        if self.last_line.is_some_and(|line| now.saturating_duration_since(line) < LINES) {
            return None;
        }
        self.last_line = Some(now);
        Some(format!("{owned}; everything else is programmed"))
    }

    /// Returns whether another process owns a table.
    pub(super) fn is_lost(&self) -> bool {
        self.next.is_some()
    }

    /// The time of the next look.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Returns whether a look is due, and then sets the time of the next.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let is_due = self.next.is_some_and(|next| next <= now);
        if is_due {
            self.next = Some(now + LOOK);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_stays_owned_has_a_line_a_minute_and_is_looked_at_often() {
        let start = Instant::now();
        let mut ownership = Ownership::default();
        assert!(ownership.note("", start).is_none() && !ownership.is_lost() && !ownership.take_due(start));
        let (mut lines, mut looks) = (0, 0);
        for tick in 0..6_000 {
            let now = start + Duration::from_millis(20) * tick;
            lines += usize::from(ownership.note("table ip vmap-proxy belongs to process 7", now).is_some());
            for later in [Duration::ZERO, LOOK] {
                looks += usize::from(ownership.take_due(now + later));
            }
        }
        assert_eq!((lines, looks), (2, 6_000));
        assert!(ownership.is_lost());
        assert!(ownership.note("", start).is_none() && ownership.next().is_none());
    }
}
