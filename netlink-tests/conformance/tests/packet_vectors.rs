//! The packet runner proves itself: rules made straight from the expectations pass every vector, and rules made
//! from wrong expectations fail every packet they are wrong about.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::Value;
use vmap_proxy_conformance::run_packets::{Failure, ProxyError, ProxyUnderTest, Summary, VectorReport, run_all};
use vmap_proxy_conformance::schema::{Expect, ObjectRef, Probe, TransportProtocol, Vector, Verdict};
use vmap_proxy_conformance::{repository_dir, schema};
use vmap_proxy_lab::NetNs;
use vmap_proxy_testbed::nft::load_nft;

vmap_proxy_testbed::in_own_namespaces!();

const PARALLEL: usize = 6;

/// Knows the answers: one rule per packet and outcome, from the vector itself.
struct Oracle {
    /// The change that it applies to an expectation before it obeys it.
    lie: fn(&mut Probe),
    node: Option<NetNs>,
    /// The phases still to come, next one last.
    phases: Vec<Vec<Probe>>,
}

impl Oracle {
    fn new(lie: fn(&mut Probe)) -> Self {
        Self { lie, node: None, phases: Vec::new() }
    }

    fn next_phase(&mut self) -> Result<(), ProxyError> {
        let mut probes = self.phases.pop().ok_or("more steps than phases")?;
        probes.iter_mut().for_each(self.lie);
        let node = self.node.as_ref().ok_or("a step before the start")?;
        Ok(load_nft(node, &rules(&probes)?)?)
    }
}

impl ProxyUnderTest for Oracle {
    fn start(&mut self, node: &NetNs, vector: &Vector) -> Result<(), ProxyError> {
        self.node = Some(node.try_clone()?);
        self.phases = vector.phases().map(|(_, probes)| probes.to_vec()).collect();
        self.phases.reverse();
        self.next_phase()
    }

    fn step(&mut self, _delete: &[ObjectRef], _apply: &[Value]) -> Result<(), ProxyError> {
        self.next_phase()
    }
}

fn rules(probes: &[Probe]) -> Result<String, std::fmt::Error> {
    let (mut translate, mut judge, mut masquerade) = (String::new(), String::new(), String::new());
    for Probe { from, to, expect, sticky, .. } in probes {
        let (ip, protocol) = (if to.ip.is_ipv4() { "ip" } else { "ip6" }, protocol(to.proto));
        let packet = format!("{ip} saddr {} {ip} daddr {} {protocol} dport {}", from.ip, to.ip, to.port);
        match expect.verdict {
            Verdict::Pass => {}
            Verdict::Drop => writeln!(judge, "{packet} drop")?,
            Verdict::Reject => writeln!(judge, "{packet} reject")?,
            Verdict::Dnat => {
                let choices = expect.endpoints.iter().take(if *sticky { 1 } else { usize::MAX }).enumerate();
                let choices: Vec<String> =
                    choices.map(|(slot, to)| format!("{slot} : {} . {}", to.ip(), to.port())).collect();
                let (count, choices) = (choices.len(), choices.join(", "));
                writeln!(translate, "{packet} dnat {ip} to numgen random mod {count} map {{ {choices} }}")?;
            }
        }
        let connection = format!(
            "ct status dnat ct original {ip} saddr {} ct original {ip} daddr {} meta l4proto {protocol} \
             ct original proto-dst {}",
            from.ip, to.ip, to.port
        );
        if expect.masquerade == Some(true) {
            writeln!(masquerade, "{connection} masquerade")?;
        }
        for endpoint in &expect.hairpin {
            writeln!(masquerade, "{ip} daddr {} {connection} masquerade", endpoint.ip())?;
        }
    }
    Ok(format!(
        "table inet oracle; delete table inet oracle
         table inet oracle {{
           chain translate {{ {translate} }}
           chain judge {{ {judge} }}
           chain rewrite-source {{ {masquerade} }}
           chain prerouting {{ type nat hook prerouting priority -100; jump translate; }}
           chain output {{ type nat hook output priority -100; jump translate; }}
           chain postrouting {{ type nat hook postrouting priority 100; jump rewrite-source; }}
           chain filter-input {{ type filter hook input priority 0; jump judge; }}
           chain filter-forward {{ type filter hook forward priority 0; jump judge; }}
           chain filter-output {{ type filter hook output priority 0; jump judge; }}
         }}"
    ))
}

fn protocol(protocol: TransportProtocol) -> &'static str {
    match protocol {
        TransportProtocol::Tcp => "tcp",
        TransportProtocol::Udp => "udp",
        TransportProtocol::Sctp => "sctp",
    }
}

fn all_vectors() -> Vec<Vector> {
    schema::load_dir(&repository_dir()).unwrap()
}

fn run_oracle(vectors: &[Vector], lie: fn(&mut Probe)) -> Vec<VectorReport> {
    run_all(vectors, PARALLEL, &|| Box::new(Oracle::new(lie)))
}

/// Returns the failed packets (phase, index); any other failure ends the test.
fn failed_packets(report: &VectorReport) -> BTreeSet<(usize, usize)> {
    let packets = report.failures.iter().map(|failure| match failure {
        Failure::Packet(mismatch) => (mismatch.phase, mismatch.index),
        other => panic!("{}: {other}", report.name),
    });
    packets.collect()
}

/// Runs all vectors with a lie and checks that exactly the packets it changed the truth for are noticed.
#[track_caller]
fn is_noticed(lie: fn(&mut Probe), matters: fn(&Vector, &Probe) -> bool) {
    let vectors = all_vectors();
    let mut lies_told = 0;
    for (vector, report) in vectors.iter().zip(run_oracle(&vectors, lie)) {
        let mut lies = BTreeSet::new();
        for (phase, (_, probes)) in vector.phases().enumerate() {
            for (index, probe) in probes.iter().enumerate() {
                if matters(vector, probe) {
                    lies.insert((phase, index));
                }
            }
        }
        lies_told += lies.len();
        assert_eq!(failed_packets(&report), lies, "{}: {}", report.name, Summary(std::slice::from_ref(&report)));
    }
    assert!(lies_told > 0, "no vector has a packet to lie about");
}

#[test]
fn the_truth_passes_every_vector() {
    let vectors = all_vectors();
    let reports = run_oracle(&vectors, |_| {});
    assert_eq!(reports.len(), vectors.len());
    eprintln!("{}", Summary(&reports));
    assert!(reports.iter().all(VectorReport::passed), "{}", Summary(&reports));
    for report in &reports {
        assert!(report.connections >= report.packets, "{}", report.name);
    }
}

#[test]
fn a_wrong_verdict_is_noticed() {
    is_noticed(
        |probe| {
            let verdict = match probe.expect.verdict {
                Verdict::Dnat => Verdict::Drop,
                Verdict::Drop => Verdict::Reject,
                Verdict::Reject => Verdict::Pass,
                Verdict::Pass => Verdict::Drop,
            };
            probe.expect = Expect { verdict, endpoints: [].into(), masquerade: None, hairpin: [].into() };
        },
        |_, _| true,
    );
}

#[test]
fn a_packet_let_through_is_noticed() {
    is_noticed(
        |probe| {
            let verdict = Verdict::Pass;
            probe.expect = Expect { verdict, endpoints: [].into(), masquerade: None, hairpin: [].into() };
        },
        |_, probe| probe.expect.verdict != Verdict::Pass,
    );
}

#[test]
fn a_wrong_source_address_is_noticed() {
    is_noticed(
        |probe| {
            if let Some(masquerade) = &mut probe.expect.masquerade {
                *masquerade = !*masquerade && probe.expect.hairpin.is_empty();
                probe.expect.hairpin.clear();
            }
        },
        // To an endpoint on the node itself nothing of it shows.
        |vector, probe| probe.expect.endpoints.iter().any(|endpoint| !vector.node.has_address(endpoint.ip())),
    );
}

#[test]
fn an_endpoint_never_chosen_is_noticed() {
    is_noticed(
        |probe| {
            if probe.expect.endpoints.len() > 1 {
                probe.expect.endpoints.pop_last();
            }
        },
        |_, probe| probe.expect.endpoints.len() > 1 && !probe.sticky,
    );
}

#[test]
fn a_sticky_client_that_strays_is_noticed() {
    is_noticed(|probe| probe.sticky = false, |_, probe| probe.sticky && probe.expect.endpoints.len() > 1);
}

/// No vector has a group so far, so this one is made from another: one client, two ports, one pod for both.
#[test]
fn a_group_that_splits_is_noticed() {
    let mut vector = all_vectors().into_iter().find(|vector| vector.name == "affinity").unwrap();
    vector.packets.truncate(1);
    vector.steps.clear();
    let mut other_port = vector.packets[0].clone();
    other_port.to.port += 1;
    vector.packets.push(other_port);
    vector.packets.iter_mut().for_each(|probe| probe.sticky_group = Some("one pod".to_owned()));
    let vectors = [vector];
    let together = run_oracle(&vectors, |_| {});
    assert!(together[0].passed(), "{}", Summary(&together));
    let apart = run_oracle(&vectors, |probe| {
        if probe.to.port == 81 {
            probe.expect.endpoints.pop_first();
        }
    });
    assert_eq!(failed_packets(&apart[0]), BTreeSet::from([(0, 0), (0, 1)]), "{}", Summary(&apart));
}
