//! `vmap-proxy journal` and `status --watch` of a running agent.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use vmap_proxy_testbed::cluster::{LOCAL, REMOTE, node_object};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::nft::nft_in;
use vmap_proxy_testbed::shop::{slices, web};

use crate::questions::ask;
use crate::{Agent, Scratch, cluster, eventually, run_manifests, vmap_proxy};

/// The entries that match.
fn entries(namespace: &vmap_proxy_lab::NetNs, socket: &Scratch, filters: &[&str]) -> Vec<Value> {
    let (_, text, error) = ask(namespace, &socket.0, &[&["journal", "-o", "json"], filters].concat());
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}{error}"));
    report["entries"].as_array().unwrap().clone()
}

fn write(manifests: &ManifestDirectory, pods: impl Fn(usize) -> Vec<&'static str>) {
    let mut objects = vec![node_object(), web().build()];
    objects.extend(slices("shop/web", pods));
    manifests.write_objects("web.json", &objects);
}

#[test]
fn a_change_and_a_repair_are_in_the_journal_with_their_causes() {
    let (cluster, manifests, socket) = (cluster(), ManifestDirectory::new(), Scratch::new("agent.sock"));
    write(&manifests, |family| vec![LOCAL[family][0]]);
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    let (status, text, error) = ask(cluster.node(), &socket.0, &["status", "--wait", "60"]);
    assert_eq!(status, 0, "{text}{error}");
    let first = entries(cluster.node(), &socket, &[]);
    assert_eq!((first.len(), &first[0]["repaired"]), (1, &true.into()), "{first:#?}");

    write(&manifests, |family| vec![LOCAL[family][0], REMOTE[family][1]]);
    let of_address = || entries(cluster.node(), &socket, &["--address", REMOTE[0][1], "--since", "10m"]);
    eventually("the change is in the journal", || !of_address().is_empty());
    let change = of_address().pop().unwrap();
    assert_eq!(change["repaired"], false, "{change}");
    assert_eq!(change["services"][0]["name"], "shop/web", "{change}");
    assert!(change["services"][0]["added"].as_u64().unwrap() > 0 && change["commits"].as_u64().unwrap() > 0);
    assert!(change["lockHoldMicroseconds"].as_u64().unwrap() > 0, "{change}");
    let cause = |entry: &Value, word: &str| {
        entry["causes"].as_array().unwrap().iter().any(|cause| {
            cause["object"].as_str().unwrap().contains(word) && cause["origin"].as_str().unwrap().contains("web.json:")
        })
    };
    assert!(cause(&change, "EndpointSlice shop/"), "{change}");
    assert!(entries(cluster.node(), &socket, &["--service", "shop/other"]).is_empty());
    let (status, text, _) = ask(cluster.node(), &socket.0, &["journal", "--address", "192.0.2.250"]);
    assert_eq!((status, text.trim()), (3, "No sync in the agent's journal matches."));

    nft_in(cluster.node(), &["flush", "chain", "ip", "vmap-proxy", "masquerading"], "").unwrap();
    let repair = || entries(cluster.node(), &socket, &[]).into_iter().find(|entry| entry["culprit"].is_string());
    eventually("the repair is in the journal", || repair().is_some());
    let repair = repair().unwrap();
    assert!(repair["culprit"].as_str().unwrap().contains("(nft)"), "{repair}");
    let (_, text, _) = ask(cluster.node(), &socket.0, &["journal"]);
    assert!(text.contains("read and compared with the kernel; the tables were changed by process"), "{text}");
    let (_, text, _) = ask(cluster.node(), &socket.0, &["status"]);
    assert!(text.contains("repaired, changed by process"), "{text}");
    assert!(agent.stop().success());
}

#[test]
fn a_watched_status_is_refreshed_until_its_reader_goes() {
    let (cluster, manifests, socket) = (cluster(), ManifestDirectory::new(), Scratch::new("agent.sock"));
    write(&manifests, |family| vec![LOCAL[family][0]]);
    let path = socket.0.to_str().unwrap();
    let agent = Agent::start(cluster.node(), run_manifests(&manifests, &["--query-socket", path]));
    assert_eq!(ask(cluster.node(), &socket.0, &["status", "--wait", "60"]).0, 0);
    let mut command = vmap_proxy(&["status", "--watch=1", "-o", "json", "--socket", path]);
    command.stdout(Stdio::piped());
    let mut watching = cluster.node().run(|| command.spawn()).unwrap().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let status: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(status["ready"], true, "{status}");
    }
    drop(lines);
    assert!(watching.wait().unwrap().success());
    assert!(agent.stop().success());
}
