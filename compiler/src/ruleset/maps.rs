//! The sets and maps: their names, keys and data. Their number is fixed; only
//! their elements grow.
//!
//! All of it is one [table](Map::row): the code, the declarations in the kernel
//! and `docs/maps.md` come from it.

use std::fmt;

use serde::{Serialize, Serializer};

use super::target::{Domain, Pool};

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
    /// The number of an endpoint list, in the form of `meta priority`: four
    /// bytes in *host* byte order. nft calls the type `classid`.
    List,
}

/// The data of an element of a set or map besides its key.
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

/// The special properties of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Flag {
    /// It holds prefixes (`flags interval`).
    Interval,
    /// Packets add elements, and elements expire (`flags dynamic,timeout`).
    Dynamic,
    /// Each element counts the connections that match it (`counter`).
    Counter,
}

/// One set or map of a table. [`Map::all`] lists them in the order in which
/// they are made.
///
/// Most exist once for frontends by address and once for NodePorts. Those that
/// belong to an endpoint list exist for each [`Pool`] as well.
///
/// ```
/// use vmap_proxy_compiler::ruleset::maps::{DataKind, KeyField, Map};
/// use vmap_proxy_compiler::ruleset::target::{Domain, Pool};
///
/// let map = Map::Endpoints(Domain::NodePort, Pool::Main);
/// assert_eq!(map.name(), "nodeport-endpoints");
/// assert_eq!(map.key(), [KeyField::Protocol, KeyField::Port, KeyField::Slot]);
/// assert_eq!(map.data(), DataKind::Endpoint);
/// assert_eq!(Map::parse("nodeport-endpoints"), Some(map));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// The balancing chain of a frontend.
    Frontends(Domain),
    /// The local endpoints of frontends with `externalTrafficPolicy: Local`.
    LocalFrontends(Domain),
    /// The cluster-wide endpoints of the same frontends.
    ShortCircuit(Domain),
    /// The endpoints of each frontend, one per slot.
    Endpoints(Domain, Pool),
    /// The addresses of this node that serve NodePorts.
    NodePortIps,
    /// Every allocated cluster IP.
    ClusterIps,
    /// The ranges cluster IPs are allocated from.
    ServiceCidrs,
    /// The last endpoint of a client in a list.
    Affinity,
    /// The numbers of the endpoint lists that clients stick to.
    AffinityLists(Domain, Pool),
    /// For how long clients of a list are remembered.
    AffinityTimeouts,
    /// Frontends whose every connection is masqueraded.
    Masquerade(Domain),
    /// Frontends of which only the node's own connections are masqueraded.
    LocalPolicy(Domain),
    /// Local endpoints against themselves.
    HairpinConnections,
    /// Frontends with `loadBalancerSourceRanges`.
    FirewallIps,
    /// The clients that those ranges allow.
    SourceRanges,
    /// Prefixes under which a frontend has longer ranges.
    SourceRangeMarkers,
    /// Frontends without a usable endpoint.
    NoEndpoints(Domain),
}

/// The description of one set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Row {
    /// The set or map.
    pub map: Map,
    /// Its name in the kernel.
    pub name: &'static str,
    /// The fields of the key, in order.
    pub key: &'static [KeyField],
    /// The data of the elements.
    pub data: DataKind,
    /// Special properties, if any.
    pub flag: Option<Flag>,
    /// The purpose.
    pub purpose: &'static str,
}

use Domain::{Frontend, NodePort};
use KeyField::{Address, List, Port, Protocol, Slot};
use Pool::{Main, ShortCircuit};

/// Makes the table, and the look-up in it. Each row names its map as a pattern,
/// so that the compiler finds a map without a row.
macro_rules! table {
    ($($map:ident$(($($part:ident),+))?: $name:literal,
       [$($key:ident),+] => $data:ident, $flag:expr, $purpose:literal;)+) => {
        /// All rows, in the order in which the maps are made and listed.
        const ROWS: &[Row] = &[$(*Map::$map$(($($part),+))?.row()),+];

        impl Map {
            /// Returns its description.
            pub const fn row(self) -> &'static Row {
                match self {
                    $(Map::$map$(($($part),+))? => &Row {
                        map: Map::$map$(($($part),+))?,
                        name: $name,
                        key: &[$($key),+],
                        data: DataKind::$data,
                        flag: $flag,
                        purpose: $purpose,
                    },)+
                }
            }
        }
    };
}

table! {
    Frontends(Frontend): "services", [Address, Protocol, Port] => Verdict, Some(Flag::Counter),
        "Frontends by address: which balancing chain serves them.";
    LocalFrontends(Frontend): "local-services", [Address, Protocol, Port] => Verdict, None,
        "Frontends with `externalTrafficPolicy: Local`: the local endpoints.";
    ShortCircuit(Frontend): "short-circuit", [Address, Protocol, Port] => Verdict, None,
        "The same frontends: the cluster-wide endpoints, for pods of this node and the node itself.";
    Endpoints(Frontend, Main): "endpoints", [Address, Protocol, Port, Slot] => Endpoint, None,
        "The endpoints of `services` and `local-services`, one per slot.";
    Endpoints(Frontend, ShortCircuit): "short-circuit-endpoints", [Address, Protocol, Port, Slot] => Endpoint, None,
        "The endpoints of `short-circuit`, one per slot.";
    Frontends(NodePort): "nodeports", [Protocol, Port] => Verdict, Some(Flag::Counter),
        "NodePorts: which balancing chain serves them.";
    LocalFrontends(NodePort): "local-nodeports", [Protocol, Port] => Verdict, None,
        "NodePorts with `externalTrafficPolicy: Local`: the local endpoints.";
    ShortCircuit(NodePort): "nodeport-short-circuit", [Protocol, Port] => Verdict, None,
        "The same NodePorts: the cluster-wide endpoints, for pods of this node and the node itself.";
    Endpoints(NodePort, Main): "nodeport-endpoints", [Protocol, Port, Slot] => Endpoint, None,
        "The endpoints of `nodeports` and `local-nodeports`, one per slot.";
    Endpoints(NodePort, ShortCircuit): "nodeport-short-circuit-endpoints", [Protocol, Port, Slot] => Endpoint, None,
        "The endpoints of `nodeport-short-circuit`, one per slot.";
    NodePortIps: "nodeport-ips", [Address] => Nothing, None,
        "Which of this node's addresses serve NodePorts.";
    ClusterIps: "cluster-ips", [Address] => Nothing, None,
        "Every allocated cluster IP.";
    ServiceCidrs: "service-cidrs", [Address] => Nothing, Some(Flag::Interval),
        "The ranges cluster IPs are allocated from.";
    Affinity: "affinity", [Address, List] => Endpoint, Some(Flag::Dynamic),
        "Which endpoint of a list a client went to last. The packets fill it themselves.";
    AffinityLists(Frontend, Main): "affinity-lists", [Address, Protocol, Port] => List, None,
        "Frontends with session affinity: the number of the list in `endpoints`.";
    AffinityLists(Frontend, ShortCircuit): "short-circuit-affinity-lists", [Address, Protocol, Port] => List, None,
        "The same for the list in `short-circuit-endpoints`.";
    AffinityLists(NodePort, Main): "nodeport-affinity-lists", [Protocol, Port] => List, None,
        "NodePorts with session affinity: the number of the list in `nodeport-endpoints`.";
    AffinityLists(NodePort, ShortCircuit): "nodeport-short-circuit-affinity-lists", [Protocol, Port] => List, None,
        "The same for the list in `nodeport-short-circuit-endpoints`.";
    AffinityTimeouts: "affinity-timeouts", [List] => Verdict, None,
        "Numbers of lists: for how long clients are remembered.";
    Masquerade(Frontend): "masquerade-services", [Address, Protocol, Port] => Nothing, None,
        "Frontends whose every connection is masqueraded (`externalTrafficPolicy: Cluster`).";
    Masquerade(NodePort): "masquerade-nodeports", [Protocol, Port] => Nothing, None,
        "NodePorts whose every connection is masqueraded.";
    LocalPolicy(Frontend): "local-policy-services", [Address, Protocol, Port] => Nothing, None,
        "Frontends with `externalTrafficPolicy: Local`: masqueraded only for the node's own connections.";
    LocalPolicy(NodePort): "local-policy-nodeports", [Protocol, Port] => Nothing, None,
        "NodePorts with `externalTrafficPolicy: Local`.";
    HairpinConnections: "hairpin-connections", [Address, Address, Protocol, Port] => Nothing, None,
        "Local endpoints against themselves: a pod that reaches itself through a Service must be masqueraded.";
    FirewallIps: "firewall-ips", [Address, Protocol, Port] => Verdict, None,
        "Load balancer frontends with `loadBalancerSourceRanges`.";
    SourceRanges: "source-ranges", [Address, Protocol, Port, Address, Address] => Nothing, None,
        "What those ranges allow: a frontend with the first and the last address of each.";
    SourceRangeMarkers: "source-range-markers", [Address, Protocol, Port, Address, Address] => Nothing, None,
        "Prefixes under which a frontend has longer ranges.";
    NoEndpoints(Frontend): "no-endpoint-services", [Address, Protocol, Port] => Verdict, None,
        "Frontends without a usable endpoint: reject or drop.";
    NoEndpoints(NodePort): "no-endpoint-nodeports", [Protocol, Port] => Verdict, None,
        "NodePorts without a usable endpoint: reject or drop.";
}

impl Map {
    /// All of them, in the order in which they are made and listed.
    pub fn all() -> impl ExactSizeIterator<Item = Map> {
        ROWS.iter().map(|row| row.map)
    }

    /// The name in the kernel.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Reads a name back. `None` for a name that is not ours.
    pub fn parse(name: &str) -> Option<Map> {
        Map::all().find(|map| map.name() == name)
    }

    /// The fields of the key, in order.
    pub fn key(self) -> &'static [KeyField] {
        self.row().key
    }

    /// The data of the elements.
    pub fn data(self) -> DataKind {
        self.row().data
    }

    /// Returns whether the set holds prefixes (`flags interval`).
    pub fn is_interval(self) -> bool {
        self.row().flag == Some(Flag::Interval)
    }

    /// Returns whether several Services may contribute one and the same element. It
    /// stays as long as one of them does.
    pub fn is_shared(self) -> bool {
        matches!(self, Map::ClusterIps | Map::HairpinConnections)
    }

    /// Returns whether packets add elements and elements expire (`flags dynamic,timeout`).
    pub fn is_dynamic(self) -> bool {
        self.row().flag == Some(Flag::Dynamic)
    }

    /// Returns whether each element counts the connections that match it
    /// (`counter`).
    pub fn has_counter(self) -> bool {
        self.row().flag == Some(Flag::Counter)
    }

    /// Returns whether the key and value have to be declared by `typeof`: only
    /// that can name the slot's integer.
    pub fn is_typeof(self) -> bool {
        self.key().contains(&KeyField::Slot)
    }
}

/// The maximum number of clients in the map `affinity`. The kernel sizes the
/// hash table when the map is created (8 bytes a bucket). A client that does
/// not fit is placed again with each connection.
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_read_back_and_are_unique() {
        let mut maps = BTreeSet::new();
        for map in Map::all() {
            assert_eq!(Map::parse(map.name()), Some(map));
            assert!(map.row().map == map && maps.insert(map), "{map} has two rows");
        }
        assert_eq!((maps.len(), Map::parse("kube-proxy")), (29, None));
    }
}
