//! Names of objects and fields, as they go into an answer.

use std::net::IpAddr;

use super::Known;
use super::answer::{Cause, Code, Decision, PortName};
use crate::model::config::{DetectLocal, NodePortAddresses};
use crate::model::objects::{LABEL_SERVICE_NAME, LABEL_ZONE};
use crate::model::types::{Service, ServiceName, ServicePort};
use crate::ruleset::Family;
use crate::ruleset::skeleton::LocalDetector;
use crate::ruleset::target::Target;

pub(super) fn decision(code: Code, text: impl Into<String>, causes: impl IntoIterator<Item = Cause>) -> Decision {
    Decision { code, text: text.into(), causes: causes.into_iter().collect() }
}

fn cause(kind: &str, namespace: &str, name: &str, field: impl Into<String>, value: impl ToString) -> Cause {
    let (kind, namespace, name) = (kind.to_owned(), namespace.to_owned(), name.to_owned());
    Cause { kind, namespace, name, field: field.into(), value: value.to_string() }
}

/// A field of a Service.
pub(super) fn of_service(name: &ServiceName, field: impl Into<String>, value: impl ToString) -> Cause {
    cause("Service", name.namespace(), name.name(), field, value)
}

/// A field of a slice, which is named `namespace/name`.
pub(super) fn of_slice(slice: &str, field: impl Into<String>, value: impl ToString) -> Cause {
    let (namespace, name) = slice.split_once('/').unwrap_or(("", slice));
    cause("EndpointSlice", namespace, name, field, value)
}

/// The label that no slice has.
pub(super) fn no_slice(name: &ServiceName) -> Cause {
    cause("EndpointSlice", name.namespace(), "", format!("metadata.labels[{LABEL_SERVICE_NAME}]"), name.name())
}

/// A field of a ServiceCIDR.
pub(super) fn of_service_cidr(name: &str, value: impl ToString) -> Cause {
    cause("ServiceCIDR", "", name, "spec.cidrs", value)
}

/// A field of the configuration.
pub(super) fn of_configuration(field: &str, value: impl ToString) -> Cause {
    cause("KubeProxyConfiguration", "", "", field, value)
}

pub(super) fn port_name(name: &ServiceName, port: &ServicePort) -> PortName {
    PortName {
        namespace: name.namespace().to_owned(),
        name: name.name().to_owned(),
        port_name: port.name.to_string(),
        protocol: port.protocol,
        port: port.port,
    }
}

/// `creationTimestamp`, as the model keeps it, in the form of the API server.
pub(super) fn created(service: &Service) -> String {
    let digits = format!("{:014}", service.created);
    match (service.created, digits.get(..14)) {
        (0, _) | (_, None) => "unknown".to_owned(),
        (_, Some(d)) => {
            format!("{}-{}-{}T{}:{}:{}Z", &d[..4], &d[4..6], &d[6..8], &d[8..10], &d[10..12], &d[12..14])
        }
    }
}

impl Known<'_> {
    /// A field of this node's Node object.
    pub(super) fn of_node(&self, field: impl Into<String>, value: impl ToString) -> Cause {
        cause("Node", "", &self.planner.config().node_name, field, value)
    }

    pub(super) fn zone(&self) -> Cause {
        let zone = self.store.node().zone.as_deref().unwrap_or_default();
        self.of_node(format!("metadata.labels[{LABEL_ZONE}]"), zone)
    }

    /// The setting by which local pods are recognized.
    pub(super) fn detection(&self, family: Family) -> Cause {
        let config = self.planner.config();
        let detector = config.detector(self.store.node(), family);
        let range = match detector {
            Some(LocalDetector::Source(range)) => range.to_string(),
            _ => String::new(),
        };
        match &config.detect_local {
            DetectLocal::ClusterCidr(_) => of_configuration("clusterCIDR", range),
            DetectLocal::NodeCidr => self.of_node("spec.podCIDRs", range),
            DetectLocal::BridgeInterface(name) => of_configuration("detectLocal.bridgeInterface", name),
            DetectLocal::InterfaceNamePrefix(prefix) => of_configuration("detectLocal.interfaceNamePrefix", prefix),
        }
    }

    /// The settings that decide which addresses serve NodePorts.
    pub(super) fn node_port_addresses(&self, family: Family) -> Vec<Cause> {
        let config = self.planner.config();
        let join = |ranges: &[ipnet::IpNet]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let (listed, with_primary) = match &config.node_port_addresses {
            NodePortAddresses::Primary => ("primary".to_owned(), true),
            NodePortAddresses::Ranges(ranges) => (join(ranges), false),
            NodePortAddresses::PrimaryAndRanges(ranges) => (format!("primary,{}", join(ranges)), true),
        };
        let mut causes = vec![of_configuration("nodePortAddresses", listed)];
        if with_primary {
            causes.push(match (config.bind_address, config.primary_address(self.store.node(), family)) {
                (Some(bound), Some(primary)) if bound == primary => of_configuration("bindAddress", bound),
                (_, Some(primary)) => self.of_node("status.addresses", primary),
                (_, None) => self.of_node("status.addresses", format!("(no {family} address)")),
            });
        }
        causes
    }

    /// The fields that make a target a frontend of a service port.
    pub(super) fn of_frontend(
        &self,
        name: &ServiceName,
        service: &Service,
        port: &ServicePort,
        target: Target,
    ) -> Vec<Cause> {
        let index = port.index;
        match target {
            Target::NodePort(key) => vec![of_service(name, format!("spec.ports[{index}].nodePort"), key.port)],
            Target::Frontend(key) => vec![
                of_address(name, service, key.address),
                of_service(name, format!("spec.ports[{index}].port"), key.port),
            ],
        }
    }
}

/// The field of a Service that holds one of its addresses.
pub(super) fn of_address(name: &ServiceName, service: &Service, address: IpAddr) -> Cause {
    let field = if service.load_balancer_ips.contains(&address) {
        "status.loadBalancer.ingress"
    } else if service.external_ips.contains(&address) {
        "spec.externalIPs"
    } else {
        "spec.clusterIPs"
    };
    of_service(name, field, address)
}

/// Returns whether a target is the cluster IP of a Service, and nothing else of
/// it: an external address of the same value comes first.
pub(super) fn is_internal(service: &Service, target: Target) -> bool {
    let Target::Frontend(key) = target else { return false };
    !service.load_balancer_ips.contains(&key.address) && !service.external_ips.contains(&key.address)
}

/// The word for an address of a Service.
pub(super) fn address_word(service: &Service, address: IpAddr) -> &'static str {
    if service.load_balancer_ips.contains(&address) {
        "a load balancer address"
    } else if service.external_ips.contains(&address) {
        "an external IP"
    } else {
        "the cluster IP"
    }
}

/// `port http (80/TCP)`, or `port 80/TCP` without a name.
pub(super) fn port_text(port: &ServicePort) -> String {
    let number = format!("{}/{}", port.port, port.protocol);
    if port.name.is_empty() { format!("port {number}") } else { format!("port {} ({number})", port.name) }
}
