//! The checks of the demo, with the expected results.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::{DemoError, POD_PORT, PODS};
use vmap_proxy_lab::{Lab, LabError, PodResolver, Probe, ProbeResult, ResolveError, Transport};

/// One line of the table: some connections from one place to one address.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    pub(crate) what: &'static str,
    pub(crate) from: IpAddr,
    pub(crate) target: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) connections: usize,
    pub(crate) expected: Expected,
}

/// The expected result.
#[derive(Debug, Clone)]
pub(crate) enum Expected {
    /// Each of these pods answers at least once, and no other.
    AllOf(Vec<&'static str>, Source),
    /// One of these pods answers every time.
    OneOf(Vec<&'static str>, Source),
    /// The connection is refused at once.
    Refused,
}

/// The source address that the pod should see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The client's own.
    Kept,
    /// The node's.
    Node,
    /// Kept, unless the pod is the client itself.
    NodeIfItself,
}

const ALL: [&str; 3] = ["my-sts-0", "my-sts-1", "my-sts-2"];
const CLIENT: &str = "198.51.100.23";
const CLIENT6: &str = "2001:db8:2::23";
const NODE: &str = "192.0.2.11";
const NODE6: &str = "2001:db8:1::11";
const POD: &str = "10.244.1.77";
const POD6: &str = "fd00:10:244:1::77";

/// Enough connections that each of three pods is seen, except in one run of
/// 10^8.
const MANY: usize = 48;

fn check(
    what: &'static str,
    from: &str,
    target: &str,
    transport: Transport,
    connections: usize,
    expected: Expected,
) -> Option<Check> {
    Some(Check { what, from: from.parse().ok()?, target: target.parse().ok()?, transport, connections, expected })
}

fn all(source: Source) -> Expected {
    Expected::AllOf(ALL.to_vec(), source)
}

/// Every pod and the node reach each pod under the address it has itself.
pub(crate) fn headless() -> Vec<Check> {
    let mut checks = Vec::new();
    for (what, from) in [("pod -> pod", POD), ("node -> pod", NODE), ("pod -> itself", PODS[0].1)] {
        for (name, v4, _) in PODS {
            let target = format!("{v4}:{POD_PORT}");
            let expected = Expected::OneOf(vec![name], Source::Kept);
            checks.extend(check(what, from, &target, Transport::Tcp, 1, expected));
        }
    }
    checks
}

/// Cluster IP, NodePort and load balancer address, from everywhere.
pub(crate) fn web() -> Vec<Check> {
    use Source::{Kept, Node, NodeIfItself};
    use Transport::{Tcp, Udp};
    let checks = [
        check("ClusterIP from a pod", POD, "10.96.0.10:80", Tcp, MANY, all(Kept)),
        check("ClusterIP from a pod, UDP", POD, "10.96.0.10:53", Udp, MANY, all(Kept)),
        check("ClusterIP from the node", NODE, "10.96.0.10:80", Tcp, MANY, all(Node)),
        check("NodePort from outside", CLIENT, "192.0.2.11:30080", Tcp, MANY, all(Node)),
        check("NodePort from outside, UDP", CLIENT, "192.0.2.11:30053", Udp, MANY, all(Node)),
        check("load balancer from outside", CLIENT, "203.0.113.10:80", Tcp, MANY, all(Node)),
        check("hairpin: my-sts-0 to its own Service", PODS[0].1, "10.96.0.10:80", Tcp, MANY, all(NodeIfItself)),
        check("an undefined port", POD, "10.96.0.10:81", Tcp, 1, Expected::Refused),
        check("ClusterIP from a pod, IPv6", POD6, "[fd00:10:96::a]:80", Tcp, MANY, all(Kept)),
        check("ClusterIP from the node, IPv6", NODE6, "[fd00:10:96::a]:80", Tcp, MANY, all(Node)),
        check("NodePort from outside, IPv6", CLIENT6, "[2001:db8:1::11]:30080", Tcp, MANY, all(Node)),
    ];
    checks.into_iter().flatten().collect()
}

/// A name, and the connections to the addresses that a pod's own resolver finds for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByName {
    pub(crate) name: &'static str,
    /// The pod that asks, by its address of the family that counts.
    from: &'static str,
    port: u16,
    connections: usize,
    /// The pods that may answer, each at least once.
    pods: &'static [&'static str],
}

/// Names from inside of `my-sts-1`, and of a pod without names.
pub(crate) const NAMES: [ByName; 5] = [
    ByName {
        name: "my-sts-0.my-service.default.svc",
        from: PODS[1].1,
        port: POD_PORT,
        connections: 1,
        pods: &["my-sts-0"],
    },
    ByName {
        name: "my-sts-0.my-service.default.svc",
        from: PODS[1].2,
        port: POD_PORT,
        connections: 1,
        pods: &["my-sts-0"],
    },
    ByName { name: "my-service", from: POD, port: POD_PORT, connections: 1, pods: &ALL },
    ByName { name: "web.default", from: POD, port: 80, connections: MANY, pods: &ALL },
    ByName { name: "web.default", from: POD6, port: 80, connections: MANY, pods: &ALL },
];

impl ByName {
    /// Resolves the name where the client is: one check for all of its addresses of the client's family.
    pub(crate) fn resolve(&self, lab: &Lab, resolver: &PodResolver) -> Result<Vec<Check>, ResolveError> {
        let Ok(from) = self.from.parse::<IpAddr>() else { return Ok(Vec::new()) };
        let found = resolver.lookup(lab.owner(from)?, self.name)?;
        let of_family: Vec<IpAddr> = found.into_iter().filter(|found| found.is_ipv4() == from.is_ipv4()).collect();
        // One address leads to any of the pods, several lead to one each.
        let every_pod = of_family.len() == 1;
        let target = |(index, address)| Check {
            what: self.name,
            from,
            target: SocketAddr::new(address, self.port),
            transport: Transport::Tcp,
            connections: self.connections,
            expected: match self.pods.get(index) {
                Some(pod) if !every_pod => Expected::OneOf(vec![*pod], Source::Kept),
                _ => Expected::AllOf(self.pods.to_vec(), Source::Kept),
            },
        };
        Ok(of_family.into_iter().enumerate().map(target).collect())
    }

    /// The number of checks that the name should lead to.
    pub(crate) fn expected_checks(&self) -> usize {
        if self.connections == 1 { self.pods.len() } else { 1 }
    }
}

/// Affinity, `externalTrafficPolicy: Local`, no endpoints.
pub(crate) fn policies() -> Vec<Check> {
    use Transport::Tcp;
    let one = Expected::OneOf(ALL.to_vec(), Source::Kept);
    let local = Expected::AllOf(ALL[..2].to_vec(), Source::Kept);
    let checks = [
        check("affinity: one pod for one client", POD, "10.96.0.20:80", Tcp, MANY, one),
        check("local NodePort from outside: local pods", CLIENT, "192.0.2.11:30081", Tcp, MANY, local),
        check("local NodePort from a pod: all pods", POD, "192.0.2.11:30081", Tcp, MANY, all(Source::Kept)),
        check("a Service without endpoints", POD, "10.96.0.40:80", Tcp, 1, Expected::Refused),
    ];
    checks.into_iter().flatten().collect()
}

/// The pod that left gets nothing any more.
pub(crate) fn after_removal() -> Vec<Check> {
    let expected = || Expected::AllOf(ALL[1..].to_vec(), Source::Kept);
    let checks = [
        check("ClusterIP from a pod", POD, "10.96.0.10:80", Transport::Tcp, MANY, expected()),
        check("ClusterIP from a pod, IPv6", POD6, "[fd00:10:96::a]:80", Transport::Tcp, MANY, expected()),
    ];
    checks.into_iter().flatten().collect()
}

impl Check {
    /// Makes the connections.
    pub(crate) fn run(&self, lab: &Lab) -> Result<Vec<ProbeResult>, LabError> {
        let timeout = Duration::from_millis(900);
        let probe = Probe { source: self.from, target: self.target, transport: self.transport, timeout };
        lab.probe_all(&vec![probe; self.connections])
    }
}

/// Connections made all the time while something else happened.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    pub(crate) connections: usize,
    pub(crate) failures: Vec<ProbeResult>,
}

/// Connects to `web` without a pause while `change` runs.
pub(crate) fn flow_while(lab: &Lab, change: impl FnOnce() -> Result<(), DemoError>) -> Result<Flow, DemoError> {
    let Some(check) = check("", POD, "10.96.0.10:80", Transport::Tcp, 8, Expected::Refused) else {
        return Ok(Flow::default());
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| -> Result<Flow, LabError> {
            let mut flow = Flow::default();
            while !done.load(Ordering::Acquire) {
                let results = check.run(lab)?;
                flow.connections += results.len();
                flow.failures
                    .extend(results.into_iter().filter(|result| !matches!(result, ProbeResult::Answered { .. })));
            }
            Ok(flow)
        });
        let changed = change();
        done.store(true, Ordering::Release);
        let flow = client.join().map_err(|_| DemoError::Agent("the client panicked".to_owned()))??;
        changed.map(|()| flow)
    })
}
