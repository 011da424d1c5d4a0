//! A digest of the objects of a Service, to find the node of a cluster whose
//! state differs.
//!
//! It covers what every node of a cluster is told alike: the Service's
//! addresses, ports and policies, and all endpoints of its slices with their
//! conditions and hints. It does not cover what differs legitimately between
//! nodes: which endpoints are local, what a policy or a hint selects here, the
//! slots, the node's own addresses, and the names of slices.
//!
//! The digest of several Services is the sum of their digests, so that it does
//! not depend on the order, and a change costs only its Service. It finds
//! differences by accident, and is no protection against intent.

use std::net::IpAddr;

use super::Family;
use super::slice::{Slice, SliceEndpoint};
use super::store::ServiceEntry;
use super::types::{Service, ServiceName};

/// FNV-1a of 64 bits, with a last step that spreads each bit.
#[derive(Debug, Clone, Copy)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    /// Adds a text, with its length, so that two texts are not taken for
    /// another two.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.number(text.len() as u64).bytes(text.as_bytes())
    }

    /// Adds a number.
    pub fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    fn address(&mut self, address: IpAddr) -> &mut Self {
        match address {
            IpAddr::V4(address) => self.bytes(&address.octets()),
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    fn addresses(&mut self, addresses: &[IpAddr]) -> &mut Self {
        addresses.iter().fold(self.number(addresses.len() as u64), |digest, address| digest.address(*address))
    }

    /// The digest of everything added (the last step of SplitMix64).
    pub fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The digest of one Service; 0 if it has no rules in any family.
pub fn service(name: &ServiceName, entry: &ServiceEntry) -> u64 {
    let mut sum = 0_u64;
    for (family, service) in entry.service.iter() {
        let Some(service) = service else { continue };
        sum = sum.wrapping_add(of_object(name, family, service));
        let slices = entry.slices().filter(|slice| slice.family() == family);
        sum = slices.fold(sum, |sum, slice| sum.wrapping_add(of_slice(name, slice)));
    }
    sum
}

fn of_object(name: &ServiceName, family: Family, service: &Service) -> u64 {
    let mut digest = Digest::default();
    digest.text("service").text(name.text()).text(family.keyword()).number(service.created.cast_unsigned());
    digest.address(service.cluster_ip).addresses(&service.external_ips).addresses(&service.load_balancer_ips);
    for range in &service.source_ranges {
        digest.address(range.addr()).number(range.prefix_len().into());
    }
    let policies = [service.external_policy_local, service.internal_policy_local];
    digest.number(service.source_ranges.len() as u64).bytes(&policies.map(u8::from));
    digest.number(service.affinity.map_or(0, |seconds| u64::from(seconds) + 1));
    digest.number(service.health_check_node_port.map_or(0, u64::from));
    for port in &service.ports {
        digest.text(&port.name).bytes(&[port.protocol.number()]).number(port.port.into());
        digest.number(port.node_port.map_or(0, u64::from));
    }
    digest.finish()
}

/// The sum over each port and endpoint, so that it does not matter how the
/// endpoints are spread over slices.
fn of_slice(name: &ServiceName, slice: &Slice) -> u64 {
    let mut sum = 0_u64;
    for port in slice.ports.iter() {
        let mut of_port = Digest::default();
        of_port.text("endpoint").text(name.text()).text(&port.name);
        of_port.bytes(&[port.protocol.number()]).number(port.port.into());
        for endpoint in slice.endpoints.iter() {
            sum = sum.wrapping_add(of_endpoint(of_port, &endpoint));
        }
    }
    sum
}

fn of_endpoint(mut digest: Digest, endpoint: &SliceEndpoint<'_>) -> u64 {
    let conditions = [endpoint.ready, endpoint.serving, endpoint.terminating];
    digest.address(endpoint.address).bytes(&conditions.map(u8::from));
    if let Some(hints) = endpoint.hints {
        for names in [&hints.zones, &hints.nodes] {
            digest.number(names.len() as u64);
            names.iter().for_each(|name| _ = digest.text(name));
        }
    }
    digest.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use crate::model::Store;
    use crate::model::objects::{Change, Kind, ObjectRef};
    use crate::model::types::ServiceName;

    fn service() -> Value {
        json!({
            "kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                     "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        })
    }

    fn slice(name: &str, node: &str, addresses: &[&str], ready: bool) -> Value {
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|address| json!({"addresses": [address], "nodeName": node, "conditions": {"ready": ready}}))
            .collect();
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "cart"}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    /// The store of a node with these objects, and its digest.
    fn store(node: &str, objects: impl IntoIterator<Item = Value>) -> (Store, u64) {
        let mut store = Store::new(node);
        for object in objects {
            assert_eq!(store.apply(Change::Apply(from_value(object).unwrap())), []);
        }
        let changed: Vec<ServiceName> = store.dirty().cloned().collect();
        changed.iter().for_each(|name| store.renew_digest(name));
        let digest = store.digest();
        (store, digest)
    }

    #[test]
    fn nodes_with_the_same_objects_have_the_same_digest() {
        let (_, one) = store("n1", [service(), slice("a", "n1", &["10.244.1.5", "10.244.1.6"], true)]);
        // Another node, another order, and two slices in place of one.
        let parts = [slice("c", "n1", &["10.244.1.6"], true), slice("b", "n1", &["10.244.1.5"], true), service()];
        let (_, other) = store("n2", parts);
        assert_eq!(one, other);
        assert_ne!(one, 0);
    }

    #[test]
    fn whatever_differs_changes_it_and_what_comes_back_restores_it() {
        let (mut known, before) = store("n1", [service(), slice("a", "n1", &["10.244.1.5"], true)]);
        let (_, not_ready) = store("n1", [service(), slice("a", "n1", &["10.244.1.5"], false)]);
        let (_, fewer) = store("n1", [service()]);
        let mut other_port = service();
        other_port["spec"]["ports"][0]["port"] = json!(81);
        let (_, other_port) = store("n1", [other_port, slice("a", "n1", &["10.244.1.5"], true)]);
        let all = std::collections::BTreeSet::from([before, not_ready, fewer, other_port]);
        assert_eq!(all.len(), 4);
        let name = ServiceName::new("shop", "cart");
        let object = ObjectRef { kind: Kind::EndpointSlice, namespace: "shop".to_owned(), name: "a".to_owned() };
        known.apply(Change::Delete(object));
        known.renew_digest(&name);
        assert_eq!(known.digest(), fewer);
        known.apply(Change::Apply(from_value(slice("a", "n1", &["10.244.1.5"], true)).unwrap()));
        known.renew_digest(&name);
        assert_eq!(known.digest(), before);
        for (kind, gone) in [(Kind::Service, "cart"), (Kind::EndpointSlice, "a")] {
            known.apply(Change::Delete(ObjectRef { kind, namespace: "shop".to_owned(), name: gone.to_owned() }));
        }
        assert_eq!(known.digest(), 0);
    }
}
