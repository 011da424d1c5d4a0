//! Kernels that lack a part of nf_tables.
//!
//! A module that cannot be loaded stands for a kernel without it. These tests unload modules of the whole machine, so they need
//! one that may be ruined: `scripts/kernel-matrix --suites lacking 6.1`, and `locked` in the same way.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vmap_proxy_lab::{NetNs, ProbeResult};
use vmap_proxy_testbed::PATIENCE;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::skip::skipped;

use super::ipvs::agent;
use super::takeover::{BOTH, Net, World, assert_answered};

/// Set where modules of the machine may be unloaded.
const PERMISSION: &str = "VMAP_PROXY_MAY_UNLOAD_MODULES";

/// Every module that the kernel loads for our rules, each before those that it needs.
const MODULES: [&str; 21] = [
    "nf_conntrack_netlink",
    "nft_numgen",
    "nft_hash",
    "nft_masq",
    "nft_nat",
    "nft_chain_nat",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_reject",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_fib",
    "nft_ct",
    "nft_counter",
    "nft_compat",
    "nf_nat",
    "nf_conntrack",
    "nf_tables",
    "nfnetlink",
];

/// modprobe's configuration, which the kernel's own requests follow, too.
const MODPROBE: &str = "/run/modprobe.d/vmap-proxy-lacking.conf";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Modules that cannot be loaded, for as long as this exists.
struct Without(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Drop for Without {
    fn drop(&mut self) {
        let _ = fs::remove_file(MODPROBE);
    }
}

/// `None` where modules may not be unloaded.
pub(super) fn without(modules: &[&str]) -> Option<impl Drop + use<>> {
    if std::env::var_os(PERMISSION).is_none() || !Path::new("/proc/modules").exists() {
        skipped(format_args!(
            "a kernel without {modules:?} was not tested: {PERMISSION} is not set, or it has no modules"
        ));
        return None;
    }
    let without = Without(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    let lines: String = modules.iter().map(|module| format!("install {module} /bin/false\n")).collect();
    fs::create_dir_all("/run/modprobe.d").unwrap();
    fs::write(MODPROBE, lines).unwrap();
    let begun = Instant::now();
    let is_loaded = |module: &&str| Path::new("/sys/module").join(module).join("refcnt").exists();
    while MODULES.iter().any(is_loaded) {
        // The kernel clears a namespace that has ended in the background.
        assert!(begun.elapsed() < PATIENCE, "still loaded: {:?}", MODULES.iter().filter(|one| is_loaded(one)));
        for module in MODULES.iter().filter(|module| is_loaded(module)) {
            let _ = Command::new("rmmod").arg(module).output();
        }
        thread::sleep(Duration::from_millis(50));
    }
    Some(without)
}

/// A Service of each family with two endpoints, which are chosen from at random, for TCP and UDP.
fn manifests() -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let objects: Vec<_> = BOTH
        .iter()
        .flat_map(|net| {
            let [mut service, mut slice] = net.objects();
            service["spec"]["ports"]
                .as_array_mut()
                .unwrap()
                .push(json!({"name": "dns", "protocol": "UDP", "port": 53}));
            slice["ports"].as_array_mut().unwrap().push(json!({"name": "dns", "protocol": "UDP", "port": 53}));
            slice["endpoints"]
                .as_array_mut()
                .unwrap()
                .push(json!({"addresses": [net.pod_a], "conditions": {"ready": true}}));
            [service, slice]
        })
        .collect();
    manifests.write_objects("web.json", &objects);
    manifests
}

/// Runs the agent to its end, which has to be an error; returns the line.
#[track_caller]
pub(super) fn error_of(node: &NetNs) -> String {
    let manifests = manifests();
    let (status, log) = run_agent(node, &manifests).end();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    log.into_iter().rfind(|line| line.starts_with("Error: ")).unwrap_or_default()
}

fn run_agent(node: &NetNs, manifests: &ManifestDirectory) -> AgentProcess {
    agent(node, manifests, &["-v=2"])
}

/// What every Service needs: the agent ends, and names the module and the option.
#[test]
fn a_missing_part_that_every_service_needs_is_named() {
    for (module, option) in [
        ("nf_tables", "CONFIG_NF_TABLES"),
        ("nft_ct", "CONFIG_NFT_CT"),
        ("nft_masq", "CONFIG_NFT_MASQ"),
        ("nft_nat", "CONFIG_NFT_NAT"),
        ("nft_numgen", "CONFIG_NFT_NUMGEN"),
    ] {
        let Some(_without) = without(&[module]) else { return };
        let node = NetNs::new("node").unwrap();
        let error = error_of(&node);
        for text in [format!("load the module {module} "), option.to_owned()] {
            assert!(error.contains(&text), "{module}: {error}");
        }
        assert!(error.len() < 600, "{error}");
    }
}

/// Without connection tracking there is no NAT, and the kernel has no chains of that type.
#[test]
fn missing_conntrack_is_named() {
    let Some(_without) = without(&["nf_conntrack"]) else { return };
    let error = error_of(&NetNs::new("node").unwrap());
    assert!(error.contains("nft_chain_nat") && error.contains("CONFIG_NF_CONNTRACK"), "{error}");
}

/// A part that one family lacks costs that family alone.
#[test]
fn a_part_that_ipv6_lacks_costs_ipv6_alone() {
    for (module, option) in [("nft_fib_ipv6", "CONFIG_NFT_FIB_IPV6"), ("nft_reject_ipv6", "CONFIG_NFT_REJECT_IPV6")] {
        let Some(_without) = without(&[module]) else { return };
        let world = World::new();
        let manifests = manifests();
        let running = run_agent(world.lab.node(), &manifests);
        let line = running.wait_for_line("no Service is served over IPv6");
        for text in [format!("load the module {module} "), option.to_owned(), "then restart vmap-proxy".to_owned()] {
            assert!(line.contains(&text), "{module}: {line}");
        }
        running.wait_until_ready();
        assert_eq!(world.tables(), "table ip vmap-proxy\n");
        let [ipv4, _] = BOTH;
        let result = world.connect(&ipv4).opened();
        assert!(matches!(result, ProbeResult::Answered { .. }), "{result}");
        // A change later on concerns IPv4 alone, too.
        manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
        running.wait_for_lines(" programmed ", 2);
        assert_answered(world.connect(&ipv4).opened(), ipv4.pod_b, "after a change");
        running.stop();
    }
}

/// Stale flows stay, and everything else works.
#[test]
fn missing_listing_of_connections_costs_the_clean_up_alone() {
    let Some(_without) = without(&["nf_conntrack_netlink"]) else { return };
    let world = World::new();
    let manifests = manifests();
    let running = run_agent(world.lab.node(), &manifests);
    running.wait_until_ready();
    let line = running.wait_for_line("stale flows were not deleted");
    assert!(line.contains("load the module nf_conntrack_netlink") && line.contains("CONFIG_NF_CT_NETLINK"), "{line}");
    manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
    running.wait_for_lines(" programmed ", 2);
    world.flows_to(|net| net.pod_b);
    running.stop();
}
