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

use serde_json::{Value, json};
use vmap_proxy_lab::{NetNs, ProbeResult};
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::skip::skipped;

use super::ipvs::{PROGRAM, agent};
use super::takeover::{BOTH, Net, World, assert_answered, run};

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

/// The wait until nothing uses the modules any more. The last packets of an emulated machine take their time.
const UNLOADING: Duration = Duration::from_secs(600);

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
        let loaded: Vec<_> = MODULES.iter().filter(|one| is_loaded(one)).collect();
        assert!(begun.elapsed() < UNLOADING, "still loaded: {loaded:?}");
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

/// Runs the agent, with no Service at all, to its end, which has to be an error; returns the line, which is the only
/// one about the cause.
#[track_caller]
pub(super) fn error_of(node: &NetNs) -> String {
    let manifests = ManifestDirectory::new();
    let (status, log) = run_agent(node, &manifests).end();
    flush(node);
    assert_eq!(status.code(), Some(1), "{log:#?}");
    let of_cause: Vec<&String> = log.iter().filter(|line| line.contains("the kernel")).collect();
    assert!(of_cause.len() == 1 && of_cause[0].starts_with("Error: "), "{log:#?}");
    of_cause[0].clone()
}

/// Deletes the rules, which use modules: a namespace may outlive the test until its last connection has ended.
fn flush(node: &NetNs) {
    // There may be no nf_tables.
    let _ = run(node, "nft", &["flush", "ruleset"], "");
}

/// The errors that `doctor` finds about the kernel: their subjects and texts.
fn diagnosis(node: &NetNs) -> Vec<(String, String)> {
    let output = node.run(|| Command::new(PROGRAM).args(["doctor", "-o", "json"]).output().unwrap()).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let field = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    let findings = report["findings"].as_array().unwrap().iter();
    let of_kernel = findings.filter(|finding| {
        finding["severity"] == "error"
            && finding["subject"].as_str().is_some_and(|subject| subject.starts_with("kernel"))
    });
    of_kernel.map(|one| (field(one, "subject"), field(one, "finding") + "; " + &field(one, "remedy"))).collect()
}

fn run_agent(node: &NetNs, manifests: &ManifestDirectory) -> AgentProcess {
    agent(node, manifests, &["-v=2"])
}

/// What every Service needs: the agent ends, also before there is a Service, and names the module and the option.
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
        let found = diagnosis(&node);
        assert!(!found.is_empty() && found.iter().all(|(_, text)| text.contains(option)), "{module}: {found:?}");
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
fn a_part_that_one_family_lacks_costs_that_family_alone() {
    let [ipv4, ipv6] = BOTH;
    for (lost, kept, module, option) in [
        (&ipv6, &ipv4, "nft_fib_ipv6", "CONFIG_NFT_FIB_IPV6"),
        (&ipv6, &ipv4, "nft_reject_ipv6", "CONFIG_NFT_REJECT_IPV6"),
        (&ipv4, &ipv6, "nft_fib_ipv4", "CONFIG_NFT_FIB_IPV4"),
    ] {
        let Some(_without) = without(&[module]) else { return };
        assert_costs_one_family(lost, kept, &[&format!("load the module {module} "), option]);
    }
}

/// The same for an option of nf_tables itself. No module stands for it: the kernel has to be built so. `lacking` on it:
/// `scripts/kernel-matrix --accel uml --without NF_TABLES_INET --without NF_TABLES_IPV6 --suites lacking 6.12`.
#[test]
fn nf_tables_without_one_family_costs_that_family_alone() {
    let [ipv4, ipv6] = BOTH;
    for (lost, kept, option) in [(&ipv6, &ipv4, "CONFIG_NF_TABLES_IPV6"), (&ipv4, &ipv6, "CONFIG_NF_TABLES_IPV4")] {
        let namespace = NetNs::new("probe").unwrap();
        if run(&namespace, "nft", &["add", "table", lost.family.keyword(), "probe"], "").is_ok() {
            skipped(format_args!("a kernel without {option} was not tested: this one has it"));
        } else {
            assert_costs_one_family(lost, kept, &[option]);
        }
    }
}

/// Runs the agent and `doctor` on a kernel that lacks something for one family, which they name with these texts.
#[track_caller]
fn assert_costs_one_family(lost: &Net, kept: &Net, texts: &[&str]) {
    let world = World::new();
    let found = diagnosis(world.lab.node());
    assert!(found.len() == 1 && found[0].0 == format!("kernel, {}", lost.family), "{texts:?}: {found:?}");
    let manifests = manifests();
    let running = run_agent(world.lab.node(), &manifests);
    let line = running.wait_for_line(&format!("no Service is served over {}", lost.family));
    assert!(line.contains("then restart vmap-proxy"), "{texts:?}: {line}");
    for text in texts {
        assert!(line.contains(text) && found[0].1.contains(text), "{text}: {line}\n{found:?}");
    }
    let named = running.wait_for_line("which this node does not serve");
    assert!(named.contains(&format!("default/web-{}", lost.family.keyword())), "{texts:?}: {named}");
    assert_eq!(world.tables(), format!("table {} vmap-proxy\n", kept.family.keyword()));
    let result = world.connect(kept).opened();
    assert!(matches!(result, ProbeResult::Answered { .. }), "{texts:?}: {result}");
    // A change later on concerns the served family alone, too.
    manifests.write_objects("web.json", &BOTH.iter().flat_map(Net::objects).collect::<Vec<_>>());
    running.wait_for_line("synced in");
    assert_answered(world.connect(kept).opened(), kept.pod_b, "after a change");
    running.stop();
    flush(world.lab.node());
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
    running.wait_for_line("synced in");
    world.flows_to(|net| net.pod_b);
    running.stop();
    flush(world.lab.node());
}
