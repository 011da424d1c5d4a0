//! Decides whether a failure gets a log line: each cause once a minute,
//! whatever happens in between.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tokio::time::Instant;

/// The time between two lines about one cause.
const GAP: Duration = Duration::from_secs(60);

/// Maximum number of causes with lines, because a server can invent status
/// codes and messages.
const MOST_CAUSES: usize = 16;

/// The cause of a failure, for the purpose of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// The server has answered with this status.
    Refused(u16),
    /// The connection broke or could not be made, in these words.
    Broken(u64),
    /// A response in another encoding than it announces.
    NotEncoded,
    /// Nothing was received.
    Silent,
    /// A list that does not end.
    EndlessList,
    /// Watches that end as soon as they begin.
    ShortWatch,
    /// A version that is too old.
    Gone,
}

impl Cause {
    /// A broken connection. Messages that differ only in numbers have the same
    /// cause.
    pub(super) fn broken(message: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        message.chars().filter(|character| !character.is_numeric()).for_each(|character| character.hash(&mut hasher));
        Self::Broken(hasher.finish())
    }
}

/// The times of the last lines, by cause.
#[derive(Debug, Default)]
pub(super) struct Notices {
    last: HashMap<Cause, (Instant, u32)>,
}

impl Notices {
    /// Returns whether a line about this is due, and if so, the number of lines
    /// omitted since the last one.
    pub(super) fn due(&mut self, cause: Cause) -> Option<u32> {
        self.due_at(cause, Instant::now())
    }

    fn due_at(&mut self, cause: Cause, now: Instant) -> Option<u32> {
        if self.last.len() >= MOST_CAUSES && !self.last.contains_key(&cause) {
            self.last.retain(|_, (written, _)| now.duration_since(*written) < GAP);
            if self.last.len() >= MOST_CAUSES {
                return None;
            }
        }
        match self.last.get_mut(&cause) {
            Some((written, kept_back)) if now.duration_since(*written) < GAP => {
                *kept_back += 1;
                None
            }
            _ => self.last.insert(cause, (now, 0)).map(|(_, kept_back)| kept_back).or(Some(0)),
        }
    }
}

/// Maximum number of lines that are remembered.
const MOST_LINES: usize = 1024;

/// The lines of the last minute, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Lines {
    written: HashMap<u64, Instant>,
}

impl Lines {
    /// Returns whether a line was not written in the last minute; it counts as written then. Beyond a thousand lines
    /// none is remembered: the limit of the log holds.
    pub(super) fn is_new(&mut self, line: &str) -> bool {
        self.is_new_at(line, Instant::now())
    }

    fn is_new_at(&mut self, line: &str, now: Instant) -> bool {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let hash = hasher.finish();
        if self.written.get(&hash).is_some_and(|written| now.duration_since(*written) < GAP) {
            return false;
        }
        if self.written.len() >= MOST_LINES {
            self.written.retain(|_, written| now.duration_since(*written) < GAP);
        }
        if self.written.len() < MOST_LINES {
            self.written.insert(hash, now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_has_a_line_a_minute() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        let broken = Cause::broken("connection 1 refused");
        assert_eq!(broken, Cause::broken("connection 22 refused"));
        assert_ne!(broken, Cause::broken("certificate 1 refused"));
        assert_eq!(notices.due_at(broken, now), Some(0));
        assert_eq!(notices.due_at(Cause::Gone, now), Some(0));
        for _ in 0..5 {
            assert_eq!(notices.due_at(broken, now + GAP / 2), None);
        }
        assert_eq!(notices.due_at(broken, now + GAP), Some(5));
        let lines = (0..1000).filter(|code| notices.due_at(Cause::Refused(*code), now + GAP).is_some()).count();
        assert!(lines <= MOST_CAUSES, "{lines}");
    }

    #[test]
    fn a_line_is_written_once_a_minute() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert!(lines.is_new_at("a", now) && lines.is_new_at("b", now));
        assert!(!lines.is_new_at("a", now + GAP / 2));
        assert!(lines.is_new_at("a", now + GAP));
        (0..2 * MOST_LINES).for_each(|number| assert!(lines.is_new_at(&number.to_string(), now + GAP)));
        assert_eq!(lines.written.len(), MOST_LINES);
    }
}
