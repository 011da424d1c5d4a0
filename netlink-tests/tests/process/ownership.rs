//! To whom the tables belong: to one agent on each node, to the kernel's owner of them if that is asked for, and to
//! another program if it was there first.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vmap_proxy_agent::netlink::{Kernel, OwnTable, TableState};
use vmap_proxy_compiler::ruleset::Family;
use vmap_proxy_lab::NetNs;
use vmap_proxy_lab::Transport::Tcp;
use vmap_proxy_testbed::agent_process::{AgentProcess, on_manifests};
use vmap_proxy_testbed::holdings::{Holdings, await_holdings};
use vmap_proxy_testbed::manifests::slice;
use vmap_proxy_testbed::nft::{load_nft, nft_in};
use vmap_proxy_testbed::skip::skipped;

use crate::hostile::{Node, expected, services};

const PROGRAM: &str = env!("CARGO_BIN_EXE_agent-under-test");
const FLUSH_PROOF: &str = "--nftables-flush-proof";

/// A second program, `nft -i`, that owns our table for as long as it lives.
struct Owner(Child);

impl Owner {
    fn take(node: &Node) -> Self {
        let spawn = || Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        let mut child = node.namespace.run(spawn).unwrap().unwrap();
        let input = child.stdin.as_mut().unwrap();
        writeln!(input, "delete table ip vmap-proxy; add table ip vmap-proxy {{ flags owner; }}").unwrap();
        input.flush().unwrap();
        Self(child)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_table_that_another_process_owns_makes_the_proxy_unwell_until_it_is_free() {
    let node = Node::start(50);
    let owner = Owner::take(&node);
    // On a slow machine the deletion alone is noticed first.
    let reply = node.await_health("owned", |reply| reply.status == 503 && reply.body.contains("belongs to process"));
    for words in [&*owner.0.id().to_string(), "flag owner"] {
        assert!(reply.body.contains(words), "{words}: {reply:?}");
    }
    assert_eq!(node.health("/livez").status, 200, "nobody should restart it for that yet");
    drop(owner);
    node.ends_well("the owner has gone");
}

#[test]
fn a_second_agent_and_cleanup_refuse_beside_a_running_one() {
    let node = Node::start(10);
    let first = node.agent.id().to_string();
    let second = AgentProcess::launch(PROGRAM, &node.namespace, &node.manifests, &[]);
    let (status, log) = second.end();
    assert!(!status.success());
    let said = |words: &str| log.iter().any(|line| line.contains("another vmap-proxy (pid ") && line.contains(words));
    assert!(said(&first) && said("stop it first"), "{log:#?}");

    let cleanup = || Command::new(PROGRAM).arg("cleanup").output();
    let output = node.namespace.run(cleanup).unwrap().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && complaint.contains(&first), "{complaint}");
    // In another network namespace, it is another node.
    let elsewhere = Node::start(10);
    elsewhere.ends_well("beside it");
    // However the first ends, the right is free.
    let Node { namespace, manifests, agent, .. } = node;
    agent.kill();
    let third = AgentProcess::start(PROGRAM, &namespace, &manifests, &[]);
    third.stop();
}

/// As the pods of two DaemonSets are, with `hostNetwork` and without `hostPID`.
#[test]
fn a_second_agent_in_another_process_namespace_names_the_first() {
    let node = Node::start(10);
    let mut first = on_manifests(PROGRAM, &node.manifests, &["--healthz-bind-address=", "--metrics-bind-address="]);
    first.env("POD_NAME", "vmap-proxy-x7k2p");
    node.agent.kill();
    let mut first = AgentProcess::spawn(&node.namespace, in_own_process_namespace(first));
    first.wait_for(&["programmed "]);
    let second = on_manifests(PROGRAM, &node.manifests, &[]);
    let (status, log) = AgentProcess::spawn(&node.namespace, in_own_process_namespace(second)).end();
    assert!(!status.success(), "{log:#?}");
    let words = ["another vmap-proxy", "in another process namespace", "pod vmap-proxy-x7k2p", "pid ", "stop it first"];
    let is_said = |line: &String| words.iter().all(|word| line.contains(word));
    assert!(log.iter().any(is_said), "{log:#?}");
}

/// The same command in process and mount namespaces of its own, with a `/proc` that shows them.
fn in_own_process_namespace(command: Command) -> Command {
    let mut outer = Command::new("unshare");
    outer.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
    outer.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

#[test]
fn the_other_family_is_programmed_while_one_table_belongs_to_another_process() {
    let node = Node::start(50);
    let owner = Owner::take(&node);
    node.await_health("owned", |reply| reply.status == 503 && reply.body.contains("belongs to process"));
    let mut objects = services(50);
    // Number 46 has IPv6 as well.
    let more = slice("shop/web-46", "6").port(Tcp, 8080).endpoints(["fd00:10:244::1", "fd00:10:244::2"]);
    let more = more.build();
    let is_same =
        |object: &Value| object["kind"] == more["kind"] && object["metadata"]["name"] == more["metadata"]["name"];
    let place = objects.iter().position(is_same).unwrap();
    objects[place] = more;
    node.manifests.write_objects("services.json", &objects);
    let wanted = expected(&objects);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let differences = Holdings::read(&node.namespace)[1].differences(&wanted[1]);
        if differences.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "{differences:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    let reply = node.health("/healthz");
    assert!(reply.status == 503 && reply.body.contains("flag owner"), "{reply:?}");
    drop(owner);
    await_holdings(&node.namespace, &wanted, &"the owner has gone");
    node.await_health("the owner has gone", |reply| reply.status == 200);
}

fn table(namespace: &NetNs, family: Family) -> Option<TableState> {
    namespace.run(|| Kernel::open().and_then(|mut kernel| kernel.read_table(OwnTable::Main, family))).unwrap().unwrap()
}

/// Returns whether the table has flags `owner` and `persist` with a living owner, `persist` alone, or neither.
fn ownership(namespace: &NetNs) -> [(bool, bool); 2] {
    Family::ALL.map(|family| {
        let table = table(namespace, family).unwrap();
        (table.owner().is_some(), table.is_persistent())
    })
}

fn kernel_can(namespace: &NetNs) -> bool {
    let can = namespace.run(|| Kernel::open().and_then(|mut kernel| kernel.knows_flush_proof_tables()));
    can.unwrap().unwrap()
}

#[test]
fn a_flush_proof_table_outlives_flushes_and_its_agent() {
    let node = Node::start(50);
    let Node { namespace, manifests, agent, expected } = node;
    if !kernel_can(&namespace) {
        return skipped("the kernel has no table flag persist (Linux 6.9)");
    }
    let start = |flags: &[&str]| AgentProcess::start(PROGRAM, &namespace, &manifests, flags);
    let assert_as_expected = |context: &str| {
        for (now, expected) in Holdings::read(&namespace).iter().zip(&expected) {
            assert_eq!(now.differences(expected), [] as [String; 0], "{context}");
        }
    };
    // The ordinary tables of the first agent are replaced.
    agent.kill();
    assert_eq!(ownership(&namespace), [(false, false); 2]);
    let agent = start(&[FLUSH_PROOF]);
    agent.wait_for_line("flush-proof: while this agent runs");
    assert_eq!(ownership(&namespace), [(true, true); 2]);
    assert_as_expected("after the change to flush-proof tables");

    // Others can neither flush nor change them.
    load_nft(&namespace, "flush ruleset").unwrap();
    for text in [
        "delete table ip vmap-proxy",
        "flush table ip6 vmap-proxy",
        "add chain ip vmap-proxy evil { type filter hook input priority 0; policy drop; }",
        "flush map ip vmap-proxy services",
    ] {
        let refused = load_nft(&namespace, text);
        assert!(refused.is_err(), "{text}");
    }
    assert_as_expected("after a flush");
    assert!(agent.log().iter().all(|line| !line.contains("was changed by")), "{:#?}", agent.log());

    // They stay when it ends in whatever way, and the next agent takes them over.
    agent.kill();
    assert_eq!(ownership(&namespace), [(false, true); 2]);
    let agent = start(&[FLUSH_PROOF]);
    let line = agent.wait_for_line("programmed ");
    assert!(line.contains("0 elements added, 0 removed"), "{line}");
    assert_eq!(ownership(&namespace), [(true, true); 2]);

    // Without an agent an operator can do what they like.
    agent.stop();
    load_nft(&namespace, "flush ruleset").unwrap();
    assert!(Family::ALL.into_iter().all(|family| table(&namespace, family).is_none()));
    start(&[FLUSH_PROOF]).stop();

    // Without the flag the tables are ordinary ones again, and cleanup removes either.
    let agent = start(&[]);
    assert_eq!(ownership(&namespace), [(false, false); 2]);
    assert_as_expected("after the change back");
    agent.stop();
    start(&[FLUSH_PROOF]).stop();
    let cleaned = namespace.run(|| Command::new(PROGRAM).arg("cleanup").output()).unwrap().unwrap();
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(nft_in(&namespace, &["list", "tables"], "").unwrap(), "");
}
