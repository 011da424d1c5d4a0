//! The choice of an endpoint for a new connection.

use std::time::Duration;

use tokio::time::Instant;
use vmap_proxy_compiler::model::Endpoint;

/// The endpoints of one NodePort.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    all: Box<[Endpoint]>,
    affinity: Option<Duration>,
    /// The endpoint that every client gets, and when one last did. All clients
    /// have the same address, so there is one for the port, as in kube-proxy.
    pinned: Option<(Endpoint, Instant)>,
}

impl Endpoints {
    /// Takes another list. The endpoint that clients stay with is kept, unless
    /// the affinity changes.
    pub(super) fn replace(&mut self, all: Box<[Endpoint]>, affinity: Option<Duration>) {
        self.all = all;
        if self.affinity != affinity {
            self.affinity = affinity;
            self.pinned = None;
        }
    }

    /// Chooses at random; with session affinity the same endpoint again, as long
    /// as it is in the list and the last connection is not longer ago than the
    /// timeout. `None` if there is no endpoint.
    pub(super) fn choose(&mut self, now: Instant) -> Option<Endpoint> {
        let Some(timeout) = self.affinity else { return self.draw() };
        let pinned = self
            .pinned
            .filter(|(endpoint, last)| now.saturating_duration_since(*last) <= timeout && self.all.contains(endpoint));
        let chosen = pinned.map(|(endpoint, _)| endpoint).or_else(|| self.draw())?;
        self.pinned = Some((chosen, now));
        Some(chosen)
    }

    fn draw(&self) -> Option<Endpoint> {
        match self.all.len() {
            0 => None,
            count => self.all.get(rand::random_range(0..count)).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn list(last: impl IntoIterator<Item = u8>) -> Box<[Endpoint]> {
        last.into_iter().map(|last| Endpoint { address: [10, 244, 1, last].into(), port: 80 }).collect()
    }

    #[test]
    fn every_endpoint_is_chosen_without_affinity() {
        let mut endpoints = Endpoints::default();
        assert_eq!(endpoints.choose(Instant::now()), None);
        endpoints.replace(list(1..=4), None);
        // One of four is missed by so many in one run of 10^12.
        let chosen: BTreeSet<_> = (0..100).filter_map(|_| endpoints.choose(Instant::now())).collect();
        assert_eq!(chosen.into_iter().collect::<Box<[_]>>(), list(1..=4));
    }

    #[test]
    fn with_affinity_the_endpoint_stays_until_its_time_is_over_or_it_leaves() {
        let (timeout, start) = (Duration::from_secs(10), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut endpoints = Endpoints::default();
        endpoints.replace(list(1..=100), Some(timeout));
        let first = endpoints.choose(at(0)).unwrap();
        // Each connection renews it.
        for seconds in [10, 20, 30] {
            assert_eq!(endpoints.choose(at(seconds)), Some(first));
        }
        // Others come and go.
        endpoints.replace([&list(101..=102)[..], &[first]].concat().into(), Some(timeout));
        assert_eq!(endpoints.choose(at(40)), Some(first));
        endpoints.replace(list(101..=102), Some(timeout));
        let second = endpoints.choose(at(40)).unwrap();
        assert!(second != first && endpoints.choose(at(50)) == Some(second));
        // Too late: one of a hundred again, in one run of 10^20 always the same.
        endpoints.replace(list(1..=102), Some(timeout));
        assert!((0..10).map(|turn| endpoints.choose(at(100 + 11 * turn))).any(|chosen| chosen != Some(second)));
    }
}
