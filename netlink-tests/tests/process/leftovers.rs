//! Elements in large maps that an earlier agent programmed and nothing wants any more.

use serde_json::Value;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::agent_process::AgentProcess;
use vmap_proxy_testbed::cluster::node_object;
use vmap_proxy_testbed::holdings::{Holdings, await_holdings};
use vmap_proxy_testbed::manifest_directory::ManifestDirectory;
use vmap_proxy_testbed::manifests::{service, slice};

use crate::hostile::{expected, namespace};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");

/// Services with ninety endpoints each: from 92 of them on, the map of endpoints is looked up and not listed.
fn services(count: usize) -> Vec<Value> {
    let web = |number: usize| {
        let name = format!("shop/web-{number}");
        let pods: Vec<String> = (1..=90).map(|pod| format!("10.244.{number}.{pod}")).collect();
        let slice = slice(&name, "4").port(Tcp, 8080).endpoints(pods.iter().map(String::as_str)).build();
        [service(&name).cluster_ip(&format!("10.96.1.{number}")).port(Tcp, 80).build(), slice]
    };
    std::iter::once(node_object()).chain((1..=count).flat_map(web)).collect()
}

#[test]
fn a_restart_is_ready_before_it_has_removed_what_is_left_over() {
    let (namespace, manifests) = (namespace(), ManifestDirectory::new());
    manifests.write_objects("services.json", &services(96));
    AgentProcess::start(PROGRAM, &namespace, &manifests, &[]).stop();
    let wanted = services(94);
    manifests.write_objects("services.json", &wanted);
    let agent = AgentProcess::start(PROGRAM, &namespace, &manifests, &[]);
    agent.wait_for_line("of an earlier state");
    let expected = expected(&wanted);
    await_holdings(&namespace, &expected, &"after a restart");
    let log = agent.log();
    let at = |text: &str| log.iter().position(|line| line.contains(text)).unwrap();
    assert!(at("programmed 94 services") < at("of an earlier state"), "{log:#?}");
    assert_eq!(Holdings::read(&namespace), expected);
    agent.stop();
}
