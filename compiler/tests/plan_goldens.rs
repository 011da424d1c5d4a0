//! The transactions of five changes, as text that one can read:
//! `golden/*.plan`. After a deliberate change write them anew and read the
//! difference: `UPDATE_GOLDEN=1 cargo test -p vmap-proxy-compiler --test plan_goldens`.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "support/golden.rs"]
mod golden;
mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::FakeKernel;
use vmap_proxy_compiler::model::config::DetectLocal;
use vmap_proxy_compiler::model::{Change, Object, ProxyConfig, Store};
use vmap_proxy_compiler::plan::{Planner, Transaction};

fn config() -> ProxyConfig {
    ProxyConfig {
        node_name: "node-1".to_owned(),
        detect_local: DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]),
        ..ProxyConfig::default()
    }
}

/// A node on which everything that was applied is programmed.
struct Node {
    store: Store,
    planner: Planner,
    kernel: FakeKernel,
}

impl Node {
    fn with(objects: &[Value]) -> Self {
        let mut node = Self::restarted(FakeKernel::default(), objects);
        node.resync();
        node
    }

    /// An agent that knows these objects, beside a kernel that it has not read.
    fn restarted(kernel: FakeKernel, objects: &[Value]) -> Self {
        let mut store = Store::new("node-1");
        let address = "192.0.2.11";
        apply(
            &mut store,
            &json!({"kind": "Node", "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}}),
        );
        store.set_interface_addresses(vec![address.parse().unwrap()]);
        let planner = Planner::new(config(), store.node());
        objects.iter().for_each(|object| apply(&mut store, object));
        Self { store, planner, kernel }
    }

    fn resync(&mut self) -> Vec<Transaction> {
        let transactions: Vec<Transaction> = self.planner.resync(&mut self.store, self.kernel.state()).collect();
        self.commit(transactions)
    }

    fn change(&mut self, objects: &[Value]) -> Vec<Transaction> {
        objects.iter().for_each(|object| apply(&mut self.store, object));
        let mut transactions = Vec::new();
        while let Some(plan) = self.planner.update(&mut self.store) {
            transactions.extend(plan.transactions);
        }
        self.commit(transactions)
    }

    fn commit(&mut self, transactions: Vec<Transaction>) -> Vec<Transaction> {
        for transaction in &transactions {
            self.kernel.commit(transaction);
            self.kernel.assert_consistent();
        }
        transactions
    }
}

fn apply(store: &mut Store, value: &Value) {
    let object: Object = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(store.apply(Change::Apply(object)), []);
}

/// Compares the transactions with `golden/NAME.plan`.
fn check(name: &str, change: &str, transactions: &[Transaction]) {
    let mut text = format!("# {change}\n");
    for (number, transaction) in (1..).zip(transactions) {
        text.push_str(&format!("\n# transaction {number}\n{transaction}"));
    }
    golden::check(&Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.plan")), &text);
}

/// A Service with a cluster IP and a NodePort.
fn cart() -> Value {
    json!({"kind": "Service", "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080}]}})
}

/// Its endpoints: pods of other nodes.
fn pods(hosts: &[u8]) -> Value {
    slice("cart", hosts)
}

fn slice(service: &str, hosts: &[u8]) -> Value {
    let endpoint = |host: &u8| json!({"addresses": [format!("10.244.1.{host}")], "nodeName": "node-2"});
    json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "endpoints": hosts.iter().map(endpoint).collect::<Vec<_>>(),
        "metadata": {"name": format!("{service}-1"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "http", "port": 8080}]})
}

#[test]
fn endpoint_replaced() {
    let mut node = Node::with(&[cart(), pods(&[1, 2, 3])]);
    let plan = node.change(&[pods(&[1, 3, 4])]);
    check("endpoint-replaced", "Of three endpoints, 10.244.1.2 is replaced by 10.244.1.4.", &plan);
}

#[test]
fn three_to_four_endpoints() {
    let mut node = Node::with(&[cart(), pods(&[1, 2, 3])]);
    let plan = node.change(&[pods(&[1, 2, 3, 4])]);
    check("three-to-four-endpoints", "10.244.1.4 comes to three endpoints; nobody had four before.", &plan);
}

#[test]
fn four_to_three_endpoints() {
    let mut node = Node::with(&[cart(), pods(&[1, 2, 3, 4])]);
    let plan = node.change(&[pods(&[1, 2, 4])]);
    check("four-to-three-endpoints", "10.244.1.3 leaves four endpoints; nobody had three before.", &plan);
}

/// A Service with a cluster IP and the same external IP as all others.
fn with_external_ip(name: &str, id: u8, created: &str) -> Value {
    json!({"kind": "Service", "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
        "spec": {"clusterIP": format!("10.96.0.{id}"), "externalIPs": ["203.0.113.1"],
            "ports": [{"name": "http", "port": 80}]}})
}

#[test]
fn claim_lost() {
    let late = with_external_ip("late", 20, "2026-01-02T00:00:00Z");
    let early = with_external_ip("early", 21, "2026-01-01T00:00:00Z");
    let mut node = Node::with(&[late, slice("late", &[1])]);
    let plan = node.change(&[early, slice("early", &[2, 3])]);
    check("claim-lost", "shop/late loses 203.0.113.1 port 80 to shop/early, which is older.", &plan);
}

#[test]
fn restart() {
    let gone = with_external_ip("gone", 20, "2026-01-02T00:00:00Z");
    let before = Node::with(&[cart(), pods(&[1, 2, 3]), gone, slice("gone", &[9])]);
    let mut node = Node::restarted(before.kernel.clone(), &[cart(), pods(&[1, 2, 4])]);
    let plan = node.resync();
    let change = "While no agent ran, 10.244.1.4 replaced 10.244.1.3 of shop/cart, and shop/gone was deleted.";
    check("restart", change, &plan);
    // A second one finds everything as it should be.
    let mut node = Node::restarted(node.kernel, &[cart(), pods(&[1, 2, 4])]);
    assert!(node.resync().is_empty());
}
