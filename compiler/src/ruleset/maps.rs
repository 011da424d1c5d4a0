//! The sets and maps: what they are called, what they are keyed by, what they
//! hold. Their number is fixed; only their elements grow.

use std::fmt;

use serde::{Serialize, Serializer};

/// One field of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyField {
    /// An address of the table's family, in network byte order.
    Address,
    /// `inet_proto`: one byte, padded to four in a concatenation.
    Protocol,
    /// `inet_service`: two bytes in network byte order, padded to four.
    Port,
    /// The slot of an endpoint, as `numgen` yields it: four bytes in *host*
    /// byte order.
    Slot,
    /// The number of an endpoint list, as `meta priority` carries it: four
    /// bytes in *host* byte order. nft calls the type `classid`.
    List,
}

/// What an element of a set or map holds besides its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DataKind {
    /// A set: nothing.
    Nothing,
    /// A verdict map.
    Verdict,
    /// Address and port of an endpoint.
    Endpoint,
    /// The number of an endpoint list.
    List,
}

/// All sets and maps of a table, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// Frontends by address: which balancing chain serves them.
    Services,
    /// Frontends with `externalTrafficPolicy: Local`: the local endpoints.
    LocalServices,
    /// The same frontends: the cluster-wide endpoints, for pods of this node
    /// and the node itself.
    ShortCircuit,
    /// The endpoints of `services` and `local-services`, one per slot.
    Endpoints,
    /// The endpoints of `short-circuit`, one per slot.
    ShortCircuitEndpoints,
    /// NodePorts: which balancing chain serves them.
    NodePorts,
    /// NodePorts with `externalTrafficPolicy: Local`: the local endpoints.
    LocalNodePorts,
    /// The same NodePorts: the cluster-wide endpoints.
    NodePortShortCircuit,
    /// The endpoints of `nodeports` and `local-nodeports`.
    NodePortEndpoints,
    /// The endpoints of `nodeport-short-circuit`.
    NodePortShortCircuitEndpoints,
    /// Which of this node's addresses serve NodePorts.
    NodePortIps,
    /// Every allocated cluster IP.
    ClusterIps,
    /// The ranges cluster IPs are allocated from.
    ServiceCidrs,
    /// Which endpoint of a list a client went to last, filled by the packets
    /// themselves.
    Affinity,
    /// Frontends with session affinity: the number of the list in `endpoints`.
    AffinityLists,
    /// The same for the list in `short-circuit-endpoints`.
    ShortCircuitAffinityLists,
    /// NodePorts with session affinity: the number of the list in
    /// `nodeport-endpoints`.
    NodePortAffinityLists,
    /// The same for the list in `nodeport-short-circuit-endpoints`.
    NodePortShortCircuitAffinityLists,
    /// Numbers of lists: for how long clients are remembered.
    AffinityTimeouts,
    /// Frontends whose every connection is masqueraded
    /// (`externalTrafficPolicy: Cluster`).
    MasqueradeServices,
    /// NodePorts whose every connection is masqueraded.
    MasqueradeNodePorts,
    /// Frontends with `externalTrafficPolicy: Local`: masqueraded only for the
    /// node's own connections.
    LocalPolicyServices,
    /// NodePorts with `externalTrafficPolicy: Local`.
    LocalPolicyNodePorts,
    /// Local endpoints against themselves: a pod that reaches itself through a
    /// Service must be masqueraded.
    HairpinConnections,
    /// Load balancer frontends with `loadBalancerSourceRanges`.
    FirewallIps,
    /// What those ranges allow: a frontend with the first and the last address
    /// of each.
    SourceRanges,
    /// Prefixes under which a frontend has longer ranges.
    SourceRangeMarkers,
    /// Frontends without a usable endpoint: reject or drop.
    NoEndpointServices,
    /// NodePorts without a usable endpoint: reject or drop.
    NoEndpointNodePorts,
}

use DataKind::{Endpoint, Nothing, Verdict};
use KeyField::{Address, List, Port, Protocol, Slot};

impl Map {
    /// All of them, in the order in which they are made and listed.
    pub const ALL: [Map; 29] = [
        Map::Services,
        Map::LocalServices,
        Map::ShortCircuit,
        Map::Endpoints,
        Map::ShortCircuitEndpoints,
        Map::NodePorts,
        Map::LocalNodePorts,
        Map::NodePortShortCircuit,
        Map::NodePortEndpoints,
        Map::NodePortShortCircuitEndpoints,
        Map::NodePortIps,
        Map::ClusterIps,
        Map::ServiceCidrs,
        Map::Affinity,
        Map::AffinityLists,
        Map::ShortCircuitAffinityLists,
        Map::NodePortAffinityLists,
        Map::NodePortShortCircuitAffinityLists,
        Map::AffinityTimeouts,
        Map::MasqueradeServices,
        Map::MasqueradeNodePorts,
        Map::LocalPolicyServices,
        Map::LocalPolicyNodePorts,
        Map::HairpinConnections,
        Map::FirewallIps,
        Map::SourceRanges,
        Map::SourceRangeMarkers,
        Map::NoEndpointServices,
        Map::NoEndpointNodePorts,
    ];

    /// The name in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Map::Services => "services",
            Map::LocalServices => "local-services",
            Map::ShortCircuit => "short-circuit",
            Map::Endpoints => "endpoints",
            Map::ShortCircuitEndpoints => "short-circuit-endpoints",
            Map::NodePorts => "nodeports",
            Map::LocalNodePorts => "local-nodeports",
            Map::NodePortShortCircuit => "nodeport-short-circuit",
            Map::NodePortEndpoints => "nodeport-endpoints",
            Map::NodePortShortCircuitEndpoints => "nodeport-short-circuit-endpoints",
            Map::NodePortIps => "nodeport-ips",
            Map::ClusterIps => "cluster-ips",
            Map::ServiceCidrs => "service-cidrs",
            Map::Affinity => "affinity",
            Map::AffinityLists => "affinity-lists",
            Map::ShortCircuitAffinityLists => "short-circuit-affinity-lists",
            Map::NodePortAffinityLists => "nodeport-affinity-lists",
            Map::NodePortShortCircuitAffinityLists => "nodeport-short-circuit-affinity-lists",
            Map::AffinityTimeouts => "affinity-timeouts",
            Map::MasqueradeServices => "masquerade-services",
            Map::MasqueradeNodePorts => "masquerade-nodeports",
            Map::LocalPolicyServices => "local-policy-services",
            Map::LocalPolicyNodePorts => "local-policy-nodeports",
            Map::HairpinConnections => "hairpin-connections",
            Map::FirewallIps => "firewall-ips",
            Map::SourceRanges => "source-ranges",
            Map::SourceRangeMarkers => "source-range-markers",
            Map::NoEndpointServices => "no-endpoint-services",
            Map::NoEndpointNodePorts => "no-endpoint-nodeports",
        }
    }

    /// Reads a name back. `None` for a name that is not ours.
    pub fn parse(name: &str) -> Option<Map> {
        Map::ALL.into_iter().find(|map| map.name() == name)
    }

    /// The fields of the key, in order.
    pub fn key(self) -> &'static [KeyField] {
        match self {
            Map::Services
            | Map::LocalServices
            | Map::ShortCircuit
            | Map::AffinityLists
            | Map::ShortCircuitAffinityLists
            | Map::MasqueradeServices
            | Map::LocalPolicyServices
            | Map::FirewallIps
            | Map::NoEndpointServices => &[Address, Protocol, Port],
            Map::Endpoints | Map::ShortCircuitEndpoints => &[Address, Protocol, Port, Slot],
            Map::NodePorts
            | Map::LocalNodePorts
            | Map::NodePortShortCircuit
            | Map::NodePortAffinityLists
            | Map::NodePortShortCircuitAffinityLists
            | Map::MasqueradeNodePorts
            | Map::LocalPolicyNodePorts
            | Map::NoEndpointNodePorts => &[Protocol, Port],
            Map::NodePortEndpoints | Map::NodePortShortCircuitEndpoints => &[Protocol, Port, Slot],
            Map::NodePortIps | Map::ClusterIps | Map::ServiceCidrs => &[Address],
            // client . list
            Map::Affinity => &[Address, List],
            Map::AffinityTimeouts => &[List],
            // endpoint . endpoint . protocol . endpoint port
            Map::HairpinConnections => &[Address, Address, Protocol, Port],
            // frontend . first client . last client
            Map::SourceRanges | Map::SourceRangeMarkers => &[Address, Protocol, Port, Address, Address],
        }
    }

    /// What the elements hold.
    pub fn data(self) -> DataKind {
        match self {
            Map::Services
            | Map::LocalServices
            | Map::ShortCircuit
            | Map::NodePorts
            | Map::LocalNodePorts
            | Map::NodePortShortCircuit
            | Map::AffinityTimeouts
            | Map::FirewallIps
            | Map::NoEndpointServices
            | Map::NoEndpointNodePorts => Verdict,
            Map::Endpoints
            | Map::ShortCircuitEndpoints
            | Map::NodePortEndpoints
            | Map::NodePortShortCircuitEndpoints
            | Map::Affinity => Endpoint,
            Map::AffinityLists
            | Map::ShortCircuitAffinityLists
            | Map::NodePortAffinityLists
            | Map::NodePortShortCircuitAffinityLists => DataKind::List,
            _ => Nothing,
        }
    }

    /// Whether the set holds prefixes (`flags interval`).
    pub fn is_interval(self) -> bool {
        self == Map::ServiceCidrs
    }

    /// Whether packets add elements and elements expire (`flags dynamic,timeout`).
    pub fn is_dynamic(self) -> bool {
        self == Map::Affinity
    }

    /// Whether each element counts the connections that match it (`counter`).
    pub fn has_counter(self) -> bool {
        matches!(self, Map::Services | Map::NodePorts)
    }

    /// Whether the key and value have to be declared by `typeof`: only that can
    /// name the slot's integer.
    pub fn is_typeof(self) -> bool {
        self.key().contains(&KeyField::Slot)
    }
}

/// The most clients the `affinity` map remembers. The kernel sizes the hash
/// table for it when the map is made (8 bytes a bucket); a client that does not
/// fit is placed anew with each connection.
pub const AFFINITY_SIZE: u32 = 65536;

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_are_unique() {
        for map in Map::ALL {
            assert_eq!(Map::parse(map.name()), Some(map));
        }
        assert_eq!(Map::parse("kube-proxy"), None);
    }
}
