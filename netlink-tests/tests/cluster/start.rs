//! The start, and configurations that do not work.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use vmap_proxy_testbed::api_objects::{Endpoint, NODE, service, slice};
use vmap_proxy_testbed::apiserver::Resource;
use vmap_proxy_testbed::end_to_end::{CLIENT_POD, local_pod, remote_pod};
use vmap_proxy_testbed::generation::Commits;

use crate::{apply_service, cluster, frontend};
use vmap_proxy_testbed::skip::skipped_outside_ci;

#[test]
fn nothing_is_programmed_before_the_first_complete_list() {
    for missing in [Resource::Services, Resource::EndpointSlices] {
        let mut cluster = cluster();
        let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
        let before = cluster.generation();
        let Some(double) = cluster.api.double() else { return };
        double.server.refuse(missing, 503, "etcd has no leader");
        let agent = cluster.agent();
        let line = agent.wait_for_line("etcd has no leader");
        assert!(line.contains("WARN"), "{line}");
        let Some(double) = cluster.api.double() else { return };
        for other in Resource::ALL.into_iter().filter(|other| *other != missing) {
            double.wait_until(|server| server.open_watches(other) == 1);
        }
        assert_eq!(cluster.generation(), before, "without {missing}");
        assert_eq!(cluster.get(frontend("127.0.0.1", 10_256), "/healthz").unwrap().status, 503);
        let Some(double) = cluster.api.double() else { return };
        double.server.allow(missing);
        agent.wait_until_ready();
        cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    }
}

#[test]
fn tables_fill_while_a_long_list_arrives() {
    let mut cluster = cluster();
    let endpoints: Vec<Endpoint> = (1..=2).map(Endpoint::local).chain((1..=8).map(Endpoint::remote)).collect();
    let Some(double) = cluster.api.double() else { return };
    for number in 0..500 {
        let name = format!("long-{number}");
        let address = format!("10.96.{}.{}", 100 + number / 250, 1 + number % 250);
        double.server.apply_all([service(&name, &address, |_| {}), slice(&name, &endpoints)]);
    }
    // A slow line: the list of slices takes seconds.
    double.server.set_slow(Some((4096, Duration::from_millis(20))));
    let commits = cluster.node().run(Commits::follow).unwrap().unwrap();
    let agent = cluster.agent();
    commits.wait(Duration::from_secs(60)).unwrap();
    // Filled, and not in use.
    assert_eq!(cluster.get(frontend("127.0.0.1", 10_256), "/healthz").unwrap().status, 503);
    let line = agent.wait_for_line("programmed 500 services, 5000 endpoints");
    assert!(line.contains("of the elements before, while the lists arrived"), "{line}");
    agent.wait_until_ready();
    let all: Vec<String> = (1..=2).map(local_pod).chain((1..=8).map(remote_pod)).collect();
    cluster.eventually_reaches(CLIENT_POD, frontend("10.96.101.250", 80), &all);
}

#[test]
fn a_kubeconfig_that_is_missing_ends_the_process_with_the_remedy() {
    let cluster = cluster();
    let missing = cluster.directory().join("nowhere.conf");
    let path = missing.display().to_string();
    let agent = cluster.agent_with(&cluster.configuration(&[("/clientConnection/kubeconfig", json!(path))]));
    let line = agent.wait_for_line("Error:");
    assert!(line.contains(&path) && line.contains("--kubeconfig"), "{line}");
    assert_eq!(agent.wait().code(), Some(1));
}

#[test]
fn a_changed_configuration_file_ends_the_process() {
    let cluster = cluster();
    let agent = cluster.agent();
    agent.wait_until_ready();
    let text = std::fs::read_to_string(cluster.configuration_file()).unwrap();
    std::fs::write(cluster.configuration_file(), text.replace("10.244.0.0/16", "10.0.0.0/8")).unwrap();
    let line = agent.wait_for_line("Error:");
    assert!(line.contains("config.conf") && line.contains("changed"), "{line}");
    assert_eq!(agent.wait().code(), Some(1));
}

#[test]
fn flags_alone_do_without_a_file() {
    let cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let kubeconfig = format!("--kubeconfig={}", cluster.api.kubeconfig().display());
    let hostname = format!("--hostname-override={NODE}");
    let flags = [&kubeconfig, &hostname, "--proxy-mode=nftables", "--conntrack-max-per-core=0", "-v=4"];
    let agent = cluster.agent_by(&flags.map(AsRef::as_ref));
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
}

#[test]
fn a_taken_port_is_named_and_disturbs_no_traffic() {
    let cluster = cluster();
    let shop = apply_service(&cluster, "shop", 2, &[Endpoint::local(1)]);
    let address = SocketAddr::from(([0, 0, 0, 0], 10_256));
    let taken = cluster.node().run(|| TcpListener::bind(address)).unwrap().unwrap();
    let agent = cluster.agent();
    let line = agent.wait_for_line("cannot listen on");
    assert!(line.contains("10256") && line.contains("healthzBindAddress"), "{line}");
    agent.wait_until_ready();
    cluster.eventually_reaches(CLIENT_POD, shop, &[local_pod(1)]);
    // Once it is free it is taken, without a restart.
    drop(taken);
    cluster.eventually_replies(frontend("127.0.0.1", 10_256), "/healthz", |reply| reply.status == 200);
}

#[test]
fn a_taken_port_ends_the_process_if_asked_to() {
    let cluster = cluster();
    let address = SocketAddr::from(([127, 0, 0, 1], 10_249));
    let taken = cluster.node().run(|| TcpListener::bind(address)).unwrap().unwrap();
    let agent = cluster.agent_with(&cluster.configuration(&[("/bindAddressHardFail", json!(true))]));
    let line = agent.wait_for_line("Error:");
    assert!(line.contains("127.0.0.1:10249") && line.contains("metricsBindAddress"), "{line}");
    assert_eq!(agent.wait().code(), Some(1));
    drop(taken);
}

/// Runs `openssl`; `None` where there is none.
fn openssl(arguments: &[&str]) -> Option<Command> {
    if Command::new("openssl").arg("version").output().is_err() {
        skipped_outside_ci("no openssl, so no server with a certificate");
        return None;
    }
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Some(command)
}

/// Ends the process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_wrong_certificate_authority_is_named() {
    let cluster = cluster();
    let file = |name: &str| cluster.directory().join(name).display().to_string();
    for name in ["server", "other"] {
        let (key, certificate) = (file(&format!("{name}.key")), file(&format!("{name}.crt")));
        let request =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        let names =
            ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", &key, "-out", &certificate];
        let Some(mut command) = openssl(&[&request[..], &names[..]].concat()) else { return };
        assert!(command.status().unwrap().success());
    }
    let (key, certificate) = (file("server.key"), file("server.crt"));
    let serve = ["s_server", "-accept", "127.0.0.1:6443", "-key", &key, "-cert", &certificate, "-www"];
    let _server = Running(cluster.node().run(|| openssl(&serve).unwrap().spawn()).unwrap().unwrap());
    let kubeconfig = file("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'https://127.0.0.1:6443', \
         certificate-authority: {}}}\nusers:\n- name: u\n  user: {{token: t}}\ncontexts:\n- name: c\n  context: \
         {{cluster: c, user: u}}\ncurrent-context: c\n",
        file("other.crt")
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let before = cluster.generation();
    let change = ("/clientConnection/kubeconfig", json!(kubeconfig));
    let agent = cluster.agent_with(&cluster.configuration(&[change]));
    let line = agent.wait_for_line("check that certificate-authority in the kubeconfig is the one of this API server");
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(cluster.generation(), before);
}
