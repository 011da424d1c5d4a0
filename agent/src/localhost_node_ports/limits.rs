//! How many sockets the relay may have.

use std::time::Duration;

/// Maximum number of sockets of connections and flows, where descriptors are
/// plenty: 4,096 connections of TCP with two each. Each may hold two buffers of
/// [`BUFFER`].
const MOST_SOCKETS: u64 = 8192;

/// The bytes that are read of a TCP connection at once, in each direction.
pub(super) const BUFFER: usize = 32 << 10;

/// The part of the process's descriptors that the relay may use.
const SHARE: u64 = 2;

/// The bounds of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sockets that listen.
    pub listeners: usize,
    /// Sockets of connections and flows. A TCP connection takes two, a UDP flow
    /// one.
    pub sockets: usize,
    /// The share of them that one port may have.
    pub sockets_of_a_port: usize,
    /// Longest wait for an endpoint to accept a connection; kube-proxy's.
    pub connect_timeout: Duration,
    /// Idle time after which a UDP flow ends that no endpoint has answered, or
    /// not for as long as [`STREAM_AGE`](super::udp::STREAM_AGE): the kernel's
    /// `nf_conntrack_udp_timeout`.
    pub udp_idle: Duration,
    /// The same for a flow with answers: `nf_conntrack_udp_timeout_stream`.
    pub udp_stream_idle: Duration,
}

impl Limits {
    /// Returns the bounds for a process that may have this number of descriptors:
    /// half of them are for the relay, and half of these for sockets that listen.
    pub fn of(descriptors: u64) -> Self {
        let quarter = descriptors / SHARE / 2;
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).min(MOST_PERMITS);
        let sockets = quarter.clamp(8, MOST_SOCKETS);
        Self {
            listeners: count(quarter.max(8)),
            sockets: count(sockets),
            sockets_of_a_port: count(sockets / 2),
            connect_timeout: Duration::from_secs(5),
            udp_idle: Duration::from_secs(30),
            udp_stream_idle: Duration::from_secs(120),
        }
    }
}

/// Maximum number of permits of a semaphore.
const MOST_PERMITS: usize = tokio::sync::Semaphore::MAX_PERMITS;

/// Returns how many of a process's descriptors are left to others.
pub fn left_to_others(descriptors: u64) -> u64 {
    descriptors - descriptors / SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_takes_half_of_the_descriptors_at_most() {
        for (descriptors, listeners, sockets) in [(64, 16, 16), (1024, 256, 256), (1_048_576, 262_144, 8192)] {
            let limits = Limits::of(descriptors);
            assert_eq!((limits.listeners, limits.sockets), (listeners, sockets), "{descriptors}");
            assert!((limits.listeners + limits.sockets) as u64 <= descriptors - left_to_others(descriptors));
        }
        // Every port of both protocols and families at once.
        assert!(Limits::of(1_048_576).listeners >= 4 * 65_535);
    }
}
