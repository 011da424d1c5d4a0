//! All Services and slices as the sources reported them, and which Services
//! changed since the last look.
//!
//! Work is by Service: a change marks one Service, and nothing here walks over
//! all of them except at the end of a complete list.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use arcstr::ArcStr;
use ipnet::IpNet;
use thin_vec::ThinVec;

use super::checked::{CheckedChange, Content, LeftOut};
use super::config::NodeInfo;
use super::convert::Problem;
use super::family::PerFamily;
use super::interned::Interned;
use super::objects::{Change, Kind, ObjectRef};
use super::slice::{Hints, Slice, SlicePort};
use super::types::{NameMap, NameSet, Service, ServiceName, Unserved};

/// A slice with the name it is known by.
#[derive(Debug)]
struct NamedSlice {
    /// `namespace/name`, the text that it is also found by.
    name: ArcStr,
    /// Its content.
    slice: Slice,
    /// Its first unusable fields.
    problems: ThinVec<Problem>,
    list: u32,
}

/// A Service and the slices that name it; either may come first.
#[derive(Debug, Default)]
pub struct ServiceEntry {
    /// The Service in each family; shared with the programmed state.
    pub service: PerFamily<Option<Arc<Service>>>,
    /// Its slices, in the order of their names.
    slices: Vec<NamedSlice>,
    /// Whether the Service object itself exists, with rules or without.
    known: bool,
    /// The unused parts of the Service object.
    left_out: LeftOut,
    list: u32,
    /// Its part in [`Store::digest`].
    digest: u64,
}

impl ServiceEntry {
    /// Its digest when it was renewed last: see [`super::digest`].
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Returns whether the Service object itself exists, with rules or without.
    pub fn exists(&self) -> bool {
        self.known
    }

    /// Why a Service that exists has no rules in any family, and its addresses.
    pub fn unserved(&self) -> Option<&Unserved> {
        self.left_out.unserved.as_deref()
    }

    /// The first unusable fields of the Service and of its slices.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.left_out.problems.iter().chain(self.slices.iter().flat_map(|named| &named.problems))
    }

    /// Its slices with their names (`namespace/name`), in the order of the
    /// names.
    pub fn named_slices(&self) -> impl Iterator<Item = (&ArcStr, &Slice)> {
        self.slices.iter().map(|named| (&named.name, &named.slice))
    }

    /// The content of its slices, in the order of their names.
    pub fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.slices.iter().map(|named| &named.slice)
    }

    /// Returns the position of the slice with this name (`namespace/name`).
    fn position(&self, slice_name: &str) -> Option<usize> {
        self.slices.binary_search_by(|slice| (*slice.name).cmp(slice_name)).ok()
    }
}

/// The state from the sources, by Service.
#[derive(Debug, Default)]
pub struct Store {
    node_name: String,
    /// In the order of names, so that a list can be read in pages. Boxed, because nearly
    /// half of the places are free in a tree that was filled in order.
    services: BTreeMap<ServiceName, Box<ServiceEntry>>,
    /// The Service of each slice, by `namespace/name` of the slice.
    slice_owners: NameMap<ArcStr, ServiceName>,
    node: NodeInfo,
    service_cidrs: BTreeMap<String, (u32, Vec<IpNet>)>,
    hints: Interned<Arc<Hints>>,
    port_names: Interned<ArcStr>,
    slice_ports: Interned<Arc<[SlicePort]>>,
    service_count: usize,
    endpoint_count: usize,
    /// The sum of the digests of all Services.
    digest: u64,
    dirty: NameSet<ServiceName>,
    /// Changed Services in the order in which they are planned.
    planned_next: VecDeque<ServiceName>,
    node_changed: bool,
    lists: HashMap<Kind, u32>,
}

impl Store {
    /// An empty store for the node of this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self { node_name: node_name.into(), ..Self::default() }
    }

    /// The known state of the node.
    pub fn node(&self) -> &NodeInfo {
        &self.node
    }

    /// The ranges of all ServiceCIDRs.
    pub fn service_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.service_cidrs.values().flat_map(|(_, ranges)| ranges).copied()
    }

    /// A Service and its slices.
    pub fn get(&self, name: &ServiceName) -> Option<&ServiceEntry> {
        self.services.get(name).map(|entry| &**entry)
    }

    /// All Services, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&ServiceName, &ServiceEntry)> {
        self.services.iter().map(|(name, entry)| (name, &**entry))
    }

    /// The Services behind a name, in the order of their names; from the first
    /// one on if there is none. To read a long list in pages.
    pub fn after(&self, name: Option<&ServiceName>) -> impl Iterator<Item = (&ServiceName, &ServiceEntry)> {
        let begin = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.services.range::<ServiceName, _>((begin, Bound::Unbounded)).map(|(name, entry)| (name, &**entry))
    }

    /// The names of the ServiceCIDRs with their ranges, in the order of the names.
    pub fn named_service_cidrs(&self) -> impl Iterator<Item = (&str, &[IpNet])> {
        self.service_cidrs.iter().map(|(name, (_, ranges))| (name.as_str(), ranges.as_slice()))
    }

    /// Returns the number of Services with rules in at least one family.
    pub fn service_count(&self) -> usize {
        self.service_count
    }

    /// Returns the number of endpoints in all slices.
    pub fn endpoint_count(&self) -> usize {
        self.endpoint_count
    }

    /// The digest of all Services, as far as theirs were [renewed](Self::renew_digest):
    /// the same on every node that was told the same, see [`super::digest`].
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Works the digest of one Service out again. Costs its endpoints alone.
    pub fn renew_digest(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let now = super::digest::service(name, entry);
        let before = std::mem::replace(&mut entry.digest, now);
        self.digest = self.digest.wrapping_sub(before).wrapping_add(now);
    }

    /// Slices that name a Service which does not exist, in no order.
    pub fn lone_slices(&self) -> impl Iterator<Item = ObjectRef> {
        self.services.iter().filter(|(_, entry)| !entry.known).flat_map(|(name, entry)| {
            entry.slices.iter().map(|slice| ObjectRef {
                kind: Kind::EndpointSlice,
                namespace: name.namespace().to_owned(),
                name: slice.name.split_once('/').map_or("", |(_, name)| name).to_owned(),
            })
        })
    }

    /// The Services that changed and are not planned yet, in no order.
    pub fn dirty(&self) -> impl Iterator<Item = &ServiceName> {
        self.dirty.iter().chain(&self.planned_next)
    }

    /// Returns whether any Service changed and is not planned yet.
    pub fn has_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.planned_next.is_empty()
    }

    /// Returns whether a Service changed and is not planned yet.
    pub fn is_dirty(&self, name: &ServiceName) -> bool {
        self.dirty.contains(name) || self.planned_next.contains(name)
    }

    /// These Services are to be planned again.
    pub fn mark_dirty(&mut self, names: impl IntoIterator<Item = ServiceName>) {
        self.dirty.extend(names);
    }

    /// Returns whether the node or the service ranges changed and are not
    /// planned yet.
    pub fn node_changed(&self) -> bool {
        self.node_changed
    }

    /// Something changed that any Service may depend on.
    pub(crate) fn mark_all_dirty(&mut self) {
        self.dirty.extend(self.services.keys().cloned());
    }

    /// Takes the next Service that changed. Those that changed until the first
    /// of them was taken come in the order of their names.
    pub(crate) fn next_dirty(&mut self) -> Option<ServiceName> {
        if self.planned_next.is_empty() {
            // Emptied by replacement: both keep their capacity after a first list.
            let mut names: Vec<ServiceName> = std::mem::take(&mut self.dirty).into_iter().collect();
            names.sort_unstable();
            self.planned_next = names.into();
        }
        self.planned_next.pop_front()
    }

    /// This Service is planned, before its turn.
    pub(crate) fn forget_dirty(&mut self, name: &ServiceName) {
        self.dirty.remove(name);
    }

    /// Returns whether the node or the service ranges changed since the last
    /// call.
    pub(crate) fn take_node_changed(&mut self) -> bool {
        std::mem::take(&mut self.node_changed)
    }

    /// All that changed is dealt with.
    pub(crate) fn mark_clean(&mut self) {
        (self.dirty, self.planned_next, self.node_changed) = (NameSet::default(), VecDeque::new(), false);
    }

    /// The kernel's addresses changed.
    pub fn set_interface_addresses(&mut self, addresses: Vec<IpAddr>) {
        if self.node.interface_addresses != addresses {
            self.node.interface_addresses = addresses;
            self.node_changed = true;
        }
    }

    /// Checks and applies one change, and returns its unusable parts. The object
    /// of another node is ignored.
    pub fn apply(&mut self, change: Change) -> Vec<Problem> {
        let (checked, problems) = CheckedChange::new(&change, &self.node_name);
        let is_used = self.is_used(&checked.object);
        self.take(checked);
        if is_used { problems } else { Vec::new() }
    }

    /// Takes one change that was checked for the node of this store.
    pub fn take(&mut self, change: CheckedChange) {
        let CheckedChange { object, content, left_out } = change;
        match content {
            Content::Service(service) => self.apply_service(&object, service, left_out),
            Content::EndpointSlice(slice) => self.apply_slice(&object, slice, left_out.problems),
            Content::Node(node) if self.is_used(&object) => self.apply_node(node),
            Content::Node(_) => {}
            Content::ServiceCidr(ranges) => self.apply_service_cidr(&object, ranges),
            Content::Gone => self.delete(&object),
            Content::Kept => self.keep(&object),
        }
    }

    /// Returns whether this is no other node's object.
    fn is_used(&self, object: &ObjectRef) -> bool {
        object.kind != Kind::Node || self.node_name.is_empty() || object.name == self.node_name
    }

    /// A complete list of `kind` begins; see [`Self::end_list`].
    pub fn begin_list(&mut self, kind: Kind) {
        *self.lists.entry(kind).or_default() += 1;
    }

    /// A complete list of `kind` has been applied: removes all other objects of that kind.
    pub fn end_list(&mut self, kind: Kind) {
        let current = self.list(kind);
        match kind {
            Kind::Service => {
                let gone: Vec<ServiceName> = self
                    .services
                    .iter()
                    .filter(|(_, entry)| entry.known && entry.list != current)
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in gone {
                    self.remove_service(&name);
                }
            }
            Kind::EndpointSlice => {
                let all = self.services.values().flat_map(|entry| &entry.slices);
                let gone: Vec<ArcStr> =
                    all.filter(|slice| slice.list != current).map(|slice| slice.name.clone()).collect();
                for name in gone {
                    self.remove_slice(&name);
                }
            }
            Kind::ServiceCidr => {
                let before = self.service_cidrs.len();
                self.service_cidrs.retain(|_, (list, _)| *list == current);
                self.node_changed |= self.service_cidrs.len() != before;
            }
            // A node that is gone keeps its last known state, as in kube-proxy.
            Kind::Node => {}
        }
    }

    /// The same name, as the one text that everybody shares.
    fn known_name(&self, name: ServiceName) -> ServiceName {
        self.services.get_key_value(&name).map_or(name, |(known, _)| known.clone())
    }

    fn list(&self, kind: Kind) -> u32 {
        self.lists.get(&kind).copied().unwrap_or(0)
    }

    fn apply_service(&mut self, object: &ObjectRef, mut service: PerFamily<Option<Service>>, left_out: LeftOut) {
        let name = self.known_name(ServiceName::new(&object.namespace, &object.name));
        let list = self.list(Kind::Service);
        let ports = service.values_mut().flatten().flat_map(|service| service.ports.iter_mut());
        ports.for_each(|port| self.port_names.share(&mut port.name));
        let entry = self.services.entry(name.clone()).or_default();
        entry.known = true;
        entry.list = list;
        entry.left_out = left_out;
        let unchanged = service.as_ref().map(Option::as_ref) == entry.service.as_ref().map(Option::as_deref);
        if !unchanged {
            let service = service.map(|service| service.map(Arc::new));
            self.service_count += usize::from(has_rules(&service));
            self.service_count -= usize::from(has_rules(&entry.service));
            entry.service = service;
            self.dirty.insert(name);
        }
    }

    fn remove_service(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        entry.known = false;
        entry.left_out = LeftOut::default();
        if has_rules(&entry.service) {
            self.service_count -= 1;
            entry.service = PerFamily::default();
            self.dirty.insert(name.clone());
        }
        self.forget_if_empty(name);
    }

    fn forget_if_empty(&mut self, name: &ServiceName) {
        if self.services.get(name).is_some_and(|entry| !entry.known && entry.slices.is_empty()) {
            let gone = self.services.remove(name);
            self.digest = self.digest.wrapping_sub(gone.map_or(0, |entry| entry.digest));
        }
    }

    fn apply_slice(&mut self, object: &ObjectRef, slice: Option<(ServiceName, Slice)>, problems: ThinVec<Problem>) {
        let slice_name = format!("{}/{}", object.namespace, object.name);
        let Some((owner, mut slice)) = slice else {
            self.remove_slice(&slice_name);
            return;
        };
        let owner = self.known_name(owner);
        slice.endpoints.hints_mut().iter_mut().for_each(|hints| self.hints.share(hints));
        // Lists that differ share their names.
        for port in Arc::get_mut(&mut slice.ports).into_iter().flatten() {
            self.port_names.share(&mut port.name);
        }
        self.slice_ports.share(&mut slice.ports);

        if self.slice_owners.get(slice_name.as_str()).is_some_and(|previous| *previous != owner) {
            self.remove_slice(&slice_name);
        }
        let slice_name = match self.slice_owners.get_key_value(slice_name.as_str()) {
            Some((known, _)) => known.clone(),
            None => {
                let slice_name: ArcStr = slice_name.into();
                self.slice_owners.insert(slice_name.clone(), owner.clone());
                slice_name
            }
        };
        let list = self.list(Kind::EndpointSlice);
        let slices = &mut self.services.entry(owner.clone()).or_default().slices;
        match slices.binary_search_by(|slice| slice.name.cmp(&slice_name)) {
            Ok(position) => {
                slices[position].list = list;
                slices[position].problems = problems;
                if slices[position].slice != slice {
                    self.endpoint_count += slice.endpoints.len();
                    self.endpoint_count -= slices[position].slice.endpoints.len();
                    slices[position].slice = slice;
                    self.dirty.insert(owner);
                }
            }
            Err(position) => {
                self.endpoint_count += slice.endpoints.len();
                // Nearly every Service has one slice, so no capacity for four
                // is allocated.
                slices.reserve_exact(1);
                slices.insert(position, NamedSlice { name: slice_name, slice, problems, list });
                self.dirty.insert(owner);
            }
        }
    }

    fn remove_slice(&mut self, slice_name: &str) {
        let Some(owner) = self.slice_owners.remove(slice_name) else { return };
        if let Some(entry) = self.services.get_mut(&owner) {
            if let Some(position) = entry.position(slice_name) {
                self.endpoint_count -= entry.slices.remove(position).slice.endpoints.len();
            }
            self.dirty.insert(owner.clone());
        }
        self.forget_if_empty(&owner);
    }

    fn apply_node(&mut self, mut node: NodeInfo) {
        node.interface_addresses.clone_from(&self.node.interface_addresses);
        node.keep_known(&self.node);
        if node != self.node {
            self.node = node;
            self.node_changed = true;
        }
    }

    fn apply_service_cidr(&mut self, object: &ObjectRef, ranges: Vec<IpNet>) {
        let list = self.list(Kind::ServiceCidr);
        let previous = self.service_cidrs.insert(object.name.clone(), (list, ranges.clone()));
        self.node_changed |= previous.is_none_or(|(_, previous)| previous != ranges);
    }

    /// The list being taken holds it, if only by name.
    fn keep(&mut self, reference: &ObjectRef) {
        let current = self.list(reference.kind);
        let (namespace, name) = (&reference.namespace, &reference.name);
        match reference.kind {
            Kind::Service => {
                if let Some(entry) = self.services.get_mut(&ServiceName::new(namespace, name)) {
                    entry.list = current;
                }
            }
            Kind::EndpointSlice => {
                let name = format!("{namespace}/{name}");
                let owner = self.slice_owners.get(name.as_str());
                if let Some(entry) = owner.and_then(|owner| self.services.get_mut(owner))
                    && let Some(position) = entry.position(&name)
                {
                    entry.slices[position].list = current;
                }
            }
            Kind::ServiceCidr => {
                if let Some((list, _)) = self.service_cidrs.get_mut(name) {
                    *list = current;
                }
            }
            Kind::Node => {}
        }
    }

    fn delete(&mut self, reference: &ObjectRef) {
        match reference.kind {
            Kind::Service => self.remove_service(&ServiceName::new(&reference.namespace, &reference.name)),
            Kind::EndpointSlice => self.remove_slice(&format!("{}/{}", reference.namespace, reference.name)),
            // kube-proxy keeps the last known Node as well.
            Kind::Node => {}
            Kind::ServiceCidr => self.node_changed |= self.service_cidrs.remove(&reference.name).is_some(),
        }
    }
}

fn has_rules(service: &PerFamily<Option<Arc<Service>>>) -> bool {
    service.values().any(Option::is_some)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::objects::{LABEL_SERVICE_PROXY_NAME, Object};
    use super::*;

    #[test]
    fn a_service_of_another_proxy_exists_and_has_no_rules() {
        let mut store = Store::default();
        let service = |labels| {
            let metadata = json!({"name": "cart", "namespace": "shop", "labels": labels});
            let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
            Object::Service(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap())
        };
        let slice = json!({
            "metadata": {"name": "cart-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.5"]}],
        });
        store.apply(Change::Apply(Object::EndpointSlice(serde_json::from_value(slice).unwrap())));
        assert_eq!(store.lone_slices().count(), 1);
        store.apply(Change::Apply(service(json!({LABEL_SERVICE_PROXY_NAME: "other"}))));
        assert_eq!((store.lone_slices().count(), store.service_count()), (0, 0));
        store.apply(Change::Apply(service(json!({}))));
        assert_eq!(store.service_count(), 1);
        store.mark_clean();
        store.apply(Change::Apply(service(json!({LABEL_SERVICE_PROXY_NAME: "other"}))));
        assert_eq!((store.service_count(), store.dirty().count()), (0, 1));
    }

    #[test]
    fn lists_of_ports_are_shared_and_so_are_the_names_of_different_ones() {
        let mut store = Store::default();
        for (name, port) in [("cart", 8080), ("web", 8080), ("api", 9090)] {
            let slice = json!({
                "metadata": {"name": format!("{name}-1"), "namespace": "shop",
                             "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"name": "http", "port": port}],
            });
            store.apply(Change::Apply(Object::EndpointSlice(serde_json::from_value(slice).unwrap())));
        }
        let ports = |name| store.get(&ServiceName::new("shop", name)).unwrap().slices().next().unwrap().ports.clone();
        assert!(Arc::ptr_eq(&ports("cart"), &ports("web")) && !Arc::ptr_eq(&ports("cart"), &ports("api")));
        assert!(ArcStr::ptr_eq(&ports("cart")[0].name, &ports("api")[0].name));
    }
}
