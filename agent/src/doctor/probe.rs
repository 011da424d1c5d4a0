//! Whether the kernel takes our rules, and can have a flow table: they are loaded in a network namespace
//! of their own, which ends with the thread that made it. The node's own tables
//! are not touched.

use std::thread;

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, from_value, json};
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::{Change, PerFamily, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{Operation, Planner, Transaction};
use vmap_proxy_compiler::ruleset::Family;

use crate::config::flow_table::DEFAULT_AFTER_PACKETS;
use crate::netlink::{CommitError, FlowTable, Kernel};

/// The result.
#[derive(Debug, Default)]
pub struct Probed {
    /// The families whose rules the kernel refuses, and why.
    pub refused: Vec<(Family, CommitError)>,
    /// Why the kernel could not be asked, or has no nf_tables at all.
    pub failed: Option<ProbeFailure>,
}

/// No answer.
#[derive(Debug)]
pub enum ProbeFailure {
    /// No network namespace could be made.
    Namespace(String),
    /// The kernel has no nf_tables, or does not let us use it.
    NfTables(String),
}

/// Loads the rules of every kind of Service.
pub(super) fn rules() -> Probed {
    in_own_namespace(|| {
        Kernel::open().map_or_else(
            |error| Probed::failed(ProbeFailure::NfTables(error.to_string())),
            |mut kernel| Probed { refused: load(&mut kernel), failed: None },
        )
    })
    .unwrap_or_else(|error| Probed::failed(ProbeFailure::Namespace(error)))
}

/// Makes a flow table. Returns the reason why the kernel can't have one; `None`
/// also if that is unknown.
pub(super) fn flow_table() -> Option<String> {
    let made = in_own_namespace(|| FlowTable::make(DEFAULT_AFTER_PACKETS).map(drop)).ok()?;
    made.err().map(|error| error.to_string())
}

/// Does something in a network namespace that ends with it.
fn in_own_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.desc().to_owned())?;
        Ok(work())
    };
    // The thread alone enters the new namespace.
    match thread::Builder::new().name("probe".to_owned()).spawn(enter).map(thread::JoinHandle::join) {
        Ok(Ok(done)) => done,
        Ok(Err(_)) => Err("the probe ended early".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Probed {
    fn failed(failure: ProbeFailure) -> Self {
        Self { failed: Some(failure), ..Self::default() }
    }
}

/// Returns the families that were refused.
fn load(kernel: &mut Kernel) -> Vec<(Family, CommitError)> {
    let transactions = every_kind();
    let mut refused = Vec::new();
    for family in Family::ALL {
        let of_family = |transaction: &Transaction| {
            let operations: Vec<Operation> =
                transaction.operations.iter().filter(|operation| operation.family == family).cloned().collect();
            Transaction { operations }
        };
        let outcome = transactions.iter().map(of_family).try_for_each(|part| kernel.commit(&part).map(drop));
        if let Err(error) = outcome {
            refused.push((family, error));
        }
    }
    refused
}

/// The transactions for a Service that needs every kind of chain, map and rule.
fn every_kind() -> Vec<Transaction> {
    let config = ProxyConfig {
        node_name: NODE.to_owned(),
        detect_local: DetectLocal::ClusterCidr(
            ["10.244.0.0/16", "fd00:10:244::/48"].into_iter().filter_map(|r| r.parse().ok()).collect(),
        ),
        ..ProxyConfig::default()
    };
    let mut store = Store::new(NODE);
    for object in objects() {
        if let Ok(object) = from_value(object) {
            store.apply(Change::Apply(object));
        }
    }
    let mut planner = Planner::new(config, store.node());
    planner.resync(&mut store, PerFamily::default()).collect()
}

const NODE: &str = "probe";

fn objects() -> Vec<Value> {
    let ports: Vec<Value> = ["TCP", "UDP", "SCTP"]
        .into_iter()
        .zip(30001..)
        .map(|(protocol, node_port)| {
            json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 80, "nodePort": node_port})
        })
        .collect();
    let target_ports: Vec<Value> = ["TCP", "UDP", "SCTP"]
        .into_iter()
        .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": 8080}))
        .collect();
    let slice = |family: &str, addresses: [&str; 2]| {
        let endpoints: Vec<Value> =
            addresses.into_iter().map(|address| json!({"addresses": [address], "nodeName": NODE})).collect();
        json!({"kind": "EndpointSlice", "addressType": family, "endpoints": endpoints, "ports": target_ports,
            "metadata": {"namespace": "probe", "name": family.to_lowercase(),
                "labels": {"kubernetes.io/service-name": "full"}}})
    };
    let service = |name: &str, number: u8, spec: Value| {
        let mut service = json!({"kind": "Service", "metadata": {"namespace": "probe", "name": name}, "spec": spec});
        let addresses = [format!("10.96.0.{number}"), format!("fd00:10:96::{number}")];
        service["spec"]["clusterIP"] = json!(addresses[0]);
        service["spec"]["clusterIPs"] = json!(addresses);
        service["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
        service
    };
    let mut full = service(
        "full",
        1,
        json!({"type": "LoadBalancer", "ports": ports, "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local",
            "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8:2::/64"]}),
    );
    full["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "2001:db8:1::1"}]}});
    vec![
        json!({"kind": "Node", "metadata": {"name": NODE}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]}}),
        json!({"kind": "ServiceCIDR", "metadata": {"name": "probe"}, "spec": {"cidrs": ["10.96.0.0/24", "fd00:10:96::/112"]}}),
        full,
        service("empty", 2, json!({"type": "ClusterIP", "ports": [{"port": 80}]})),
        slice("IPv4", ["10.244.0.1", "10.244.0.2"]),
        slice("IPv6", ["fd00:10:244::1", "fd00:10:244::2"]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_has_every_fixed_chain_and_both_families() {
        let text: String = every_kind().iter().map(ToString::to_string).collect();
        for family in ["ip", "ip6"] {
            for map in ["endpoints", "affinity-lists", "hairpin-connections", "firewall-ips", "no-endpoint-services"] {
                assert!(text.contains(&format!("add element {family} vmap-proxy {map} ")), "{family} {map}\n{text}");
            }
        }
        assert!(text.contains(". sctp ."), "{text}");
    }
}
