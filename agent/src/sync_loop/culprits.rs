//! Logs which programs changed our tables, in few lines: a program that does it
//! a thousand times a second is named once a minute.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::netlink::Observed;

/// Number of changes of one program that are logged at once before its minute
/// begins.
const LOGGED_AT_ONCE: u32 = 5;

/// Time without further lines about a program after that.
const SILENCE: Duration = Duration::from_secs(60);

/// Maximum number of programs that are distinguished.
const MOST_PROGRAMS: usize = 64;

/// The changes of one program.
#[derive(Debug)]
struct Program {
    /// The beginning of its current minute.
    since: Instant,
    /// The number of lines in that minute.
    logged: u32,
    /// The number of changes without a line.
    left_out: u32,
}

/// The programs that changed our tables, with counts.
#[derive(Debug, Default)]
pub(super) struct Culprits {
    programs: BTreeMap<String, Program>,
    /// The one that did it last.
    last: Option<String>,
}

impl Culprits {
    /// Notes a change; the line about it, if there is to be one.
    pub(super) fn note(&mut self, change: &Observed, now: Instant) -> Option<String> {
        let (name, who) = match change {
            Observed::Foreign(change) => {
                let name = change.process_name.as_str();
                (name, format!("process {} ({name})", change.pid))
            }
            Observed::Unknown => ("", "an unknown process (notifications were lost)".to_owned()),
        };
        self.last = Some(who.clone());
        let key = if self.programs.len() < MOST_PROGRAMS || self.programs.contains_key(name) { name } else { "" };
        let fresh = Program { since: now, logged: 0, left_out: 0 };
        let program = self.programs.entry(key.to_owned()).or_insert(fresh);
        let is_over = now.saturating_duration_since(program.since) >= SILENCE;
        if program.logged >= LOGGED_AT_ONCE && !is_over {
            program.left_out = program.left_out.saturating_add(1);
            return None;
        }
        let before = std::mem::take(&mut program.left_out);
        if is_over {
            // One that goes on gets one line; one that had been quiet, all of them.
            *program = Program { since: now, logged: if before > 0 { LOGGED_AT_ONCE - 1 } else { 0 }, left_out: 0 };
        }
        program.logged += 1;
        let times = match before {
            0 => String::new(),
            before => format!(", after {before} changes without a line"),
        };
        Some(format!("the table vmap-proxy was changed by {who}{times}; comparing and repairing it"))
    }

    /// Returns the program that changed our tables last.
    pub(super) fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Returns whether a repair should be logged.
    pub(super) fn is_quiet(&self, now: Instant) -> bool {
        let is_loud = |program: &Program| {
            program.logged >= LOGGED_AT_ONCE
                && now.saturating_duration_since(program.since) < SILENCE
                && program.left_out > 0
        };
        !self.programs.values().any(is_loud)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::ForeignChange;

    fn change(name: &str, pid: u32) -> Observed {
        Observed::Foreign(ForeignChange { genid: 1, families: Vec::new(), pid, process_name: name.to_owned() })
    }

    #[test]
    fn a_program_that_goes_on_is_named_once_a_minute() {
        let start = Instant::now();
        let mut culprits = Culprits::default();
        let mut lines = Vec::new();
        // 100 changes a second for five minutes, each by a separate process.
        for number in 0..30_000 {
            let now = start + Duration::from_millis(10) * number;
            lines.extend(culprits.note(&change("loop", number), now));
        }
        assert_eq!(lines.len(), 5 + 4, "{lines:#?}");
        assert!(lines[0].contains("process 0 (loop);"), "{}", lines[0]);
        assert!(lines[5].contains("after 5995 changes without a line"), "{}", lines[5]);
        assert!(!culprits.is_quiet(start + Duration::from_secs(299)));
        assert_eq!(culprits.last(), Some("process 29999 (loop)"));
    }

    #[test]
    fn programs_have_lines_of_their_own() {
        let start = Instant::now();
        let mut culprits = Culprits::default();
        for number in 0..100 {
            culprits.note(&change("loop", number), start);
        }
        assert!(culprits.note(&change("nft", 7), start).is_some());
        assert!(culprits.note(&Observed::Unknown, start).is_some());
    }
}
