//! The cause of a packet's fate: the object and, where the semantics name one,
//! the field. `explain` has to come to the same answer.

use std::net::IpAddr;

use super::address::Family;
use super::datapath::State;
pub use super::endpoints::Choice;
use super::endpoints::Selection;
use super::services::ServicePort;
use super::{Outcome, Packet, ReferenceModel};

/// The cause of a packet's fate. Services are named `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deciding {
    /// A frontend of a Service, with endpoints.
    Frontend {
        /// The Service.
        service: String,
        /// The field that makes the destination a frontend: its path, or
        /// `nodePort`.
        field: String,
        /// Whether only endpoints of this node serve it, by a policy.
        local_policy: bool,
        /// How its endpoints were chosen.
        choice: Choice,
    },
    /// The client is in none of the source ranges.
    SourceRanges {
        /// The Service.
        service: String,
    },
    /// No endpoint on this node, and others elsewhere.
    LocalPolicy {
        /// The Service.
        service: String,
        /// The field with the policy.
        field: String,
    },
    /// No endpoint at all.
    NoEndpoint {
        /// The Service.
        service: String,
        /// Whether slices list endpoints, none of which is ready.
        is_listed: bool,
    },
    /// A cluster IP without this port.
    UndefinedPort {
        /// The Service.
        service: String,
    },
    /// A service address that is not allocated.
    ServiceCidr,
    /// Nothing: the packet passes.
    Nothing,
}

impl ReferenceModel {
    /// Returns what decides about a packet in the present state.
    pub fn deciding(&self, packet: &Packet) -> Deciding {
        let state = State::of(self, Family::of(packet.to));
        match state.outcome(packet) {
            Outcome::Pass => Deciding::Nothing,
            Outcome::Dnat { .. } => match state.serving(packet) {
                Some((port, by_node_port, local_policy)) => {
                    let field = if by_node_port { "nodePort" } else { frontend_field(port, packet.to) };
                    let Selection { cluster_choice, local_choice, .. } = port.endpoints;
                    let choice = if local_policy { local_choice } else { cluster_choice };
                    Deciding::Frontend { service: name(port), field: field.to_owned(), local_policy, choice }
                }
                None => Deciding::Nothing,
            },
            Outcome::Drop => match (state.blocking(packet), state.lacking(packet)) {
                (Some(port), _) => Deciding::SourceRanges { service: name(port) },
                (None, Some((port, by_node_port))) => {
                    let is_internal = !by_node_port && frontend_field(port, packet.to) == "spec.clusterIPs";
                    let policy = if is_internal { "internal" } else { "external" };
                    Deciding::LocalPolicy { service: name(port), field: format!("spec.{policy}TrafficPolicy") }
                }
                (None, None) => Deciding::ServiceCidr,
            },
            Outcome::Reject => match state.lacking(packet) {
                Some((port, _)) => Deciding::NoEndpoint { service: name(port), is_listed: port.endpoints.is_listed },
                None => match state.ports().iter().find(|port| port.cluster_ip == packet.to) {
                    Some(port) => Deciding::UndefinedPort { service: name(port) },
                    None => Deciding::Nothing,
                },
            },
        }
    }
}

fn name(port: &ServicePort) -> String {
    format!("{}/{}", port.namespace, port.service)
}

/// An external address of the same value comes before the cluster IP.
fn frontend_field(port: &ServicePort, address: IpAddr) -> &'static str {
    if port.vips.contains(&address) {
        "status.loadBalancer.ingress"
    } else if port.external_ips.contains(&address) {
        "spec.externalIPs"
    } else {
        "spec.clusterIPs"
    }
}
