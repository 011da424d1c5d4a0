//! Other programs' changes are seen, ours are not; addresses are followed.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use vmap_proxy_agent::netlink::{AddressWatcher, Kernel, Monitor, Observed, OwnTable, local_addresses};
use vmap_proxy_compiler::model::Protocol;
use vmap_proxy_compiler::plan::{Action, Operation, Transaction};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_compiler::ruleset::element::{Data, Element, Key};
use vmap_proxy_compiler::ruleset::maps::Map;
use vmap_proxy_compiler::ruleset::target::{Domain, NodePortKey, Target};
use vmap_proxy_testbed::namespaces::cannot_run;
use vmap_proxy_testbed::namespaces::in_fresh_namespace;
use vmap_proxy_testbed::nft::nft;

/// Longer than any of this takes.
const PATIENCE: Duration = Duration::from_secs(180);

fn transaction(actions: impl IntoIterator<Item = Action>) -> Transaction {
    let operation = |action| Operation { family: Family::Ipv4, action, owner: None };
    Transaction { operations: actions.into_iter().map(operation).collect() }
}

fn member(port: u16) -> Element {
    let key = Key::Target(Target::NodePort(NodePortKey { protocol: Protocol::Tcp, port }));
    Element { map: Map::Masquerade(Domain::NodePort), key, data: Data::Nothing, comment: None }
}

#[test]
fn foreign_changes_to_our_table_are_seen_and_ours_are_not() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        let mut monitor = Monitor::open(kernel.port()).unwrap();
        let setup = transaction([Action::AddTable, Action::AddMap(Map::Masquerade(Domain::NodePort))]);
        kernel.commit(&setup).unwrap();
        kernel.commit(&transaction((1..20_000).map(|port| Action::AddElement(member(port))))).unwrap();
        // Another table of another program does not matter either.
        nft(&["-f", "-"], "table ip other { chain vmap-proxy {}\n }").unwrap();
        nft(&["-f", "-"], "delete element ip vmap-proxy masquerade-nodeports { tcp . 7 }").unwrap();

        let Ok(Ok(Observed::Foreign(change))) = tokio::time::timeout(PATIENCE, monitor.next()).await else {
            panic!("no foreign change seen");
        };
        assert_eq!(change.families, [Family::Ipv4]);
        assert_eq!(change.process_name, "nft");
        assert_ne!(change.pid, 0);

        kernel.commit(&transaction([Action::AddElement(member(7))])).unwrap();
        nft(&["-f", "-"], "flush ruleset").unwrap();
        let Ok(Ok(Observed::Foreign(flush))) = tokio::time::timeout(PATIENCE, monitor.next()).await else {
            panic!("no foreign change seen");
        };
        assert_eq!(flush.genid, change.genid + 2, "one commit of ours lies between the two");
        assert!(kernel.read_table(OwnTable::Main, Family::Ipv4).unwrap().is_none());
    });
}

#[test]
fn lost_messages_are_reported() {
    in_fresh_namespace(async || {
        let mut kernel = Kernel::open().unwrap();
        let mut monitor = Monitor::open(kernel.port()).unwrap();
        let setup = transaction([Action::AddTable, Action::AddMap(Map::Masquerade(Domain::NodePort))]);
        kernel.commit(&setup).unwrap();
        // More than the monitor's buffer holds, by somebody else.
        let mut observed = None;
        for _ in 0..40 {
            let mut other = Kernel::open().unwrap();
            other.commit(&transaction((1..60_000).map(|port| Action::AddElement(member(port))))).unwrap();
            other.commit(&transaction((1..60_000).map(|port| Action::DeleteElement(member(port))))).unwrap();
            observed = Some(tokio::time::timeout(PATIENCE, monitor.next()).await.unwrap().unwrap());
            if observed == Some(Observed::Unknown) {
                break;
            }
        }
        assert_eq!(observed, Some(Observed::Unknown));
    });
}

fn ip(arguments: &[&str]) {
    let outcome = Command::new("ip").args(arguments).status();
    let status = outcome.unwrap_or_else(|error| panic!("{}", cannot_run("ip", &error)));
    assert!(status.success(), "ip {arguments:?}");
}

#[test]
fn addresses_are_listed_and_followed() {
    in_fresh_namespace(async || {
        assert_eq!(local_addresses().await.unwrap(), Vec::<IpAddr>::new());
        let mut watcher = AddressWatcher::open().unwrap();
        ip(&["link", "set", "lo", "up"]);
        for address in ["192.0.2.1", "2001:db8::1"] {
            let address: IpAddr = address.parse().unwrap();
            ip(&["address", "add", &address.to_string(), "dev", "lo"]);
            while !local_addresses().await.unwrap().contains(&address) {
                tokio::time::timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
            }
        }
        // A point-to-point address: ours, not the peer's.
        ip(&["address", "add", "198.51.100.1", "peer", "198.51.100.2", "dev", "lo"]);
        let addresses = local_addresses().await.unwrap();
        assert!(addresses.contains(&"198.51.100.1".parse().unwrap()), "{addresses:?}");
        assert!(!addresses.contains(&"198.51.100.2".parse().unwrap()), "{addresses:?}");
        tokio::time::timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
        ip(&["address", "del", "192.0.2.1", "dev", "lo"]);
        tokio::time::timeout(PATIENCE, watcher.changed()).await.unwrap().unwrap();
        assert!(!local_addresses().await.unwrap().contains(&"192.0.2.1".parse().unwrap()));
    });
}
