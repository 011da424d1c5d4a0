//! `vmap-proxy demo`: Services at work on a laptop, without a cluster.
//!
//! A lab of network namespaces stands for a small cluster (see [`vmap_proxy_lab`]);
//! the real agent follows a directory with the project's `examples/` in the node's
//! namespace, and real connections show which pod answers, and which source address
//! it sees. Nothing outside the lab changes.
//!
//! The agent is a child process: the same program, started as `vmap-proxy run`.
//! So this crate needs nothing of the agent's library, and the binary may have
//! it or not (feature `demo` of `vmap-proxy`).

/// Prints a line. A reader that has gone (`vmap-proxy demo | head`) misses it.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($line)*);
    }};
}

mod agent;
mod checks;
mod comparison;
mod keep;
mod objects;
mod report;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use agent::DemoAgent;
use keep::Kept;
use report::Report;
use vmap_proxy_lab::{Lab, LabError, PodResolver, Transport};

/// The reason why the demo could not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The namespaces could not be made.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Half of the demo is about IPv6.
    #[error(
        "this kernel has no IPv6, and half of the demo is about it: boot without ipv6.disable=1 to see it. The agent \
         itself needs no IPv6"
    )]
    NoIpv6,
    /// The directory with the manifests could not be written.
    #[error("{path}: {source}; the demo needs a directory for temporary files, set TMPDIR to one")]
    Manifests {
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The demo ran to its end, and something was not as it should be.
    #[error("{0} checks were not as expected, see the lines marked NO")]
    Unexpected(usize),
    /// The agent did not get ready or ended too early.
    #[error("the agent in the demo's node failed: {0}")]
    Agent(String),
    /// The kernel's objects could not be counted.
    #[error("the kernel's tables can't be listed: {0}")]
    Kernel(#[source] std::io::Error),
    /// The shell of `--keep` could not be started.
    #[error("no shell could be started: {0}; set SHELL to one")]
    Shell(#[source] std::io::Error),
}

/// The options of the demo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether a shell opens inside the cluster when everything has been shown.
    pub keep: bool,
    /// The verbosity of the agent (`-v`); 2 at least.
    pub verbosity: u32,
    /// The format of its log (`--logging-format`), if not the default one.
    pub log_format: Option<String>,
}

/// The three pods of the StatefulSet, by the last byte group of their addresses.
pub(crate) const PODS: [(&str, &str, &str); 3] = [
    ("my-sts-0", "10.244.1.10", "fd00:10:244:1::10"),
    ("my-sts-1", "10.244.1.11", "fd00:10:244:1::11"),
    ("my-sts-2", "10.244.2.10", "fd00:10:244:2::10"),
];
const POD_PORT: u16 = 8080;

/// The address of the node on which the agent answers names, as NodeLocal DNSCache has it.
const DNS: &str = "169.254.20.10";

/// Runs the demo and prints its table.
///
/// Call it before any thread exists: it enters a user namespace if need be.
///
/// # Errors
/// If the lab or the agent can't be started, or if a check was not as expected.
pub fn demo(options: &Options) -> Result<(), DemoError> {
    if !vmap_proxy_lab::has_ipv6() {
        return Err(DemoError::NoIpv6);
    }
    vmap_proxy_lab::enter_user_namespace()?;
    say!("A cluster of network namespaces: node-1 with two pods of my-sts and a client pod,");
    say!("node-2 with a third pod of my-sts, and a client outside. Nothing else is touched.\n");
    let lab = build_lab()?;
    let kept = if options.keep { Some(Kept::new()?) } else { None };
    let agent = DemoAgent::in_cluster(&lab, options, kept.as_ref())?;
    let summary = agent.wait_until_ready()?;
    say!("The agent programmed {}.\n", summary.split(" in ").next().unwrap_or_default());

    let mut report = Report::new(names());
    report.section("headless Service my-service and StatefulSet my-sts: no rules, every pod under its own address");
    report.run(&lab, &checks::headless())?;
    report.section(
        "the same pods and Service web by name: pods ask the agent, with the resolv.conf that the kubelet writes",
    );
    report.run_names(&lab, &PodResolver::new(&addresses(&[DNS]), "default", "cluster.local")?, &checks::NAMES)?;
    report.section("Service web: one address for the same pods");
    report.run(&lab, &checks::web())?;
    report.section("Services sticky, local and empty: affinity, traffic policy, no endpoints");
    report.run(&lab, &checks::policies())?;
    report.section("the endpoints of web change while a client connects all the time: my-sts-0 leaves");
    let flow = checks::flow_while(&lab, || agent.remove_pod("my-sts-0"))?;
    report.flow(&flow);
    report.run(&lab, &checks::after_removal())?;

    report.comparison(&comparison::figures(options)?);

    if let Some(kept) = kept {
        agent.restore_pods()?;
        let outcome = report.finish();
        kept.explore(&lab, &agent)?;
        agent.stop()?;
        return outcome;
    }
    agent.stop()?;
    report.section("the agent has stopped: its rules stay, as kube-proxy's do");
    report.run(&lab, &checks::after_removal()[..1])?;
    report.finish()
}

fn build_lab() -> Result<Lab, LabError> {
    let mut builder = Lab::builder()
        .node_addresses(addresses(&["192.0.2.11", "2001:db8:1::11", DNS]))
        .uplink("client", "eth0", addresses(&["198.51.100.23", "2001:db8:2::23"]))
        .host("client-pod", "pod-client", addresses(&["10.244.1.77", "fd00:10:244:1::77"]));
    for (name, v4, v6) in PODS {
        let interface = if name == "my-sts-2" { "eth1".to_owned() } else { format!("pod-{}", &name[7..]) };
        builder = builder.host(name, interface, addresses(&[v4, v6]));
    }
    let lab = builder.build()?;
    for address in PODS.iter().flat_map(|(_, v4, v6)| addresses(&[v4, v6])) {
        for transport in [Transport::Tcp, Transport::Udp] {
            lab.listen((address, POD_PORT).into(), transport)?;
        }
    }
    Ok(lab)
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Returns the owner of each address, for the table.
fn names() -> BTreeMap<IpAddr, &'static str> {
    let fixed = [
        ("192.0.2.11", "node-1"),
        ("2001:db8:1::11", "node-1"),
        ("198.51.100.23", "client"),
        ("2001:db8:2::23", "client"),
        ("10.244.1.77", "client-pod"),
        ("fd00:10:244:1::77", "client-pod"),
    ];
    let pods = PODS.iter().flat_map(|(name, v4, v6)| [(*v4, *name), (*v6, *name)]);
    fixed.into_iter().chain(pods).filter_map(|(text, name)| Some((text.parse().ok()?, name))).collect()
}
