//! Foreign changes to our tables during our own work.

use crate::netlink::{Moment, Monitor, NetlinkError, Observed};

use super::Syncer;

/// What a syncer notices between syncs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// Another program has changed one of our tables: the next sync compares them
    /// with the desired state.
    ForeignChange,
    /// [`Syncer::remove_leftovers`] has something to do.
    Leftovers,
}

impl Syncer {
    /// Returns the next notice. There is none before the first sync is done, which
    /// checks by itself. May be dropped and called again.
    pub async fn notice(&mut self) -> Notice {
        // A repair comes before, and sees to the leftovers.
        let is_damaged = self.damaged;
        let observed = tokio::select! {
            biased;
            observed = next_change(&mut self.monitor) => observed,
            () = self.leftovers.found(), if !is_damaged => return Notice::Leftovers,
        };
        match observed {
            Ok(observed) => self.seen.push(observed),
            Err(error) => self.lose_monitor(&error),
        }
        self.damaged = true;
        self.see_foreign_changes();
        Notice::ForeignChange
    }

    /// Returns the foreign changes to our tables since the last call.
    pub fn take_foreign_changes(&mut self) -> Vec<Observed> {
        std::mem::take(&mut self.seen)
    }

    /// Checks, without waiting, whether another program has changed anything.
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

    /// Returns whether other programs may have changed our tables since the
    /// last [check](Self::see_foreign_changes). If so, a failure since then
    /// proves nothing.
    ///
    /// If the monitor is open, it decides: the kernel notifies it of a commit
    /// before the next one begins. Generations alone are not enough, because
    /// one of our commits that changes nothing does not count, and would hide a
    /// foreign one.
    pub(super) fn was_disturbed(&mut self, since: Moment) -> bool {
        if let Some(monitor) = &mut self.monitor {
            return monitor.has_seen().unwrap_or(true);
        }
        self.open_monitor();
        if self.monitor.is_some() {
            // There was no monitor so far: the next pass gives proof.
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

    /// Returns whether the state just programmed is still in place: nobody
    /// changed anything between the first check and the opening of the monitor,
    /// which reports all later changes.
    pub(super) fn is_settled(&mut self, since: Moment) -> Result<bool, NetlinkError> {
        if self.monitor.is_some() {
            return Ok(true);
        }
        self.open_monitor();
        // Without a monitor, another check would not help either.
        Ok(self.monitor.is_none() || self.kernel.undisturbed_since(since)?)
    }

    fn open_monitor(&mut self) {
        match Monitor::open(self.kernel.port()) {
            Ok(monitor) => self.monitor = Some(monitor),
            Err(error) => tracing::warn!("changes that others make to our tables will not be seen: {error}"),
        }
    }

    fn lose_monitor(&mut self, error: &NetlinkError) {
        tracing::warn!(
            "notifications of foreign changes to our tables were lost: {error}; comparing, and watching again"
        );
        self.monitor = None;
        self.seen.push(Observed::Unknown);
        self.damaged = true;
    }
}

async fn next_change(monitor: &mut Option<Monitor>) -> Result<Observed, NetlinkError> {
    match monitor {
        Some(monitor) => monitor.next().await,
        None => std::future::pending().await,
    }
}
