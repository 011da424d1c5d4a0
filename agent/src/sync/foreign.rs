//! What others do to our tables while we work on them.

use crate::netlink::{Moment, Monitor, NetlinkError, Observed};

use super::Syncer;

impl Syncer {
    /// Resolves when somebody else has changed one of our tables; the next sync
    /// then compares them with what they should be. Before the first sync is
    /// done it never does: that one looks by itself. May be dropped and called
    /// again.
    pub async fn foreign_change(&mut self) {
        let Some(monitor) = &mut self.monitor else { return std::future::pending().await };
        match monitor.next().await {
            Ok(observed) => self.seen.push(observed),
            Err(error) => self.lose_monitor(&error),
        }
        self.damaged = true;
        self.see_foreign_changes();
    }

    /// What others did to our tables since this was called last.
    pub fn take_foreign_changes(&mut self) -> Vec<Observed> {
        std::mem::take(&mut self.seen)
    }

    /// Looks, without waiting, whether somebody else has changed anything.
    pub(super) fn see_foreign_changes(&mut self) {
        let Some(monitor) = &mut self.monitor else { return };
        match monitor.take() {
            Ok(observed) => {
                self.damaged |= !observed.is_empty();
                self.seen.extend(observed);
            }
            Err(error) => self.lose_monitor(&error),
        }
    }

    /// Whether others may have changed our tables since a moment at which this
    /// had [looked](Self::see_foreign_changes): then what failed since then
    /// proves nothing.
    ///
    /// The monitor decides where it is open: the kernel notifies it of a commit
    /// before it lets the next one begin. Generations alone would not do, since
    /// a commit of ours that changes nothing does not count as one, and would
    /// hide one of theirs.
    pub(super) fn was_disturbed(&mut self, since: Moment) -> bool {
        if let Some(monitor) = &mut self.monitor {
            return monitor.has_seen().unwrap_or(true);
        }
        self.open_monitor();
        if self.monitor.is_some() {
            // Nobody watched so far: the next pass gives proof.
            return true;
        }
        match self.kernel.undisturbed_since(since) {
            Ok(undisturbed) => !undisturbed,
            Err(error) => {
                tracing::debug!("whether others changed our tables is not known: {error}");
                true
            }
        }
    }

    /// Whether what has just been made so is still so: nobody changed anything
    /// between the first look and the opening of the monitor, which reports
    /// whatever comes later.
    pub(super) fn is_settled(&mut self, since: Moment) -> Result<bool, NetlinkError> {
        if self.monitor.is_some() {
            return Ok(true);
        }
        self.open_monitor();
        // Where nothing can be watched, looking once more would not help either.
        Ok(self.monitor.is_none() || self.kernel.undisturbed_since(since)?)
    }

    fn open_monitor(&mut self) {
        match Monitor::open(self.kernel.port()) {
            Ok(monitor) => self.monitor = Some(monitor),
            Err(error) => tracing::warn!("changes that others make to our tables will not be seen: {error}"),
        }
    }

    fn lose_monitor(&mut self, error: &NetlinkError) {
        tracing::warn!("changes that others made to our tables were not seen: {error}; comparing, and watching anew");
        self.monitor = None;
        self.seen.push(Observed::Unknown);
        self.damaged = true;
    }
}
