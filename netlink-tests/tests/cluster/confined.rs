//! The agent under the seccomp profile of `deploy/seccomp`, where a call that the profile lacks ends it.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::api_objects::{Endpoint, NAMESPACE, cluster_ip, service, slice};
use vmap_proxy_testbed::cluster::SECOND_NODE_IP;
use vmap_proxy_testbed::confined::confine;
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, EndToEnd, NODE_IP, local_pod, remote_pod};
use vmap_proxy_testbed::nft::load_nft;

use crate::connection::flags;
use crate::servers::{HEALTHZ, METRICS};
use crate::{PROGRAM, apply, apply_service, cluster, frontend};

pub(crate) fn profile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/seccomp/vmap-proxy.json")
}

/// A question for `shop.NAMESPACE.svc.cluster.local` over UDP, with the length of the reply.
fn ask_for_a_name(cluster: &EndToEnd) -> usize {
    let mut question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in ["shop", NAMESPACE, "svc", "cluster", "local", ""] {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend(b"\0\x01\0\x01");
    let ask = || {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        socket.send_to(&question, (SECOND_NODE_IP, 53))?;
        socket.recv(&mut [0; 512])
    };
    cluster.node().run(ask).unwrap().unwrap()
}

#[test]
fn the_seccomp_profile_has_every_call_of_the_agent() {
    let mut cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let socket = cluster.directory().join("query.sock");
    let mut command = Command::new(PROGRAM);
    command.args(flags(format!("--kubeconfig={}", cluster.api.kubeconfig().display())));
    command.arg("-v=2").arg(format!("--query-socket={}", socket.display()));
    command.arg(format!("--dns-bind-address={SECOND_NODE_IP}")).arg("--dns-upstream=192.0.2.13");
    confine(&mut command, &profile());
    let agent = AgentProcess::spawn(cluster.node(), command);
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    // Changes, a health check port, and conntrack entries that go.
    apply(&cluster, &[slice("shop", &[Endpoint::local(2), Endpoint::remote(1)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2), remote_pod(1)]);
    let balanced = service("balanced", &cluster_ip(3), |service| {
        service["spec"]["type"] = json!("LoadBalancer");
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service["spec"]["healthCheckNodePort"] = json!(31_000);
        service["spec"]["sessionAffinity"] = json!("ClientIP");
    });
    apply(&cluster, &[balanced, slice("balanced", &[Endpoint::local(3)])]);
    cluster.eventually_reaches(CLIENT_POD, frontend(&cluster_ip(3), 80), &[local_pod(3)]);
    cluster.eventually_replies(frontend(NODE_IP, 31_000), "/", |reply| reply.status == 200);
    // The servers.
    cluster.eventually_replies(HEALTHZ, "/healthz", |reply| reply.status == 200);
    assert!(cluster.get(METRICS, "/metrics").unwrap().body.contains("process_resident_memory_bytes"));
    assert!(ask_for_a_name(&cluster) > 12);
    for question in [&["explain", NODE_IP][..], &["get", "services"], &["get", "status"]] {
        let mut client = Command::new(PROGRAM);
        client.args(question).arg("--socket").arg(&socket);
        confine(&mut client, &profile());
        let output = cluster.node().run(|| client.output()).unwrap().unwrap();
        assert!(output.status.code().is_some(), "{question:?}: {output:?}");
    }
    // A repair, and a lost connection.
    load_nft(cluster.node(), "flush ruleset").unwrap();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(2), remote_pod(1)]);
    if let Some(double) = cluster.api.double() {
        double.pause();
        double.resume().unwrap();
    }
    apply(&cluster, &[slice("shop", &[Endpoint::local(1)])]);
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    agent.stop();
}
