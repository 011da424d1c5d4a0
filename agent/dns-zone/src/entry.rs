//! One Service with its slices, and the indexes that its questions need.
//!
//! An index is made by the first question after a change and dropped by the
//! next change. It is always made of all slices.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::OnceLock;

use vmap_proxy_compiler::model::Protocol;

use crate::content::{EndpointNames, PortName, ServiceNames, SliceNames};
use crate::label;

/// A Service and the slices that name it; either may come first.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// `None` while only slices are known.
    pub(crate) service: Option<ServiceNames>,
    /// The list that the Service was last seen in.
    pub(crate) list: u32,
    slices: Vec<Slice>,
    /// The ready addresses of a headless Service.
    addresses: OnceLock<Addresses>,
}

/// A slice with the name it is known by.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Its name; the namespace is that of the Service.
    pub(crate) name: Box<str>,
    /// The list that it was last seen in.
    pub(crate) list: u32,
    names: SliceNames,
    /// The positions of the endpoints with a label.
    hosts: OnceLock<HashMap<Box<str>, Vec<usize>>>,
}

/// Addresses of both families, each once.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    pub(crate) ipv4: Vec<Ipv4Addr>,
    pub(crate) ipv6: Vec<Ipv6Addr>,
}

impl Addresses {
    pub(crate) fn push(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.ipv4.push(address),
            IpAddr::V6(address) => self.ipv6.push(address),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
    }
}

impl Entry {
    /// Returns whether nothing is known of it any more.
    pub(crate) fn is_empty(&self) -> bool {
        self.service.is_none() && self.slices.is_empty()
    }

    /// Replaces the Service.
    pub(crate) fn set_service(&mut self, service: Option<ServiceNames>) {
        self.service = service;
        self.addresses = OnceLock::new();
    }

    /// The slices, in no order.
    pub(crate) fn slices(&self) -> &[Slice] {
        &self.slices
    }

    pub(crate) fn slice_mut(&mut self, name: &str) -> Option<&mut Slice> {
        self.slices.iter_mut().find(|slice| &*slice.name == name)
    }

    /// Adds or replaces a slice.
    pub(crate) fn set_slice(&mut self, name: &str, list: u32, names: SliceNames) {
        self.addresses = OnceLock::new();
        match self.slice_mut(name) {
            Some(slice) => *slice = Slice::new(name, list, names),
            None => {
                // Nearly every Service has one slice, so no capacity for four is allocated.
                self.slices.reserve_exact(1);
                self.slices.push(Slice::new(name, list, names));
            }
        }
    }

    pub(crate) fn remove_slice(&mut self, name: &str) {
        self.addresses = OnceLock::new();
        self.slices.retain(|slice| &*slice.name != name);
    }

    /// The addresses of one slice that have a PTR record: those of ready
    /// endpoints of a headless Service.
    pub(crate) fn reverse_of_slice(&self, name: &str) -> Vec<IpAddr> {
        let slice = self.slices.iter().find(|slice| &*slice.name == name);
        slice.into_iter().flat_map(|slice| self.ready_endpoints(slice)).map(|endpoint| endpoint.address).collect()
    }

    /// All addresses that have a PTR record with this Service's name.
    pub(crate) fn reverse(&self) -> Vec<IpAddr> {
        match &self.service {
            Some(ServiceNames::ClusterIp { addresses, .. }) => addresses.clone(),
            Some(ServiceNames::Headless { .. }) => {
                let ready = self.slices.iter().flat_map(|slice| self.ready_endpoints(slice));
                ready.map(|endpoint| endpoint.address).collect()
            }
            Some(ServiceNames::External(_)) | None => Vec::new(),
        }
    }

    /// The ready endpoints of a slice; none unless the Service is headless.
    fn ready_endpoints<'e>(&self, slice: &'e Slice) -> impl Iterator<Item = &'e EndpointNames> + use<'e> {
        let (headless, all) = match self.service {
            Some(ServiceNames::Headless { publish_not_ready }) => (true, publish_not_ready),
            _ => (false, false),
        };
        slice.names.endpoints.iter().filter(move |endpoint| headless && (all || endpoint.ready))
    }

    /// The addresses of all ready endpoints of a headless Service.
    pub(crate) fn addresses(&self) -> &Addresses {
        self.addresses.get_or_init(|| {
            let mut seen = HashSet::new();
            let mut addresses = Addresses::default();
            for slice in &self.slices {
                for endpoint in self.ready_endpoints(slice) {
                    // An endpoint may be in two slices for a moment.
                    if seen.insert(endpoint.address) {
                        addresses.push(endpoint.address);
                    }
                }
            }
            addresses
        })
    }

    /// The addresses of the ready endpoints with a host name, real or made up.
    pub(crate) fn host(&self, hostname: &str) -> Addresses {
        let mut found: Vec<IpAddr> = Vec::new();
        for slice in &self.slices {
            let positions = slice.hosts().get(hostname).into_iter().flatten();
            for endpoint in positions.filter_map(|position| slice.names.endpoints.get(*position)) {
                if self.is_ready(endpoint) && !found.contains(&endpoint.address) {
                    found.push(endpoint.address);
                }
            }
        }
        let mut addresses = Addresses::default();
        found.into_iter().for_each(|address| addresses.push(address));
        addresses
    }

    fn is_ready(&self, endpoint: &EndpointNames) -> bool {
        match self.service {
            Some(ServiceNames::Headless { publish_not_ready }) => publish_not_ready || endpoint.ready,
            _ => false,
        }
    }

    /// The host names of the ready endpoints with an address, sorted.
    pub(crate) fn hostnames(&self, address: IpAddr) -> Vec<String> {
        let endpoints = self.slices.iter().flat_map(|slice| self.ready_endpoints(slice));
        let mut names: Vec<String> = endpoints.filter(|endpoint| endpoint.address == address).map(host_label).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Port numbers and host names of a named port of a headless Service, each
    /// pair once.
    pub(crate) fn targets(&self, port: &str, protocol: Protocol) -> Vec<(u16, String)> {
        let mut seen = HashSet::new();
        let mut targets = Vec::new();
        for slice in &self.slices {
            for number in slice.names.ports.iter().filter(|named| named.is(port, protocol)).map(|named| named.port) {
                for host in self.ready_endpoints(slice).map(host_label) {
                    if seen.insert((number, host.clone())) {
                        targets.push((number, host));
                    }
                }
            }
        }
        targets
    }

    /// Returns whether a named port of this protocol exists.
    pub(crate) fn has_ports(&self, protocol: Protocol) -> bool {
        let has = |ports: &[PortName]| ports.iter().any(|port| port.protocol == protocol);
        match &self.service {
            Some(ServiceNames::ClusterIp { ports, .. }) => has(ports),
            Some(ServiceNames::Headless { .. }) => {
                self.slices.iter().any(|slice| has(&slice.names.ports) && self.ready_endpoints(slice).next().is_some())
            }
            Some(ServiceNames::External(_)) | None => false,
        }
    }
}

impl PortName {
    pub(crate) fn is(&self, name: &str, protocol: Protocol) -> bool {
        *self.name == *name && self.protocol == protocol
    }
}

impl Slice {
    fn new(name: &str, list: u32, names: SliceNames) -> Self {
        Self { name: name.into(), list, names, hosts: OnceLock::new() }
    }

    /// Returns whether it holds just this.
    pub(crate) fn is(&self, names: &SliceNames) -> bool {
        self.names == *names
    }

    fn hosts(&self) -> &HashMap<Box<str>, Vec<usize>> {
        self.hosts.get_or_init(|| {
            let mut hosts: HashMap<Box<str>, Vec<usize>> = HashMap::new();
            for (position, endpoint) in self.names.endpoints.iter().enumerate() {
                hosts.entry(host_label(endpoint).into()).or_default().push(position);
            }
            hosts
        })
    }
}

fn host_label(endpoint: &EndpointNames) -> String {
    match &endpoint.hostname {
        Some(hostname) => hostname.to_string(),
        None => label::of_address(endpoint.address),
    }
}
