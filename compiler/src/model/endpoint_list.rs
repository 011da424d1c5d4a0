//! The endpoints of a compiled Service, in little memory.

use std::fmt;
use std::net::{IpAddr, SocketAddrV4};

use thin_vec::ThinVec;

use super::types::Endpoint;

/// A list of endpoints, in an order that its owner chooses.
///
/// An endpoint takes 6 bytes in a list of IPv4 endpoints, and 20 in any other. An empty list
/// takes none.
///
/// ```
/// use vmap_proxy_compiler::model::{Endpoint, EndpointList};
///
/// let endpoints = [1, 2].map(|host| Endpoint { address: [10, 244, 0, host].into(), port: 80 });
/// let list = EndpointList::from(&endpoints[..]);
/// assert_eq!((list.len(), list.iter().nth(1)), (2, Some(endpoints[1])));
/// assert!(list.iter().eq(endpoints));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct EndpointList(List);

/// Only a list with an IPv6 endpoint is `Any`, so that equal lists are equal.
#[derive(Clone, PartialEq, Eq)]
enum List {
    Ipv4(ThinVec<SocketAddrV4>),
    Any(ThinVec<Endpoint>),
}

impl EndpointList {
    /// Returns the number of endpoints.
    pub fn len(&self) -> usize {
        match &self.0 {
            List::Ipv4(list) => list.len(),
            List::Any(list) => list.len(),
        }
    }

    /// Returns whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The endpoints in their order.
    pub fn iter(&self) -> impl Iterator<Item = Endpoint> + Clone + '_ {
        // One of the two is empty.
        let (ipv4, any): (&[SocketAddrV4], &[Endpoint]) = match &self.0 {
            List::Ipv4(list) => (list, &[]),
            List::Any(list) => (&[], list),
        };
        ipv4.iter().map(from_ipv4).chain(any.iter().copied())
    }

    /// Returns whether the list holds this endpoint. Looks at each of them.
    pub fn contains(&self, endpoint: Endpoint) -> bool {
        self.iter().any(|one| one == endpoint)
    }
}

fn from_ipv4(endpoint: &SocketAddrV4) -> Endpoint {
    Endpoint { address: IpAddr::V4(*endpoint.ip()), port: endpoint.port() }
}

impl Default for EndpointList {
    /// An empty list.
    fn default() -> Self {
        Self(List::Ipv4(ThinVec::new()))
    }
}

impl From<&[Endpoint]> for EndpointList {
    fn from(endpoints: &[Endpoint]) -> Self {
        let mut ipv4 = ThinVec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let IpAddr::V4(address) = endpoint.address else {
                return Self(List::Any(endpoints.into()));
            };
            ipv4.push(SocketAddrV4::new(address, endpoint.port));
        }
        Self(List::Ipv4(ipv4))
    }
}

impl fmt::Debug for EndpointList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_what_it_was_made_of() {
        let endpoint = |address: &str, port| Endpoint { address: address.parse().unwrap(), port };
        let (first, second, third) = (endpoint("10.244.0.1", 80), endpoint("fd00::1", 81), endpoint("10.244.0.2", 82));
        for endpoints in [vec![], vec![first], vec![third, first], vec![second], vec![first, second, third]] {
            let list = EndpointList::from(&endpoints[..]);
            assert_eq!((list.len(), list.is_empty()), (endpoints.len(), endpoints.is_empty()));
            assert!(list.iter().eq(endpoints.iter().copied()));
            for (position, endpoint) in endpoints.iter().enumerate() {
                assert_eq!((list.iter().nth(position), list.contains(*endpoint)), (Some(*endpoint), true));
            }
            assert_eq!(list.iter().nth(endpoints.len()), None);
            assert!(!list.contains(endpoint("10.244.0.1", 81)));
            assert_eq!(list == EndpointList::default(), endpoints.is_empty());
        }
    }

    #[test]
    fn a_list_is_small() {
        assert_eq!((size_of::<EndpointList>(), size_of::<SocketAddrV4>()), (16, 6));
    }
}
