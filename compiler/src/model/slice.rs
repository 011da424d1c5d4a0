//! EndpointSlices as selection reads them.
//!
//! A cluster has several endpoints for each Service, and they would take much of the store's memory.
//! So they are kept packed ([`SliceEndpoints`]), and read one by one as [`SliceEndpoint`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arcstr::ArcStr;
use thin_vec::ThinVec;

use super::digest::Digest;
use super::family::Family;
use super::types::{NameMap, Protocol};

/// An EndpointSlice of a family we serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// `creationTimestamp`, in an order that sorts by time: the newer of two
    /// slices knows better about an endpoint in both. 0: unknown.
    pub created: i64,
    /// The ports; shared among slices, because a cluster has few different lists.
    pub ports: Arc<[SlicePort]>,
    /// The endpoints.
    pub endpoints: SliceEndpoints,
}

impl Slice {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        match self.endpoints.endpoints {
            OfFamily::Ipv4(_) => Family::Ipv4,
            OfFamily::Ipv6(_) => Family::Ipv6,
        }
    }
}

/// One port that all endpoints of a slice have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// The name that joins it to a Service's port; may be empty.
    pub name: ArcStr,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The number that connections are translated to.
    pub port: u16,
    /// Its position in `ports`, to name the field; 65,535 stands for any greater one.
    pub index: u16,
}

/// One endpoint of a slice, with the conditions that selection reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceEndpoint<'a> {
    /// The first address of the endpoint.
    pub address: IpAddr,
    /// Condition `ready`; absent counts as true.
    pub ready: bool,
    /// Condition `serving`; absent counts as true.
    pub serving: bool,
    /// Condition `terminating`; absent counts as false.
    pub terminating: bool,
    /// Whether it is on this node.
    pub local: bool,
    /// Its position in `endpoints`, to name the field; 65,535 stands for any greater one.
    pub index: u16,
    /// Topology hints; `None`: no hint at all.
    pub hints: Option<&'a Hints>,
    /// The Pod that it belongs to, to be found by its name.
    pub pod: NameDigest,
}

/// `hints` of an endpoint: the clients it is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `forZones`
    pub zones: Vec<String>,
    /// `forNodes`
    pub nodes: Vec<String>,
}

/// A digest of a name: to find an object by its name needs no more, and names would take
/// many times the memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameDigest(u64);

impl NameDigest {
    /// That of an empty name.
    pub const NONE: Self = Self(0);

    /// The digest of a name.
    pub fn of(name: &str) -> Self {
        if name.is_empty() { Self::NONE } else { Self(Digest::default().bytes(name.as_bytes()).finish().max(1)) }
    }
}

/// The endpoints of one slice, all of one family, in the order of the object.
///
/// An IPv4 endpoint takes 18 bytes, an IPv6 endpoint 30.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceEndpoints {
    endpoints: OfFamily,
    /// The different hints of the endpoints, in the order in which they first occur.
    hints: ThinVec<Arc<Hints>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum OfFamily {
    Ipv4(Box<[Packed<Ipv4Addr>]>),
    Ipv6(Box<[Packed<Ipv6Addr>]>),
}

/// One endpoint. Nothing in it is aligned to more than two bytes, so that it has no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packed<A> {
    address: A,
    /// The bytes of a [`NameDigest`].
    pod: [u8; 8],
    index: u16,
    /// The bytes of a number: the bits [`READY`] to [`LOCAL`], and from [`HINTS`] on 0 for no
    /// hints, else their position in [`SliceEndpoints::hints`] plus one.
    flags: [u8; 4],
}

const READY: u32 = 1;
const SERVING: u32 = 2;
const TERMINATING: u32 = 4;
const LOCAL: u32 = 8;
const HINTS: u32 = 16;

impl<A> Packed<A> {
    /// Unpacks it, with the hints of its slice.
    fn unpack<'a>(&self, address: IpAddr, hints: &'a [Arc<Hints>]) -> SliceEndpoint<'a> {
        let flags = u32::from_ne_bytes(self.flags);
        let has = |condition| flags & condition != 0;
        let position = usize::try_from(flags / HINTS).ok().and_then(|number| number.checked_sub(1));
        SliceEndpoint {
            address,
            ready: has(READY),
            serving: has(SERVING),
            terminating: has(TERMINATING),
            local: has(LOCAL),
            index: self.index,
            hints: position.and_then(|position| hints.get(position)).map(|hints| &**hints),
            pod: NameDigest(u64::from_ne_bytes(self.pod)),
        }
    }
}

impl SliceEndpoints {
    /// Packs endpoints. Those of another family are left out.
    pub fn new(family: Family, endpoints: &[SliceEndpoint<'_>]) -> Self {
        let mut hints = DifferentHints::default();
        let endpoints = match family {
            Family::Ipv4 => OfFamily::Ipv4(packed(endpoints, &mut hints, |address| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })),
            Family::Ipv6 => OfFamily::Ipv6(packed(endpoints, &mut hints, |address| match address {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            })),
        };
        Self { endpoints, hints: hints.list }
    }

    /// Returns the number of endpoints.
    pub fn len(&self) -> usize {
        match &self.endpoints {
            OfFamily::Ipv4(endpoints) => endpoints.len(),
            OfFamily::Ipv6(endpoints) => endpoints.len(),
        }
    }

    /// Returns whether there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each endpoint, in the order of the object.
    pub fn iter(&self) -> impl Iterator<Item = SliceEndpoint<'_>> {
        // One of the two is empty.
        let (ipv4, ipv6): (&[Packed<Ipv4Addr>], &[Packed<Ipv6Addr>]) = match &self.endpoints {
            OfFamily::Ipv4(endpoints) => (endpoints, &[]),
            OfFamily::Ipv6(endpoints) => (&[], endpoints),
        };
        let ipv4 = ipv4.iter().map(|one| one.unpack(one.address.into(), &self.hints));
        ipv4.chain(ipv6.iter().map(|one| one.unpack(one.address.into(), &self.hints)))
    }

    /// The different hints, to share them with other slices.
    pub(super) fn hints_mut(&mut self) -> &mut [Arc<Hints>] {
        &mut self.hints
    }
}

/// The different hints of a slice, in the order in which they first occur.
#[derive(Default)]
struct DifferentHints<'a> {
    list: ThinVec<Arc<Hints>>,
    /// The length of the list when these had been added to it.
    numbers: NameMap<&'a Hints, u32>,
}

/// Packs the endpoints of a family.
fn packed<'a, A>(
    endpoints: &[SliceEndpoint<'a>],
    hints: &mut DifferentHints<'a>,
    of_family: fn(IpAddr) -> Option<A>,
) -> Box<[Packed<A>]> {
    let mut list = Vec::with_capacity(endpoints.len());
    list.extend(endpoints.iter().filter_map(|endpoint| Some(pack(endpoint, of_family(endpoint.address)?, hints))));
    list.into()
}

/// Packs an endpoint, and adds its hints to those that were seen.
fn pack<'a, A>(endpoint: &SliceEndpoint<'a>, address: A, seen: &mut DifferentHints<'a>) -> Packed<A> {
    let DifferentHints { list, numbers } = seen;
    let hints = endpoint.hints.map_or(0, |hints| {
        *numbers.entry(hints).or_insert_with(|| {
            list.push(Arc::new(hints.clone()));
            // An object with 2^28 different hints would not fit into memory.
            u32::try_from(list.len()).unwrap_or(0)
        })
    });
    let bit = |condition: bool, bit: u32| if condition { bit } else { 0 };
    let flags = bit(endpoint.ready, READY)
        | bit(endpoint.serving, SERVING)
        | bit(endpoint.terminating, TERMINATING)
        | bit(endpoint.local, LOCAL)
        | hints.wrapping_mul(HINTS);
    Packed { address, pod: endpoint.pod.0.to_ne_bytes(), index: endpoint.index, flags: flags.to_ne_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, index: u16) -> SliceEndpoint<'static> {
        SliceEndpoint {
            address: address.parse().unwrap(),
            ready: index.is_multiple_of(2),
            serving: index.is_multiple_of(3),
            terminating: index.is_multiple_of(5),
            local: index.is_multiple_of(7),
            index,
            hints: None,
            pod: NameDigest::of(address),
        }
    }

    #[test]
    fn endpoints_come_out_as_they_were() {
        let hints = |zone: &str| Hints { zones: vec![zone.to_owned()], nodes: vec![] };
        let (a, b) = (hints("a"), hints("b"));
        for (family, prefix) in [(Family::Ipv4, "10.244.0."), (Family::Ipv6, "fd00::")] {
            let mut endpoints: Vec<_> = (0..40).map(|index| endpoint(&format!("{prefix}{index}"), index)).collect();
            for (position, hints) in [(3, &a), (4, &b), (5, &a), (39, &b)] {
                endpoints[position].hints = Some(hints);
            }
            let packed = SliceEndpoints::new(family, &endpoints);
            assert_eq!((packed.len(), packed.is_empty(), packed.hints.len()), (40, false, 2));
            assert!(packed.iter().eq(endpoints.iter().copied()));
            assert_eq!(packed, SliceEndpoints::new(family, &packed.iter().collect::<Vec<_>>()));
            endpoints[39].hints = None;
            assert_ne!(packed, SliceEndpoints::new(family, &endpoints));
        }
    }

    #[test]
    fn the_other_family_is_left_out() {
        let both = [endpoint("10.244.0.1", 0), endpoint("fd00::1", 1)];
        for (family, kept) in Family::ALL.into_iter().zip(both) {
            assert!(SliceEndpoints::new(family, &both).iter().eq([kept]));
        }
        assert!(SliceEndpoints::new(Family::Ipv4, &[]).is_empty());
    }

    #[test]
    fn endpoints_are_small() {
        assert_eq!((size_of::<Packed<Ipv4Addr>>(), size_of::<Packed<Ipv6Addr>>()), (18, 30));
    }
}
