//! Decides when Services in quarantine are tried again: a refusal that was not
//! the Service's fault must not disable it for good.

use std::time::Duration;

use tokio::time::Instant;

/// Duration of the first quarantine, unless something else leads to a
/// comparison.
const FIRST: Duration = Duration::from_secs(30);

/// The longest pause: each retrial compares all of the kernel's tables.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The schedule for trying Services in quarantine again: after 30 s, and twice
/// as long each further time, up to an hour.
#[derive(Debug)]
pub(super) struct Retrial {
    next: Option<Instant>,
    pause: Duration,
}

impl Default for Retrial {
    fn default() -> Self {
        Self { next: None, pause: FIRST }
    }
}

impl Retrial {
    /// A sync succeeded and left Services in quarantine, or none.
    pub(super) fn note(&mut self, any_quarantined: bool, now: Instant) {
        if !any_quarantined {
            *self = Self::default();
        } else if self.next.is_none() {
            self.next = Some(now + self.pause);
            self.pause = (self.pause * 2).min(LONGEST);
        }
    }

    /// Returns the time of the next retrial, if any Service is in quarantine.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Returns whether a retrial is due; true once.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        self.next.take_if(|next| *next <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_nobody_is_in_quarantine() {
        let (mut retrial, mut now) = (Retrial::default(), Instant::now());
        retrial.note(false, now);
        assert_eq!(retrial.next(), None);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            retrial.note(true, now);
            // Further syncs meanwhile put nothing off.
            retrial.note(true, now + Duration::from_secs(1));
            let next = retrial.next().unwrap_or(now);
            pauses.push((next - now).as_secs());
            assert!(!retrial.take_due(next - Duration::from_millis(1)));
            now = next;
            assert!(retrial.take_due(now));
            assert!(!retrial.take_due(now), "once");
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        retrial.note(false, now);
        retrial.note(true, now);
        assert_eq!(retrial.next(), Some(now + FIRST));
    }
}
