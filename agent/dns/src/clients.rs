//! The clients that are answered: this node and its pods.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

/// Decides who may ask. A server that answers everybody helps attackers to hide
/// behind its answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clients {
    ranges: Vec<IpNet>,
    pod_ranges: Vec<IpNet>,
    addresses: HashSet<IpAddr>,
}

impl Clients {
    /// Answers these ranges and loopback addresses.
    pub fn new(ranges: Vec<IpNet>) -> Self {
        Self { ranges, ..Self::default() }
    }

    /// Sets the addresses of this node.
    pub fn set_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses = addresses.into_iter().collect();
    }

    /// Sets the pod ranges of this node's Node object.
    pub fn set_pod_ranges(&mut self, ranges: &[IpNet]) {
        self.pod_ranges = ranges.to_vec();
    }

    /// Returns whether pods are recognized: by any range at all.
    pub fn knows_pods(&self) -> bool {
        !self.ranges.is_empty() || !self.pod_ranges.is_empty()
    }

    /// Returns whether a client with this address is answered.
    pub fn may_ask(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        client.is_loopback()
            || self.ranges.iter().chain(&self.pod_ranges).any(|range| range.contains(&client))
            || self.addresses.contains(&client)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

    use super::*;

    #[test]
    fn only_this_node_and_its_pods_may_ask() {
        let mut clients = Clients::new(vec!["10.244.0.0/16".parse().unwrap()]);
        let may_ask = |clients: &Clients, text: &str| clients.may_ask(text.parse().unwrap());
        for client in ["127.0.0.1", "127.9.9.9", "::1", "10.244.3.4", "::ffff:10.244.3.4"] {
            assert!(may_ask(&clients, client), "{client}");
        }
        for client in ["192.0.2.11", "10.245.0.1", "fd00::1", "8.8.8.8"] {
            assert!(!may_ask(&clients, client), "{client}");
        }
        clients.set_addresses(["192.0.2.11".parse().unwrap()]);
        clients.set_pod_ranges(&["fd00::/64".parse().unwrap()]);
        assert!(may_ask(&clients, "192.0.2.11") && may_ask(&clients, "fd00::1"));
        clients.set_addresses([]);
        assert!(!may_ask(&clients, "192.0.2.11"));
        assert!(clients.knows_pods() && !Clients::new(Vec::new()).knows_pods());
    }
}
