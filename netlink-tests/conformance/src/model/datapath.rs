//! One packet through the hooks, in the order in which the kernel runs them.
//!
//! A packet that the node sends passes output, and if it is for the node itself
//! then also prerouting and input; any other passes prerouting, then input or
//! forward. Address translation happens once, in the first nat hook.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::Family;
use super::affinity::{List, Sticky};
use super::services::ServicePort;
use super::settings::{LocalDetector, NodePortAddresses};
use super::{Outcome, Packet, ReferenceModel};

/// Everything that decides the fate of the packets of one family.
pub(super) struct State<'a> {
    model: &'a ReferenceModel,
    family: Family,
    /// Oldest Service first.
    ports: Vec<ServicePort>,
    detector: LocalDetector,
    node_port_addresses: NodePortAddresses,
}

/// One packet on its way.
struct Path<'a> {
    state: &'a State<'a>,
    packet: &'a Packet,
    /// Whether the node itself sends the packet.
    local_source: bool,
    /// Whether the packet is for the node itself.
    local_destination: bool,
}

/// A chosen list of endpoints.
struct Translation {
    endpoints: BTreeSet<SocketAddr>,
    masquerade: bool,
    /// The identity of the list of a service port, and for how many seconds
    /// clients stick to it.
    list: List,
    affinity: Option<u64>,
}

impl Translation {
    fn cluster(port: &ServicePort, masquerade: bool) -> Self {
        let (endpoints, list) = (port.endpoints.cluster.clone(), List::of(port, false));
        Self { endpoints, masquerade, list, affinity: port.affinity }
    }

    fn local(port: &ServicePort, masquerade: bool) -> Self {
        let (endpoints, list) = (port.endpoints.local.clone(), List::of(port, true));
        Self { endpoints, masquerade, list, affinity: port.affinity }
    }
}

impl<'a> State<'a> {
    /// Works the present state of a family out.
    pub(super) fn of(model: &'a ReferenceModel, family: Family) -> Self {
        Self {
            model,
            family,
            ports: model.service_ports(family),
            detector: model.local_detector(family),
            node_port_addresses: model.node_port_addresses(family),
        }
    }

    /// The fate of a packet.
    pub(super) fn outcome(&self, packet: &Packet) -> Outcome {
        let Some(path) = self.path(packet) else { return Outcome::Pass };
        if path.is_blocked_by_source_ranges() {
            return Outcome::Drop;
        }
        if let Some(translation) = path.services() {
            return path.dnat(translation);
        }
        path.filter().unwrap_or(Outcome::Pass)
    }
}

impl<'a> State<'a> {
    fn path<'p>(&'p self, packet: &'p Packet) -> Option<Path<'p>> {
        let of_family = [packet.from, packet.to].map(Family::of) == [self.family; 2];
        of_family.then(|| Path {
            state: self,
            packet,
            local_source: self.model.is_local_address(packet.from),
            local_destination: self.model.is_local_address(packet.to),
        })
    }

    /// The list that serves a packet, if there is one that clients stick to.
    pub(super) fn sticky(&self, packet: &Packet) -> Option<Sticky> {
        let path = self.path(packet).filter(|path| !path.is_blocked_by_source_ranges())?;
        let Translation { endpoints, list, affinity, .. } = path.services()?;
        Some(Sticky { list, timeout: Duration::from_secs(affinity?), endpoints })
    }
}

/// The deciding object and field, for [`super::deciding`].
impl State<'_> {
    pub(super) fn ports(&self) -> &[ServicePort] {
        &self.ports
    }

    /// The service port whose source ranges exclude the packet.
    pub(super) fn blocking(&self, packet: &Packet) -> Option<&ServicePort> {
        let is_guarded = |port: &ServicePort| port.vips.contains(&packet.to) && !port.source_ranges.is_empty();
        let is_blocked = self.path(packet)?.is_blocked_by_source_ranges();
        let claims = |port: &&ServicePort| self.claims_frontend(port, packet) && is_guarded(port);
        is_blocked.then(|| self.ports.iter().find(claims)).flatten()
    }

    /// The service port that serves the packet; whether as a node port, and
    /// whether a policy keeps it on this node.
    pub(super) fn serving(&self, packet: &Packet) -> Option<(&ServicePort, bool, bool)> {
        let path = self.path(packet)?;
        let (found, by_node_port) = match (path.by_service_ip(), path.by_node_port()) {
            (Some(port), _) => (port, false),
            (None, found) => (found?, true),
        };
        let is_internal = !by_node_port && found.cluster_ip == packet.to;
        let local_policy = match is_internal {
            true => found.internal_policy_local,
            false => found.external_policy_local && !path.is_from_local_pod() && !path.local_source,
        };
        // The state outlives the path.
        let port = self.ports.iter().find(|port| std::ptr::eq(*port, found))?;
        Some((port, by_node_port, local_policy))
    }

    /// The service port that has no target for the packet, and whether it is met
    /// as a node port.
    pub(super) fn lacking(&self, packet: &Packet) -> Option<(&ServicePort, bool)> {
        let path = self.path(packet)?;
        let lacks_target = |port: &ServicePort| match port.cluster_ip == packet.to {
            true => !port.has_internal(),
            false => !port.has_external(),
        };
        let by_frontend = self.ports.iter().find(|port| self.claims_frontend(port, packet) && lacks_target(port));
        let as_node_port = || {
            path.node_port_endpoints_check()?;
            self.ports.iter().find(|port| path.is_node_port_of(port) && !port.has_external())
        };
        by_frontend.map(|port| (port, false)).or_else(|| as_node_port().map(|port| (port, true)))
    }

    fn claims_frontend(&self, port: &ServicePort, packet: &Packet) -> bool {
        self.path(packet).is_some_and(|path| path.is_frontend_of(port))
    }
}

impl Path<'_> {
    /// `firewall-check`, before translation: load balancer addresses with
    /// source ranges, whether there are endpoints or not.
    fn is_blocked_by_source_ranges(&self) -> bool {
        let is_guarded = |port: &ServicePort| port.vips.contains(&self.packet.to) && !port.source_ranges.is_empty();
        let Some(port) = self.entry(|port| self.is_frontend_of(port), is_guarded) else {
            return false;
        };
        let allowed = |ip: IpAddr| port.source_ranges.iter().any(|range| range.contains(&ip));
        // A node that may use an address which it holds itself connects from it.
        let node_ip = self.state.model.primary_ip(self.state.family);
        let own_vip = allowed(node_ip) && port.vips.contains(&self.packet.from);
        !(allowed(self.packet.from) || own_vip)
    }

    /// Chain `services`: where to translate the packet to, if anywhere.
    fn services(&self) -> Option<Translation> {
        let masquerade = self.is_for_cluster_ip()
            && (self.state.model.masquerade_all()
                || (self.state.detector.is_implemented() && !self.is_from_local_pod()));
        if let Some(port) = self.by_service_ip() {
            if port.cluster_ip == self.packet.to {
                return Some(match port.internal_policy_local {
                    true => Translation::local(port, masquerade),
                    false => Translation::cluster(port, masquerade),
                });
            }
            // Entered by "goto": node ports are not looked up afterwards.
            return self.external(port, masquerade);
        }
        let port = self.by_node_port()?;
        self.external(port, masquerade)
    }

    /// Map `service-ips`.
    fn by_service_ip(&self) -> Option<&ServicePort> {
        let has_target = |port: &ServicePort| match port.cluster_ip == self.packet.to {
            true => port.has_internal(),
            false => port.endpoints.has_any,
        };
        self.entry(|port| self.is_frontend_of(port), has_target)
    }

    /// Map `service-nodeports`, for the addresses that serve NodePorts.
    fn by_node_port(&self) -> Option<&ServicePort> {
        let serves = match &self.state.node_port_addresses {
            NodePortAddresses::All => self.local_destination && !is_refused_loopback(self.packet.to),
            NodePortAddresses::Only(addresses) => addresses.contains(&self.packet.to),
        };
        let has_target = |port: &ServicePort| port.endpoints.has_any;
        serves.then(|| self.entry(|port| self.is_node_port_of(port), has_target)).flatten()
    }

    /// Chain `external-…`: external IPs, load balancer addresses, node ports.
    fn external(&self, port: &ServicePort, masquerade: bool) -> Option<Translation> {
        if !port.external_policy_local {
            return Some(Translation::cluster(port, true));
        }
        if self.is_from_local_pod() {
            return Some(Translation::cluster(port, masquerade));
        }
        if self.local_source {
            return Some(Translation::cluster(port, true));
        }
        if port.endpoints.local.is_empty() {
            return None;
        }
        Some(Translation::local(port, masquerade))
    }

    /// Chain `masquerading`: what was marked, and endpoints that reach
    /// themselves through a Service.
    fn dnat(&self, translation: Translation) -> Outcome {
        let Translation { endpoints, masquerade, .. } = translation;
        let hairpin = endpoints
            .iter()
            .filter(|endpoint| !masquerade && endpoint.ip() == self.packet.from)
            .filter(|endpoint| self.is_hairpin_connection(endpoint))
            .copied()
            .collect();
        Outcome::Dnat { endpoints, masquerade, hairpin }
    }

    /// Set `hairpin-connections`, which all Services share.
    fn is_hairpin_connection(&self, endpoint: &SocketAddr) -> bool {
        self.state
            .ports
            .iter()
            .any(|port| port.protocol == self.packet.protocol && port.endpoints.reachable_here.contains(endpoint))
    }

    /// The filter hooks, for a packet that was not translated.
    fn filter(&self) -> Option<Outcome> {
        let input = || self.node_port_endpoints_check().or_else(|| self.service_endpoints_check());
        let forward_or_output = || self.service_endpoints_check().or_else(|| self.cluster_ips_check());
        match (self.local_source, self.local_destination) {
            (true, true) => forward_or_output().or_else(input),
            (true, false) | (false, false) => forward_or_output(),
            (false, true) => input(),
        }
    }

    /// Map `no-endpoint-services`.
    fn service_endpoints_check(&self) -> Option<Outcome> {
        let lacks_target = |port: &ServicePort| match port.cluster_ip == self.packet.to {
            true => !port.has_internal(),
            false => !port.has_external(),
        };
        self.entry(|port| self.is_frontend_of(port), lacks_target).map(no_target)
    }

    /// Map `no-endpoint-nodeports`. The input hook has seen to it that the
    /// address is local.
    fn node_port_endpoints_check(&self) -> Option<Outcome> {
        let serves = match &self.state.node_port_addresses {
            NodePortAddresses::All => !is_refused_loopback(self.packet.to),
            NodePortAddresses::Only(addresses) => addresses.contains(&self.packet.to),
        };
        let lacks_target = |port: &ServicePort| !port.has_external();
        serves.then(|| self.entry(|port| self.is_node_port_of(port), lacks_target)).flatten().map(no_target)
    }

    /// Undefined ports of cluster IPs, then unallocated service addresses.
    fn cluster_ips_check(&self) -> Option<Outcome> {
        if self.is_for_cluster_ip() {
            Some(Outcome::Reject)
        } else if self.state.model.in_service_cidr(self.packet.to) {
            Some(Outcome::Drop)
        } else {
            None
        }
    }

    /// The entry that a map holds for the packet: of the service ports that
    /// claim the key and have an entry in this map, the first.
    fn entry(
        &self,
        claims: impl Fn(&ServicePort) -> bool,
        has_entry: impl Fn(&ServicePort) -> bool,
    ) -> Option<&ServicePort> {
        self.state.ports.iter().find(|port| claims(port) && has_entry(port))
    }

    /// Returns whether the packet is for a cluster IP, external IP or load
    /// balancer address of the port.
    fn is_frontend_of(&self, port: &ServicePort) -> bool {
        port.protocol == self.packet.protocol
            && port.port == self.packet.port
            && (port.cluster_ip == self.packet.to || port.has_external_address(self.packet.to))
    }

    fn is_node_port_of(&self, port: &ServicePort) -> bool {
        port.protocol == self.packet.protocol && port.node_port == Some(self.packet.port)
    }

    fn is_for_cluster_ip(&self) -> bool {
        self.state.ports.iter().any(|port| port.cluster_ip == self.packet.to)
    }

    fn is_from_local_pod(&self) -> bool {
        self.state.detector.is_from_local_pod(self.packet, self.local_source)
    }
}

/// The verdict for a frontend without target: refused if no endpoint exists at
/// all, dropped if only the policy rules out those that do.
fn no_target(port: &ServicePort) -> Outcome {
    if port.endpoints.has_any { Outcome::Drop } else { Outcome::Reject }
}

/// Loopback addresses never serve node ports: the whole of 127.0.0.0/8, and
/// ::1.
fn is_refused_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}
