//! The way to the API server, as the environment of the process has it.

use std::path::PathBuf;
use std::time::Duration;

use rcgen::PKCS_ECDSA_P256_SHA256;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::api_objects::NODE;
use vmap_proxy_testbed::apiserver::certificates::{Authority, server_config};
use vmap_proxy_testbed::apiserver::{Front, Role};
use vmap_proxy_testbed::cluster::SECOND_NODE_IP;
use vmap_proxy_testbed::end_to_end::{EndToEnd, NODE_IP};
use vmap_proxy_testbed::nft::load_nft;

use crate::cluster;

/// The double behind TLS on the node's address, which is no loopback address,
/// and a kubeconfig for it with these fields of the cluster besides.
fn behind_tls(cluster: &mut EndToEnd, fields: &str) -> Option<(Front, PathBuf)> {
    let authority = Authority::new(&PKCS_ECDSA_P256_SHA256).unwrap();
    let pair = authority.server(&[NODE_IP], &PKCS_ECDSA_P256_SHA256).unwrap();
    let role = Role::Tls(server_config(&pair, "h2", None).unwrap(), cluster.api.double()?.server.address());
    let address = format!("{NODE_IP}:6443").parse().unwrap();
    let front = cluster.node().run(|| Front::start(address, role)).unwrap().unwrap();
    std::fs::write(cluster.directory().join("ca.crt"), authority.certificate()).unwrap();
    let path = cluster.directory().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
         clusters: [{{name: a, cluster: {{server: 'https://{NODE_IP}:6443', {fields}}}}}]\n\
         users: [{{name: a, user: {{token: secret}}}}]\n\
         contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    Some((front, path))
}

pub(crate) fn flags(source: String) -> [String; 4] {
    [source, format!("--hostname-override={NODE}"), "--proxy-mode=nftables".into(), "--conntrack-max-per-core=0".into()]
}

#[test]
fn no_proxy_excepts_the_api_server_from_the_proxy() {
    let mut cluster = cluster();
    let Some((front, kubeconfig)) = behind_tls(&mut cluster, "certificate-authority: ca.crt") else { return };
    let flags = flags(format!("--kubeconfig={}", kubeconfig.display()));
    for exception in [NODE_IP, "192.0.2.0/24", "10.0.0.0/8, 192.0.2.11:6443", "*"] {
        let connections = front.seen().len();
        // Nobody is there.
        let proxy = ("HTTPS_PROXY", "http://192.0.2.13:3128");
        let agent = cluster.agent_in_environment(&flags, &[proxy, ("NO_PROXY", exception)]);
        agent.wait_until_ready();
        assert!(front.seen().len() > connections, "{exception}");
        assert!(!agent.log().iter().any(|line| line.contains("through the proxy")), "{exception}");
        agent.terminate();
    }
}

#[test]
fn the_proxy_of_the_environment_leads_to_the_api_server() {
    let mut cluster = cluster();
    let Some((_front, kubeconfig)) = behind_tls(&mut cluster, "certificate-authority: ca.crt") else { return };
    let flags = flags(format!("--kubeconfig={}", kubeconfig.display()));
    for (variable, scheme, role, port, expected) in [
        ("HTTPS_PROXY", "http://", Role::HttpProxy, 3128, "CONNECT 192.0.2.11:6443"),
        ("https_proxy", "", Role::HttpProxy, 3129, "CONNECT 192.0.2.11:6443"),
        ("HTTPS_PROXY", "socks5://", Role::Socks5, 1080, "192.0.2.11:6443"),
    ] {
        let address = format!("{SECOND_NODE_IP}:{port}");
        let proxy = cluster.node().run(|| Front::start(address.parse().unwrap(), role)).unwrap().unwrap();
        let url = format!("{scheme}{address}");
        let environment = [(variable, url.as_str()), ("NO_PROXY", "192.0.2.11:443,.local,10.0.0.0/8")];
        let agent = cluster.agent_in_environment(&flags, &environment);
        agent.wait_until_ready();
        // Several are begun at once; the first to speak HTTP/2 is enough.
        let mut seen = proxy.seen();
        seen.retain(|line| !line.starts_with("failed"));
        assert!(!seen.is_empty() && seen.iter().all(|line| line == expected), "{variable}={url}: {seen:?}");
        let line = agent.wait_for_line("through the proxy");
        assert!(line.contains(&address) && line.contains(variable), "{line}");
        agent.terminate();
    }
}

/// An image FROM scratch: only who needs a certificate store misses it.
#[test]
fn no_certificate_store_is_needed_but_for_a_server_without_a_known_authority() {
    let mut cluster = cluster();
    let without_store = [("SSL_CERT_FILE", "/nonexistent/file"), ("SSL_CERT_DIR", "/nonexistent")];
    let Some(double) = cluster.api.double() else { return };
    let url = double.server.url();
    for source in [format!("--kubeconfig={}", double.server.kubeconfig().display()), format!("--master={url}")] {
        let agent = cluster.agent_in_environment(&flags(source), &without_store);
        agent.wait_until_ready();
        agent.terminate();
    }
    for fields in ["certificate-authority: ca.crt", "insecure-skip-tls-verify: true"] {
        let Some((_front, kubeconfig)) = behind_tls(&mut cluster, fields) else { return };
        let flags = flags(format!("--kubeconfig={}", kubeconfig.display()));
        let agent = cluster.agent_in_environment(&flags, &without_store);
        agent.wait_until_ready();
        agent.terminate();
    }
    let Some((_front, kubeconfig)) = behind_tls(&mut cluster, "") else { return };
    let flags = flags(format!("--kubeconfig={}", kubeconfig.display()));
    let agent = cluster.agent_in_environment(&flags, &without_store);
    let line = agent.wait_for_line("Error:");
    assert!(line.contains("certificate-authority") && line.contains("SSL_CERT_FILE"), "{line}");
    assert_eq!(agent.wait().code(), Some(1));
}

/// Waits for the line about silence, and checks how long that was: client-go
/// takes 45 s.
fn assert_noticed_in_time(agent: &AgentProcess) {
    let line = agent.wait_for_line_within(Duration::from_secs(120), "no sign of life for");
    let seconds: u64 = line.split("life for ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((30..=50).contains(&seconds), "{line}");
}

#[test]
fn a_server_that_dies_behind_a_load_balancer_is_noticed() {
    let mut cluster = cluster();
    let Some((front, kubeconfig)) = behind_tls(&mut cluster, "certificate-authority: ca.crt") else { return };
    let agent = cluster.agent_in_environment(&flags(format!("--kubeconfig={}", kubeconfig.display())), &[]);
    agent.wait_until_ready();
    front.freeze();
    assert_noticed_in_time(&agent);
    let metrics = "127.0.0.1:10249".parse().unwrap();
    let reply = cluster.eventually_replies(metrics, "/metrics", |reply| reply.status == 200);
    for resource in ["services", "endpointslices", "nodes", "servicecidrs"] {
        let name = format!("vmap_proxy_api_last_received_timestamp_seconds{{resource=\"{resource}\"}}");
        assert!(reply.body.contains(&name), "{}", reply.body);
    }
    let host = format!("host=\"{NODE_IP}:6443\"");
    let counted =
        reply.body.lines().any(|line| line.starts_with("rest_client_requests_total{") && line.contains(&host));
    assert!(counted, "{}", reply.body);
}

/// HTTP/1.1 has no pings; the kernel's stand in.
#[test]
fn a_server_whose_machine_is_cut_off_is_noticed() {
    let mut cluster = cluster();
    let Some(double) = cluster.api.double() else { return };
    let (port, kubeconfig) = (double.server.address().port(), double.server.kubeconfig());
    let agent = cluster.agent_in_environment(&flags(format!("--kubeconfig={}", kubeconfig.display())), &[]);
    agent.wait_until_ready();
    let cut = format!("tcp sport {port} drop\ntcp dport {port} drop");
    let rules = format!("table ip cut {{\nchain in {{\ntype filter hook input priority 0\n{cut}\n}}\n}}\n");
    load_nft(cluster.node(), &rules).unwrap();
    assert_noticed_in_time(&agent);
}
