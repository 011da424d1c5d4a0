//! NodePorts on localhost: kube-proxy's metrics about its listeners, and our own
//! about connections.
//!
//! kube-proxy 1.37 has one more, `..._localhost_nodeport_rejected_packets_total`,
//! which reads the counter of a rule. There is no such rule here: the kernel
//! refuses what nothing listens for.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as MetricFamily;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::ruleset::Family;

use super::{ByFamily, by_family};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConnectionLabels {
    ip_family: &'static str,
    /// In Kubernetes' spelling, as in kube-proxy's metrics.
    protocol: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    ip_family: &'static str,
    protocol: &'static str,
    reason: &'static str,
}

/// Why a client of a NodePort on localhost got no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The endpoint refused, or did not answer in time.
    Endpoint,
    /// The port, or all together, have as many connections as they may have.
    Limit,
    /// The client's address is no loopback address.
    Source,
}

/// Metrics of NodePorts on localhost.
#[derive(Debug, Clone)]
pub struct LocalhostMetrics {
    listeners: ByFamily<Gauge>,
    listener_failures: ByFamily<Counter>,
    connections: MetricFamily<ConnectionLabels, Counter>,
    refused: MetricFamily<RefusalLabels, Counter>,
}

impl LocalhostMetrics {
    /// None counted yet.
    pub(super) fn register(all: &mut Registry) -> Self {
        let metrics = Self {
            listeners: ByFamily::default(),
            listener_failures: ByFamily::default(),
            connections: MetricFamily::default(),
            refused: MetricFamily::default(),
        };
        let registry = all.sub_registry_with_prefix("kubeproxy_nftables_localhost_nodeport");
        registry.register(
            "listeners",
            "Sockets that listen on localhost NodePorts, of TCP and UDP together",
            metrics.listeners.clone(),
        );
        registry.register(
            "listener_creation_failures",
            "Failures to listen on a localhost NodePort, each attempt counted",
            metrics.listener_failures.clone(),
        );
        let registry = all.sub_registry_with_prefix("vmap_proxy_localhost_nodeport");
        registry.register(
            "connections",
            "TCP connections and UDP flows that were relayed from a localhost NodePort to an endpoint",
            metrics.connections.clone(),
        );
        registry.register(
            "refused",
            "TCP connections and UDP datagrams to a localhost NodePort that were not relayed: the endpoint did not \
             answer, a limit was reached, or the client's source was no loopback address",
            metrics.refused.clone(),
        );
        metrics
    }

    /// A socket listens.
    pub fn listener_opened(&self, family: Family) {
        self.listeners.get_or_create(&by_family(family)).inc();
    }

    /// A socket that listened is closed.
    pub fn listener_closed(&self, family: Family) {
        self.listeners.get_or_create(&by_family(family)).dec();
    }

    /// An attempt to listen failed.
    pub fn listener_failed(&self, family: Family) {
        self.listener_failures.get_or_create(&by_family(family)).inc();
    }

    /// A connection or flow to an endpoint begins.
    pub fn connected(&self, family: Family, protocol: Protocol) {
        let labels = ConnectionLabels { ip_family: by_family(family).ip_family, protocol: protocol.name() };
        self.connections.get_or_create(&labels).inc();
    }

    /// A client got no connection.
    pub fn refused(&self, family: Family, protocol: Protocol, refusal: Refusal) {
        let reason = match refusal {
            Refusal::Endpoint => "endpoint",
            Refusal::Limit => "limit",
            Refusal::Source => "source",
        };
        let labels = RefusalLabels { ip_family: by_family(family).ip_family, protocol: protocol.name(), reason };
        self.refused.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Format, Metrics};

    #[test]
    fn listeners_have_kube_proxys_names() {
        let metrics = Metrics::new();
        let silent = metrics.encode(Format::Prometheus, &[]);
        assert!(!silent.contains("localhost_nodeport"), "they are shown though the feature is off:\n{silent}");
        let localhost = metrics.localhost();
        localhost.listener_opened(Family::Ipv4);
        localhost.listener_opened(Family::Ipv4);
        localhost.listener_closed(Family::Ipv4);
        localhost.listener_failed(Family::Ipv6);
        localhost.connected(Family::Ipv6, Protocol::Udp);
        localhost.refused(Family::Ipv4, Protocol::Tcp, Refusal::Limit);
        let text = metrics.encode(Format::Prometheus, &[]);
        for line in [
            r#"kubeproxy_nftables_localhost_nodeport_listeners{ip_family="IPv4"} 1"#,
            r#"kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total{ip_family="IPv6"} 1"#,
            r#"vmap_proxy_localhost_nodeport_connections_total{ip_family="IPv6",protocol="UDP"} 1"#,
            r#"vmap_proxy_localhost_nodeport_refused_total{ip_family="IPv4",protocol="TCP",reason="limit"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
