//! `vmap-proxy plan` against the kernel of a node and against other files.

use serde_json::Value;
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::NODE_NAME;
use vmap_proxy_testbed::nft::nft_in;
use vmap_proxy_testbed::shop::{slices, web};

use crate::{Agent, cluster, run_manifests, vmap_proxy};

fn shop(pods: impl Fn(usize) -> Vec<&'static str>) -> ManifestDirectory {
    let manifests = ManifestDirectory::new();
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", pods));
    manifests.write_objects("web.json", &objects);
    manifests
}

/// The exit status and the answer.
fn plan(node: &NetNs, manifests: &ManifestDirectory, more: &[&str]) -> (i32, String) {
    let mut command = vmap_proxy(&["plan", "--node-name", NODE_NAME]);
    command.args(more).arg("--manifests").arg(manifests.path());
    let output = node.run(|| command.output()).unwrap().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap() + &error)
}

#[test]
fn a_plan_starts_from_the_kernel_and_touches_nothing() {
    let (cluster, manifests) = (cluster(), shop(|family| vec![LOCAL[family][0]]));
    let mut agent = Agent::start(cluster.node(), run_manifests(&manifests, &[]));
    agent.wait_until_healthy();
    assert!(agent.stop().success());
    let before = nft_in(cluster.node(), &["list", "ruleset"], "").unwrap();
    let (status, text) = plan(cluster.node(), &manifests, &[]);
    assert_eq!((status, text.contains("Nothing would change.")), (0, true), "{text}");

    let more = shop(|family| vec![LOCAL[family][0], REMOTE[family][1]]);
    let (status, text) = plan(cluster.node(), &more, &["--operations"]);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains("Service shop/web: ") && text.contains(&format!("gains {}:8080", REMOTE[0][1])), "{text}");
    assert!(text.contains("lock held ") && text.contains("add element ip vmap-proxy endpoints {"), "{text}");
    let (status, text) = plan(cluster.node(), &more, &["-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let transactions = report["transactions"].as_array().unwrap();
    assert_eq!((status, report["services"][0]["name"].as_str()), (3, Some("shop/web")), "{report}");
    let added: u64 = transactions.iter().map(|transaction| transaction["added"].as_u64().unwrap()).sum();
    assert_eq!(Some(added), report["added"].as_u64(), "{report}");

    // Another configuration changes rules and no element.
    let (status, text) = plan(cluster.node(), &manifests, &["--masquerade-all", "-o", "json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, report["added"].as_u64()), (3, Some(0)), "{report}");
    assert!(report["objects"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(nft_in(cluster.node(), &["list", "ruleset"], "").unwrap(), before);

    // What the plan announced is what an agent commits.
    let (_, text) = plan(cluster.node(), &more, &["-o", "json"]);
    let announced: Value = serde_json::from_str(&text).unwrap();
    let log = crate::Scratch::new("log");
    let mut agent = Agent::with_log(cluster.node(), run_manifests(&more, &[]), &log.0);
    agent.wait_until_healthy();
    assert!(agent.stop().success());
    let number = |field: &str| announced[field].as_u64().unwrap();
    let expected = format!("({} elements added, {} removed, {} commits)", number("added"), number("removed"), {
        announced["transactions"].as_array().unwrap().len()
    });
    assert!(log.text().contains(&expected), "{expected}: {}", log.text());
    // A layout of another version is replaced as a whole.
    nft_in(cluster.node(), &["delete", "table", "ip", "vmap-proxy"], "").unwrap();
    nft_in(cluster.node(), &["add", "table", "ip", "vmap-proxy", "{ comment \"layout 0\"; }"], "").unwrap();
    let (status, text) = plan(cluster.node(), &more, &[]);
    assert_eq!((status, text.contains("replaced as a whole")), (3, true), "{text}");
}

#[test]
fn two_sets_of_files_are_compared_without_privileges_or_a_kernel() {
    let node = NetNs::new("node").unwrap();
    let (before, after) = (shop(|family| vec![LOCAL[family][0]]), shop(|family| vec![LOCAL[family][1]]));
    let against = before.path().to_str().unwrap();
    let (status, text) = plan(&node, &before, &["--against", against]);
    assert_eq!((status, text.contains("Nothing would change.")), (0, true), "{text}");
    let (status, text) = plan(&node, &after, &["--against", against]);
    assert_eq!(status, 3, "{text}");
    assert!(text.contains(&format!("loses {}:8080", LOCAL[0][0])), "{text}");
}
