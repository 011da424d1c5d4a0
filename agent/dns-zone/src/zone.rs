//! The state: every Service and slice that has names, by Service.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use vmap_proxy_compiler::model::objects::{Kind, ObjectRef};
use vmap_proxy_compiler::model::types::ServiceName;

use crate::content::{NameContent, ServiceNames, SliceNames};
use crate::entry::Entry;
use crate::label::is_domain_name;

/// The text is no domain that names can be below of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidDomain(pub String);

impl std::fmt::Display for InvalidDomain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} is not a domain name such as cluster.local", self.0)
    }
}

impl std::error::Error for InvalidDomain {}

/// The settings of a zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneConfig {
    /// The cluster's domain in lower case, without the final dot.
    domain: String,
    /// Whether `a-b-c-d.namespace.pod` is answered.
    pod_names: bool,
}

impl Default for ZoneConfig {
    /// `cluster.local`, with pod names.
    fn default() -> Self {
        Self { domain: "cluster.local".to_owned(), pod_names: true }
    }
}

impl ZoneConfig {
    /// Checks the cluster's domain. `pod_names`: whether `a-b-c-d.namespace.pod`
    /// is answered.
    ///
    /// # Errors
    /// If `domain` is not a domain name, or so long that Services have no names
    /// below it.
    pub fn new(domain: &str, pod_names: bool) -> Result<Self, InvalidDomain> {
        // `host.service.namespace.svc.` of the longest labels and the domain must fit into 253 bytes.
        const LONGEST: usize = 57;
        let text = domain.strip_suffix('.').unwrap_or(domain);
        if !is_domain_name(text) || text.len() > LONGEST {
            return Err(InvalidDomain(domain.to_owned()));
        }
        Ok(Self { domain: text.to_ascii_lowercase(), pod_names })
    }

    /// The cluster's domain in lower case, without the final dot.
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

/// The Services of one namespace.
#[derive(Debug, Default)]
struct Namespace {
    entries: HashMap<Box<str>, Entry>,
    /// The number of entries whose Service exists.
    services: usize,
}

/// The names of a cluster, and the state of the objects that they come from.
#[derive(Debug, Default)]
pub struct Zone {
    config: ZoneConfig,
    domain_labels: Vec<Box<str>>,
    namespaces: HashMap<Box<str>, Namespace>,
    /// The Service of each slice, by `namespace/name` of the slice.
    slice_owners: HashMap<Box<str>, ServiceName>,
    /// The Services that an address has a name of, once for each slice that
    /// holds it.
    reverse: HashMap<IpAddr, Vec<ServiceName>>,
    service_cidrs: BTreeMap<String, (u32, Vec<IpNet>)>,
    /// Further ranges whose addresses have names here or none.
    other_ranges: Vec<IpNet>,
    pod_ranges: Vec<IpNet>,
    lists: HashMap<Kind, u32>,
    is_complete: bool,
}

impl Zone {
    /// An empty zone, which is not complete.
    pub fn new(config: ZoneConfig) -> Self {
        let domain_labels = config.domain.split('.').map(Into::into).collect();
        Self { config, domain_labels, ..Self::default() }
    }

    /// The cluster's domain in lower case, without the final dot.
    pub fn domain(&self) -> &str {
        &self.config.domain
    }

    /// Adds ranges whose reverse names belong to this zone beside those of
    /// ServiceCIDRs and of this node's pods: the cluster's pod ranges.
    pub fn add_ranges(&mut self, ranges: impl IntoIterator<Item = IpNet>) {
        self.other_ranges.extend(ranges);
    }

    /// The pod ranges of this node, as its Node object has them.
    pub fn pod_ranges(&self) -> &[IpNet] {
        &self.pod_ranges
    }

    /// Everything has been listed once: from now on a name that is not known
    /// does not exist.
    pub fn set_complete(&mut self) {
        self.is_complete = true;
    }

    /// Returns whether everything has been listed once.
    pub fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The number of Services with a name.
    pub fn service_count(&self) -> usize {
        self.namespaces.values().map(|namespace| namespace.services).sum()
    }

    /// The cluster IPs of a Service; none if it is not known, or has none.
    pub fn cluster_ips(&self, service: &ServiceName) -> &[IpAddr] {
        match self.entry(service.namespace(), service.name()) {
            Some((_, ServiceNames::ClusterIp { addresses, .. })) => addresses,
            _ => &[],
        }
    }

    /// Applies the change of one object.
    pub fn apply(&mut self, object: &ObjectRef, content: NameContent) {
        match content {
            NameContent::Service(Some(names)) => self.set_service(object, names),
            NameContent::Service(None) => self.remove_service(&object.namespace, &object.name),
            NameContent::Slice(Some((owner, names))) => self.set_slice(object, owner, names),
            NameContent::Slice(None) => self.remove_slice(&object.namespace, &object.name),
            NameContent::ServiceCidr(ranges) => {
                let list = self.list(Kind::ServiceCidr);
                self.service_cidrs.insert(object.name.clone(), (list, ranges));
            }
            // A Node that loses them for a moment keeps them, as in the compiler's store.
            NameContent::Node(ranges) if ranges.is_empty() => {}
            NameContent::Node(ranges) => self.pod_ranges = ranges,
            NameContent::Gone => self.remove(object),
            NameContent::Kept => self.keep(object),
        }
    }

    /// A complete list of `kind` begins; see [`Self::end_list`].
    pub fn begin_list(&mut self, kind: Kind) {
        *self.lists.entry(kind).or_default() += 1;
    }

    /// A complete list of `kind` has been applied: removes all other objects of
    /// that kind. Walks over all of them.
    pub fn end_list(&mut self, kind: Kind) {
        let current = self.list(kind);
        match kind {
            Kind::Service => {
                for (namespace, name) in self.services_outside(current) {
                    self.remove_service(&namespace, &name);
                }
            }
            Kind::EndpointSlice => {
                for (namespace, name) in self.slices_outside(current) {
                    self.remove_slice(&namespace, &name);
                }
            }
            Kind::ServiceCidr => self.service_cidrs.retain(|_, (list, _)| *list == current),
            Kind::Node => {}
        }
    }

    fn services_outside(&self, current: u32) -> Vec<(Box<str>, Box<str>)> {
        let gone = |entry: &Entry| entry.service.is_some() && entry.list != current;
        self.namespaces
            .iter()
            .flat_map(|(namespace, of)| of.entries.iter().map(move |(name, entry)| (namespace, name, entry)))
            .filter(|(_, _, entry)| gone(entry))
            .map(|(namespace, name, _)| (namespace.clone(), name.clone()))
            .collect()
    }

    fn slices_outside(&self, current: u32) -> Vec<(Box<str>, Box<str>)> {
        self.namespaces
            .iter()
            .flat_map(|(namespace, of)| of.entries.values().map(move |entry| (namespace, entry)))
            .flat_map(|(namespace, entry)| entry.slices().iter().map(move |slice| (namespace, slice)))
            .filter(|(_, slice)| slice.list != current)
            .map(|(namespace, slice)| (namespace.clone(), slice.name.clone()))
            .collect()
    }

    fn list(&self, kind: Kind) -> u32 {
        self.lists.get(&kind).copied().unwrap_or(0)
    }

    fn entry_mut(&mut self, namespace: &str, name: &str) -> Option<&mut Entry> {
        self.namespaces.get_mut(namespace)?.entries.get_mut(name)
    }

    /// The entry of a Service, which is made if it does not exist.
    fn entry_or_new(&mut self, namespace: &str, name: &str) -> &mut Entry {
        let of = self.namespaces.entry(namespace.into()).or_default();
        of.entries.entry(name.into()).or_default()
    }

    fn set_service(&mut self, object: &ObjectRef, names: ServiceNames) {
        let list = self.list(Kind::Service);
        let (namespace, name) = (object.namespace.as_str(), object.name.as_str());
        let entry = self.entry_or_new(namespace, name);
        entry.list = list;
        if entry.service.as_ref() == Some(&names) {
            return;
        }
        self.replace_service(namespace, name, Some(names));
    }

    fn remove_service(&mut self, namespace: &str, name: &str) {
        if self.entry_mut(namespace, name).is_some_and(|entry| entry.service.is_some()) {
            self.replace_service(namespace, name, None);
            self.forget_if_empty(namespace, name);
        }
    }

    fn replace_service(&mut self, namespace: &str, name: &str, names: Option<ServiceNames>) {
        let Some(of) = self.namespaces.get_mut(namespace) else { return };
        let Some(entry) = of.entries.get_mut(name) else { return };
        let before = entry.reverse();
        of.services += usize::from(names.is_some());
        of.services -= usize::from(entry.service.is_some());
        entry.set_service(names);
        let after = entry.reverse();
        self.replace_reverse(&ServiceName::new(namespace, name), &before, &after);
    }

    fn set_slice(&mut self, object: &ObjectRef, owner: ServiceName, names: SliceNames) {
        let list = self.list(Kind::EndpointSlice);
        let key = slice_key(&object.namespace, &object.name);
        if self.slice_owners.get(&*key).is_some_and(|before| *before != owner) {
            self.remove_slice(&object.namespace, &object.name);
        }
        let entry = self.entry_or_new(owner.namespace(), owner.name());
        if let Some(slice) = entry.slice_mut(&object.name)
            && slice.is(&names)
        {
            slice.list = list;
            return;
        }
        let before = entry.reverse_of_slice(&object.name);
        entry.set_slice(&object.name, list, names);
        let after = entry.reverse_of_slice(&object.name);
        self.replace_reverse(&owner, &before, &after);
        self.slice_owners.insert(key, owner);
    }

    fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(owner) = self.slice_owners.remove(&*slice_key(namespace, name)) else { return };
        let Some(entry) = self.entry_mut(owner.namespace(), owner.name()) else { return };
        let before = entry.reverse_of_slice(name);
        entry.remove_slice(name);
        self.replace_reverse(&owner, &before, &[]);
        self.forget_if_empty(owner.namespace(), owner.name());
    }

    fn remove(&mut self, object: &ObjectRef) {
        match object.kind {
            Kind::Service => self.remove_service(&object.namespace, &object.name),
            Kind::EndpointSlice => self.remove_slice(&object.namespace, &object.name),
            Kind::ServiceCidr => drop(self.service_cidrs.remove(&object.name)),
            // Its last known state stays in use, as in the compiler's store.
            Kind::Node => {}
        }
    }

    /// The list being taken holds it, if only by name.
    fn keep(&mut self, object: &ObjectRef) {
        let list = self.list(object.kind);
        match object.kind {
            Kind::Service => {
                if let Some(entry) = self.entry_mut(&object.namespace, &object.name) {
                    entry.list = list;
                }
            }
            Kind::EndpointSlice => {
                let owner = self.slice_owners.get(&*slice_key(&object.namespace, &object.name)).cloned();
                let entry = owner.and_then(|owner| self.entry_mut(owner.namespace(), owner.name()));
                if let Some(slice) = entry.and_then(|entry| entry.slice_mut(&object.name)) {
                    slice.list = list;
                }
            }
            Kind::ServiceCidr => {
                if let Some((of, _)) = self.service_cidrs.get_mut(&object.name) {
                    *of = list;
                }
            }
            Kind::Node => {}
        }
    }

    fn forget_if_empty(&mut self, namespace: &str, name: &str) {
        let Some(of) = self.namespaces.get_mut(namespace) else { return };
        if of.entries.get(name).is_some_and(Entry::is_empty) {
            of.entries.remove(name);
        }
        if of.entries.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    fn replace_reverse(&mut self, service: &ServiceName, before: &[IpAddr], after: &[IpAddr]) {
        for address in after {
            self.reverse.entry(*address).or_default().push(service.clone());
        }
        for address in before {
            let Some(holders) = self.reverse.get_mut(address) else { continue };
            if let Some(position) = holders.iter().position(|holder| holder == service) {
                holders.swap_remove(position);
            }
            if holders.is_empty() {
                self.reverse.remove(address);
            }
        }
    }

    pub(crate) fn domain_labels(&self) -> &[Box<str>] {
        &self.domain_labels
    }

    pub(crate) fn has_pod_names(&self) -> bool {
        self.config.pod_names
    }

    /// Returns whether a namespace has a Service.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|of| of.services > 0)
    }

    /// A Service that exists, with its slices.
    pub(crate) fn entry(&self, namespace: &str, name: &str) -> Option<(&Entry, &ServiceNames)> {
        let entry = self.namespaces.get(namespace)?.entries.get(name)?;
        Some((entry, entry.service.as_ref()?))
    }

    /// The Services that give an address a name, each once.
    pub(crate) fn holders(&self, address: IpAddr) -> Vec<(&ServiceName, &Entry, &ServiceNames)> {
        let mut holders: Vec<&ServiceName> = self.reverse.get(&address).into_iter().flatten().collect();
        holders.sort_unstable();
        holders.dedup();
        let entry = |name: &ServiceName| self.entry(name.namespace(), name.name());
        holders.into_iter().filter_map(|name| entry(name).map(|(entry, names)| (name, entry, names))).collect()
    }

    /// The ranges whose addresses have names here or none at all.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = IpNet> {
        let of_services = self.service_cidrs.values().flat_map(|(_, ranges)| ranges);
        of_services.chain(&self.other_ranges).chain(&self.pod_ranges).copied()
    }
}

fn slice_key(namespace: &str, name: &str) -> Box<str> {
    format!("{namespace}/{name}").into()
}
